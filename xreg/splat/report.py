"""What a fit leaves behind: Gaussians, volume, metrics, a comparison and a turntable, in one folder."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from xreg import pictures
from xreg.geometry import Camera, se3
from xreg.io import save_volume
from xreg.io.files import write_json
from xreg.io.projections import ProjectionSet
from xreg.metrics import psnr, ssim_volume
from xreg.splat.drawn import draw, view_psnr
from xreg.splat.fitting import FitResult
from xreg.splat.gaussians import Gaussians
from xreg.splat.views import corrected
from xreg.volume import Volume

SCHEMA = "xreg.gaussian_metrics/1"
FILES = (
    "gaussians.safetensors",
    "gaussians.ply",
    "volume.nii.gz",
    "metrics.json",
    "comparison.png",
    "turntable.gif",
)
FRAMES, SIDE = 36, 256
_GIF_MS = 90


def measure(result: FitResult, scan: ProjectionSet, *, volume: Volume | None = None) -> dict[str, Any]:
    """Metrics on the absolute scale; 3D ones where the truth is on the fit's grid.

    psnr_3d_db and ssim_3d: of the volume's densities, range 1 in the source's unit (`scan.scale`);
    gaussians_psnr_3d_db: of the Gaussians' alone.  views_db: of the views that were fitted;
    held_out_views_db: of the set's held-out views, by `held_out_cameras`; both with the largest pixel as
    range.
    held_out_views_min_max_db: each view stretched from 0 to 1 by its own extremes, as X-Gaussian's papers
    have it, which is blind to gain and offset.  volume: that of the result, where it is at hand.
    """
    body, found = result.gaussians, {"gaussians": len(result.gaussians), "steps": result.steps}
    found["views_db"] = view_psnr(body, scan.images, result.cameras)
    found["held_out_rays_rms"] = min((look[3] for look in result.history), default=None)
    if scan.held_out is not None:
        drawn, films = draw(body, held_out_cameras(result, scan)), scan.held_out.images.cpu()
        found["held_out_views_db"] = psnr(drawn, films, data_range=float(films.max()))
        found["held_out_views_min_max_db"] = min_max_db(drawn, films)
    truth = scan.truth
    same = truth is not None and truth.shape == result.grid.shape
    if same and bool((truth.affine - result.grid.affine).abs().max() < 1e-6):
        unit = scan.scale or float(truth.mu.max())
        volume = result.volume() if volume is None else volume
        density, alone = ((v.mu / unit).clamp_min(0).cpu() for v in (volume, result.gaussian_volume()))
        found["psnr_3d_db"] = psnr(density, truth.mu.cpu() / unit)
        found["ssim_3d"] = ssim_volume(density, truth.mu.cpu() / unit)
        found["gaussians_psnr_3d_db"] = psnr(alone, truth.mu.cpu() / unit)
        found["data_range"] = 1.0
    if result.correction is not None:
        change, common = result.correction.change, result.correction.common
        found["poses"] = {
            "degrees_rms": math.degrees(float(change[:, :3].square().sum(1).mean().sqrt())),
            "mm_rms": float(change[:, 3:].square().sum(1).mean().sqrt()),
            "offset_px": common[:2].tolist(),
            "distance_factor": math.exp(float(common[2])),
        }
    return found


def held_out_cameras(result: FitResult, scan: ProjectionSet) -> tuple[Camera, ...]:
    """Cameras of the held-out views with what was found wrong with the detector of all views.

    Their own poses stay as they are, for nothing was told of them.
    """
    nominal, correction = tuple(scan.held_out.cameras), result.correction
    if correction is None or not bool(correction.common.any()):
        return nominal
    still = torch.zeros(6, dtype=torch.float64)
    return tuple(corrected(camera, still, correction.common, result.grid.center) for camera in nominal)


def min_max_db(images: Float[Tensor, "V H W"], truth: Float[Tensor, "V H W"]) -> float:
    """Mean PSNR over views, dB, each stretched from 0 to 1 by its own extremes."""
    stretch = lambda x: (x - x.min()) / (x.max() - x.min()).clamp_min(1e-12)  # noqa: E731
    return float(np.mean([psnr(stretch(a), stretch(b)) for a, b in zip(images, truth, strict=True)]))


def write_report(folder: str | PathLike, result: FitResult, scan: ProjectionSet) -> dict[str, Any]:
    """Write all of `FILES` into a folder that exists, each atomically; returns the metrics."""
    folder, body = Path(folder), result.gaussians
    body.save(folder / FILES[0])
    body.to_ply(folder / FILES[1])
    volume = result.volume()
    save_volume(folder / FILES[2], volume.to("cpu"), units="mu")
    metrics = measure(result, scan, volume=volume)
    history = [
        dict(zip(("step", "gaussians", "seconds", "held_out_rms"), h, strict=True)) for h in result.history
    ]
    cameras = [camera.to_dict() for camera in result.cameras] if result.correction is not None else None
    write_json(
        folder / FILES[3],
        {"schema": SCHEMA, **metrics, "seconds": result.seconds, "history": history, "cameras": cameras},
    )
    pictures.save_picture(folder / FILES[4], comparison(result, scan, volume=volume))
    pictures.save_gif(folder / FILES[5], turntable(body, result), milliseconds=_GIF_MS)
    return metrics


def comparison(
    result: FitResult, scan: ProjectionSet, *, volume: Volume | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """A film, the same view of the Gaussians and their difference; slices of truth, result and difference.

    volume: that of the result, where it is at hand.
    """
    test = scan.held_out
    film, camera = scan.images[0], result.cameras[0]
    if test is not None:
        film, camera = test.images[0], held_out_cameras(result, scan)[0]
    with torch.no_grad():
        drawn = result.gaussians.render(camera)
    kind = "film" if test is None else "view kept out"
    rows = [_row(kind, "Gaussians", film.cpu(), drawn.cpu(), share=0.1)]
    grid = result.grid
    values = (result.volume() if volume is None else volume).mu.cpu()
    truth = scan.truth.mu.cpu() if scan.truth is not None and scan.truth.shape == grid.shape else None
    for name, axis in (("axial", 0), ("coronal", 1)):
        n = values.shape[axis] // 2
        mine = values.select(axis, n).flip(0)
        other = None if truth is None else truth.select(axis, n).flip(0)
        rows.append(_row(f"truth, {name}", f"volume, {name}", other, mine, share=0.25))
    return pictures.panels(rows, title=f"{len(result.gaussians)} Gaussians from {len(scan)} views")


def _row(
    first: str, second: str, truth: Tensor | None, mine: Tensor, *, share: float
) -> list[tuple[str, UInt8[np.ndarray, "H W 3"]]]:
    """Truth and result in one window, and their difference in ± share of it."""
    like = mine if truth is None else truth
    low, high = float(like.quantile(0.002)), float(like.quantile(0.998))
    shown = [(second, pictures.colour(pictures.grey(mine, window=(low, high))))]
    if truth is not None:
        reach = share * (high - low)
        away = pictures.grey(mine - truth, window=(-reach, reach))
        shown = [(first, pictures.colour(pictures.grey(truth, window=(low, high)))), *shown]
        shown.append((f"difference, ±{100 * share:.0f} % of the window", pictures.colour(away)))
    return shown


def turntable(body: Gaussians, result: FitResult) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Radiographs all round the box's middle, about the vertical of the world."""
    images = [orbit_view(body, result, 2 * math.pi * n / FRAMES) for n in range(FRAMES)]
    top = max(float(image.max()) for image in images)
    return [pictures.colour(pictures.grey(image, window=(0.0, top))) for image in images]


def orbit_view(body: Gaussians, result: FitResult, angle: float) -> Float[Tensor, "H W"]:
    """The first view's radiograph after the object has turned (rad) about the world's z."""
    turn = torch.tensor([0.0, 0.0, angle, 0.0, 0.0, 0.0], dtype=torch.float64)
    camera: Camera = result.cameras[0]
    factor = max(camera.size) / SIDE
    size = tuple(max(8, round(n / factor)) for n in camera.size)
    with torch.no_grad():
        return body.render(camera.resize(size), se3.about(se3.exp(turn), result.grid.center)).cpu()
