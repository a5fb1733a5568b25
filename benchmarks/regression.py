"""A pose regressor on a CT: its guesses, what registration makes of them, and a search beside it.

python benchmarks/regression.py --minutes 20      (see --help)
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import PHANTOM, RESULTS, describe_run, find_ct, load_ct, write_json
from cuda_timing import describe_card
from films import FIELD_MM, SDD, SOD, bone_points, random_look, take
from rich.console import Console
from torch import Tensor

from xreg.errors import XregError
from xreg.geometry import Camera, se3
from xreg.metrics import mtre, tangent_error
from xreg.registration import SearchBox, Settings, register_anywhere
from xreg.regression import PoseRange, Regressor, Report, TrainSettings, register_guessed, train
from xreg.regression.checkpoint import MODEL, load, read_log
from xreg.volume import Volume

BOX = PoseRange((-30, 30), (-15, 15), (-10, 10), (-60, 60), (-60, 60), (-60, 60), SDD, SOD, FIELD_MM)
SUCCESS_MM, PIXELS = 2.0, 256
GOALS = {"guess_degrees": 8.0, "guess_in_plane_mm": 15.0, "refined_success": 0.9}


@dataclass(frozen=True)
class Taken:
    """A held-out film, its mask, its camera and the true pose."""

    film: Tensor
    mask: Tensor
    camera: Camera
    truth: Tensor


def frontal(volume: Volume, sdd: float = SDD, field: float = FIELD_MM, pixels: int = PIXELS) -> Camera:
    """The camera of a film of `field` mm and `pixels` a side."""
    return Camera.c_arm(
        sdd=sdd, sod=SOD, size=(pixels, pixels), spacing=field / pixels, isocenter=volume.center
    )


def taken(volume: Volume, camera: Camera, count: int, first_seed: int) -> list[Taken]:
    """Films at poses of the range, by another integrator than training's, each with a look of its own."""
    found = []
    for seed in range(first_seed, first_seed + count):
        x = BOX.draw(1, torch.Generator().manual_seed(seed))[0]
        truth = camera.world_from_camera @ BOX.pose(x, volume.center)
        film, mask = take(volume, camera, truth, seed, random_look(seed))
        found.append(Taken(film, mask, camera, truth))
    return found


def errors_of(pose: Tensor, case: Taken, volume: Volume) -> dict[str, float]:
    """Turn, shift of the middle across and along the beam, and mTRE over bone."""
    middle = se3.apply(pose, volume.center[None])[0]
    xi = tangent_error(pose, case.truth, middle)
    shift = case.camera.camera_from_world[:3, :3] @ xi[3:]
    return {
        "degrees": math.degrees(float(xi[:3].norm())),
        "in_plane_mm": float(shift[:2].norm()),
        "depth_mm": abs(float(shift[2])),
        "mm": mtre(pose, case.truth, bone_points(volume)),
    }


def tolerance_rows(regressor: Regressor, volume: Volume, films: int) -> list[dict[str, Any]]:
    """Guesses on films of other detectors: distances and fields that the network was not trained for.

    The body stays where it is; the network's own is the first of each kind.
    """
    kinds = [("sdd", sdd, FIELD_MM, PIXELS) for sdd in (SDD, 900.0, 1100.0, 1200.0, 1400.0)]
    kinds += [("field", SDD, field, PIXELS) for field in (FIELD_MM, 200.0, 250.0, 300.0, 350.0, 450.0, 600.0)]
    kinds += [("pixels", SDD, FIELD_MM, pixels) for pixels in (PIXELS, 64, 96, 160, 512, 1024)]
    rows = []
    for kind, sdd, field, pixels in kinds:
        cases = taken(volume, frontal(volume, sdd, field, pixels), films, 88_000)
        known = {"varied": kind, "sdd_mm": sdd, "field_mm": field, "pixels": pixels}
        found = summary([guess_row(regressor, volume, case) for case in cases])
        rows.append({**known, "pixel_mm": field / pixels, **found})
    return rows


def timed(method: Callable[[], Any]) -> tuple[Any, float]:
    """What a method returns (None where it fails as it may), and its seconds."""
    began = time.perf_counter()
    try:
        return method(), time.perf_counter() - began
    except XregError:
        return None, time.perf_counter() - began


