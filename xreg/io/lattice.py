"""Where the voxels of a regular grid lie: what follows from a shape and an affine."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float64
from torch import Tensor


class Lattice:
    """A regular grid in the world, for classes that have a shape and an affine.

    shape: voxels (D, H, W), along k, j and i.  affine: [4, 4] from voxel index (i, j, k) to world RAS mm,
    float64 on the CPU; centres sit at integer indices.
    """

    shape: tuple[int, int, int]
    affine: Float64[Tensor, "4 4"]

    @property
    def size(self) -> tuple[int, int, int]:
        """Number of voxels (W, H, D), that is along i, j and k: the order of ``spacing``."""
        depth, height, width = self.shape
        return width, height, depth

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel spacing in mm along i, j and k."""
        return tuple(torch.linalg.vector_norm(self.affine[:3, :3], dim=0).tolist())

    @property
    def extent(self) -> tuple[float, float, float]:
        """Edge lengths in mm along i, j and k of the box of all voxels, outer faces included."""
        return tuple(n * s for n, s in zip(self.size, self.spacing, strict=True))

    @property
    def center(self) -> Float64[Tensor, " 3"]:
        """Middle of the grid in world RAS mm, float64."""
        index = torch.tensor([(n - 1) / 2 for n in self.size], dtype=torch.float64)
        return self.affine[:3, :3] @ index + self.affine[:3, 3]

    @property
    def grid_corners(self) -> Float64[Tensor, "8 3"]:
        """The eight outermost voxel *centres* in world RAS mm, i fastest."""
        return self._corners(0.0)

    @property
    def box_corners(self) -> Float64[Tensor, "8 3"]:
        """The eight outer corners of the voxels' *box* in world RAS mm, half a voxel outside the centres."""
        return self._corners(0.5)

    @property
    def index_from_world(self) -> Float64[Tensor, "4 4"]:
        """World RAS mm to voxel index (i, j, k): the inverse of ``affine``."""
        return torch.linalg.inv(self.affine)

    def _corners(self, outside: float) -> Float64[Tensor, "8 3"]:
        ends = [(-outside, n - 1 + outside) for n in reversed(self.size)]
        index = torch.tensor(list(itertools.product(*ends)), dtype=torch.float64).flip(1)
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]
