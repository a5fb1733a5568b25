"""xreg beside two baselines on the same degraded films, from near and from far starts.

python benchmarks/beside.py --pelvis ct.nii.gz      (see --help)

The baselines are xvr's refinement by Adam (`adam.py`) and rg2/xReg's CMA-ES with BOBYQA (`cmaes_bobyqa.py`),
both with xreg's renderer.  xreg registers, and searches about the start where it does not accept its answer.
Everything runs on one thread, and seconds are those of the processor, so that other work does not count.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import adam
import click
import numpy as np
import torch
from cmaes_bobyqa import register_with_cmaes
from common import PHANTOM, RESULTS, describe_run, find_ct, write_json
from films import Case, bone_points, make_case, random_look
from hard_cases import FAR, NEAR, NO_TRUTH, load_bodies, register_or_search
from rich.console import Console
from rich.table import Table
from torch import Tensor

from xreg.errors import XregError
from xreg.metrics import mtre
from xreg.registration import Settings
from xreg.volume import Volume

SEEDS_FROM = 4000
OFFSETS = {"near (20 mm, 10°)": NEAR, "far (60 mm, 30°)": FAR}


def run_xreg(volume: Volume, case: Case, points: Tensor) -> tuple[float, float]:
    """mTRE and seconds."""
    began = time.process_time()
    try:
        out = register_or_search(
            volume, case.film, case.camera, case.start, mask=case.mask, settings=Settings()
        )
    except XregError:
        return NO_TRUTH, time.process_time() - began
    return mtre(out.world_from_body, case.truth, points), time.process_time() - began


def run_adam(volume: Volume, case: Case, points: Tensor) -> tuple[float, float]:
    """mTRE and seconds."""
    began = time.process_time()
    return adam.register_with_adam(volume, case, points).final, time.process_time() - began


def run_cmaes(volume: Volume, case: Case, points: Tensor) -> tuple[float, float]:
    """mTRE and seconds."""
    began = time.process_time()
    return register_with_cmaes(volume, case, points).final, time.process_time() - began


METHODS = {"xreg": run_xreg, "Adam, xvr's recipe": run_adam, "CMA-ES + BOBYQA, rg2/xReg's": run_cmaes}


def summarise(rows: list[dict]) -> list[dict]:
    """Each kind of start and method: success, error, time."""
    found = []
    for start in OFFSETS:
        for method in METHODS:
            mine = [r for r in rows if (r["start"], r["method"]) == (start, method)]
            if mine:
                mm, seconds = (np.array([r[k] for r in mine]) for k in ("mm", "seconds"))
                found.append(
                    {
                        "start": start,
                        "method": method,
                        "films": len(mine),
                        "within_1mm": float((mm < 1).mean()),
                        "within_2mm": float((mm < 2).mean()),
                        "median_mm": float(np.median(mm)),
                        "seconds": float(np.median(seconds)),
                    }
                )
    return found


def show(summary: list[dict], console: Console) -> None:
    """Print them side by side."""
    table = Table(title="the same films and starts")
    for column in summary[0]:
        table.add_column(column)
    for row in summary:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--ct", help=f"Chest CT, or {PHANTOM!r}; default XREG_CHEST_CT, else that of `xreg demo`.")
@click.option("--pelvis", help="A second CT, of another part of the body.")
@click.option("--cases", default=4, show_default=True, help="Films a body and start; minutes each.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=RESULTS / "beside.json", help="Result (JSON)."
)
def main(ct: str | None, pelvis: str | None, cases: int, out: Path) -> None:
    """Register the same films by three methods."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    torch.set_num_threads(1)
    bodies, rows = load_bodies(ct, pelvis), []
    run = describe_run(find_ct(ct), bodies["chest"])
    for number in range(cases):
        for (start, offset), (name, volume) in ((o, b) for o in OFFSETS.items() for b in bodies.items()):
            seed = SEEDS_FROM + number
            case, points = make_case(volume, 256, seed, offset, look=random_look(seed)), bone_points(volume)
            for method, how in METHODS.items():
                mm, seconds = how(volume, case, points)
                row = {"start": start, "body": name, "seed": seed, "method": method}
                rows.append(row | {"mm": mm, "seconds": seconds})
                console.print(json.dumps(rows[-1]), soft_wrap=True)
    result = {"schema": "xreg.benchmark.beside/1", "run": run, "summary": summarise(rows), "rows": rows}
    write_json(out, result)
    show(result["summary"], console)


if __name__ == "__main__":
    main()