def guess_row(regressor: Regressor, volume: Volume, case: Taken) -> dict[str, Any]:
    guess, seconds = timed(lambda: regressor.guess(case.film, case.camera, case.mask, center=volume.center))
    if guess is None:
        return {"failed": True, "seconds": seconds}
    error = tangent_error(guess.world_from_body, case.truth, guess.center)
    white = torch.linalg.solve(guess.covariance, error)
    return {
        **errors_of(guess.world_from_body, case, volume),
        "nees": float(error @ white),
        "seconds": seconds,
    }


def refined_row(regressor: Regressor, volume: Volume, case: Taken, placed: Volume) -> dict[str, Any]:
    """placed: the volume where it is rendered."""
    found, seconds = timed(
        lambda: register_guessed(
            regressor, placed, case.film, case.camera, mask=case.mask, settings=Settings()
        )
    )
    if found is None:
        return {"failed": True, "seconds": seconds}
    row = {"accepted": found.result.accepted, "how": found.how, "sigmas": found.sigmas, "seconds": seconds}
    return {**errors_of(found.result.world_from_body, case, volume), **row}


def search_row(volume: Volume, case: Taken, placed: Volume) -> dict[str, Any]:
    """The search without a network, told the same range; placed: the volume where it is rendered."""
    box = SearchBox(tuple(BOX.half[:3].tolist()), tuple(BOX.half[3:].tolist()))
    home = case.camera.world_from_camera @ BOX.pose(BOX.middle, volume.center)
    found, seconds = timed(
        lambda: register_anywhere(placed, case.film, case.camera, home, mask=case.mask, box=box)
    )
    if found is None:
        return {"failed": True, "seconds": seconds}
    row = {"accepted": found.accepted, "seconds": seconds}
    return {**errors_of(found.world_from_body, case, volume), **row}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians and rates; a film that failed is no success, and counts as infinitely far."""
    if not rows:
        return {}
    away = np.array([row.get("mm", np.inf) for row in rows])
    known: dict[str, Any] = {
        "films": len(rows),
        "failed": sum(bool(row.get("failed")) for row in rows),
        "success": float((away < SUCCESS_MM).mean()),
        "within_1mm": float((away < 1).mean()),
        "gross": float((away > 10).mean()),
        "seconds": float(np.median([row["seconds"] for row in rows])),
    }
    for name in ("degrees", "in_plane_mm", "depth_mm", "mm", "nees"):
        values = [row[name] for row in rows if name in row]
        known[name] = float(np.median(values)) if values else None
    if any("accepted" in row for row in rows):
        known["accepted"] = float(np.mean([bool(row.get("accepted")) for row in rows]))
        known["accepted_but_wrong"] = sum(bool(r.get("accepted")) and r["mm"] > SUCCESS_MM for r in rows)
    if any("how" in row for row in rows):
        ways = [row.get("how") for row in rows]
        known["how"] = {name: ways.count(name) for name in ("guess", "variants", "search")}
    return known


def keeper(folder: Path, minutes: Sequence[float], console: Console) -> Callable[[Report], None]:
    """Copies the network aside when a minute asked for has passed."""
    left = sorted(minutes)

    def on_report(report: Report) -> None:
        found = report.validation
        if found is None:
            return
        console.print(
            f"{report.seconds:.0f} s, step {report.step}: {found.degrees:.2f}°, {found.in_plane_mm:.1f} mm, "
            f"{found.depth_mm:.1f} mm along the beam"
        )
        while left and report.seconds >= 60 * left[0] - 1:
            aside = folder / f"at_{left.pop(0):g}"
            aside.mkdir(exist_ok=True)
            shutil.copy(folder / MODEL, aside / MODEL)

    return on_report


def train_network(
    volume: Volume, settings: TrainSettings, folder: Path, console: Console, at: Any, device: str
) -> None:
    """Train, and keep copies on the way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))  # the films of the next step are made beside the network
    train([volume], BOX, settings, folder, device=device, on_report=keeper(folder, at, console))
    torch.set_num_threads(threads)


def training_of(folder: Path) -> dict[str, Any]:
    """How a network was trained."""
    _, facts = load(folder / MODEL)
    films = facts["step"] * facts["settings"]["batch"]
    known = {"steps": facts["step"], "films": films, "seconds": facts["seconds"]}
    return {**known, "films_per_second": films / facts["seconds"], "curve": read_log(folder)}


