"""One X-ray view, or a batch of views of one size: intrinsics, pose, and where each ray runs.

Camera frame: OpenCV. x to the right of the image, y down, z from the source to the detector. World: RAS+ mm.
Pixel centres are at integers: u counts columns from the left, v rows from the top. All numbers are float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError
from xreg.geometry import c_arm as _c_arm
from xreg.geometry import pinhole, se3
from xreg.geometry._edits import CameraEdits
from xreg.geometry._numbers import broadcast_shapes, image_size, require_finite, require_positive, tensor64

SCHEMA = "xreg.camera/1"
_AT_SOURCE = 1e-6  # mm: a depth that rounding can give to the source itself
_UNITS = {"K": "px", "camera_from_world": "mm", "size": "px (height, width)", "sdd": "mm", "world": "RAS+"}


@dataclass(frozen=True, eq=False)
class Camera(CameraEdits):
    """A pinhole or parallel-beam view; leading dimensions of the tensors are a batch and broadcast.

    ``K`` [..., 3, 3] (px) is upper triangular and belongs to the pinhole image. ``camera_from_world``
    [..., 4, 4] is rigid (mm). ``size`` is (height, width). ``sdd`` is the distance from source to detector in
    mm, a number or [...]; None where it is unknown (a calibration file), and then rays need it given.
    ``mirrored`` says that the stored image has its columns reversed against the pinhole image,
    u = W − 1 − u_pinhole; the pose itself never holds a reflection. In a ``parallel`` beam u = fx·x + cx with
    fx in px/mm, and rays run from z = 0 to z = sdd.

    Tensors, arrays and lists are taken and kept as float64 on the device of ``camera_from_world``. Gradients
    flow through K, camera_from_world and sdd. GeometryError if the numbers are no camera.
    """

    K: Float[Tensor, "*batch 3 3"]
    camera_from_world: Float[Tensor, "*batch 4 4"]
    size: tuple[int, int]
    sdd: Float[Tensor, "*batch"] | None = None
    mirrored: bool = False
    parallel: bool = False

    def __post_init__(self) -> None:
        pose = tensor64(self.camera_from_world, "camera_from_world", rows=True)
        k = tensor64(self.K, "K", device=pose.device, rows=True)
        sdd = None if self.sdd is None else tensor64(self.sdd, "sdd", device=pose.device)
        se3.require_rigid(pose, "camera_from_world")
        pinhole.require_intrinsics(k)
        if sdd is not None:
            require_positive(sdd, "sdd", "mm from source to detector")
        for name, value in (("K", k), ("camera_from_world", pose), ("sdd", sdd)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "size", image_size(self.size))
        object.__setattr__(self, "mirrored", bool(self.mirrored))
        object.__setattr__(self, "parallel", bool(self.parallel))
        try:
            _ = self.batch_shape
        except RuntimeError as error:
            shapes = [tuple(t.shape) for t in (k, pose, sdd) if t is not None]
            raise GeometryError(
                f"K, camera_from_world and sdd must broadcast, got shapes {shapes}"
            ) from error

    @classmethod
    def c_arm(
        cls,
        *,
        sdd: Any,
        sod: Any,
        size: tuple[int, int],
        spacing: Any,
        primary: Any = 0.0,
        secondary: Any = 0.0,
        roll: Any = 0.0,
        isocenter: Any = (0.0, 0.0, 0.0),
        principal_point: Any = None,
        mirrored: bool = False,
    ) -> Camera:
        """Build the view of a C-arm from DICOM's words: patient supine, facing the detector at 0/0.

        ``sdd``, ``sod``: source to detector and to isocentre (mm). ``primary`` (+ is LAO), ``secondary``
        (+ is cranial) and in-plane ``roll``: degrees. ``size``: (height, width). ``spacing``: mm at the
        detector, one number or (row, column), vertical first as in DICOM. ``isocenter``: world RAS+ mm.
        ``principal_point``: (u, v) px in the image as stored, by default its middle. Every number may be a
        tensor [...] (points and pairs [..., 3], [..., 2]); they broadcast to a batch and carry gradients.

        An ordinary XA display (patient's left on the right of the image, PatientOrientation L\\F) is seen
        from the detector's side: it is the ``mirrored=True`` image of this camera.
        """
        sdd, sod, angles, isocenter = _words(sdd, sod, (primary, secondary, roll), isocenter)
        if bool((sod.detach() > sdd.detach()).any()):
            raise GeometryError(
                f"sod (to the isocentre) must not exceed sdd (to the detector), got {sod} > {sdd} mm"
            )
        pose = pinhole.pose_at(_c_arm.gantry_rotation(*angles), isocenter, sod)
        size = image_size(size)
        k = pinhole.intrinsics(sdd, spacing, principal_point, size, mirrored)
        return cls(k, pose, size, sdd, mirrored)

    @classmethod
    def parallel_beam(
        cls,
        *,
        size: tuple[int, int],
        spacing: Any,
        sdd: Any,
        sod: Any = None,
        direction: Any = None,
        primary: Any = 0.0,
        secondary: Any = 0.0,
        roll: Any = 0.0,
        isocenter: Any = (0.0, 0.0, 0.0),
        principal_point: Any = None,
        mirrored: bool = False,
    ) -> Camera:
        """Build a view of parallel rays, each ``sdd`` mm long, that start ``sod`` mm before the isocentre.

        The beam runs along ``direction`` [..., 3] (world, any length; image rows then point as far to the
        feet as they can) or along the C-arm angles ``primary``, ``secondary`` (degrees). ``sod`` is half of
        ``sdd`` by default, so that rays are centred on the isocentre. The rest is as in ``c_arm``; all carry
        gradients.
        """
        if direction is not None:
            axis = require_finite(tensor64(direction, "direction"), "direction")
            if axis.shape[-1:] != (3,) or bool((axis.detach().abs().amax(-1) == 0).any()):
                raise GeometryError(f"direction must be a nonzero world vector [..., 3], got {direction}")
            primary, secondary = _c_arm.beam_angles(axis)
        half = 0.5 * tensor64(sdd, "sdd") if sod is None else sod
        sdd, sod, angles, isocenter = _words(sdd, half, (primary, secondary, roll), isocenter)
        pose = pinhole.pose_at(_c_arm.gantry_rotation(*angles), isocenter, sod)
        size = image_size(size)
        k = pinhole.intrinsics(torch.ones_like(sdd), spacing, principal_point, size, mirrored)
        return cls(k, pose, size, sdd, mirrored, True)

    @classmethod
    def from_projection_matrix(
        cls,
        matrix: Any,
        size: tuple[int, int],
        *,
        front: Any = (0.0, 0.0, 0.0),
        sdd: Any = None,
    ) -> Camera:
        """Split a 3×4 matrix (world mm to homogeneous pixels, any scale and sign) into a camera.

        ``front`` is a world point that is in front of the source (the matrix alone cannot tell front from
        back). A matrix that reverses handedness gives ``mirrored=True``. Gradients flow from the matrix.
        Source: R. Hartley, A. Zisserman, Multiple View Geometry, 2nd ed., §6.2.4 (RQ decomposition).
        """
        p = require_finite(tensor64(matrix, "matrix", rows=True), "matrix")
        if p.shape[-2:] != (3, 4):
            raise GeometryError(f"matrix must have shape [..., 3, 4], got {tuple(p.shape)}")
        size = image_size(size)
        k, pose, mirrored = pinhole.split_matrix(p, tensor64(front, "front", device=p.device), size[1])
        return cls(k, pose, size, sdd, mirrored)

    @property
    def batch_shape(self) -> torch.Size:
        """The broadcast leading dimensions of K, camera_from_world and sdd."""
        sdd = () if self.sdd is None else self.sdd.shape
        return broadcast_shapes(self.K.shape[:-2], self.camera_from_world.shape[:-2], sdd)

    @property
    def device(self) -> torch.device:
        """The device that holds the numbers."""
        return self.camera_from_world.device

    @property
    def world_from_camera(self) -> Float[Tensor, "*batch 4 4"]:
        """The inverse of camera_from_world (mm)."""
        return se3.inverse(self.camera_from_world)

    @property
    def source(self) -> Float[Tensor, "*batch 3"]:
        """The origin of the camera frame in the world (mm): the source, or a parallel beam's start plane."""
        return self.world_from_camera[..., :3, 3]

    @property
    def image_matrix(self) -> Float[Tensor, "*batch 3 3"]:
        """(x/z, y/z, 1) in the camera to stored pixels: K, with its first row reversed where mirrored."""
        if not self.mirrored:
            return self.K
        return pinhole.column_flip(self.size[1], self.device) @ self.K

    @property
    def projection_matrix(self) -> Float[Tensor, "*batch 3 4"]:
        """World mm to homogeneous stored pixels; the third row is the depth in mm, 1 for a parallel beam."""
        pose = self.camera_from_world[..., :3, :]
        if self.parallel:
            last = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64, device=self.device)
            pose = torch.cat([pose[..., :2, :], last.expand(*pose.shape[:-2], 1, 4)], dim=-2)
        return self.image_matrix @ pose

    @property
    def focal(self) -> Float[Tensor, "*batch 2"]:
        """(fx, fy) in px, or px/mm for a parallel beam."""
        return torch.stack([self.K[..., 0, 0], self.K[..., 1, 1]], dim=-1)

    @property
    def principal_point(self) -> Float[Tensor, "*batch 2"]:
        """(u, v) in the stored image of the ray that meets the detector at a right angle."""
        return self.image_matrix[..., :2, 2]

    @property
    def spacing(self) -> Float[Tensor, "*batch 2"]:
        """(row, column) pixel spacing at the detector, mm, in DICOM's order; needs sdd unless parallel."""
        length = 1.0 if self.parallel else self._ray_length(None)[..., None]
        return length / self.focal.flip(-1)

    @property
    def angles(self) -> tuple[Tensor, Tensor, Tensor]:
        """(primary, secondary, roll) in degrees, as ``c_arm`` takes them."""
        return _c_arm.gantry_angles(self.world_from_camera[..., :3, :3])

    def project(
        self, points: Float[Tensor, "*batch n 3"], *, return_depth: bool = False
    ) -> Float[Tensor, "*batch n 2"] | tuple[Float[Tensor, "*batch n 2"], Float[Tensor, "*batch n"]]:
        """Map world points (mm) to pixels (u, v) of the stored image; with ``return_depth`` also z in mm.

        A point at or behind the source of a pinhole has no image: its pixel is NaN (and gets no gradient).
        Batch dimensions broadcast. Gradients flow through the points and the camera.
        """
        local = se3.apply(self.camera_from_world, _points(points, 3, "points", self.device))
        depth = local[..., 2]
        if self.parallel:
            flat = local[..., :2]
        else:
            ahead = depth > _AT_SOURCE
            flat = local[..., :2] / torch.where(ahead, depth, 1.0)[..., None]
        pixels = pinhole.affine(self.image_matrix, flat)
        if not self.parallel:
            pixels = torch.where(ahead[..., None], pixels, torch.nan)
        return (pixels, depth) if return_depth else pixels

    def unproject(
        self, pixels: Float[Tensor, "*batch n 2"], depth: Float[Tensor, "*batch n"] | float | None = None
    ) -> Float[Tensor, "*batch n 3"]:
        """Return the world points (mm) at ``depth`` (camera z, mm) on the rays of ``pixels`` (u, v).

        ``depth`` is that of the detector by default. The inverse of ``project``; all carry gradients.
        """
        pixels = _points(pixels, 2, "pixels", self.device)
        z = (
            self._ray_length(None)[..., None]
            if depth is None
            else tensor64(depth, "depth", device=self.device)
        )
        flat = pinhole.affine(pinhole.invert_triangular(self.image_matrix), pixels)
        shape = broadcast_shapes(flat.shape[:-1], z.shape)
        flat, z = flat.expand(*shape, 2), z.expand(shape)[..., None]
        local = torch.cat([flat if self.parallel else flat * z, z], dim=-1)
        return se3.apply(self.world_from_camera, local)

    def ray_basis(self, sdd: Float[Tensor, "*batch"] | float | None = None) -> Float[Tensor, "*batch 6 3"]:
        """Return the rows (s0, su, sv, d0, du, dv), world mm, that give the ray of each pixel.

        Pixel (u, v) starts at s = s0 + u·su + v·sv (t = 0) and reaches the detector at s + d0 + u·du + v·dv
        (t = 1). ``sdd`` (mm) says where t = 1 is, by default the camera's own; K does not change with it.
        Gradients flow through K, camera_from_world and sdd.
        """
        length = self._ray_length(sdd)
        return pinhole.ray_basis(self.image_matrix, self.camera_from_world, length, self.parallel)

    def _ray_length(self, sdd: Tensor | float | None) -> Float[Tensor, "*batch"]:
        if sdd is not None:
            return require_positive(
                tensor64(sdd, "sdd", device=self.device), "sdd", "mm from source to detector"
            )
        if self.sdd is None:
            raise GeometryError(
                "this camera has no sdd (source-to-detector distance, mm), so its rays have no end; pass sdd "
                "or set it with camera.replace(sdd=...)"
            )
        return self.sdd

    def to(self, device: torch.device | str) -> Camera:
        """Return the camera with its tensors on ``device``, still float64."""
        sdd = None if self.sdd is None else self.sdd.to(device)
        return self.replace(
            check=False, K=self.K.to(device), camera_from_world=self.camera_from_world.to(device), sdd=sdd
        )

    def expand(self) -> Camera:
        """Return the camera with K, camera_from_world and sdd all expanded to ``batch_shape``."""
        b = self.batch_shape
        sdd = None if self.sdd is None else self.sdd.expand(b)
        pose = self.camera_from_world.expand(*b, 4, 4)
        return self.replace(check=False, K=self.K.expand(*b, 3, 3), camera_from_world=pose, sdd=sdd)

    def __len__(self) -> int:
        if not self.batch_shape:
            raise TypeError("this is one camera, not a batch; use Camera.stack([camera]) for a batch of one")
        return self.batch_shape[0]

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: Any) -> Camera:
        """Index the batch dimensions as a tensor's: an integer takes one camera, a slice or mask several."""
        if not self.batch_shape:
            raise TypeError("this is one camera, not a batch; it cannot be indexed")
        full = self.expand()
        sdd = None if full.sdd is None else full.sdd[index]
        k, pose = full.K[index], full.camera_from_world[index]
        if k.shape[-2:] != (3, 3) or k.ndim != pose.ndim or k.shape[:-2] != pose.shape[:-2]:
            raise IndexError(f"index {index!r} reaches past the batch dimensions {tuple(self.batch_shape)}")
        return self.replace(check=False, K=k, camera_from_world=pose, sdd=sdd)

    def __iter__(self) -> Iterator[Camera]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def stack(cls, cameras: Sequence[Camera]) -> Camera:
        """Join cameras of one size, beam and mirroring along a new leading dimension."""
        cameras = [camera.expand() for camera in cameras]
        if not cameras:
            raise GeometryError("stack needs at least one camera, got none")
        kinds = {(c.size, c.mirrored, c.parallel, c.sdd is None, c.batch_shape) for c in cameras}
        if len(kinds) > 1:
            raise GeometryError(
                "stack needs cameras of one size, mirrored, parallel, sdd known or not, and batch shape, got "
                f"{sorted(kinds, key=str)}; cameras that differ belong in a Rig"
            )
        sdd = None if cameras[0].sdd is None else torch.stack([c.sdd for c in cameras])
        return cameras[0].replace(
            check=False,
            K=torch.stack([c.K for c in cameras]),
            camera_from_world=torch.stack([c.camera_from_world for c in cameras]),
            sdd=sdd,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return one camera (no batch) as plain JSON values, schema "xreg.camera/1"; no digit is lost."""
        if self.batch_shape:
            raise GeometryError(
                f"to_dict writes one camera, got a batch {tuple(self.batch_shape)}; index it first"
            )
        return {
            "schema": SCHEMA,
            "units": dict(_UNITS),
            "K": self.K.tolist(),
            "camera_from_world": self.camera_from_world.tolist(),
            "size": list(self.size),
            "sdd": None if self.sdd is None else float(self.sdd.detach()),
            "mirrored": self.mirrored,
            "parallel": self.parallel,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Camera:
        """Read what ``to_dict`` wrote; GeometryError names the missing or wrong entry."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise GeometryError(f"a camera needs an object with schema {SCHEMA!r}, got {found!r}")
        names = ("K", "camera_from_world", "size", "sdd", "mirrored", "parallel")
        if missing := [name for name in names if name not in data]:
            raise GeometryError(f"a camera of schema {SCHEMA!r} needs the entries {missing}")
        for name in ("mirrored", "parallel"):
            if not isinstance(data[name], bool):
                raise GeometryError(f"{name} of a camera must be true or false, got {data[name]!r}")
        if data.get("units", _UNITS) != _UNITS:
            raise GeometryError(f"units of a camera must be {_UNITS}, got {data['units']}")
        return cls(**{name: data[name] for name in names})


def _points(value: Any, width: int, name: str, device: torch.device) -> Float[Tensor, "*batch n width"]:
    points = tensor64(value, name, device=device)
    if points.ndim < 2 or points.shape[-1] != width:
        raise GeometryError(f"{name} must have shape [..., N, {width}], got {tuple(points.shape)}")
    return points


def _words(
    sdd: Any, sod: Any, angles: tuple[Any, Any, Any], isocenter: Any
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
    """Return (sdd, sod, (primary, secondary, roll), isocenter), checked, as float64 on one device."""
    given = (*angles, isocenter, sod, sdd)
    device = next((v.device for v in given if isinstance(v, Tensor)), None)
    names = ("primary", "secondary", "roll", "isocenter", "sod", "sdd")
    p, s, r, center, near, far = (
        require_finite(tensor64(v, n, device=device), n) for v, n in zip(given, names, strict=True)
    )
    require_positive(near, "sod", "mm from source to isocentre")
    require_positive(far, "sdd", "mm from source to detector")
    return far, near, (p, s, r), center
