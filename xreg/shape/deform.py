"""Smooth invertible deformations of a grid, from velocity fields that do not change in time.

Fields are [3, D, H, W] in mm along the grid's own index axes (i, j, k), first component along i.  The flow of
a velocity for unit time is found by scaling and squaring: V. Arsigny, O. Commowick, X. Pennec, N. Ayache, "A
log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.errors import ShapeError

_STEPS = 6  # doublings: the first step is a 64th of the whole
_LEAST = 0.1  # determinant below which a fold is near
_TRIES = 12


def exponential(velocity: Float[Tensor, "3 D H W"], spacing: Sequence[float]) -> Float[Tensor, "3 D H W"]:
    """Displacement (mm) of each grid point by the flow of ``velocity`` (mm a unit time) for unit time.

    spacing: mm along i, j and k.  Beyond the grid the field at its border goes on.  Gradients flow.
    """
    part = 0.5**_STEPS
    displacement = part * at_moved_points(velocity, 0.5 * part * velocity, spacing)  # the midpoint rule
    for _ in range(_STEPS):
        displacement = displacement + at_moved_points(displacement, displacement, spacing)
    return displacement


def at_moved_points(
    field: Float[Tensor, "C D H W"], displacement: Float[Tensor, "3 d h w"], spacing: Sequence[float]
) -> Float[Tensor, "C d h w"]:
    """A field where the points of its own grid are moved to; the border's value beyond it."""
    points = base_points(displacement.shape[1:], displacement) + scaled(
        displacement, field.shape[1:], spacing
    )
    return F.grid_sample(
        field[None], points[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]


def scaled(displacement: Tensor, shape: Sequence[int], spacing: Sequence[float]) -> Float[Tensor, "d h w 3"]:
    """A displacement in mm in the coordinates of grid_sample (-1 to 1 from first to last centre)."""
    sizes = shape[::-1]
    unit = [2.0 / (s * max(n - 1, 1)) for n, s in zip(sizes, spacing, strict=True)]
    return displacement.permute(1, 2, 3, 0) * displacement.new_tensor(unit)


def base_points(shape: Sequence[int], like: Tensor) -> Float[Tensor, "D H W 3"]:
    """Grid points in the coordinates of grid_sample."""
    lines = [torch.linspace(-1.0, 1.0, n, dtype=like.dtype, device=like.device) for n in shape]
    k, j, i = torch.meshgrid(*lines, indexing="ij")
    return torch.stack([i, j, k], dim=-1)


def jacobians(
    displacement: Float[Tensor, "3 D H W"], spacing: Sequence[float]
) -> Float[Tensor, "8 D-1 H-1 W-1"]:
    """Determinants of the map x + displacement(x) at the eight corners of each cell of a trilinear field."""
    slopes = []
    for axis, step in enumerate(spacing):
        slopes.append(torch.diff(displacement, dim=3 - axis) / step)
    corners = []
    depth, height, width = (n - 1 for n in displacement.shape[1:])
    for c in range(8):
        a, b, d = c & 1, c >> 1 & 1, c >> 2 & 1  # the corner's offset along i, j and k
        along_i = slopes[0][:, d : d + depth, b : b + height, :]
        along_j = slopes[1][:, d : d + depth, :, a : a + width]
        along_k = slopes[2][:, :, b : b + height, a : a + width]
        x = along_i + _unit(0, displacement)
        y = along_j + _unit(1, displacement)
        z = along_k + _unit(2, displacement)
        corners.append((torch.linalg.cross(x, y, dim=0) * z).sum(0))
    return torch.stack(corners)


def invertible(velocity: Float[Tensor, "3 D H W"], spacing: Sequence[float]) -> Float[Tensor, "3 D H W"]:
    """The flow of a velocity, made weaker by thirds until no cell of the grid comes near to folding.

    A velocity whose flow has a determinant below 0.1 somewhere is multiplied by 2/3 and tried again.
    Raises ShapeError for a field that is not finite.
    """
    if not bool(velocity.isfinite().all()):
        raise ShapeError("a velocity field must be finite")
    for _ in range(_TRIES):
        displacement = exponential(velocity, spacing)
        if float(jacobians(displacement, spacing).min()) > _LEAST:
            return displacement
        velocity = velocity * (2.0 / 3.0)
    return torch.zeros_like(velocity)


def random_field(
    shape: Sequence[int],
    spacing: Sequence[float],
    scale_mm: float,
    generator: torch.Generator,
    *,
    channels: int = 3,
) -> Float[Tensor, "C D H W"]:
    """Smooth noise of about unit variance whose bumps are ``scale_mm`` apart, float32 on the host.

    Normal numbers on a lattice of that spacing, somewhere beneath the grid, joined by cubic B-splines.
    """
    extents = [n * s for n, s in zip(shape, spacing[::-1], strict=True)]
    knots = [int(e / scale_mm) + 6 for e in extents]
    field = torch.randn(channels, *knots, generator=generator)
    shift = torch.rand(3, generator=generator).tolist()
    for axis, (n, step, offset) in enumerate(zip(shape, spacing[::-1], shift, strict=True)):
        weights = _spline_weights(n, step / scale_mm, offset, knots[axis])
        field = torch.movedim(torch.movedim(field, axis + 1, -1) @ weights.T, -1, axis + 1)
    return field * 3.0  # cubic B-splines leave about a ninth of the variance in three dimensions


def blurred(field: Float[Tensor, "C D H W"], times: int = 1) -> Float[Tensor, "C D H W"]:
    """Three-point binomial smoothing along each axis, ``times`` over; the border is repeated."""
    for _ in range(times):
        for axis in (1, 2, 3):
            n = field.shape[axis]
            ends = field.narrow(axis, 0, 1), field.narrow(axis, n - 1, 1)
            padded = torch.cat([ends[0], field, ends[1]], dim=axis)
            sides = padded.narrow(axis, 0, n) + padded.narrow(axis, 2, n)
            field = 0.5 * field + 0.25 * sides
    return field


def _unit(axis: int, like: Tensor) -> Float[Tensor, "3 1 1 1"]:
    unit = torch.zeros(3, 1, 1, 1, dtype=like.dtype, device=like.device)
    unit[axis] = 1.0
    return unit


def _spline_weights(count: int, step: float, offset: float, knots: int) -> Float[Tensor, "n k"]:
    """Values of the uniform cubic B-splines about each knot at offset + 1 + step · index (knots from 0)."""
    at = offset + 1.0 + step * torch.arange(count, dtype=torch.float32)
    away = (at[:, None] - torch.arange(knots, dtype=torch.float32)).abs()
    near = 2.0 / 3.0 - away**2 + away**3 / 2.0
    far = (2.0 - away).clamp_min(0.0) ** 3 / 6.0
    return torch.where(away < 1.0, near, far)