def curve_rows(
    folder: Path, volume: Volume, cases: Sequence[Taken], refine: int, placed: Volume, console: Console
) -> list[dict[str, Any]]:
    """What networks kept on the way are worth.

    All of one training, whose rate falls over its whole budget: one of fewer minutes would end better.
    """
    rows = []
    for aside in sorted(folder.glob("at_*"), key=lambda path: float(path.name[3:])):
        regressor = Regressor.load(aside, device=placed.mu.device)
        guessed = summary([guess_row(regressor, volume, case) for case in cases])
        refined = summary([refined_row(regressor, volume, case, placed) for case in cases[:refine]])
        rows.append({"minutes": float(aside.name[3:]), "guess": guessed, "refined": refined})
        console.print(f"after {aside.name[3:]} minutes: {guessed['degrees']:.2f}°, {refined['success']:.0%}")
    return rows


def goals(result: dict[str, Any]) -> dict[str, Any]:
    """What was to be reached, and what was."""
    guess, refined = result["guess"], result["refined"]
    found = {
        "guess_degrees": guess["degrees"],
        "guess_in_plane_mm": guess["in_plane_mm"],
        "refined_success": refined["success"],
    }
    met = {name: (v >= GOALS[name]) if name == "refined_success" else (v is not None and v <= GOALS[name])
           for name, v in found.items()}  # fmt: skip
    return {name: {"goal": GOALS[name], "found": found[name], "met": bool(met[name])} for name in GOALS}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--ct", help=f"Chest CT, or {PHANTOM!r}; default XREG_CHEST_CT, else that of `xreg demo`.")
@click.option("--minutes", default=20.0, show_default=True, help="Training.")
@click.option("--batch", default=32, show_default=True, help="Films a step.")
@click.option("--model", type=click.Path(path_type=Path), help="A network to judge, instead of training one.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the network.  [default: none]")
@click.option("--at", multiple=True, type=float, default=(1, 2, 5, 10, 20), help="Minutes of the curve.")
@click.option("--films", "count", default=200, show_default=True, help="Held-out films.")
@click.option("--searches", default=40, show_default=True, help="Of them, for the search without a network.")
@click.option("--curve-films", default=40, show_default=True, help="Of them, refined for the curve.")
@click.option("--detector-films", default=24, show_default=True, help="Films of each other detector.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Result (JSON).  [default: by the device]")
def main(
    ct: str | None, minutes: float, batch: int, model: Path | None, keep: Path | None, at: tuple[float, ...],
    count: int, searches: int, curve_films: int, detector_films: int, device: str, out: Path | None,
) -> None:  # fmt: skip
    """Train a network within minutes, and judge it on films that it has not seen."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA card here")
    out = out or RESULTS / ("regression.json" if device == "cpu" else "regression_cuda.json")
    console = Console(width=None if sys.stdout.isatty() else 140)
    ct = find_ct(ct)
    volume = load_ct(ct)
    result: dict[str, Any] = {"run": describe_run(ct, volume), "range": BOX.to_dict()}
    result["card"], placed = describe_card(device), volume.to(device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = model or keep or Path(scratch) / "network"
        if model is None:
            settings = TrainSettings(minutes=minutes, batch=batch, validations=max(16, round(minutes)))
            train_network(volume, settings, folder, console, at, device)
        regressor = Regressor.load(folder, device=device)
        cases = taken(volume, frontal(volume), count, 77_000)
        regressor.require(volume)
        result |= {"settings": regressor.facts["settings"], "training": training_of(folder)}
        rows = {"guess": [guess_row(regressor, volume, case) for case in cases], "refined": [], "search": []}
        for number, case in enumerate(cases):
            rows["refined"].append(refined_row(regressor, volume, case, placed))
            if number < searches:
                rows["search"].append(search_row(volume, case, placed))
            console.print(f"film {number}: {rows['refined'][-1]}")
        result |= {name: summary(found) for name, found in rows.items()}
        result["refined_where_searched"] = summary(rows["refined"][:searches])
        result["detectors"] = tolerance_rows(regressor, volume, detector_films)
        result["by_minutes"] = curve_rows(folder, volume, cases, curve_films, placed, console)
    result["goals"], result["rows"] = goals(result), rows
    write_json(out, result)
    for name in ("guess", "refined", "search"):
        console.print(name, {k: v for k, v in result[name].items() if v is not None})
    console.print(result["goals"])


if __name__ == "__main__":
    main()
