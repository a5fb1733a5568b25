"""Poses of all views, and what is wrong with the detector, by Gauss-Newton on the splatter's Jacobian."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.geometry import Camera
from xreg.splat.gaussians import Gaussians
from xreg.splat.views import Views, corrected

SIGMAS = (math.radians(2.0), 4.0)  # what a pose may be off by: rad and mm, of each axis
COMMON = (8.0, 8.0, 0.05)  # detector offset in px, relative error of the distance
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
    """One Gauss-Newton step of every view's six numbers and, with ``intrinsics``, of the three in common.

    Least squares of the rays that are used, with a prior at zero (SIGMAS, COMMON) for what the views do
    not tell.
    noise: standard deviation of a ray.  Gauge: all views may be moved together with the object, so the mean
    correction is taken away.  center: the isocentre, mm.  The body stays as it is.
    """
    count, shared = len(views.cameras), 3 if intrinsics else 0
    matrix = torch.zeros(6 * count + shared, 6 * count + shared, dtype=torch.float64)
    vector = torch.zeros(6 * count + shared, dtype=torch.float64)
    current = known.cameras(nominal, center)
    for n, camera in enumerate(current):
        more = _common_rays(body, nominal[n], known, n, center) if intrinsics else None
        image, jacobian = body.render_with_jacobian(camera, center=center, more=more)
        use = views.used[n].to(image.device)
        rows = jacobian[:, use].double()
        away = (views.films[n].to(image) - image)[use].double()
        block, right = (rows @ rows.T).cpu() / noise**2, (rows @ away).cpu() / noise**2
        at = torch.cat([torch.arange(6 * n, 6 * n + 6), torch.arange(6 * count, 6 * count + shared)])
        matrix[at[:, None], at] += block
        vector[at] += right
    sigma = torch.tensor([SIGMAS[0]] * 3 + [SIGMAS[1]] * 3, dtype=torch.float64).repeat(count)
    sigma = torch.cat([sigma, torch.tensor(COMMON[:shared], dtype=torch.float64)])
    value = torch.cat([known.change.reshape(-1), known.common[:shared]])
    matrix = matrix * sigma * sigma[:, None] + torch.eye(len(sigma), dtype=torch.float64)
    step = torch.linalg.solve(matrix, vector * sigma - value / sigma) * sigma
    step = step.clamp(-sigma, sigma)  # one round goes no further than what is likely at all
    change = known.change + step[: 6 * count].reshape(count, 6)
    change = _without_gauge(change, nominal)
    return replace(known, change=change, common=known.common + _padded(step[6 * count :]))


def _without_gauge(change: Tensor, nominal: tuple[Camera, ...]) -> Tensor:
    """Corrections whose mean is zero: tangents are of the object, in the world, so they add up."""
    return change - change.mean(0) if len(nominal) > 1 else change


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
