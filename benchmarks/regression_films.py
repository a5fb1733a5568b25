"""Films for a pose network by xreg and by nanodrr, alone and within the same training.

python benchmarks/regression_films.py      (see --help)
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from common import RESULTS, describe_run, find_ct, load_ct, write_json
from cuda_timing import describe_card, peak_mb, sample_wall
from films import FIELD_MM, SDD, SOD
from renderers import NanoDRR
from rich.console import Console
from torch import Tensor

from xreg.geometry import Camera
from xreg.regression import PoseRange, Report, TrainSettings
from xreg.regression.canonical import Canonical
from xreg.regression.films import FilmSource
from xreg.regression.settings import Weights
from xreg.regression.train import Trainer
from xreg.renderer import drr
from xreg.volume import Volume

BOX = PoseRange((-30, 30), (-15, 15), (-10, 10), (-60, 60), (-60, 60), (-60, 60), SDD, SOD, FIELD_MM)
SAMPLES = (32, 64, 100, 125, 150, 175, 200, 250, 500)  # of nanodrr; 500 is what it takes if not told
JUDGED = 8  # films whose error is measured
BEHIND = SOD + 1000.0  # mm: a detector behind the body, as nanodrr needs one and a training has none
GOAL = 3.0  # films a second, in parts of nanodrr's
WARM = 3  # steps of a training before its clock
MODES = {"rendered": "rendered", "rendered_with_gradient": "rendered, with the gradient to the pose",
         "drawn": "drawn: rendered and given looks", "trained": "trained on",
         "trained_with_image": "trained on, with the loss through the renderer"}  # fmt: skip


class NanoFilms(FilmSource):
    """The films of a training, rendered by nanodrr from the same voxels; all else is xreg's."""

    def __init__(self, volume: Volume, canonical: Canonical, settings: TrainSettings, samples: int) -> None:
        super().__init__(volume, BOX, canonical, settings)
        self.peer = NanoDRR(self.bare, samples)
        self.deep: dict[tuple[int, int], Camera] = {}  # cameras by their size: a training has one of each

    def render(self, volume: Volume, camera: Camera, poses: Tensor, **how: str) -> Tensor:
        """As `FilmSource.render`, without structures."""
        if how:
            raise ValueError(f"nanodrr takes part without {sorted(how)}")
        deep = self.deep.setdefault(camera.size, camera.replace(sdd=BEHIND))
        return self.peer.images(deep, poses, volume.mu)


def errors(sources: dict[str, FilmSource]) -> dict[str, float]:
    """Relative L2 of each one's films, against the exact integral through the same voxels in float64."""
    one = next(iter(sources.values()))
    poses = one.box.pose(one.box.spread(JUDGED, 7), one.center)
    fine = replace(one.bare, mu=one.bare.mu.double())
    exact = drr(fine, one.camera, poses, integrator="exact", storage="float")
    found = {}
    for name, source in sources.items():
        with torch.no_grad():
            images = source.render(source.bare, source.camera, poses).double()
        found[name] = float((images - exact).norm() / exact.norm())
    return found


def matched(known: dict[str, float], goal: float, names: Sequence[str]) -> str:
    """The first of these with an error of at most `goal`, or the one of least error."""
    return next((n for n in names if known[n] <= goal), min(names, key=known.__getitem__))


def render_calls(source: FilmSource, batch: int, seed: int) -> dict[str, Any]:
    """What is timed of films alone: a call each."""
    poses = source.box.pose(source.box.draw(batch, torch.Generator().manual_seed(seed)), source.center)

    def rendered() -> Tensor:
        with torch.no_grad():
            return source.render(source.bare, source.camera, poses)

    def with_gradient() -> None:
        free = poses.clone().requires_grad_()
        source.render(source.bare, source.camera, free).sum().backward()

    def drawn() -> object:
        return source.draw(batch, torch.Generator().manual_seed(seed))

    return {"rendered": rendered, "rendered_with_gradient": with_gradient, "drawn": drawn}


def trained(volume: Volume, source: FilmSource, settings: TrainSettings, device: str) -> float:
    """Films a second of a training by itself: its steps, with the next films made meanwhile."""
    ends = []

    def on_report(report: Report) -> None:
        if report.validation is None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer([volume], BOX, settings, Path(folder), torch.device(device))
        trainer.sources = [source]
        trainer.run(on_report)
    steps = [late - early for early, late in zip(ends[WARM:], ends[WARM + 1 :], strict=False)]
    return settings.batch / statistics.median(steps)


