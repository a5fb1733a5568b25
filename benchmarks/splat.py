"""Times the splatter and the voxeliser, and says how far the affine mode is from the exact one.

The scene: Gaussians of one to three voxels of a 128³ grid, all three axes different, drawn from a chest by
its density, seen by a C-arm.  Each figure is the best and the median of several rounds: other work on a
machine only slows it.  Memory that an earlier row has taken and given back is not seen again.  With
``--device cuda`` times are the card's, by events, and so is the memory.  Errors are relative L2 against
float64 and the whole Gaussian (no cutoff).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from common import PHANTOM, RESULTS, describe_run, find_ct, load_ct, write_json
from cuda_timing import describe_card, kernel_time, peak_mb
from peak import Peak
from rich.console import Console
from rich.table import Table

from xreg.geometry import Camera
from xreg.ops.splatting import CUTOFF, KINDS, splat, voxelize
from xreg.volume import Volume

GOALS = {  # ms of 50,000 Gaussians: at 256² on two cores; at 512² on a card
    "cpu": {"forward": 30.0, "forward + backward": 120.0},
    "cuda": {"forward": 0.15, "forward + backward": 0.45},
}
SIZES = {"cpu": 256, "cuda": 512}
SDD, SOD, VIEW = 1020.0, 850.0, 20.0
MARGIN = 1.06  # of the volume's shadow
Scene = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def make_scene(volume: Volume, count: int, grid: int, seed: int = 0) -> Scene:
    """Float32 Gaussians whose sum looks like the volume, roughly."""
    generator = torch.Generator().manual_seed(seed)
    mu = volume.mu.double().clamp_min(0).reshape(-1)
    edges = mu.cumsum(0)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64) * edges[-1]
    flat = torch.searchsorted(edges, drawn).clamp_max(len(mu) - 1)
    width, height, _ = volume.size
    index = torch.stack([flat % width, flat // width % height, flat // (width * height)], 1).double()
    index += torch.rand(count, 3, generator=generator, dtype=torch.float64) - 0.5
    mean = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    voxel = max(volume.extent) / grid
    scale = voxel * (1 + 2 * torch.rand(count, 3, generator=generator))
    rotation = torch.randn(count, 4, generator=generator)
    mass = float(mu.sum() * volume.affine[:3, :3].det().abs()) / count
    density = mass / ((2 * torch.pi) ** 1.5 * scale.prod(1))
    return mean.float(), scale.float(), rotation.float(), density.float()


def make_camera(volume: Volume, size: int) -> Camera:
    """A C-arm whose square image holds the volume."""
    spacing = MARGIN * max(volume.extent) * SDD / SOD / size
    return Camera.c_arm(
        sdd=SDD, sod=SOD, size=(size, size), spacing=spacing, primary=VIEW, isocenter=volume.center
    )


def grid_of(volume: Volume, grid: int) -> torch.Tensor:
    """The affine of a cube of grid³ voxels about the volume."""
    voxel = max(volume.extent) / grid
    affine = torch.diag(torch.tensor([voxel, voxel, voxel, 1.0], dtype=torch.float64))
    affine[:3, 3] = volume.center - voxel * (grid - 1) / 2
    return affine


def timed(work: Callable[[], Any], rounds: int, device: str) -> dict[str, Any]:
    """Milliseconds, after one round that does not count, and the memory that this one adds at its height."""
    if device == "cuda":
        found = kernel_time(work, device, rounds)
        taken = {"best_ms": found["least"] / 1e3, "median_ms": found["median"] / 1e3, "by": found["by"]}
        return {**taken, "peak_mb": peak_mb(work, device)}
    with Peak() as peak:
        work()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(1e3 * (time.perf_counter() - start))
    return {"best_ms": min(taken), "median_ms": statistics.median(taken), "peak_mb": peak.mb}


def works(
    scene: Scene, rays: torch.Tensor, size: int, affine: torch.Tensor, grid: int, cutoff: float
) -> dict:
    """What is timed, by name: Gaussians and rays all require grad in a backward pass."""
    leaves = [t.clone().requires_grad_() for t in scene]
    seen = rays.clone().requires_grad_()
    weights = torch.rand(1, size, size, generator=torch.Generator().manual_seed(1)).to(rays.device)
    cube = torch.rand((grid,) * 3, generator=torch.Generator().manual_seed(2)).to(rays.device)

    def image(kind: str, **more: bool):
        return splat(*scene, rays, (size, size), kind=kind, cutoff=cutoff, **more)

    def learn(kind: str) -> None:
        rendered, _ = splat(*leaves, seen, (size, size), kind=kind, cutoff=cutoff)
        torch.autograd.grad((rendered * weights).sum(), [*leaves, seen])

    def learn_volume() -> None:
        volume = voxelize(*leaves, affine, (grid,) * 3, cutoff=cutoff)
        torch.autograd.grad((volume * cube).sum(), leaves)

    return {
        ("exact", "forward"): lambda: image("exact"),
        ("exact", "forward + moments"): lambda: image("exact", moments=True),
        ("exact", "forward + backward"): lambda: learn("exact"),
        ("affine", "forward"): lambda: image("affine"),
        ("affine", "forward + backward"): lambda: learn("affine"),
        ("voxels", "forward"): lambda: voxelize(*scene, affine, (grid,) * 3, cutoff=cutoff),
        ("voxels", "forward + backward"): learn_volume,
    }


def errors(scene: Scene, rays: torch.Tensor, size: int, cutoff: float) -> dict[str, float]:
    """How far each approximation is from the whole Gaussian in float64, alone and together."""
    fine = tuple(t.double() for t in scene)
    whole, _ = splat(*fine, rays, (size, size), cutoff=9.0)

    def off(tensors: Scene, kind: str, sigmas: float) -> float:
        image, _ = splat(*tensors, rays, (size, size), kind=kind, cutoff=sigmas)
        return float((image.double() - whole).norm() / whole.norm())

    return {
        "float32": off(scene, "exact", 9.0),
        "cutoff": off(fine, "exact", cutoff),
        "affine": off(fine, "affine", 9.0),
        "affine, of Gaussians three times as large": _enlarged(fine, rays, size),
    }


def _enlarged(fine: Scene, rays: torch.Tensor, size: int) -> float:
    mean, scale, rotation, density = fine
    wide = (mean, 3 * scale, rotation, density / 27)
    exact, _ = splat(*wide, rays, (size, size), cutoff=9.0)
    affine, _ = splat(*wide, rays, (size, size), kind="affine", cutoff=9.0)
    return float((affine - exact).norm() / exact.norm())


def show(result: dict[str, Any], console: Console) -> None:
    table = Table("mode", "work", "best ms", "median ms", "peak MB")
    for row in result["rows"]:
        numbers = (f"{row['best_ms']:.3g}", f"{row['median_ms']:.3g}", f"{row['peak_mb']:.1f}")
        table.add_row(row["mode"], row["work"], *numbers)
    console.print(table)
    for name, value in result["errors"].items():
        console.print(f"error of {name}: {value:.1e}")
    for goal in result["goals"]:
        console.print(f"{goal['what']}: {goal['best_ms']:.3g} ms, goal {goal['goal_ms']:g} ms")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--ct", help=f"CT to draw from, or {PHANTOM!r}; default XREG_CHEST_CT, else that of `xreg demo`."
)
@click.option("--count", default=50_000, show_default=True, help="Gaussians.")
@click.option("--size", type=int, help="Pixels along each side.  [default: 256, on a card 512]")
@click.option("--grid", default=128, show_default=True, help="Voxels along each side, and the unit of sizes.")
@click.option("--cutoff", default=CUTOFF, show_default=True, help="Sigmas.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default=0, help="Default: the cores.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Result (JSON).  [default: by the device]")
def main(ct, count, size, grid, cutoff, rounds, threads, device, out) -> None:
    """Measure the splatter and the voxeliser."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA card here")
    size, out = (
        size or SIZES[device],
        out or RESULTS / ("splat.json" if device == "cpu" else "splat_cuda.json"),
    )
    console = Console(width=None if sys.stdout.isatty() else 120)
    if threads:
        torch.set_num_threads(threads)
    path = find_ct(ct)
    volume = load_ct(path)
    run = describe_run(path, volume)
    scene, camera = make_scene(volume, count, grid), make_camera(volume, size)
    rays, affine = camera.ray_basis()[None].contiguous().to(device), grid_of(volume, grid)
    scene = tuple(t.to(device) for t in scene)
    rows = [
        {"mode": mode, "work": work, **timed(call, rounds, device)}
        for (mode, work), call in works(scene, rays, size, affine, grid, cutoff).items()
    ]
    scene_of = {"gaussians": count, "size": size, "grid": grid, "cutoff": cutoff, "kinds": list(KINDS)}
    result = {"schema": "xreg.benchmark.splat/1", "run": run, "scene": scene_of, "rows": rows}
    result["card"] = describe_card(device)
    result["errors"] = errors(scene, rays, size, cutoff)
    result["goals"] = [
        {"what": f"exact {row['work']}", "best_ms": row["best_ms"], "goal_ms": GOALS[device][row["work"]]}
        for row in rows
        if row["mode"] == "exact" and row["work"] in GOALS[device]
    ]
    write_json(out, result)
    show(result, console)


if __name__ == "__main__":
    main()
