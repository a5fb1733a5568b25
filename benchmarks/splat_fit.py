"""Gaussians and volumes from few projections: xreg's fit beside classical methods and R²-Gaussian's recipe.

python benchmarks/splat_fit.py --scene chest-50 --scene chest-25          (see --help)

Projections follow R²-Gaussian's protocol (`xreg.tomography.Protocol`): the ray marcher makes them, never the
splatter.  Times are processor seconds of one thread.  R²'s recipe runs on this project's kernels for as long
as the fit took, and then for four times as long.  FISTA-TV and OS-SART get their best iteration, judged with
the truth, which nobody has.  Metrics are of densities from 0 to 1 and of line integrals, absolute; "min-max"
is the peers' definition for views, blind to gain and offset.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from common import RESULTS, describe_run, find_ct, load_ct, write_json
from r2_recipe import R2Recipe
from tomography import Best, page

from xreg import pictures
from xreg.errors import InputWarning
from xreg.geometry import Rig
from xreg.metrics import psnr, ssim_volume
from xreg.splat import FitSettings, fit
from xreg.splat.report import min_max_db
from xreg.splat.views import corrected
from xreg.tomography import (
    Filter,
    Projector,
    Protocol,
    fdk,
    fista_tv,
    os_sart,
    ray_weights,
    simulate,
    tv_weight,
    usual_subsets,
)

PASSES = 25
SETTINGS = FitSettings(voxels="linear")  # since the protocol marches through interpolated voxels
HELD_OUT = 20
OURS, RECIPE = "xreg splat fit", "R² recipe"
NOISE = (1.0, 2.0)  # degrees and mm of each axis, of every view's pose


@dataclass(frozen=True)
class Scene:
    """One simulated scan: which CT, and what the protocol says."""

    body: str
    options: dict[str, Any]
    poses: bool = False
    times: tuple[int, ...] = (1, 4)  # that R²'s recipe gets of the fit's time


SCENES = {
    "chest-50": Scene("chest", {"views": 50}),
    "chest-25": Scene("chest", {"views": 25}),
    "pelvis-50": Scene("pelvis", {"views": 50}),
    "pelvis-25": Scene("pelvis", {"views": 25}),
    "chest-50 noise-free": Scene("chest", {"views": 50, "noise": "none"}, times=(1,)),
    "chest-50 over 120°": Scene("chest", {"views": 50, "arc": 120.0}, times=(1,)),
    "chest-50 truncated": Scene("chest", {"views": 50, "detector_side": (4.0, 2.2)}, times=(1,)),
    "chest-50 poses": Scene("chest", {"views": 50}, poses=True),
}


class Judge:
    """Figures of a volume, and of views, against one scan's truth."""

    def __init__(self, scan: Any) -> None:
        self.scan, self.truth = scan, scan.truth.mu / scan.scale

    def quality(self, mu: torch.Tensor) -> float:
        return psnr((mu / self.scan.scale).clamp(0, 1), self.truth)

    def volume(self, name: str, mu: torch.Tensor, seconds: float, remark: str = "") -> dict[str, Any]:
        density = (mu / self.scan.scale).clamp(0, 1)
        return {
            "method": name, "psnr_db": round(self.quality(mu), 2),
            "ssim": round(ssim_volume(density, self.truth), 4), "seconds": round(seconds, 1),
            "remark": remark,
        }  # fmt: skip

    def views(self, render: Callable[[Any], torch.Tensor]) -> dict[str, float]:
        """Held-out views, without noise."""
        test = self.scan.held_out
        drawn = torch.stack([render(camera) for camera in test.cameras]).clamp_min(0)
        top = float(test.images.max())
        return {
            "views_db": round(psnr(drawn, test.images, data_range=top), 2),
            "views_min_max_db": round(min_max_db(drawn, test.images), 2),
        }


