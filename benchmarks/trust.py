"""What registrations of degraded films end with, and whether their verdicts and covariances can be believed.

python benchmarks/trust.py --pelvis ct.nii.gz      (see --help)

The films are of other seeds than those of `calibrate.py`, and some are narrow, which none of those were.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
from common import PHANTOM, RESULTS, describe_run, load_ct, write_json
from hard_cases import NO_TRUTH, Trial, as_dicts, files_of, nees, run_trials
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import chi2

from xreg import metrics

GOOD_MM, BAD_MM = 2.0, 5.0
SEEDS_FROM = 6000  # those of calibrate.py are others


def kinds_summary(trials: list[Trial]) -> list[dict]:
    """Each kind of case: how often it was right, how often it was accepted."""
    rows = []
    for kind, body in sorted({(t.kind, t.body) for t in trials}):
        mine = [t for t in trials if (t.kind, t.body) == (kind, body)]
        errors = np.array([t.error_mm for t in mine])
        known = errors[errors < NO_TRUTH]
        rows.append(
            {
                "kind": kind,
                "body": body,
                "cases": len(mine),
                "within_1mm": float((errors < 1).mean()),
                "within_2mm": float((errors < GOOD_MM).mean()),
                "median_mm": float(np.median(known)) if len(known) else None,
                "accepted": float(np.mean([t.accepted for t in mine])),
                "seconds": float(np.median([t.seconds for t in mine])),
            }
        )
    return rows


def verdict_summary(trials: list[Trial]) -> dict:
    """Accepted good, accepted bad, ROC, and how often the truth is in the ellipsoid."""
    errors = np.array([t.error_mm for t in trials])
    accepted = np.array([t.accepted for t in trials])
    probability = np.array([t.probability for t in trials])
    good = errors < GOOD_MM
    judged = [t for t in trials if t.raw and t.error_mm < GOOD_MM]
    squares = np.array([nees(t) for t in judged])
    levels = (0.5, 0.8, 0.95, 0.99)
    return {
        "cases": len(trials),
        "good": int(good.sum()),
        "good_accepted": float(accepted[good].mean()) if good.any() else None,
        "accepted_above_5mm": int((accepted & (errors > BAD_MM)).sum()),
        "auc": area(probability, good),
        "coverage": {str(p): float((squares < chi2.ppf(p, 6)).mean()) for p in levels},
    }


def area(probability: np.ndarray, good: np.ndarray) -> float | None:
    """Area under the ROC of the probability."""
    if good.all() or not good.any():
        return None
    return metrics.roc(probability, good).auc


def show(result: dict, console: Console) -> None:
    """Print the tables."""
    table = Table(title="registrations of degraded films")
    for column in result["kinds"][0]:
        table.add_column(column)
    for row in result["kinds"]:
        table.add_row(
            *("-" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values())
        )
    console.print(table)
    for name, value in result["verdict"].items():
        console.print(f"{name}: {value}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--ct", help=f"Chest CT, or {PHANTOM!r}; default XREG_CHEST_CT, else that of `xreg demo`.")
@click.option("--pelvis", help="A second CT, of another part of the body.")
@click.option("--cases", default=425, show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Processes, of one thread each.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "trust.json", help="Result (JSON).")
def main(ct: str | None, pelvis: str | None, cases: int, jobs: int, out: Path) -> None:
    """Register degraded films and judge the judgements."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    files = files_of(ct, pelvis)
    run = describe_run(files["chest"], load_ct(files["chest"]))  # the workers load their own
    seeds = range(SEEDS_FROM, SEEDS_FROM + cases)
    trials = list(track(run_trials(ct, pelvis, seeds, jobs, narrow=True), "registering", cases))
    result = {"schema": "xreg.benchmark.trust/1", "run": run, "bodies": list(files)}
    result |= {"kinds": kinds_summary(trials), "verdict": verdict_summary(trials), "trials": as_dicts(trials)}
    write_json(out, result)
    show(result, console)


if __name__ == "__main__":
    main()
