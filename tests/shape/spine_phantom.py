"""A made-up spine of T9 to L5 with a sacrum, which leans and bends, and films of it."""

import torch

from xreg.io import VoxelGrid
from xreg.shape.centroids import points_of
from xreg.shape.films import facing_camera, label_thickness
from xreg.shape.schemes import SCHEMES
from xreg.shape.spine import GAPS_MM

ALL = SCHEMES["all"]
SPINE = list(ALL.groups["spine"])
SACRUM = ALL.index("sacrum")
GRID = VoxelGrid.box((100, 40, 40), (160.0, 160.0, 400.0), (5.0, -10.0, 60.0))
FIRST, LAST = ALL.index("T9"), ALL.index("L5")


def spine(size: float = 1.0) -> torch.Tensor:
    """Labels of T9 to L5 and a sacrum, stacked along a line that leans and bends."""
    points = points_of(GRID, torch.arange(100 * 40 * 40)).reshape(100, 40, 40, 3)
    top = float(GRID.center[2]) + 175.0
    down = top - points[..., 2]
    off = points[..., :2] - GRID.center[:2].float()
    off[..., 0] -= 0.1 * (down - 150)
    off[..., 1] -= 18 * torch.sin(down / 60)
    inside = off.norm(dim=-1) < 18
    labels = torch.zeros(GRID.shape, dtype=torch.int16)
    edge = 0.0
    for number in range(FIRST, LAST + 1):
        height = size * GAPS_MM[SPINE.index(number)]
        labels[inside & (down >= edge) & (down < edge + height)] = number
        edge += height
    labels[inside & (down >= edge) & (down < edge + 70)] = SACRUM
    return labels


def films_of(labels: torch.Tensor, *, size: float = 1.0, sod: float | None = None):
    """Two films, brighter at the middles of vertebrae than at the discs between them; and their cameras."""
    known = {"size": (100, 60), "sod": sod, "sdd": None if sod is None else 1.3 * sod}
    cameras = tuple(facing_camera(GRID, d, **known) for d in ((0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)))
    points = points_of(GRID, torch.arange(100 * 40 * 40)).reshape(100, 40, 40, 3)
    down = float(GRID.center[2]) + 175.0 - points[..., 2]
    edge, disc = 0.0, torch.zeros(GRID.shape, dtype=torch.bool)
    for number in range(FIRST, LAST + 1):
        edge += size * GAPS_MM[SPINE.index(number)]
        disc |= (down - edge).abs() < 4.5
    kinds = torch.where(labels > 0, torch.where(disc & (labels < SACRUM), 1, 2), 0).to(torch.int16)
    thick = torch.stack([label_thickness(kinds, GRID, camera, 3) for camera in cameras])
    return (0.3 * thick[:, 1] + thick[:, 2]) / 45.0, cameras
