"""Where voxels lie, where the labels of a map have their middles, and which of them are whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Integer
from torch import Tensor

from xreg.geometry import se3
from xreg.io.voxel_grid import VoxelGrid


def centroids(labels: Integer[Tensor, "D H W"], count: int) -> Float64[Tensor, "L 3"]:
    """Mean index (i, j, k) of each label's voxels, exact but for one division; float64 on the CPU.

    count: L, or the highest label and one where that is more.  NaN for labels without a voxel, and for the
    background.
    """
    k, j, i = labels.nonzero(as_tuple=True)
    numbers = labels[k, j, i].long()
    size = torch.bincount(numbers, minlength=count)
    sums = [torch.bincount(numbers, weights=axis.double(), minlength=count) for axis in (i, j, k)]
    return (torch.stack(sums, 1).double() / size[:, None]).cpu()  # without a voxel, torch sums in float32


def middles_of(labels: Integer[Tensor, "D H W"], grid: VoxelGrid, count: int) -> Float64[Tensor, "L 3"]:
    """`centroids` in world mm, on the CPU."""
    return se3.apply(grid.affine.cpu(), centroids(labels, count))


def whole_boxes(labels: np.ndarray, fewest: int) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Numbers and boxes of the labels that do not touch the border and have ``fewest`` voxels or more."""
    from scipy import ndimage

    for number, box in enumerate(ndimage.find_objects(labels), 1):
        if box is None or any(s.start == 0 or s.stop == n for s, n in zip(box, labels.shape, strict=True)):
            continue
        if int((labels[box] == number).sum()) >= fewest:
            yield number, box


def points_of(grid: VoxelGrid, flat: Int64[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """World points (mm) of voxels."""
    k, j, i = torch.unravel_index(flat, grid.shape)
    return se3.apply(grid.affine, torch.stack([i, j, k], -1).double()).float()