def measure(
    volume: Volume, sources: dict[str, FilmSource], settings: TrainSettings, device: str, rounds: int
) -> dict[str, dict[str, float]]:
    """Films a second of each source in each mode, in rounds that all take turns in; medians."""
    known: dict[str, dict[str, list[float]]] = {n: {m: [] for m in MODES} for n in sources}
    peaks = {}
    for turn in range(rounds):
        for name, source in sources.items():
            calls = render_calls(source, settings.batch, turn)
            for mode, call in calls.items():
                found = sample_wall(call, device, 3)
                known[name][mode].append(1e6 * settings.batch / found["median"])
            peaks[name] = peak_mb(calls["rendered_with_gradient"], device)
            known[name]["trained"].append(trained(volume, source, settings, device))
            through = replace(settings, weights=Weights(image=1.0, rendered=settings.batch))
            known[name]["trained_with_image"].append(trained(volume, source, through, device))
    rows = {n: {m: statistics.median(v) for m, v in modes.items()} for n, modes in known.items()}
    return {n: row | {"peak_mb": peaks[n]} for n, row in rows.items()}


def ratios(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Films a second of xreg in parts of each peer's, in each mode."""
    own = rows["xreg joseph"]
    peers = {name: row for name, row in rows.items() if name != "xreg joseph"}
    return {name: {mode: own[mode] / row[mode] for mode in MODES} for name, row in peers.items()}


def goals(found: dict[str, float], peer: str) -> list[dict[str, Any]]:
    """The goal of every mode, which is one for a card; found: ratios to the peer of equal error."""
    known = {"goal": f">= {GOAL:g}", "where": f"xreg / {peer}"}
    return [
        {"what": f"films a second, {said}", **known, "value": found[mode], "met": found[mode] >= GOAL}
        for mode, said in MODES.items()
    ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--ct", help="Chest CT, or 'phantom'; default XREG_CHEST_CT, else that of `xreg demo`.")
@click.option("--batch", default=32, show_default=True, help="Films a step.")
@click.option("--steps", default=12, show_default=True, help=f"Steps of each training, above {WARM + 2}.")
@click.option("--rounds", default=3, show_default=True, help="Rounds, in which the renderers take turns.")
@click.option("--grid", default=4.0, show_default=True, help="Voxels that films are rendered from, mm.")
@click.option(
    "--samples",
    multiple=True,
    type=click.Choice([str(n) for n in SAMPLES]),
    help="Of nanodrr; may be given again.  [default: the least with xreg's error]",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Result (JSON).  [default: by the device]")
def main(
    ct: str | None, batch: int, steps: int, rounds: int, grid: float, samples: tuple[str, ...], device: str,
    out: Path | None,
) -> None:  # fmt: skip
    """Films a second of xreg and of nanodrr: rendered, given looks, and trained on in the same loop."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA card here")
    if steps < WARM + 3:
        raise SystemExit(f"--steps must be at least {WARM + 3}, got {steps}")
    out = out or RESULTS / ("regression_films.json" if device == "cpu" else "regression_films_cuda.json")
    console = Console(width=None if sys.stdout.isatty() else 140)
    ct = find_ct(ct)
    volume = load_ct(ct)
    settings = TrainSettings(steps=steps, batch=batch, grid_mm=grid, held_out=1, validations=1)
    canonical, placed = Canonical.of(BOX, settings.size), volume.to(device)
    peers = {f"nanodrr {n}": NanoFilms(placed, canonical, settings, n) for n in SAMPLES}
    sources = {"xreg joseph": FilmSource(placed, BOX, canonical, settings), **peers}
    error = errors(sources)
    console.print("relative error", error)
    peer = matched(error, error["xreg joseph"], list(peers))
    also = [f"nanodrr {n}" for n in samples]
    taken = {name: sources[name] for name in dict.fromkeys(["xreg joseph", peer, *also])}
    rows = measure(volume, taken, settings, device, rounds)
    found = ratios(rows)
    result = {
        "run": describe_run(ct, volume), "card": describe_card(device), "settings": settings.to_dict(),
        "errors": error, "equal_error": peer, "ratios": found,
        "goals": goals(found[peer], peer) if device == "cuda" else [],
        "rows": [{"renderer": name, "error": error[name], **row} for name, row in rows.items()],
    }  # fmt: skip
    write_json(out, result)
    for row in result["rows"]:
        console.print(row)
    console.print("xreg / peer", found)


if __name__ == "__main__":
    main()
