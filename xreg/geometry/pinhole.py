"""The arithmetic behind ``Camera``: triangular intrinsics, rays, and splitting a 3×4 matrix. Float64 tensors.

An *image matrix* maps (x/z, y/z, 1) in the camera (or (x, y, 1) for a parallel beam) to pixels of the stored
image; it is upper triangular with last row (0, 0, 1), and its first row is reversed where the image is
mirrored.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError
from xreg.geometry import se3
from xreg.geometry._numbers import broadcast_shapes, require_finite, require_positive, tensor64


def require_intrinsics(k: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return ``k``, or raise GeometryError unless finite, upper triangular, with positive focal lengths."""
    if k.shape[-2:] != (3, 3):
        raise GeometryError(f"K must have shape [..., 3, 3], got {tuple(k.shape)}")
    values = require_finite(k, "K").detach()
    last = torch.tensor([0.0, 0.0, 1.0], dtype=k.dtype, device=k.device)
    if bool((values[..., 2, :] != last).any()) or bool((values[..., 1, 0] != 0).any()):
        raise GeometryError(
            f"K must be [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] in pixels, got {values.tolist()}; "
            "for another 3×4 matrix use Camera.from_projection_matrix"
        )
    if not bool((values.diagonal(dim1=-2, dim2=-1) > 0).all()):
        raise GeometryError(
            f"K must have positive focal lengths, got {values.tolist()}; a flipped axis is a turned pose or "
            "mirrored=True (see Camera.from_projection_matrix)"
        )
    return k


def intrinsics(
    sdd: Float[Tensor, "*batch"],
    spacing: Any,
    principal_point: Any,
    size: tuple[int, int],
    mirrored: bool,
) -> Float[Tensor, "*batch 3 3"]:
    """Build K from sdd (mm), spacing (mm; one number or row, column) and (u, v) px in the stored image."""
    pitch = require_positive(tensor64(spacing, "spacing", device=sdd.device), "spacing", "mm per pixel")
    if pitch.ndim == 0:
        pitch = pitch.expand(2)
    if pitch.shape[-1] != 2:
        raise GeometryError(
            f"spacing must be one number or (row, column) in mm, got shape {tuple(pitch.shape)}"
        )
    if principal_point is None:
        principal_point = ((size[1] - 1) / 2, (size[0] - 1) / 2)
    center = require_finite(
        tensor64(principal_point, "principal_point", device=sdd.device), "principal_point"
    )
    if center.shape[-1:] != (2,):
        raise GeometryError(f"principal_point must be (u, v) in pixels, got shape {tuple(center.shape)}")
    fy, fx = (sdd[..., None] / pitch).unbind(-1)
    cx, cy = center.unbind(-1)
    cx = size[1] - 1 - cx if mirrored else cx
    fx, fy, cx, cy = torch.broadcast_tensors(fx, fy, cx, cy)
    o, i = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, o, cx, o, fy, cy, o, o, i], dim=-1).reshape(*fx.shape, 3, 3)


