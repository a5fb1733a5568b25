"""A small object, its grid, and cameras round it."""

from __future__ import annotations

import torch

from xreg.geometry import Camera
from xreg.io import VoxelGrid

GRID = VoxelGrid.box((28, 32, 36), (180.0, 160.0, 140.0), (12.0, -7.0, 30.0))
MU = 0.02


def places(grid: VoxelGrid = GRID) -> torch.Tensor:
    """World places of voxels, [D, H, W, 3]."""
    index = torch.stack(
        torch.meshgrid(*[torch.arange(float(n)) for n in grid.shape], indexing="ij")[::-1], -1
    )
    return (index.double() @ grid.affine[:3, :3].T + grid.affine[:3, 3]).float()


def ball(
    radius: float, center: tuple[float, float, float] = (0.0, 0.0, 0.0), grid: VoxelGrid = GRID
) -> torch.Tensor:
    """1 in a ball (mm, from the grid's middle), with an edge as wide as a voxel."""
    middle = grid.center + torch.tensor(center, dtype=torch.float64)
    away = (places(grid) - middle.float()).norm(dim=-1)
    return ((radius - away) / min(grid.spacing) + 0.5).clamp(0, 1)


def body(grid: VoxelGrid = GRID) -> torch.Tensor:
    """Attenuation of an object without symmetry, 1/mm."""
    return MU * (ball(50, grid=grid) + ball(12, (15, -14, 9), grid) - ball(9, (-22, 8, -12), grid))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def circle(views: int = 60, arc: float = 360.0, **known: object) -> Camera:
    """Cameras on a circle about the grid's middle."""
    size = known.pop("size", (44, 60))
    known = {"sdd": 900.0, "sod": 600.0, "spacing": (5.0, 4.5), "isocenter": GRID.center, **known}
    angles = torch.arange(views, dtype=torch.float64) * arc / views
    return Camera.c_arm(size=size, primary=known.pop("primary", angles), **known)
