"""What lies about the bones of a new patient: organs denser or less so, or another patient's body.

Few patients are few bodies, and a network learns to know them by gas, organs and outline, which say where
each bone was.  Bones in other bodies take that away (as pasting objects on other pictures does:
G. Ghiasi et al., "Simple copy-paste is a strong data augmentation method for instance segmentation", 2021).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int16
from torch import Tensor

from xreg.io import VoxelGrid
from xreg.shape.deform import random_field
from xreg.shape.patients import AIR, SOFT, Patient, sample_points

if TYPE_CHECKING:
    from xreg.shape.population import Variation

_TISSUE = (-200.0, 150.0)  # HU between which organs differ from patient to patient
_BONE = (120.0, 220.0)  # HU from which, and above which surely, a voxel without a label is bone
_STRETCH = 1.6  # at most, of a body that is smaller than the field
_ZOOM, _SHIFT = 0.1, 15.0  # of another's body: log, and mm


def vary_tissue(
    hu: Float[Tensor, "D H W"], grid: VoxelGrid, variation: Variation, generator: torch.Generator
) -> Float[Tensor, "D H W"]:
    """Organs denser or less so, smoothly; bone of more or less contrast; air stays."""
    gain = math.exp(variation.bone_gain * float(torch.randn((), generator=generator)))
    whole = 0.5 * variation.tissue_hu * float(torch.randn((), generator=generator))
    lattice = tuple(-(-n // 4) + 1 for n in grid.shape)
    field = random_field(lattice, [4 * s for s in grid.spacing], variation.tissue_mm, generator, channels=1)
    field = F.interpolate(field[None], grid.shape, mode="trilinear", align_corners=True)[0, 0].to(hu.device)
    low, high = _TISSUE
    part = ((hu - low) / 100.0).clamp(0.0, 1.0) * ((high - hu) / 50.0).clamp(0.0, 1.0)
    hu = hu + part * (variation.tissue_hu * field + whole)
    dense = (hu - high).clamp_min(0.0)
    return (hu + (gain - 1.0) * dense).clamp_min(AIR)


def covers(body: Patient, grid: VoxelGrid) -> bool:
    """Whether a body fills a grid's box once it is stretched, by no more than a body may be."""
    return all(
        there <= _STRETCH * here
        for here, there in zip(sorted(body.grid.extent), sorted(grid.extent), strict=True)
    )


def in_body_of(
    hu: Float[Tensor, "D H W"],
    labels: Int16[Tensor, "D H W"],
    grid: VoxelGrid,
    other: Patient,
    generator: torch.Generator,
) -> Float[Tensor, "D H W"]:
    """The bones of one patient in the soft tissue of another, whose own bones become soft tissue.

    hu, labels: on ``grid``.  Bone is what has a label, or is dense.  The other's body is laid with its middle
    near the grid's, stretched where it is smaller, and left for right by chance.
    """
    around = other.hu_at(_laid(other, grid, generator, hu.device))
    low, high = _BONE
    soft = torch.lerp(around, torch.full_like(around, SOFT), ((around - low) / (high - low)).clamp(0, 1))
    bone = ((hu - low) / (high - low)).clamp(0, 1)
    return torch.lerp(soft, hu, torch.where(labels > 0, 1.0, bone))


def _laid(
    other: Patient, grid: VoxelGrid, generator: torch.Generator, device: torch.device
) -> Float[Tensor, "D H W 3"]:
    """Where the voxels of a grid lie in another patient, in grid_sample's coordinates of it."""
    draw = torch.randn(4, generator=generator, dtype=torch.float64)
    flip = 1.0 if float(torch.rand((), generator=generator)) < 0.5 else -1.0
    zoom = math.exp(_ZOOM * float(draw[3]))
    boxes = [_box(g) for g in (other.grid, grid)]
    part = torch.minimum(boxes[0] / boxes[1] * 0.98, torch.full_like(boxes[0], zoom))
    place = torch.eye(4, dtype=torch.float64)
    place[:3, :3] = torch.diag(part * torch.tensor([flip, 1.0, 1.0], dtype=torch.float64))
    room = (boxes[0] - part * boxes[1]) / 2
    shift = (draw[:3] * _SHIFT).clamp(-room, room)
    place[:3, 3] = other.grid.center + shift - place[:3, :3] @ grid.center
    return sample_points(grid, other.grid, place, device)


def _box(grid: VoxelGrid) -> Float[Tensor, " 3"]:
    """Edges of a grid's box along the world's axes, mm, as if its axes ran along them."""
    axes = grid.affine[:3, :3].abs()
    return axes @ torch.tensor(grid.size, dtype=torch.float64)
