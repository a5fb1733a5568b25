"""Three vertebrae as boxes with spikes, a doubtful prediction and films of them: for tests of the fit."""

import shape_case
import torch

from xreg.io import VoxelGrid
from xreg.shape.atlas import Atlas, build_atlas
from xreg.shape.predict import prediction_of
from xreg.shape.schemes import SCHEMES
from xreg.shape.shares import Shares
from xreg.shape.shipped import grid_camera
from xreg.shape.sources import Member

ALL, SPINE = SCHEMES["all"], SCHEMES["spine"]
SHAPE, VOXEL = (40, 28, 28), 4.0
GRID = VoxelGrid.box(SHAPE, [n * VOXEL for n in reversed(SHAPE)], (10.0, -5.0, 20.0))


def bodies(shift=(0.0, 0.0, 0.0), turn=0.0, stretch=1.0, spike=37.0) -> torch.Tensor:
    """L1 to L3 as boxes with a spike to the back, about 28 mm wide; moved in mm, turned about x.

    spike: how far back it reaches, mm.
    """
    k, j, i = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in SHAPE), indexing="ij")
    points = torch.stack([i, j, k], -1) @ GRID.affine[:3, :3].T + GRID.affine[:3, 3]
    labels = torch.zeros(SHAPE, dtype=torch.int16)
    c, s = torch.cos(torch.tensor(turn)), torch.sin(torch.tensor(turn))
    for n in range(3):
        middle = torch.tensor([10.0, 0.0, 20.0 + 40.0 * (1 - n)]) + torch.tensor(shift)
        x, y, z = ((points - middle) / stretch).unbind(-1)
        y, z = c * y + s * z, c * z - s * y
        body = (x.abs() < 17) & (y.abs() < 13) & (z.abs() < 11)
        behind = (x.abs() < 5) & (y > -spike) & (y < 0) & (z.abs() < 5)
        labels[body | behind] = 20 + n
    return labels


def doubtful(labels: torch.Tensor, blur: int = 2, names=SPINE):
    """A prediction of these labels that is blurred over a few voxels."""
    one = torch.nn.functional.one_hot(labels.long(), len(names)).movedim(-1, 0).float()
    for _ in range(blur):
        one = torch.nn.functional.avg_pool3d(one[None], 3, 1, 1, count_include_pad=False)[0]
    flat = (one / one.sum(0)).flatten(1).T
    voxels = (flat[:, 0] < 0.98).nonzero()[:, 0]
    return prediction_of([Shares.of(voxels, flat[voxels])], GRID, names)


def films_of(labels: torch.Tensor):
    cameras = (grid_camera(GRID, 1), grid_camera(GRID, 0))
    return shape_case.films_of(labels, GRID, cameras), cameras


def one_patient() -> Atlas:
    return build_atlas([Member("p", "spine", bodies(), GRID)])


def two_patients() -> Atlas:
    """Of spikes of 21 and 45 mm."""
    both = (("short", 21.0), ("long", 45.0))
    return build_atlas([Member(name, "spine", bodies(spike=length), GRID) for name, length in both])
