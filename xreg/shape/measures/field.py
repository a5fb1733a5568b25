"""One bone of a label map as a field that can be sampled anywhere, in mm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ...errors import ShapeError
from ...io.voxel_grid import VoxelGrid
from ..schemes import Scheme, scheme

RIGHT, ANTERIOR, UP = np.eye(3)  # the world's axes
_PAD = 2  # voxels of nothing around a bone


@dataclass(frozen=True, eq=False)
class BoneField:
    """1 inside a bone and 0 outside, linear between voxel centres; its half is the surface.

    values: float32 [d, h, w], cut out with a margin of zeros; affine: [4, 4], its index (i, j, k) to RAS mm.
    faces: outer faces of the whole grid that the bone touches, as (index axis 0 i … 2 k, end 0 or 1).
    low, high: the corners of its box in RAS mm, of voxel centres.
    """

    name: str
    values: Float[np.ndarray, "d h w"]
    affine: Float[np.ndarray, "4 4"]
    faces: tuple[tuple[int, int], ...]

    @property
    def spacing(self) -> np.ndarray:
        """mm along i, j, k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def points(self) -> Float[np.ndarray, "N 3"]:
        """Centres of its voxels, RAS mm."""
        k, j, i = np.nonzero(self.values > 0.5)
        return np.stack([i, j, k], axis=1) @ self.affine[:3, :3].T + self.affine[:3, 3]

    @property
    def volume_mm3(self) -> float:
        """Volume of its voxels."""
        return float(self.values.sum() * abs(np.linalg.det(self.affine[:3, :3])))

    def depth(self) -> Float[np.ndarray, "d h w"]:
        """Distance (mm) of each voxel centre inside to the nearest centre outside; 0 outside."""
        from scipy.ndimage import distance_transform_edt

        return distance_transform_edt(self.values > 0.5, sampling=self.spacing[::-1])

    def world(self, index: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
        """Index (k, j, i) of `values` to RAS mm."""
        return np.asarray(index)[..., ::-1] @ self.affine[:3, :3].T + self.affine[:3, 3]

    def sample(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
        """The field at RAS points (mm), 0 beyond its box."""
        from scipy.ndimage import map_coordinates

        inverse = np.linalg.inv(self.affine)
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        return map_coordinates(self.values, np.moveaxis(index, -1, 0)[::-1], order=1, mode="constant")

    def box(
        self,
        center: np.ndarray,
        axes: Float[np.ndarray, "3 3"],
        reach: tuple[float, float, float],
        step: float,
    ) -> tuple[Float[np.ndarray, "a b c"], list[np.ndarray]]:
        """The field on a grid about ``center`` along three unit axes (rows), with the coordinates along each.

        reach: mm to both sides along each axis.  The middle sample of each axis lies at the centre.
        """
        along = [step * np.arange(-int(r / step), int(r / step) + 1) for r in reach]
        offsets = [line[:, None] * axis for line, axis in zip(along, axes, strict=True)]
        points = center + offsets[0][:, None, None] + offsets[1][None, :, None] + offsets[2][None, None]
        return self.sample(points), along


class Bones:
    """The bones of a label map, one field each, made when they are asked for."""

    def __init__(
        self, labels: Integer[Tensor, "D H W"], grid: VoxelGrid, which: str | Scheme = "all"
    ) -> None:
        """labels in the numbers of the scheme, on the grid (RAS mm).  Raises ShapeError."""
        self.scheme = scheme(which)
        values = torch.as_tensor(labels).detach().cpu()
        if values.is_floating_point() or tuple(values.shape) != grid.shape:
            raise ShapeError(
                f"labels must be whole numbers of the grid's shape {list(grid.shape)} [D, H, W], got "
                f"{values.dtype} {list(values.shape)}"
            )
        self.scheme.require(values)
        self.grid = grid
        self._labels = values.numpy().astype(np.int32)
        self._boxes = _boxes(self._labels, len(self.scheme))
        self._made: dict[str, BoneField] = {}

    def has(self, name: str) -> bool:
        """Whether there is a voxel of the bone."""
        return name in self.scheme.names and self._boxes[self.scheme.names.index(name)] is not None

    def why_not(self, name: str) -> str:
        """Why the whole bone is not in view: missing, or at the edge of the volume; "" where it is."""
        if not self.has(name):
            return f"{name} is missing"
        return f"{name} touches the edge of the volume" if self[name].faces else ""

    def __getitem__(self, name: str) -> BoneField:
        if name not in self._made:
            if not self.has(name):
                raise ShapeError(f"the label map holds no {name}")
            self._made[name] = self._field(name)
        return self._made[name]

    def _field(self, name: str) -> BoneField:
        number = self.scheme.names.index(name)
        box: Any = self._boxes[number]
        values = np.pad((self._labels[box] == number).astype(np.float32), _PAD)
        affine = self.grid.affine.numpy().copy()
        start = np.array([part.start for part in reversed(box)]) - _PAD
        affine[:3, 3] += affine[:3, :3] @ start
        faces = [
            (2 - dim, end)
            for dim, part in enumerate(box)
            for end, touches in ((0, part.start == 0), (1, part.stop == self._labels.shape[dim]))
            if touches
        ]
        return BoneField(name, values, affine, tuple(faces))


def _boxes(labels: np.ndarray, count: int) -> list[Any]:
    from scipy.ndimage import find_objects

    return [None, *find_objects(labels, max_label=max(count - 1, 1))]


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector over its length."""
    return vector / np.linalg.norm(vector)


def angle(one: np.ndarray, other: np.ndarray) -> float:
    """Degrees between two vectors, 0 to 180."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(one, other)), one @ other)))
