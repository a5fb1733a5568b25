"""Registration of many random starts on simulated films, xreg beside Adam by xvr's recipe.

python benchmarks/registration.py --help
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import adam
import click
import numpy as np
import torch
from common import PHANTOM, RESULTS, describe_run, find_ct, load_ct, write_json
from films import Case, bone_points, make_case
from rich.console import Console
from rich.table import Table
from torch import Tensor

import xreg
import xreg.registration  # so that its modules are there to be counted in
from xreg.errors import XregError
from xreg.metrics import mtre
from xreg.volume import Volume

SUCCESS_MM = 1.0
GOAL_SUCCESS, GOAL_RENDERS = 0.9, 8.0
COUNTED = ("drr", "drr_with_jacobian")


@dataclass
class Outcome:
    """One start: errors in mm, renders, renders in units of full-size images, and seconds of each method."""

    case: int
    primary: float
    secondary: float
    start_mm: float
    xreg_mm: float
    xreg_renders: int
    xreg_full_size: float
    xreg_checks: int
    xreg_seconds: float
    xreg_score: float
    xreg_accepted: bool
    xreg_to_1mm: int | None
    adam: dict = field(default_factory=dict)


@contextmanager
def counted_renders() -> Iterator[list[int]]:
    """The pixels of every render that xreg.registration makes, in order."""
    pixels: list[int] = []
    places = [m for name, m in sys.modules.items() if name.startswith("xreg.registration") and m is not None]
    kept = [(m, name, getattr(m, name)) for m in places for name in COUNTED if hasattr(m, name)]

    def counting(function):
        def render(volume, camera, *args, **kwargs):
            pixels.append(camera.size[0] * camera.size[1])
            return function(volume, camera, *args, **kwargs)

        return render

    for module, name, function in kept:
        setattr(module, name, counting(function))
    try:
        yield pixels
    finally:
        for module, name, function in kept:
            setattr(module, name, function)


def run_xreg(volume: Volume, case: Case, number: int, points: Tensor) -> Outcome:
    """Register one case with `xreg.register`."""
    before = mtre(case.start, case.truth, points)
    out = None
    with counted_renders() as pixels:
        start = time.perf_counter()
        try:
            out = xreg.register(volume, case.film, case.camera, case.start, mask=case.mask)
        except XregError as error:
            print(f"case {number}: {error}")
        seconds = time.perf_counter() - start
    if out is not None and len(pixels) != out.renders + out.checks:
        raise RuntimeError(
            f"xreg.register says {out.renders} + {out.checks} renders, {len(pixels)} were counted"
        )
    pose = case.start if out is None else out.world_from_body
    path = () if out is None else out.trajectory
    first = next((s.renders for s in path if mtre(s.world_from_body, case.truth, points) <= SUCCESS_MM), None)
    return Outcome(
        case=number,
        primary=case.primary,
        secondary=case.secondary,
        start_mm=before,
        xreg_mm=mtre(pose, case.truth, points),
        xreg_renders=len(pixels) if out is None else out.renders,
        xreg_full_size=sum(pixels[: None if out is None else out.renders]) / case.film.numel(),
        xreg_checks=0 if out is None else out.checks,
        xreg_seconds=seconds,
        xreg_score=float("nan") if out is None else out.score,
        xreg_accepted=out is not None and out.accepted,
        xreg_to_1mm=first,
    )


def run_adam(volume: Volume, case: Case, outcome: Outcome, points: Tensor) -> dict:
    """Register the same case with Adam and compare."""
    run = adam.register_with_adam(volume, case, points)
    return {
        "mm": run.final,
        "best_mm": min(run.errors),
        "renders": len(run.errors),
        "full_size": sum(run.pixels) / case.film.numel(),
        "seconds": run.seconds,
        "to_1mm": run.renders_until(SUCCESS_MM),
        "to_xreg_mm": run.renders_until(outcome.xreg_mm),
        "failed": run.failed,
    }


def _median(values: list) -> float | None:
    return float(statistics.median(values)) if values else None


def summarise(outcomes: list[Outcome]) -> dict:
    """Success, renders and seconds of both methods, and the ratios between them."""
    errors = np.array([o.xreg_mm for o in outcomes])
    own = {
        "cases": len(outcomes),
        "success": float((errors < SUCCESS_MM).mean()),
        "median_mm": float(np.median(errors)),
        "p95_mm": float(np.percentile(errors, 95)),
        "renders": _median([o.xreg_renders for o in outcomes]),
        "full_size": _median([o.xreg_full_size for o in outcomes]),
        "seconds": _median([o.xreg_seconds for o in outcomes]),
        "p95_seconds": float(np.percentile([o.xreg_seconds for o in outcomes], 95)),
        "to_1mm": _median([o.xreg_to_1mm for o in outcomes if o.xreg_to_1mm is not None]),
        "wrong_but_accepted": sum(o.xreg_accepted and o.xreg_mm >= SUCCESS_MM for o in outcomes),
        "right_but_refused": sum(not o.xreg_accepted and o.xreg_mm < SUCCESS_MM for o in outcomes),
    }
    both = [o for o in outcomes if o.adam]
    if not both:
        return {"xreg": own, "adam": None, "ratios": None}
    theirs = np.array([o.adam["mm"] for o in both])
    peer = {
        "cases": len(both),
        "success": float((theirs < SUCCESS_MM).mean()),
        "median_mm": float(np.median(theirs)),
        "p95_mm": float(np.percentile(theirs, 95)),
        "reached_1mm": sum(o.adam["to_1mm"] is not None for o in both),
        "reached_xreg_mm": sum(o.adam["to_xreg_mm"] is not None for o in both),
        **{k: _median([o.adam[k] for o in both]) for k in ("renders", "full_size", "seconds")},
        **{k: _median([o.adam[k] for o in both if o.adam[k] is not None]) for k in ("to_1mm", "to_xreg_mm")},
    }
    return {"xreg": own, "adam": peer, "ratios": ratios(both)}


def ratios(both: list[Outcome]) -> dict:
    """Renders of Adam over renders of xreg, case by case, medians.

    The first two count all of xreg's renders, to its end, against Adam's up to the first pose as good (which
    Adam itself cannot recognise); where Adam never got there, all of its renders stand in, so that the ratio
    is a lower bound.  Only cases that xreg brought within 1 mm count.
    """
    good = [o for o in both if o.xreg_mm < SUCCESS_MM]
    first = [(o.adam["to_1mm"] or o.adam["renders"]) / o.xreg_renders for o in good]
    same = [(o.adam["to_xreg_mm"] or o.adam["renders"]) / o.xreg_renders for o in good]
    alike = [o.adam["to_1mm"] / o.xreg_to_1mm for o in good if o.adam["to_1mm"] and o.xreg_to_1mm]
    return {
        "cases": len(good),
        "adam_to_1mm_over_xreg_all": _median(first),
        "adam_to_xreg_mm_over_xreg_all": _median(same),
        "adam_to_1mm_over_xreg_to_1mm": _median(alike),
        "adam_all_over_xreg_all": _median([o.adam["renders"] / o.xreg_renders for o in good]),
        "full_size_all": _median([o.adam["full_size"] / o.xreg_full_size for o in good]),
        "seconds": _median([o.adam["seconds"] / o.xreg_seconds for o in good]),
    }


def goals(summary: dict) -> list[dict]:
    """The goals of the project with what was measured."""
    success = summary["xreg"]["success"]
    out = [{"what": f"starts within {SUCCESS_MM:g} mm mTRE", "goal": f">= {GOAL_SUCCESS:.0%}",
            "value": success, "met": success >= GOAL_SUCCESS}]  # fmt: skip
    if summary["ratios"]:
        for key, what in (
            ("adam_to_xreg_mm_over_xreg_all", "renders: Adam until as accurate as xreg's end / xreg, all"),
            ("adam_to_1mm_over_xreg_all", "renders: Adam until 1 mm / xreg, all"),
        ):
            value = summary["ratios"][key]
            met = value is not None and value >= GOAL_RENDERS
            out.append({"what": what, "goal": f">= {GOAL_RENDERS:g}", "value": value, "met": met})
    return out


def _shown(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def show(result: dict, console: Console) -> None:
    """Print both methods side by side, the ratios and the goals."""
    summary = result["summary"]
    table = Table(title=f"registration at {result['size']}², medians")
    for column in ("", "xreg", "Adam (xvr's recipe)"):
        table.add_column(column, justify="left" if not column else "right")
    own, peer = summary["xreg"], summary["adam"] or {}
    keys = {
        "cases": "starts", "success": "part within 1 mm", "median_mm": "mTRE, mm", "p95_mm": "mTRE, mm, 95 %",
        "renders": "renders", "full_size": "renders, in full-size images", "to_1mm": "renders until 1 mm",
        "seconds": "seconds",
    }  # fmt: skip
    for key, label in keys.items():
        table.add_row(label, _shown(own.get(key)), _shown(peer.get(key)))
    console.print(table)
    for key, value in (summary["ratios"] or {}).items():
        console.print(f"{key}: {_shown(value, 1)}")
    for goal in result["goals"]:
        verdict = "met" if goal["met"] else "NOT MET"
        console.print(f"goal {goal['what']} {goal['goal']}: {_shown(goal['value'])}, {verdict}")


def recipe() -> dict:
    """Adam's settings, for the record."""
    names = (
        "SCALES",
        "ITERATIONS",
        "RATE_TURN",
        "RATE_MOVE",
        "FACTOR",
        "PATIENCE",
        "THRESHOLD",
        "PLATEAUS",
        "SAMPLES",
    )
    return {name.lower(): getattr(adam, name) for name in names}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--ct", help=f"CT to use, or {PHANTOM!r}; default XREG_CHEST_CT, else the chest of `xreg demo`."
)
@click.option("--cases", default=50, show_default=True, help="Random starts.")
@click.option(
    "--adam-cases", default=50, show_default=True, help="How many of them Adam gets, too; it is slow."
)
@click.option("--seed", default=0, show_default=True, help="Case k uses seed + k.")
@click.option("--size", default=256, show_default=True, help="Side of the film, px.")
@click.option("--threads", default=0, help="Threads; default: the cores.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=RESULTS / "registration.json", help="Result (JSON)."
)
@click.option("--quick", is_flag=True, help="A look at whether it works: 2 starts at 64², one with Adam.")
def main(ct, cases, adam_cases, seed, size, threads, out, quick) -> None:
    """Register random starts (±20 mm, ±10° on each axis) with xreg and with Adam."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    if quick:
        cases, adam_cases, size = 2, 1, 64
        adam.ITERATIONS = 10
    if threads:
        torch.set_num_threads(threads)
    path = find_ct(ct)
    volume = load_ct(path)
    run = describe_run(path, volume)
    volume.quantised()
    points, outcomes, began = bone_points(volume), [], time.perf_counter()
    for number in range(cases):
        case = make_case(volume, size, seed + number)
        one = run_xreg(volume, case, number, points)
        line = (
            f"{number:3d}: {one.start_mm:5.1f} mm -> xreg {one.xreg_mm:6.3f} mm, {one.xreg_renders} renders, "
        )
        line += f"{one.xreg_seconds:.2f} s"
        if number < adam_cases:
            one.adam = run_adam(volume, case, one, points)
            line += (
                f"; adam {one.adam['mm']:6.3f} mm, {one.adam['renders']} renders, {one.adam['seconds']:.0f} s"
            )
        outcomes.append(one)
        console.print(
            f"{line} [{time.perf_counter() - began:.0f} s]", markup=False, highlight=False, soft_wrap=True
        )
    summary = summarise(outcomes)
    result = {"schema": "xreg.benchmark.registration/1", "run": run, "size": size, "seed": seed}
    result |= {"adam_recipe": recipe(), "summary": summary, "goals": goals(summary)}
    result["cases"] = [asdict(o) for o in outcomes]
    write_json(out, result)
    show(result, console)


if __name__ == "__main__":
    main()
