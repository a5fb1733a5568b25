"""A regular grid of voxels without values: what a reconstruction is to fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..errors import VolumeError
from ..geometry._numbers import as_tensor
from ..volume import Volume
from .grid import check_affine
from .lattice import Lattice

_LARGEST = 2**40  # voxels: beyond any machine, so a mistake


@dataclass(frozen=True, eq=False)
class VoxelGrid(Lattice):
    """Where voxels lie: shape (D, H, W) and affine [4, 4] from index (i, j, k) to world RAS mm.

    As in `Volume`: centres at integer indices, the affine float64 on the host.  Raises VolumeError for a
    shape that is not three positive whole numbers or an affine that is singular.
    """

    shape: tuple[int, int, int]
    affine: Float64[Tensor, "4 4"]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1 or shape[0] * shape[1] * shape[2] > _LARGEST:
            raise VolumeError(f"shape of a grid must be three positive counts (D, H, W), got {self.shape}")
        object.__setattr__(self, "shape", shape)
        affine = as_tensor(self.affine, dtype=torch.float64)
        object.__setattr__(self, "affine", check_affine(affine))

    @classmethod
    def of(cls, volume: Volume) -> VoxelGrid:
        """The grid of a volume."""
        return cls(volume.shape, volume.affine)

    @classmethod
    def box(cls, shape: Any, extent_mm: Any, center: Any = (0.0, 0.0, 0.0)) -> VoxelGrid:
        """A grid along the world's axes: shape (D, H, W), edges (x, y, z) and middle (x, y, z) in mm.

        One number stands for three.  The edges are those of the voxels' outer faces.
        """
        shape = (int(shape),) * 3 if isinstance(shape, int) else tuple(shape)
        edges = as_tensor(extent_mm, dtype=torch.float64).expand(3)
        if len(shape) != 3 or not bool((edges > 0).all()):
            raise VolumeError(f"a grid needs three counts and positive edges in mm, got {shape}, {extent_mm}")
        spacing = edges / torch.tensor(shape[::-1], dtype=torch.float64)
        affine = torch.diag(torch.cat([spacing, torch.ones(1, dtype=torch.float64)]))
        middle = as_tensor(center, dtype=torch.float64)
        affine[:3, 3] = middle - (edges - spacing) / 2
        return cls(shape, affine)

    def to_dict(self) -> dict[str, Any]:
        """Shape (D, H, W) and affine as plain numbers, for JSON."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VoxelGrid:
        """The grid that `to_dict` gave.  KeyError or TypeError where an entry is missing or wrong."""
        return cls(tuple(data["shape"]), torch.tensor(data["affine"], dtype=torch.float64))

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(torch.linalg.det(self.affine[:3, :3]).abs())

    def contains(self, points: Float[Tensor, "n 3"]) -> Tensor:
        """Whether each world point (mm) lies in the box."""
        local = (
            points.to(torch.float64).cpu() @ self.index_from_world[:3, :3].T + self.index_from_world[:3, 3]
        )
        limit = torch.tensor(self.size, dtype=torch.float64) - 0.5
        return ((local > -0.5) & (local < limit)).all(-1)

    def binned(self, n: int) -> VoxelGrid:
        """The grid of blocks of n³ voxels; what does not fill a block is dropped."""
        change = torch.diag(torch.tensor([n, n, n, 1.0], dtype=torch.float64))
        change[:3, 3] = (n - 1) / 2
        return VoxelGrid(tuple(m // n for m in self.shape), self.affine @ change)

    def volume(self, mu: Float[Tensor, "D H W"], **known: Any) -> Volume:
        """A `Volume` of values on this grid; ``known`` as in `Volume` (energy_kev, provenance …)."""
        if tuple(mu.shape) != self.shape:
            raise VolumeError(f"mu must have the grid's shape {self.shape}, got {tuple(mu.shape)}")
        return Volume(mu, self.affine, **known)
