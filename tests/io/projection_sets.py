"""A small set of projections, and its parts."""

import torch

from xreg.geometry import Camera, Rig
from xreg.io import ProjectionSet, VoxelGrid

GRID = VoxelGrid.box((5, 6, 7), (70.0, 60.0, 50.0), (1.0, 2.0, 3.0))


def images(views=3, height=8, width=10, seed=0):
    return torch.rand(views, height, width, generator=torch.Generator().manual_seed(seed)) * 3


def rig(views=3, size=(8, 10)):
    angles = torch.arange(views, dtype=torch.float64) * 20
    camera = Camera.c_arm(sdd=900.0, sod=600.0, size=size, spacing=(3.0, 4.0), primary=angles)
    return Rig(tuple(camera))


def whole():
    truth = GRID.volume(
        torch.rand(GRID.shape, generator=torch.Generator().manual_seed(9)) * 0.03, energy_kev=60.0
    )
    held_out = ProjectionSet(images(2, seed=4), rig(2))
    return ProjectionSet(
        images(), rig(), truth=truth, scale=0.01, held_out=held_out, provenance={"made": "here"}
    )


def same_cameras(one, other):
    points = torch.tensor([[0.0, 0, 0], [20, -30, 40], [-5, 60, 10]], dtype=torch.float64)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.project(points), b.project(points), rtol=0, atol=1e-6)
