"""Registration without a start, and frame by frame.

python benchmarks/search.py --pelvis ct.nii.gz      (see --help)
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from common import PHANTOM, RESULTS, describe_run, find_ct, write_json
from films import Case, bone_points, make_case, random_look, take
from hard_cases import load_bodies
from rich.console import Console

from xreg.errors import XregError
from xreg.geometry import se3
from xreg.metrics import mtre
from xreg.registration import SearchBox, Tracker, register_anywhere
from xreg.registration.search import Scout, SearchSettings
from xreg.registration.views import check_views
from xreg.volume import Volume

SPEED = (0.5, -0.35, 0.45, 1.0, -1.5, 0.7)  # degrees and mm a frame
FRAMES = 20


def lost_case(volume: Volume, seed: int) -> Case:
    """A film of which is known only that the body lies within the search box about a nominal pose."""
    case = make_case(volume, 256, seed, look=random_look(seed))
    views = check_views(case.film, case.mask, case.camera)
    scout = Scout(volume, views, case.truth, SearchBox(), SearchSettings(grid_mm=8.0))
    x = 2 * torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    return replace(case, start=scout.pose(x * SearchBox().reach))


def search_rows(bodies: dict[str, Volume], cases: int, console: Console) -> list[dict]:
    """`register_anywhere` on films of both bodies."""
    rows = []
    for name, volume in bodies.items():
        for seed in range(cases):
            case, points = lost_case(volume, 2000 + seed), bone_points(volume)
            began, error, accepted = time.perf_counter(), 1e3, False
            try:
                out = register_anywhere(volume, case.film, case.camera, case.start, mask=case.mask)
                error, accepted = mtre(out.world_from_body, case.truth, points), out.accepted
            except XregError as problem:
                console.print(str(problem))
            seconds = time.perf_counter() - began
            start = mtre(case.start, case.truth, points)
            row = {"body": name, "seed": seed, "start_mm": start, "mm": error}
            rows.append(row | {"accepted": accepted, "seconds": seconds})
            console.print(f"search {name} {seed}: {start:.0f} mm -> {error:.3f} mm, {seconds:.1f} s")
    return rows


def tracking_rows(volume: Volume) -> list[dict]:
    """A moving body, frame by frame."""
    case = make_case(volume, 256, 0, (5.0, 3.0))
    speed = torch.tensor([*np.deg2rad(SPEED[:3]), *SPEED[3:]], dtype=torch.float64)
    tracker, pose, points, rows = (
        Tracker(volume, case.camera, case.start),
        case.truth,
        bone_points(volume),
        [],
    )
    for number in range(FRAMES):
        film, mask = take(volume, case.camera, pose, 3000 + number)
        frame = tracker.update(film, mask)
        row = {"frame": number, "mm": mtre(frame.world_from_body, pose, points), "seconds": frame.seconds}
        rows.append(row | {"lost": frame.lost, "recovered": frame.recovered})
        pose = se3.retract(pose, speed, se3.apply(pose, volume.center[None])[0])
    return rows


def summarise(result: dict) -> dict:
    """Rates and medians."""
    errors = np.array([r["mm"] for r in result["search"]])
    tracked = result["tracking"]
    return {
        "search_within_2mm": float((errors < 2).mean()),
        "search_within_1mm": float((errors < 1).mean()),
        "search_seconds": float(np.median([r["seconds"] for r in result["search"]])),
        "search_wrong_but_accepted": sum(r["accepted"] and r["mm"] > 5 for r in result["search"]),
        "frames_per_second": 1 / float(np.median([r["seconds"] for r in tracked])),
        "tracking_worst_mm": max(r["mm"] for r in tracked[1:]),
        "frames_lost": sum(r["lost"] for r in tracked),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--ct", help=f"Chest CT, or {PHANTOM!r}; default XREG_CHEST_CT, else that of `xreg demo`.")
@click.option("--pelvis", help="A second CT, of another part of the body.")
@click.option("--cases", default=20, show_default=True, help="Searches a body.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=RESULTS / "search.json", help="Result (JSON)."
)
def main(ct: str | None, pelvis: str | None, cases: int, out: Path) -> None:
    """Search and track."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    bodies = load_bodies(ct, pelvis)
    result = {"schema": "xreg.benchmark.search/1", "run": describe_run(find_ct(ct), bodies["chest"])}
    result["tracking"] = tracking_rows(bodies["chest"])
    result["search"] = search_rows(bodies, cases, console)
    result["summary"] = summarise(result)
    write_json(out, result)
    console.print(result["summary"])


if __name__ == "__main__":
    main()
