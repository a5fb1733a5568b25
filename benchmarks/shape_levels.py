"""How often counted vertebrae have the right level, against the confidence that they are given.

python benchmarks/shape_levels.py PREPARED --model NET [--model NET2 …]      (see --help)

Patients that a network held out are drawn anew (`xreg.shape.population`), with tilted views, and asked
about.  The true shift is the one renumbering of the found vertebrae that makes their Dice greatest.  The
numberings of `xreg.shape.level` are averages, as if all rows of the spine were one witness; how many they are
worth is fitted here (the greatest likelihood of the true shifts), and judged on each patient by what the
others gave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from common import RESULTS, write_json
from shape_rows import machine

from xreg.shape import ShapeModel, score
from xreg.shape.level import SHIFTS, SURE, WITNESSES
from xreg.shape.patients import Patient
from xreg.shape.population import Exposure
from xreg.shape.sources import Population
from xreg.training import step_seed

_LEAST = 3  # vertebrae in the truth, and found, of a case that counts
_MOST = 16.0  # witnesses
_LOST = 9  # levels that a spine counts as off which no shift puts right


def ask(model: ShapeModel, patient: Patient, seed: int, tilt: float) -> dict[str, Any] | None:
    """A drawn patient's numberings and true shift; None where films show too little spine."""
    sample = Population([patient], exposure=Exposure(tilt_degrees=tilt)).sample(seed)
    spine = list(model.scheme.groups["spine"])
    if len(set(sample.labels.unique().tolist()) & set(spine)) < _LEAST:
        return None
    found = model.predict(sample.films, sample.cameras, sample.grid, normalised=True)
    there = len(set(found.labels.unique().tolist()) & set(spine))
    if found.numberings is None or there < _LEAST:
        return {"patient": patient.name, "seed": seed, "found": there, "shift": None}
    shift = score(found.labels, sample.labels, sample.grid, model.scheme).shifts["spine"]
    shift = _LOST if shift is None else shift
    told = [round(float(x), 4) for x in found.numberings]
    return {"patient": patient.name, "seed": seed, "found": there, "shift": shift, "numberings": told}


def shares(numberings: Sequence[float], witnesses: float) -> list[float]:
    """What each of SHIFTS gets."""
    return (witnesses * torch.tensor(numberings, dtype=torch.float64)).softmax(0).tolist()


def loss(rows: Sequence[dict[str, Any]], witnesses: float) -> float:
    """Mean negative logarithm of what the true shifts get; those further off count as the furthest."""
    true = [SHIFTS.index(max(SHIFTS[0], min(SHIFTS[-1], row["shift"]))) for row in rows]
    got = [shares(row["numberings"], witnesses)[n] for row, n in zip(rows, true, strict=True)]
    return -sum(math.log(max(share, 1e-12)) for share in got) / len(rows)


def fitted(rows: Sequence[dict[str, Any]]) -> float:
    """How many witnesses the numberings are worth."""
    from scipy.optimize import minimize_scalar

    most = math.log(_MOST)
    return math.exp(
        minimize_scalar(lambda x: loss(rows, math.exp(x)), bounds=(-most, most), method="bounded").x
    )


def judged(rows: Sequence[dict[str, Any]], witnesses: Sequence[float]) -> dict[str, Any]:
    """How confidence and truth agree; witnesses: for each row."""
    right = [row["shift"] == 0 for row in rows]
    sure = [shares(row["numberings"], w)[SHIFTS.index(0)] for row, w in zip(rows, witnesses, strict=True)]
    count = len(rows)
    taken = [r for r, s in zip(right, sure, strict=True) if s >= SURE]
    return {
        "cases": count,
        "right": sum(right) / count,
        "confidence": sum(sure) / count,
        "brier": sum((s - r) ** 2 for s, r in zip(sure, right, strict=True)) / count,
        "log_loss": sum(loss([row], w) for row, w in zip(rows, witnesses, strict=True)) / count,
        "taken": len(taken) / count,
        "right_of_taken": sum(taken) / len(taken) if taken else None,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fit to all cases; confidence as xreg tells it, with one witness, and by the other patients' fit."""
    rows = [row for row in rows if row["shift"] is not None]
    if not rows:
        raise click.ClickException("no vertebrae were counted in any of the cases")
    patients = sorted({row["patient"] for row in rows})
    others = (
        {p: fitted([r for r in rows if r["patient"] != p]) for p in patients} if len(patients) > 1 else {}
    )
    ways = {"as_told": WITNESSES, "one_witness": 1.0}
    found = {"witnesses": fitted(rows), **{way: judged(rows, [n] * len(rows)) for way, n in ways.items()}}
    if others:
        found["by_others"] = judged(rows, [others[row["patient"]] for row in rows])
        found["witnesses_by_others"] = others
    each = {p: [r for r in rows if r["patient"] == p] for p in patients}
    found["patients"] = {p: judged(ones, [WITNESSES] * len(ones)) for p, ones in each.items()}
    return found


@click.command()
@click.argument("prepared", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--model", "models", type=click.Path(path_type=Path, exists=True), multiple=True, required=True)
@click.option("--count", type=click.IntRange(1), default=40, show_default=True, help="Drawn of each patient.")
@click.option("--tilt", type=float, default=10.0, show_default=True, help="Of their views, degrees.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "shape_levels.json")
def main(prepared: Path, models: tuple[Path, ...], count: int, tilt: float, seed: int, out: Path) -> None:
    """Ask networks about drawn patients whom they held out."""
    rows = []
    for model in map(ShapeModel.load, models):
        for name in model.facts["held_out"]:
            patient = Patient.load(prepared / name)
            made = [ask(model, patient, step_seed(seed, n, 7), tilt) for n in range(count)]
            rows += [row for row in made if row is not None]
            mine = [row for row in rows if row["patient"] == name and row["shift"] is not None]
            right = sum(row["shift"] == 0 for row in mine)
            click.echo(f"{name}: {len(mine)} counted, {right} of them right")
    result = {"machine": machine(), "tilt": tilt, "seed": seed, "rows": rows, **summary(rows)}
    write_json(out, result)
    for name in ("as_told", "one_witness", "by_others"):
        if name in result:
            click.echo(
                f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in result[name].items() if v is not None)
            )
    click.echo(f"worth {result['witnesses']:.2f} witnesses")


if __name__ == "__main__":
    main()