def pose_at(
    rotation: Float[Tensor, "*batch 3 3"], isocenter: Float[Tensor, "*batch 3"], sod: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch 4 4"]:
    """Return camera_from_world for axes ``rotation`` (world_from_camera), ``sod`` mm before ``isocenter``."""
    if isocenter.shape[-1:] != (3,):
        raise GeometryError(f"isocenter must be a world point [..., 3] in mm, got {tuple(isocenter.shape)}")
    require_finite(isocenter, "isocenter")
    return se3.inverse(se3.from_rt(rotation, isocenter - sod[..., None] * rotation[..., :, 2]))


def column_flip(width: int, device: torch.device | None = None) -> Float[Tensor, "3 3"]:
    """Return the map u → W − 1 − u of homogeneous pixels."""
    rows = [[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def affine(
    matrix: Float[Tensor, "*batch 3 3"], points: Float[Tensor, "*batch n 2"]
) -> Float[Tensor, "*batch n 2"]:
    """Apply a homogeneous matrix whose last row is (0, 0, 1) to 2D points."""
    return points @ matrix[..., :2, :2].transpose(-1, -2) + matrix[..., None, :2, 2]


def invert_triangular(m: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Invert an image matrix in closed form."""
    fx, skew, cx, fy, cy = m[..., 0, 0], m[..., 0, 1], m[..., 0, 2], m[..., 1, 1], m[..., 1, 2]
    o, i = torch.zeros_like(fx), torch.ones_like(fx)
    entries = [1 / fx, -skew / (fx * fy), (skew * cy - cx * fy) / (fx * fy), o, 1 / fy, -cy / fy, o, o, i]
    return torch.stack(entries, dim=-1).reshape(m.shape)


def ray_basis(
    image_matrix: Float[Tensor, "*batch 3 3"],
    camera_from_world: Float[Tensor, "*batch 4 4"],
    length: Float[Tensor, "*batch"],
    parallel: bool = False,
) -> Float[Tensor, "*batch 6 3"]:
    """Return the rows (s0, su, sv, d0, du, dv) in world mm, as ``Camera.ray_basis`` does."""
    world_from_camera = se3.inverse(camera_from_world)
    rotation, source = world_from_camera[..., :3, :3], world_from_camera[..., None, :3, 3]
    inverse = invert_triangular(image_matrix)
    first = torch.tensor([[1.0], [0.0], [0.0]], dtype=image_matrix.dtype, device=image_matrix.device)
    length = length[..., None, None]
    if parallel:
        inverse = torch.cat([inverse[..., :2, :], torch.zeros_like(inverse[..., :1, :])], dim=-2)
    # The columns of R·inverse belong to u, v and 1; turned into rows in the order 1, u, v they are a basis.
    spread = (rotation @ inverse).transpose(-1, -2).roll(1, dims=-2)
    if parallel:
        start, direction = spread + first * source, first * (rotation[..., None, :, 2] * length)
    else:
        start, direction = first * source, spread * length
    batch = broadcast_shapes(start.shape[:-2], direction.shape[:-2])
    return torch.cat([start.expand(*batch, 3, 3), direction.expand(*batch, 3, 3)], dim=-2)


def split_matrix(
    matrix: Float[Tensor, "*batch 3 4"], front: Float[Tensor, "*batch 3"], width: int
) -> tuple[Tensor, Tensor, bool]:
    """Return (K, camera_from_world, mirrored) of a 3×4 projection; ``front`` is a point before the source.

    Rows are taken from the last upwards (Gram-Schmidt), so that K comes out triangular. Source: R. Hartley,
    A. Zisserman, Multiple View Geometry, 2nd ed., §6.2.4.
    """
    norm = matrix[..., 2:, :3].norm(dim=-1, keepdim=True)
    if bool((norm.detach() <= 1e-12 * matrix.detach().abs().amax((-1, -2), keepdim=True)).any()):
        raise GeometryError(
            "matrix has a third row of (0, 0, 0, ·), a parallel beam; use Camera.parallel_beam"
        )
    p = matrix / norm
    depth = (p[..., 2, :3] * front).sum(-1) + p[..., 2, 3]
    if bool((depth.detach() == 0).any()):
        raise GeometryError(f"front must be a point before the source, got {front.tolist()} at depth 0")
    p = p * depth.detach().sign()[..., None, None]
    det = torch.linalg.det(p[..., :3].detach())
    if not (bool((det > 0).all()) or bool((det < 0).all())):
        raise GeometryError("matrix must be invertible in its 3×3 part, and a batch all mirrored or none")
    mirrored = bool((det < 0).all())
    if mirrored:
        p = column_flip(width, p.device) @ p
    m1, m2, r3 = p[..., 0, :3], p[..., 1, :3], p[..., 2, :3]
    cy, cx = (m2 * r3).sum(-1), (m1 * r3).sum(-1)
    rest = m2 - cy[..., None] * r3
    fy = rest.norm(dim=-1)
    r2 = rest / fy[..., None]
    r1 = torch.linalg.cross(r2, r3)
    skew, fx = (m1 * r2).sum(-1), (m1 * r1).sum(-1)
    o, i = torch.zeros_like(fx), torch.ones_like(fx)
    k = torch.stack([fx, skew, cx, o, fy, cy, o, o, i], dim=-1).reshape(*fx.shape, 3, 3)
    translation = (invert_triangular(k) @ p[..., 3:]).squeeze(-1)
    return k, se3.from_rt(torch.stack([r1, r2, r3], dim=-2), translation), mirrored
