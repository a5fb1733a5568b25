"""The parts of ``Camera`` that give another camera: cut, flipped or resampled images, and other poses."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError
from xreg.geometry import pinhole, pixel_grid, se3
from xreg.geometry._numbers import tensor64

if TYPE_CHECKING:
    from xreg.geometry.camera import Camera


class CameraEdits:
    """Methods of Camera. Pixel coordinates are those of the image as stored, mirrored or not."""

    # ---- other images of the same view ------------------------------------------------------------------

    def crop(self, top: int, left: int, height: int, width: int) -> Camera:
        """Return the camera of ``image[..., top:top + height, left:left + width]`` of the stored image."""
        return self._remapped(*pixel_grid.crop_map(self.size, top, left, height, width))

    def pad(self, top: int, bottom: int, left: int, right: int) -> Camera:
        """Return the camera of the stored image grown by rows and columns on each side."""
        return self._remapped(*pixel_grid.pad_map(self.size, top, bottom, left, right))

    def bin(self, n: int) -> Camera:
        """Return the camera of the n×n block means; rows left over below and columns at right are dropped."""
        return self._remapped(*pixel_grid.bin_map(self.size, n))

    def resize(self, size: tuple[int, int]) -> Camera:
        """Return the camera of the image resampled to ``size`` (height, width), outer edges in place."""
        return self._remapped(*pixel_grid.resize_map(self.size, size))

    def flip_columns(self) -> Camera:
        """Return the camera of the image flipped left to right (u → W − 1 − u): ``mirrored`` is toggled."""
        return self.replace(check=False, mirrored=not self.mirrored)

    def flip_rows(self) -> Camera:
        """Return the camera of the image flipped top to bottom: half a turn, with ``mirrored`` toggled."""
        return self.rotate90(2).flip_columns()

    def rotate90(self, turns: int = 1) -> Camera:
        """Return the camera of ``numpy.rot90(image, turns)``, quarter turns counter-clockwise."""
        camera = self
        for _ in range(turns % 4):
            camera = camera._quarter_turn()
        return camera

    def _remapped(self, size: tuple[int, int], pixel_map: PixelMap) -> Camera:
        su, ou, sv, ov = pixel_map
        rows = [[su, 0.0, ou], [0.0, sv, ov], [0.0, 0.0, 1.0]]
        change = torch.tensor(rows, dtype=torch.float64, device=self.device)
        k = change @ self.image_matrix
        if self.mirrored:
            k = pinhole.column_flip(size[1], self.device) @ k
        return self.replace(check=False, K=k, size=size)

    def _quarter_turn(self) -> Camera:
        if bool((self.K.detach()[..., 0, 1] != 0).any()):
            raise GeometryError(
                "a camera with skew (K[0, 1] ≠ 0) cannot be turned by 90°: rows would be skewed"
            )
        height, width = self.size
        u, v = self.principal_point.unbind(-1)
        (fx, fy), (cx, cy) = self.focal.unbind(-1), (v, width - 1 - u)
        cx = height - 1 - cx if self.mirrored else cx
        o, i = torch.zeros_like(fx), torch.ones_like(fx)
        k = torch.stack([fy, o, cx, o, fx, cy, o, o, i], dim=-1).reshape(*fx.shape, 3, 3)
        s = -1.0 if self.mirrored else 1.0  # seen from the other side, the camera turns the other way
        rows = [[0.0, s, 0.0, 0.0], [-s, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
        turn = torch.tensor(rows, dtype=torch.float64, device=self.device)
        pose = turn @ self.camera_from_world
        return self.replace(check=False, K=k, camera_from_world=pose, size=(width, height))

    def replace(self, *, check: bool = True, **changes: Any) -> Camera:
        """Return a copy with some fields changed.

        ``check=False`` skips validation and conversion, for values already known to be good float64 tensors:
        in the inner loop of an optimiser (no device synchronisation) and under torch.func transforms.
        """
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        if unknown := changes.keys() - known.keys():
            raise GeometryError(f"a Camera has no field {sorted(unknown)}; it has {sorted(known)}")
        known.update(changes)
        if check:
            return type(self)(**known)
        camera = object.__new__(type(self))
        for name, value in known.items():
            object.__setattr__(camera, name, value)
        return camera

    def with_pose(self, camera_from_world: Float[Tensor, "*batch 4 4"], *, check: bool = True) -> Camera:
        """Return the same camera elsewhere; ``check`` as in ``replace``."""
        return self.replace(check=check, camera_from_world=camera_from_world)

    def moved(self, world_from_new: Float[Tensor, "*batch 4 4"], *, check: bool = True) -> Camera:
        """Return this camera told in another world: camera_from_new = camera_from_world · world_from_new.

        With a body's pose world_from_body it becomes the camera as the body sees it. Both carry gradients.
        """
        if check:
            world_from_new = tensor64(world_from_new, "world_from_new", device=self.device, rows=True)
            se3.require_rigid(world_from_new, "world_from_new")
        return self.with_pose(self.camera_from_world @ world_from_new, check=check)
