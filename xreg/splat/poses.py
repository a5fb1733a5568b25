"""Poses of all views, and what is wrong with the detector, by Gauss-Newton on the splatter's Jacobian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.geometry import Camera
from xreg.splat.gaussians import Gaussians
from xreg.splat.views import Views, corrected

SIGMAS = (math.radians(2.0), 4.0)  # what a pose may be off by: rad and mm, of each axis
COMMON = (8.0, 8.0, 0.05)  # detector offset in px, relative error of the distance
DAMPING, TRIES = 1e-3, 6  # of the normal equations' diagonal, times ten with each try
_STEPS = (1e-3, 1e-3, 1e-6)  # of the differences that give the rays' change: px, px, relative


@dataclass(frozen=True, eq=False)
class Correction:
    """change: [V, 6] tangents (rad, mm) of the object in each view about `center`; common: offset and
    distance."""

    change: Float[Tensor, "V 6"]
    common: Float[Tensor, " 3"]

    @classmethod
    def none(cls, views: int) -> Correction:
        """Nothing is corrected."""
        return cls(torch.zeros(views, 6, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))

    def cameras(self, nominal: tuple[Camera, ...], center: Tensor) -> tuple[Camera, ...]:
        """The cameras as corrected."""
        return tuple(
            corrected(camera, change, self.common, center)
            for camera, change in zip(nominal, self.change, strict=True)
        )


def refine_poses(
    body: Gaussians,
    views: Views,
    nominal: tuple[Camera, ...],
    known: Correction,
    *,
    center: Float[Tensor, " 3"],
    intrinsics: bool,
    noise: float,
) -> Correction:
    """One Levenberg-Marquardt step of every view's six numbers and, with ``intrinsics``, of the common three.

    Least squares of the rays that are used, with a prior at zero (SIGMAS, COMMON) for what the views do
    not tell; `_gauge` says what no view can.  noise: standard deviation of a ray.  center: the isocentre, mm.
    The body stays as it is.  The sum never grows: a step that would raise it is damped, and after TRIES
    ``known`` is returned.
    """
    count, shared = len(nominal), 3 if intrinsics else 0
    sigma = torch.tensor([SIGMAS[0]] * 3 + [SIGMAS[1]] * 3, dtype=torch.float64).repeat(count)
    sigma = torch.cat([sigma, torch.tensor(COMMON[:shared], dtype=torch.float64)])
    value = torch.cat([known.change.reshape(-1), known.common[:shared]]) / sigma
    matrix, vector, square = _normal_equations(body, views, nominal, known, center, intrinsics)
    matrix = matrix * sigma * sigma[:, None] / noise**2 + torch.eye(len(sigma), dtype=torch.float64)
    vector = vector * sigma / noise**2 - value
    gauge = _gauge(nominal, len(sigma)) if count > 1 else matrix[:0]
    before, damping = square / noise**2 + float(value.square().sum()), DAMPING
    for _ in range(TRIES):
        damped = matrix + damping * torch.diag(matrix.diagonal())
        found = value + _held(damped, vector, gauge)
        change = (found * sigma)[: 6 * count].reshape(count, 6)
        tried = Correction(change, _padded((found * sigma)[6 * count :]))
        after = _square(body, views, tried.cameras(nominal, center)) / noise**2
        if after + float(found.square().sum()) < before:
            return tried
        damping *= 10
    return known


def _normal_equations(
    body: Gaussians,
    views: Views,
    nominal: tuple[Camera, ...],
    known: Correction,
    center: Tensor,
    intrinsics: bool,
) -> tuple[Tensor, Tensor, float]:
    """JᵀJ, Jᵀr and rᵀr of the rays that are used, float64 on the host."""
    count, shared = len(nominal), 3 if intrinsics else 0
    matrix = torch.zeros(6 * count + shared, 6 * count + shared, dtype=torch.float64)
    vector, square = torch.zeros(6 * count + shared, dtype=torch.float64), 0.0
    for n, camera in enumerate(known.cameras(nominal, center)):
        more = _common_rays(body, nominal[n], known, n, center) if intrinsics else None
        image, jacobian = body.render_with_jacobian(camera, center=center, more=more)
        use = views.used[n].to(image.device)
        rows = jacobian[:, use].double()
        away = (views.films[n].to(image) - image)[use].double()
        at = torch.cat([torch.arange(6 * n, 6 * n + 6), torch.arange(6 * count, 6 * count + shared)])
        matrix[at[:, None], at] += (rows @ rows.T).cpu()
        vector[at] += (rows @ away).cpu()
        square += float(away.square().sum())
    return matrix, vector, square


def _square(body: Gaussians, views: Views, cameras: tuple[Camera, ...]) -> float:
    """Sum of squares over the rays that are used."""
    with torch.no_grad():
        away = [
            (film.to(body.mean) - body.render(camera))[use.to(body.mean.device)].double().square().sum()
            for film, camera, use in zip(views.films, cameras, views.used, strict=True)
        ]
    return float(torch.stack(away).sum())


def _gauge(cameras: tuple[Camera, ...], count: int) -> Float[Tensor, "7 N"]:
    """Sums over the views that stay at zero: of the six numbers, and of the way along each view's axis.

    The object may be moved in all views alike; and it may be farther from every source, and larger.
    """
    sums = torch.zeros(7, count, dtype=torch.float64)
    views = len(cameras)
    sums[:6, : 6 * views] = torch.eye(6, dtype=torch.float64).repeat(1, views)
    for n, camera in enumerate(cameras):
        sums[6, 6 * n + 3 : 6 * n + 6] = camera.camera_from_world[2, :3].to(sums)
    return sums[:6] if all(camera.parallel for camera in cameras) else sums


def _held(matrix: Tensor, vector: Tensor, gauge: Tensor) -> Tensor:
    """The solution x of a symmetric system with gauge · x = 0.

    By Lagrange multipliers: taking the sums away afterwards would leave the common unknowns where they are,
    though they had been solved for together with them.
    """
    corner = torch.zeros(len(gauge), len(gauge), dtype=vector.dtype)
    whole = torch.cat([torch.cat([matrix, gauge.T], 1), torch.cat([gauge, corner], 1)])
    return torch.linalg.solve(whole, torch.cat([vector, vector.new_zeros(len(gauge))]))[: len(vector)]


def _padded(step: Tensor) -> Tensor:
    return step if len(step) else torch.zeros(3, dtype=torch.float64)


def _common_rays(
    body: Gaussians, camera: Camera, known: Correction, n: int, center: Tensor
) -> Float[Tensor, "3 6 3"]:
    """Derivatives of a view's rays by offset and distance, by central differences (float64)."""
    found = []
    for k, h in enumerate(_STEPS):
        step = torch.zeros(3, dtype=torch.float64)
        step[k] = h
        ends = [
            body.rays(corrected(camera, known.change[n], known.common + way * step, center))
            for way in (1, -1)
        ]
        found.append((ends[0] - ends[1]) / (2 * h))
    return torch.stack(found)
