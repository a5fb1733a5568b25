"""Rays of films' pixels, and where they meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from xreg.geometry import Camera

Ray = tuple[Float64[Tensor, " 3"], Float64[Tensor, " 3"]]


def ray_at(camera: Camera, pixel: Float[Tensor, " 2"]) -> Ray:
    """A point of the ray of a pixel (u, v), and its direction; world mm."""
    start, end = (camera.unproject(pixel[None].double(), depth)[0] for depth in (0.0, 1.0))
    return start, F.normalize(end - start, dim=0)


def meeting(rays: Sequence[Ray]) -> tuple[Float64[Tensor, "3 3"], Float64[Tensor, " 3"]]:
    """The normal equations (matrix, right side) of the point that is nearest to all rays."""
    matrix, side = (torch.zeros(*size, dtype=torch.float64) for size in ((3, 3), (3,)))
    for point, along in rays:
        plane = torch.eye(3, dtype=torch.float64) - along[:, None] * along
        matrix, side = matrix + plane, side + plane @ point
    return matrix, side
