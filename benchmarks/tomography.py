"""Reconstructs a CT from few projections by classical methods: PSNR, SSIM and seconds of each.

python benchmarks/tomography.py --size 128 --views 75 --views 50 --views 25      (see --help)

Projections follow R²-Gaussian's protocol (`xreg.tomography.Protocol`), marched through a grid twice as fine
as the truth, which no method can therefore reproduce exactly.  Metrics are of densities from 0 to 1,
absolute. CGLS and OS-SART stop where they are best, judged with the truth, which nobody has: their best
case.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from common import PHANTOM, RESULTS, describe_run, find_ct, load_ct, write_json
from torch import Tensor

from xreg import pictures
from xreg.errors import InputWarning
from xreg.metrics import psnr, ssim_volume
from xreg.tomography import (
    USUAL_PASSES,
    Filter,
    Iteration,
    Projector,
    Protocol,
    cgls,
    fdk,
    fista_tv,
    os_sart,
    ray_weights,
    simulate,
    tv_weight,
    usual_subsets,
)

PLAIN = str.maketrans("²³×", "23x")  # which the pictures' font lacks
WEIGHTS = (5e-4, 1e-3, 2e-3, 4e-3)
SCENES = {  # what differs from a full circle
    "circle": {},
    "120 degrees": {"arc": 120.0},
    "truncated": {"detector_side": (4.0, 2.2)},
}


class Best:
    """Keeps the volume with the highest PSNR among the iterations, and the seconds it took."""

    def __init__(self, quality: Callable[[Tensor], float]) -> None:
        self._quality, self._paused = quality, 0.0
        self.psnr, self.volume, self.seconds, self.number = -1e9, None, 0.0, 0

    def __call__(self, step: Iteration) -> bool:
        start = time.perf_counter()
        value = self._quality(step.volume)
        worse = value < self.psnr
        if not worse:
            self.psnr, self.volume, self.number = value, step.volume.clone(), step.number
            self.seconds = step.seconds - self._paused
        self._paused += time.perf_counter() - start
        return worse


def methods(
    projections: Any, quality: Callable[[Tensor], float], weights: tuple[float | None, ...]
) -> dict[str, Any]:
    """Functions that give (volume, seconds, remark), by name."""
    images, cameras, grid = projections.images, projections.cameras, projections.grid
    count = len(images)
    groups, rays = usual_subsets(count), ray_weights(images)

    def plain(run: Callable[[], Tensor], remark: str) -> Callable[[], tuple[Tensor, float, str]]:
        def timed() -> tuple[Tensor, float, str]:
            start = time.perf_counter()
            volume = run()
            return volume, time.perf_counter() - start, remark

        return timed

    def best(run: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, float, str]]:
        def timed() -> tuple[Tensor, float, str]:
            start, keep = time.perf_counter(), Best(quality)
            run(on_iteration=keep)
            spent = min(keep.seconds, time.perf_counter() - start)
            return keep.volume, spent, f"{keep.number} iterations, stopped with the truth"

        return timed

    fast, exact = Projector(cameras, grid, adjoint="voxel"), Projector(cameras, grid)
    found = {
        "FDK ramp": plain(lambda: fdk(images, cameras, grid), ""),
        "FDK hann": plain(lambda: fdk(images, cameras, grid, filter=Filter("hann")), ""),
        "OS-SART": best(
            lambda **k: os_sart(fast, images, subsets=groups, relaxation=0.5, iterations=30, **k)
        ),
        "CGLS": best(lambda **k: cgls(exact, images, iterations=30, **k)),
    }
    for weight in weights:
        value = tv_weight(images) if weight is None else weight
        found["FISTA-TV" if weight is None else f"FISTA-TV {weight:g}"] = plain(
            lambda value=value: fista_tv(
                exact, images, weight=value, rays=rays, subsets=groups, iterations=USUAL_PASSES
            ),
            f"weight {value:.2g}, {groups} subsets, {USUAL_PASSES} passes",
        )
    return found


def run_scene(
    volume: Any, protocol: Protocol, weights: tuple[float | None, ...], only: tuple[str, ...]
) -> tuple[list, Any]:
    """Rows of one simulated scan, and middle slices of truth and results."""
    scene = simulate(volume, protocol).projections
    truth = scene.truth.mu / scene.scale
    rows, slices = [], {"truth": truth[truth.shape[0] // 2]}

    def quality(mu: Tensor) -> float:
        return psnr(mu / scene.scale, truth)

    for name, run in methods(scene, quality, weights).items():
        if only and not any(name.startswith(word) for word in only):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)  # that an arc is incomplete is the point
            mu, seconds, remark = run()
        density = (mu / scene.scale).clamp(0, 1)
        row = {
            "method": name,
            "psnr_db": round(quality(mu), 3),
            "psnr_clipped_db": round(psnr(density, truth), 3),
            "ssim": round(ssim_volume(density, truth), 4),
            "seconds": round(seconds, 2),
            "remark": remark,
        }
        rows.append(row)
        slices[name] = density[truth.shape[0] // 2]
    return rows, slices


def page(slices: dict[str, Tensor], columns: int = 3) -> Any:
    """Middle slices beside each other, anterior up."""
    drawn = [
        (name.translate(PLAIN), pictures.colour(pictures.grey(image.flip(0).numpy(), window=(0.2, 0.5))))
        for name, image in slices.items()
    ]
    return pictures.panels([drawn[n : n + columns] for n in range(0, len(drawn), columns)])


@click.command()
@click.option("--ct", help=f"Chest CT, or {PHANTOM!r}; default XREG_CHEST_CT, else that of `xreg demo`.")
@click.option("--pelvis", help="Pelvis CT; default XREG_PELVIS_CT, else left out.")
@click.option("--size", type=int, default=128, show_default=True, help="Voxels along the cube.")
@click.option("--detector", type=int, help="Pixels along the detector.  [default: twice the voxels]")
@click.option("--views", type=int, multiple=True, default=(75, 50, 25), show_default=True)
@click.option("--scene", "scenes", type=click.Choice(list(SCENES)), multiple=True, default=("circle",))
@click.option("--photons", type=float, default=1e4, show_default=True, help="I0 of the noise.")
@click.option("--tune", is_flag=True, help=f"FISTA-TV with weights {WEIGHTS} too.")
@click.option("--only", multiple=True, help="Methods whose names begin so.")
@click.option("--pictures", "folder", type=click.Path(path_type=Path), help="Folder for middle slices.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "tomography.json")
def main(ct, pelvis, size, detector, views, scenes, photons, tune, only, folder, out) -> None:
    """Reconstruct from few projections, and write and print what comes out."""
    given = {"chest": find_ct(ct)} | (
        {"pelvis": p} if (p := pelvis or os.environ.get("XREG_PELVIS_CT")) else {}
    )
    loaded = {name: load_ct(path) for name, path in given.items()}
    about = {name: describe_run(given[name], loaded[name]) for name in loaded}
    results = []
    for name, volume in loaded.items():
        for scene in scenes:
            for count in views:
                protocol = Protocol(
                    size=size, views=count, detector=(detector or 2 * size,) * 2, photons=photons, finer=2,
                    **SCENES[scene],
                )  # fmt: skip
                rows, slices = run_scene(volume, protocol, (None, *WEIGHTS) if tune else (None,), only)
                for row in rows:
                    click.echo(
                        f"{name:<7} {scene:<12} {count:>3} views  {row['method']:<15} "
                        f"{row['psnr_db']:6.2f} dB "
                        f"{row['ssim']:.3f} {row['seconds']:8.2f} s  {row['remark']}"
                    )
                results.append({"ct": name, "scene": scene, "protocol": protocol.to_dict(), "rows": rows})
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    file = folder / f"{name}-{scene.replace(' ', '-')}-{count}.png"
                    pictures.save_picture(file, page(slices))
    write_json(
        out,
        {"run": about["chest"], "volumes": {n: a["volume"] for n, a in about.items()}, "results": results},
    )


if __name__ == "__main__":
    main()
