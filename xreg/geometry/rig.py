"""Several views of one world: what they see together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError
from xreg.geometry._numbers import broadcast_shapes, tensor64
from xreg.geometry.camera import Camera

SCHEMA = "xreg.rig/1"
_PASSES = 3  # of reweighting by depth, which converges at once
_PARALLEL = 1e-10  # squared sine of the angle between rays below which a crossing is not a point


@dataclass(frozen=True, eq=False)
class Rig:
    """Cameras with fixed relations in one world (RAS+ mm); sizes and kinds may differ.

    Each may carry leading batch dimensions, which must broadcast. GeometryError if there is none, if they lie
    on different devices, or if their batches do not fit.
    """

    cameras: tuple[Camera, ...]

    def __post_init__(self) -> None:
        cameras = tuple(self.cameras)
        if not cameras or not all(isinstance(camera, Camera) for camera in cameras):
            kinds = [type(camera).__name__ for camera in cameras]
            raise GeometryError(f"a Rig needs one Camera or more, got {kinds}")
        if len({camera.device for camera in cameras}) > 1:
            raise GeometryError(
                f"the cameras of a Rig must share a device, got {[c.device for c in cameras]}"
            )
        try:
            broadcast_shapes(*(camera.batch_shape for camera in cameras))
        except RuntimeError as error:
            shapes = [tuple(camera.batch_shape) for camera in cameras]
            raise GeometryError(f"the batches of a Rig's cameras must broadcast, got {shapes}") from error
        object.__setattr__(self, "cameras", cameras)

    def __len__(self) -> int:
        return len(self.cameras)

    def __iter__(self) -> Iterator[Camera]:
        return iter(self.cameras)

    def __getitem__(self, index: int) -> Camera:
        return self.cameras[index]

    def map(self, change: Callable[[Camera], Camera]) -> Rig:
        """Return the rig with each camera changed, as in ``rig.map(lambda camera: camera.bin(2))``."""
        return Rig(tuple(change(camera) for camera in self.cameras))

    def to(self, device: torch.device | str) -> Rig:
        """Return the rig with its tensors on ``device``, still float64."""
        return self.map(lambda camera: camera.to(device))

    def moved(self, world_from_new: Float[Tensor, "*batch 4 4"], *, check: bool = True) -> Rig:
        """Tell all cameras in another world (mm); see ``Camera.moved``. Relations stay; gradients flow."""
        return self.map(lambda camera: camera.moved(world_from_new, check=check))

    def relative(self, i: int, j: int) -> Float[Tensor, "*batch 4 4"]:
        """Return camera_i_from_camera_j (mm)."""
        return self.cameras[i].camera_from_world @ self.cameras[j].world_from_camera

    def project(self, points: Float[Tensor, "*batch n 3"]) -> list[Float[Tensor, "*batch n 2"]]:
        """Map world points (mm) to pixels (u, v) of each view; see ``Camera.project``."""
        return [camera.project(points) for camera in self.cameras]

    def triangulate(
        self, pixels: Sequence[Float[Tensor, "*batch n 2"]]
    ) -> tuple[Float[Tensor, "*batch n 3"], Float[Tensor, "*batch n views"]]:
        """Return the world points (mm) that best explain ``pixels`` (u, v), and the misfit of each view (px).

        ``pixels`` has one [..., N, 2] a view, with the same N; NaN where a view does not see a point. A
        point that fewer than two views see, or whose rays are parallel, is NaN. Pixels and cameras carry
        gradients (weights held). Source: linear least squares with rows reweighted by depth, so that the
        misfit is in pixels: R. Hartley, P. Sturm, "Triangulation", CVIU 68 (1997), Iterative-LS.
        """
        views = self._pixel_stack(pixels)
        seen = torch.isfinite(views).all(-1)  # [..., N, V]
        known = torch.where(seen[..., None], views, 0.0)
        batch = broadcast_shapes(*(camera.batch_shape for camera in self.cameras))
        matrices = [camera.projection_matrix.expand(*batch, 3, 4) for camera in self.cameras]
        p = torch.stack(matrices, dim=-3)[..., None, :, :, :]  # [..., 1, V, 3, 4]
        rows = known[..., None] * p[..., 2:, :] - p[..., :2, :]  # [..., N, V, 2, 4]
        size = rows[..., :3].norm(dim=-1).detach().amax(-1)  # so that rays of each view start out equal
        weight = seen / size
        points = _solve(rows * weight[..., None, None])
        for _ in range(_PASSES):
            depth = _homogeneous(p[..., 2, :], points[..., None, :]).detach()
            depth = torch.where(torch.isfinite(depth) & (depth != 0), depth, 1.0)
            points = _solve(rows * (seen / depth)[..., None, None])
        points = torch.where((seen.sum(-1) < 2)[..., None], torch.nan, points)
        misfit = [_distance(c.project(points), views[..., i, :]) for i, c in enumerate(self.cameras)]
        return points, torch.stack(misfit, dim=-1)

    def to_dict(self) -> dict[str, Any]:
        """Return the rig as plain JSON values, schema "xreg.rig/1"; no camera may be a batch."""
        return {"schema": SCHEMA, "cameras": [camera.to_dict() for camera in self.cameras]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Rig:
        """Read what ``to_dict`` wrote; GeometryError names the missing or wrong entry."""
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        if found != SCHEMA:
            raise GeometryError(f"a rig needs an object with schema {SCHEMA!r}, got {found!r}")
        if not isinstance(data.get("cameras"), list):
            raise GeometryError(
                f"a rig of schema {SCHEMA!r} needs a list 'cameras', got {data.get('cameras')!r}"
            )
        return cls(tuple(Camera.from_dict(camera) for camera in data["cameras"]))

    def _pixel_stack(self, pixels: Sequence[Any]) -> Float[Tensor, "*batch n views 2"]:
        if len(pixels) != len(self.cameras):
            raise GeometryError(f"pixels must have one entry a view ({len(self.cameras)}), got {len(pixels)}")
        views = [tensor64(p, "pixels", device=self.cameras[0].device) for p in pixels]
        shapes = [tuple(v.shape) for v in views]
        if any(len(s) < 2 or s[-1] != 2 for s in shapes) or len({s[-2] for s in shapes}) > 1:
            raise GeometryError(f"pixels must be [..., N, 2] with the same N in each view, got {shapes}")
        return torch.stack(torch.broadcast_tensors(*views), dim=-2)


def _homogeneous(row: Tensor, points: Tensor) -> Tensor:
    return (row[..., :3] * points).sum(-1) + row[..., 3]


def _solve(rows: Float[Tensor, "*batch n views 2 4"]) -> Float[Tensor, "*batch n 3"]:
    """Solve the rows (a, b) of a·X + b = 0 by least squares; NaN where a direction is not determined."""
    rows = rows.flatten(-3, -2)
    a, b = rows[..., :3], rows[..., 3:]
    normal, right = a.transpose(-1, -2) @ a, -(a.transpose(-1, -2) @ b)
    spread = torch.linalg.eigvalsh(normal.detach())
    vague = (spread[..., 0] <= _PARALLEL * spread[..., 2])[..., None, None]
    eye = torch.eye(3, dtype=rows.dtype, device=rows.device)
    solution = torch.linalg.solve(torch.where(vague, eye, normal), torch.where(vague, 0.0, right))
    return torch.where(vague, torch.nan, solution).squeeze(-1)


def _distance(a: Float[Tensor, "*batch 2"], b: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """Return |a − b|, NaN where either is, with a zero gradient where they are equal."""
    square = ((a - b) ** 2).sum(-1)
    return torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).sqrt())