def classical(scan: Any, judge: Judge) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """FDK, OS-SART and FISTA-TV, each in its best case."""
    images = scan.images
    begun = time.process_time()
    found = {"FDK": fdk(images, scan.cameras, scan.grid, filter=Filter("hann"))}
    rows = [judge.volume("FDK", found["FDK"], time.process_time() - begun, "Hann window")]
    keep, begun = Best(judge.quality), time.process_time()
    fast = Projector(scan.cameras, scan.grid, adjoint="voxel")
    os_sart(
        fast,
        images,
        subsets=max(1, min(12, len(images) // 2)),
        relaxation=0.5,
        iterations=20,
        on_iteration=keep,
    )
    found["OS-SART"] = keep.volume
    remark = f"{keep.number} iterations, stopped with the truth"
    rows.append(judge.volume("OS-SART", keep.volume, time.process_time() - begun, remark))
    keep, begun, weight = Best(judge.quality), time.process_time(), tv_weight(images)
    exact = Projector(scan.cameras, scan.grid)
    subsets, rays = usual_subsets(len(images)), ray_weights(images)
    fista_tv(exact, images, subsets=subsets, rays=rays, iterations=PASSES, on_iteration=keep)
    found["FISTA-TV"] = keep.volume
    remark = f"weight {weight:.2g}, best of up to {PASSES} passes with the truth: {keep.number}"
    rows.append(judge.volume("FISTA-TV", keep.volume, time.process_time() - begun, remark))
    return rows, found


def run_scene(
    scan: Any, settings: FitSettings, budgets: tuple[int, ...]
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Rows of all methods on one scan, without budgets all but those of R²'s recipe, and their volumes."""
    judge = Judge(scan)
    begun = time.process_time()
    result = fit(scan, settings, clock=time.process_time)
    spent, volume = time.process_time() - begun, result.volume().mu
    ours = judge.volume(OURS, volume, spent, f"{len(result.gaussians)} Gaussians, {result.steps} steps")
    ours["gaussians_psnr_db"] = round(judge.quality(result.gaussian_volume().mu), 2)
    ours |= judge.views(lambda camera: result.gaussians.render(camera).detach())
    click.echo(f"  {ours}")
    rows, found = classical(scan, judge)
    found[OURS] = volume
    if budgets:
        more, volumes = recipe_rows(scan, judge, spent, budgets)
        rows, found = rows + more, found | volumes
    return [*rows, ours], found


def recipe_rows(
    scan: Any, judge: Judge, seconds: float, budgets: tuple[int, ...]
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """One run of R²'s recipe, looked at when it has spent so many times the seconds."""
    recipe, used, rows, found = R2Recipe(scan), 0.0, [], {}
    for times in budgets:
        look = recipe.run(times * seconds - used)
        used += look.seconds
        name, volume = f"{RECIPE}, {times}× time", recipe.volume()
        row = judge.volume(name, volume, used, f"{look.count} Gaussians, {look.step} steps")
        rows.append(row | judge.views(recipe.render))
        found[name] = volume
        click.echo(f"  {rows[-1]}")
    return rows, found


def shaken(scan: Any, seed: int = 0) -> Any:
    """The scan whose cameras are wrong: NOISE on every pose, with a mean of zero (the gauge)."""
    random = torch.Generator().manual_seed(seed)
    change = torch.randn(len(scan.images), 6, generator=random, dtype=torch.float64)
    change = (change - change.mean(0)) * torch.tensor(
        [torch.pi / 180 * NOISE[0]] * 3 + [NOISE[1]] * 3, dtype=torch.float64
    )
    none = torch.zeros(3, dtype=torch.float64)
    cameras = [corrected(c, x, none, scan.grid.center) for c, x in zip(scan.cameras, change, strict=True)]
    return replace(scan, cameras=Rig(tuple(cameras)))


def run_poses(scan: Any, settings: FitSettings) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The fit with true cameras, with shaken ones, and with shaken ones that it refines."""
    judge, wrong, rows, found = Judge(scan), shaken(scan), [], {}
    for name, data, kind in (
        ("true cameras", scan, settings),
        ("shaken cameras", wrong, settings),
        ("shaken, refined", wrong, replace(settings, poses=True)),
    ):
        begun = time.process_time()
        result = fit(data, kind, clock=time.process_time)
        found[name] = result.gaussian_volume().mu
        rows.append(judge.volume(name, found[name], time.process_time() - begun))
        click.echo(f"  {rows[-1]}")
    true, lost, back = (row["psnr_db"] for row in rows)
    rows[-1]["recovered"] = round((back - lost) / (true - lost), 3)
    return rows, found


def _recipe_before(entries: list[dict[str, Any]], name: str, size: int) -> list[dict[str, Any]]:
    """Rows of R²'s recipe on a scene, as they were measured before."""
    before = [e for e in entries if (e["scene"], e["size"]) == (name, size)]
    return [row for entry in before for row in entry["rows"] if row["method"].startswith(RECIPE)]


@click.command()
@click.option("--scene", "scenes", type=click.Choice(list(SCENES)), multiple=True, help="[default: all]")
@click.option("--size", type=int, default=128, show_default=True, help="Voxels along the cube.")
@click.option("--detector", type=int, help="Pixels along the detector.  [default: twice the voxels]")
@click.option("--ct", help="Chest CT; default XREG_CHEST_CT, else that of `xreg demo`.")
@click.option("--pelvis", envvar="XREG_PELVIS_CT", help="Pelvis CT.")
@click.option("--pictures", "folder", type=click.Path(path_type=Path), help="Folder for middle slices.")
@click.option(
    "--keep-recipe", "keep", is_flag=True, help="Rows of R²'s recipe stay as the result file has them."
)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "splat_fit.json")
def main(scenes, size, detector, ct, pelvis, folder, keep, out) -> None:
    """Scenes that are asked for replace those of the same name and size in the result file."""
    torch.set_num_threads(1)
    chest, done = find_ct(ct), json.loads(out.read_text()) if out.is_file() else {"scenes": []}
    for name in scenes or SCENES:
        scene = SCENES[name]
        if scene.body == "pelvis" and not pelvis:
            raise click.UsageError("a pelvis scene takes --pelvis or XREG_PELVIS_CT")
        path = pelvis if scene.body == "pelvis" else chest
        volume = load_ct(path)
        wide = detector or 2 * size
        protocol = Protocol(size=size, detector=(wide, wide), held_out=HELD_OUT, **scene.options)
        click.echo(f"{name}, {size}³ from {protocol.views}×{wide}²")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)  # an arc that is incomplete is the point
            scan = simulate(volume, protocol).projections
            if scene.poses:
                rows, found = run_poses(scan, SETTINGS)
            else:
                rows, found = run_scene(scan, SETTINGS, () if keep else scene.times)
        if keep:
            rows = [*rows[:-1], *_recipe_before(done["scenes"], name, size), rows[-1]]
        entry = {
            "scene": name,
            "size": size,
            "detector": wide,
            "rows": rows,
            "run": describe_run(path, volume),
        }
        kept = [e for e in done["scenes"] if (e["scene"], e["size"]) != (name, size)]
        done = {"about": __doc__.split("\n\n")[2], "scenes": [*kept, entry]}
        write_json(out, done)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            picture = folder / f"{name.replace(' ', '_')}_{size}.png"
            middle = size // 2
            slices = {"truth": scan.truth.mu[middle] / scan.scale}
            slices |= {n: (mu[middle] / scan.scale).clamp(0, 1) for n, mu in found.items()}
            pictures.save_picture(picture, page(slices, columns=4))


if __name__ == "__main__":
    main()
