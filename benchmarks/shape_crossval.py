"""Scores our networks on published patients that they never saw, from the published films; and off the axes.

python benchmarks/shape_crossval.py FOLDER --model NET [--model NET2 …]      (see --help)

FOLDER holds a patient a folder (`xreg.shape.load_shipped`).  Each network is asked about the patients that it
held out, and refused those that it learned from.  Asked twice: as it is, and with the atlas of its own
training patients fitted to the films.  The curve over angles takes films of the CT rendered here, the second
view turned away from a right angle: the network's training films are rendered likewise.  Times are of whole
predictions, the surfaces and measures of `xreg reconstruct` not included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from common import RESULTS, write_json
from shape_rows import distances, figures, machine
from torch import Tensor

from xreg.geometry import Camera
from xreg.shape import ShapeModel, ShippedCase, load_shipped, relabel, score
from xreg.shape.atlas import Atlas
from xreg.shape.films import AP, LATERAL, facing_camera, make_films, normalise
from xreg.shape.patients import Patient
from xreg.shape.predict import ShapePrediction
from xreg.shape.refine import refine

ANGLES = (0.0, 4.0, 8.0, 12.0, 16.0, 20.0)  # degrees of the second view off the right angle


@dataclass(frozen=True)
class Network:
    """A trained network with its atlas, and the folder's name."""

    name: str
    model: ShapeModel
    atlas: Atlas | None

    @classmethod
    def load(cls, folder: Path) -> Network:
        return cls(folder.name, ShapeModel.load(folder), Atlas.beside(folder))

    def held_out(self, patient: str) -> bool:
        """Whether this patient was kept from it, and from its atlas."""
        known = self.atlas.patients if self.atlas else ()
        return patient in self.model.facts["held_out"] and patient not in (
            *self.model.facts["patients"],
            *known,
        )


def ask(network: Network, films: Tensor, cameras: Sequence[Camera], case: ShippedCase) -> dict[str, Any]:
    """Predictions with and without refinement, each with its seconds of wall and processor."""
    found, plain = _timed(lambda: network.model.predict(films, cameras, case.grid, normalised=True))
    made = {"network": (found, plain)}
    if network.atlas is not None:
        refined, more = _timed(lambda: refine(found, films, cameras, network.atlas))
        both = {name: round(plain[name] + more[name], 3) for name in plain}
        made["refined"] = (refined.prediction, {**both, "what": refined.text})
    return made


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, processor = time.perf_counter(), time.process_time()
    found = work()
    spent = time.perf_counter() - wall, time.process_time() - processor
    return found, {"wall_s": round(spent[0], 3), "processor_s": round(spent[1], 3)}


def judge(found: ShapePrediction, case: ShippedCase, which: str) -> dict[str, Any]:
    """Scores over the bones that an annotation holds; what it says nothing of is left out."""
    mine = relabel(found.labels, found.scheme.name, which)
    told = score(mine, case.labels(which), case.grid, which).to_json()
    worst = sorted((x["dice"], x["name"]) for x in told["labels"] if x["reference_voxels"])[:3]
    return {**figures(told), "lowest": [[name, round(dice, 3)] for dice, name in worst]}


def measure(network: Network, case: ShippedCase) -> list[dict[str, Any]]:
    """A row an annotation and a way of asking, from the published films."""
    rows = []
    for way, (found, spent) in ask(network, normalise(case.films), case.cameras, case).items():
        for which in case.label_files:
            row = {"patient": case.patient, "scheme": which, "network": network.name, "way": way}
            rows.append({**row, **judge(found, case, which), **spent})
    return rows


def turned(network: Network, case: ShippedCase, hu: Tensor, angles: Sequence[float]) -> list[dict[str, Any]]:
    """The same from films of the CT, the second view turned by each angle."""
    rows = []
    size = (case.grid.size[2], max(case.grid.size[:2]))
    for angle in angles:
        cameras = tuple(
            facing_camera(case.grid, direction, size=size, tilt=(tilt, 0.0))
            for direction, tilt in ((AP, 0.0), (LATERAL, angle))
        )
        films = normalise(make_films(hu, case.grid, cameras))
        for way, (found, _) in ask(network, films, cameras, case).items():
            for which in case.label_files:
                scores = judge(found, case, which)
                row = {"patient": case.patient, "scheme": which, "way": way, "angle": angle}
                rows.append({**row, "dice": scores["dice"], "dice_shifted": scores["dice_shifted"]})
    return rows


def _facts(network: Network) -> dict[str, Any]:
    facts = network.model.facts
    kept = ("patients", "held_out", "step", "seconds", "validation")
    return {"name": network.name, **{name: facts[name] for name in kept}, "settings": facts["settings"]}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--model", "models", type=click.Path(path_type=Path, exists=True), multiple=True, required=True)
@click.option(
    "--patient", "patients", multiple=True, help="These only.  [default: what each network held out]"
)
@click.option("--prepared", type=click.Path(path_type=Path), help="Prepared patients, for the angles' CTs.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "shape_crossval.json")
def main(
    folder: Path, models: tuple[Path, ...], patients: tuple[str, ...], prepared: Path | None, out: Path
) -> None:
    """Score networks on the patients in FOLDER that they held out."""
    rows, curve, facts = [], [], []
    for network in map(Network.load, models):
        facts.append(_facts(network))
        for patient in patients or network.model.facts["held_out"]:
            if not network.held_out(patient):
                raise click.UsageError(f"{network.name} did not hold out {patient}")
            case = load_shipped(folder / patient)
            rows += measure(network, case)
            for row in [r for r in rows if r["patient"] == patient]:
                click.echo(line(row))
            if prepared is not None:
                dense = Patient.load(prepared / patient)
                curve += turned(network, case, dense.on(case.grid).hu, ANGLES)
                for row in [r for r in curve if r["patient"] == patient]:
                    click.echo(
                        f"  {row['scheme']:7} {row['way']:8} {row['angle']:4.0f}° Dice {row['dice']:.3f}"
                    )
    write_json(out, {"machine": machine(), "networks": facts, "patients": rows, "angles": curve})


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    return (
        f"{row['patient']:6} {row['scheme']:7} ({row['classes']}) {row['way']:8} Dice {row['dice']:.3f} "
        f"shifted {row['dice_shifted']:.3f} foreground {row['dice_foreground']:.3f} {distances(row)} mm, "
        f"{row['wall_s']:.1f} s"
    )


if __name__ == "__main__":
    main()
