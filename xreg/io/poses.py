"""Poses and cameras as files: JSON with frames and units spelled out, and ITK transforms for 3D Slicer.

JSON keeps RAS+ mm, as the rest of the project.  The ITK file is LPS mm: this module is where they meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ..errors import FileError, GeometryError
from ..geometry._numbers import tensor64
from .files import atomic_write, named, read_json, require_file, write_json

if TYPE_CHECKING:
    from ..geometry import Camera, Rig

SCHEMA = "xreg.pose/1"
_FRAME = "RAS mm"
_NAME = "world_from_body"
_ORDER = ["rotation x, rad", "rotation y, rad", "rotation z, rad"]
_ORDER += ["translation x, mm", "translation y, mm", "translation z, mm"]
_TANGENT = "world_from_body' = T(center) exp(xi) T(-center) world_from_body; center in the world, RAS mm"
_LPS_RAS = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
_ITK_AFFINE = ("AffineTransform", "MatrixOffsetTransformBase")


@dataclass(frozen=True, eq=False)
class PoseRecord:
    """One pose with what is known about it.

    world_from_body: float64 [4, 4], rigid, det +1, body RAS mm to world RAS mm (frames ``body`` and ``world``
        by name).
    camera: the view that it was found in, or None.
    covariance: float64 [6, 6] of the tangent (rotation rad, translation mm) about ``center`` (world RAS mm):
        world_from_body' = T(center) exp(ξ) T(−center) world_from_body, as ``geometry.se3.retract``.
    score, accepted, reason: the method's own figure, its verdict, and why it rejects; None where not judged.
    provenance: method, files, versions: anything that JSON holds.

    Raises GeometryError where the matrix is no rigid motion or the covariance no covariance.
    """

    world_from_body: Float64[Tensor, "4 4"]
    camera: Camera | None = None
    covariance: Float64[Tensor, "6 6"] | None = None
    center: Float64[Tensor, " 3"] | None = None
    score: float | None = None
    accepted: bool | None = None
    reason: str | None = None
    body: str = "body"
    world: str = "world"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "world_from_body", _rigid(self.world_from_body, "world_from_body"))
        if self.center is not None:
            put(self, "center", _host(self.center, "center", (3,)))
        if self.covariance is not None:
            put(self, "covariance", _covariance(self.covariance))
            if self.center is None:
                raise GeometryError(
                    "covariance needs center, the point (world RAS mm) that its tangent turns about; the "
                    "centre of the body is a good one"
                )
        if self.score is not None and not (isinstance(self.score, Real) and math.isfinite(self.score)):
            raise GeometryError(f"score must be a finite number or None, got {self.score!r}")


def save_pose(path: str | PathLike, pose: PoseRecord | Float64[Tensor, "4 4"], **known: Any) -> None:
    """Write a pose as JSON (schema "xreg.pose/1"), atomically; no digit is lost.

    pose: a PoseRecord, or world_from_body [4, 4] with the other fields of PoseRecord as keywords.
    Raises GeometryError for a pose that is not rigid with det +1, FileError for an unwritable path.
    """
    record = pose if isinstance(pose, PoseRecord) else PoseRecord(pose, **known)
    if isinstance(pose, PoseRecord) and known:
        raise FileError(f"{path}: fields {sorted(known)} come beside a PoseRecord; put them into the record")
    tangent = {
        "order": _ORDER,
        "definition": _TANGENT,
        "center": record.center,
        "covariance": record.covariance,
    }
    data = {
        "schema": SCHEMA,
        "name": _NAME,
        "from": {"name": record.body, "convention": _FRAME},
        "to": {"name": record.world, "convention": _FRAME},
        "units": {"length": "mm", "angle": "rad"},
        "matrix": record.world_from_body,
        "tangent": tangent,
        "score": None if record.score is None else float(record.score),
        "accepted": None if record.accepted is None else bool(record.accepted),
        "reason": record.reason,
        "camera": None if record.camera is None else record.camera.to_dict(),
        "provenance": dict(record.provenance),
    }
    write_json(path, data)


def load_pose(path: str | PathLike) -> PoseRecord:
    """Read a pose that ``save_pose`` wrote.

    Raises FileError for a file that is not one, or of a newer schema; GeometryError for other units or
    frames, or a matrix that is not rigid with det +1.
    """
    data = read_json(path, f"a pose (schema {SCHEMA})")
    _require_schema(data, SCHEMA, path)
    missing = [name for name in ("from", "to", "units", "matrix") if name not in data]
    if missing:
        raise FileError(f"{path}: a pose needs the entries {missing}; got {sorted(data)}")
    if data.get("name", _NAME) != _NAME:
        raise GeometryError(
            f"{path}: the matrix must be {_NAME}, got {data['name']!r}; invert it, or name it so"
        )
    if data["units"] != {"length": "mm", "angle": "rad"}:
        raise GeometryError(
            f"{path}: units of a pose must be mm and rad, got {data['units']}; convert the pose"
        )
    for end in ("from", "to"):
        frame = data[end]
        if not isinstance(frame, dict) or frame.get("convention") != _FRAME:
            raise GeometryError(f'{path}: "{end}" must be a frame with convention "{_FRAME}", got {frame!r}')
    tangent = data.get("tangent") or {}
    if not isinstance(tangent, dict):
        raise FileError(f'{path}: "tangent" of a pose must be an object, got {tangent!r:.80}')
    if tangent.get("order", _ORDER) != _ORDER:
        raise GeometryError(f"{path}: the tangent must be ordered {_ORDER}, got {tangent['order']}")
    camera = data.get("camera")
    if camera is not None:
        from ..geometry import Camera

        with named(path):
            camera = Camera.from_dict(camera)
    with named(path):
        return PoseRecord(
            world_from_body=data["matrix"],
            camera=camera,
            covariance=tangent.get("covariance"),
            center=tangent.get("center"),
            score=data.get("score"),
            accepted=data.get("accepted"),
            reason=data.get("reason"),
            body=data["from"].get("name", "body"),
            world=data["to"].get("name", "world"),
            provenance=data.get("provenance") or {},
        )


def save_tfm(path: str | PathLike, world_from_body: Float64[Tensor, "4 4"]) -> None:
    """Write an ITK text transform that 3D Slicer loads; applied to the CT there, it moves it into the world.

    world_from_body: [4, 4], rigid, RAS mm.  ITK transforms map output points to input points and are LPS, so
    the file holds F·world_from_body⁻¹·F with F = diag(−1, −1, 1): a world point goes to its body point.
    Written atomically.  Raises GeometryError, FileError.
    """
    pose = _rigid(world_from_body, "world_from_body")
    file = Path(path)
    if file.suffix.lower() not in (".tfm", ".txt"):
        raise FileError(f"{file}: an ITK text transform must end in .tfm or .txt; choose such a name")
    lps = _LPS_RAS @ _inverse(pose) @ _LPS_RAS
    numbers = [repr(v) for v in [*lps[:3, :3].flatten().tolist(), *lps[:3, 3].tolist()]]
    lines = ["#Insight Transform File V1.0", "#Transform 0", "Transform: AffineTransform_double_3_3"]
    lines += ["Parameters: " + " ".join(numbers), "FixedParameters: 0 0 0", ""]
    with atomic_write(file) as temporary:
        temporary.write_text("\n".join(lines), encoding="ascii")


def load_tfm(path: str | PathLike) -> Float64[Tensor, "4 4"]:
    """Read world_from_body [4, 4] (RAS mm, float64) from an ITK text transform: undoes ``save_tfm``.

    Affine transforms with any centre are read, as Slicer writes them.  Raises FileError for another file or
    kind of transform, GeometryError where it is not rigid with det +1.
    """
    file = require_file(path, "an ITK text transform (.tfm)")
    try:
        text = file.read_text(encoding="ascii")
    except UnicodeDecodeError as error:
        raise FileError(f"{file}: is not text; expected an ITK text transform") from error
    rows = [line.partition(":") for line in text.splitlines() if ":" in line and not line.startswith("#")]
    entries = {key.strip(): value.strip() for key, _, value in rows}
    if not text.startswith("#Insight Transform File") or "Transform" not in entries:
        raise FileError(
            f'{file}: expected an ITK text transform ("#Insight Transform File V1.0"), got other text'
        )
    kind, count = entries["Transform"], sum(key.strip() == "Transform" for key, _, _ in rows)
    if count != 1 or not kind.startswith(_ITK_AFFINE) or not kind.endswith("_3_3"):
        raise FileError(
            f"{file}: expected one 3D affine transform ({' or '.join(_ITK_AFFINE)}), got {count} of kind "
            f"{kind}; export the pose as a linear transform"
        )
    try:
        numbers = [float(v) for v in entries.get("Parameters", "").split()]
        center = [float(v) for v in entries.get("FixedParameters", "0 0 0").split()]
    except ValueError as error:
        raise FileError(f"{file}: the parameters are not numbers ({error})") from error
    if len(numbers) != 12 or len(center) != 3:
        raise FileError(
            f"{file}: expected 12 parameters and a centre of 3, got {len(numbers)} and {len(center)}"
        )
    lps = torch.eye(4, dtype=torch.float64)
    lps[:3, :3] = torch.tensor(numbers[:9], dtype=torch.float64).reshape(3, 3)
    middle = torch.tensor(center, dtype=torch.float64)
    offset = torch.tensor(numbers[9:], dtype=torch.float64)
    lps[:3, 3] = offset + middle - lps[:3, :3] @ middle
    return _inverse(_rigid(_LPS_RAS @ lps @ _LPS_RAS, f"{file}: the transform"))


def save_camera(path: str | PathLike, camera: Camera) -> None:
    """Write one camera as JSON (schema "xreg.camera/1"), atomically.  Raises GeometryError, FileError."""
    write_json(path, camera.to_dict())


def load_camera(path: str | PathLike) -> Camera:
    """Read one camera.  Raises FileError for another or newer file, GeometryError for wrong numbers."""
    from ..geometry import Camera

    data = read_json(path, "a camera (schema xreg.camera/1)")
    _require_schema(data, "xreg.camera/1", path)
    with named(path):
        return Camera.from_dict(data)


def read_camera(path: str | PathLike) -> Camera:
    """A camera from JSON of any kind: xreg's own, the one inside a pose, or another tool's parameters.

    Raises FileError, and GeometryError that names the file.
    """
    from ..geometry.conventions import load

    data = read_json(path, "a camera (JSON)")
    if isinstance(data, dict) and "tool" in data:
        with named(path):
            return load(str(data["tool"]), data)
    if isinstance(data, dict) and str(data.get("schema", "")).startswith("xreg.pose/"):
        camera = load_pose(path).camera
        if camera is None:
            raise FileError(f"{path}: is a pose without a camera; give the camera's own file")
        return camera
    return load_camera(path)


def read_pose(path: str | PathLike) -> Float64[Tensor, "4 4"]:
    """world_from_body [4, 4] (RAS mm) from xreg's JSON or an ITK text transform.

    Raises FileError and GeometryError, as `load_pose` and `load_tfm`.
    """
    if Path(path).suffix.lower() in (".tfm", ".txt"):
        return load_tfm(path)
    return load_pose(path).world_from_body


def save_rig(path: str | PathLike, rig: Rig) -> None:
    """Write a rig of several views as JSON (schema "xreg.rig/1"), atomically."""
    write_json(path, rig.to_dict())


def load_rig(path: str | PathLike) -> Rig:
    """Read a rig of several views.  Raises FileError for another or newer file, GeometryError for numbers."""
    from ..geometry import Rig

    data = read_json(path, "a rig (schema xreg.rig/1)")
    _require_schema(data, "xreg.rig/1", path)
    with named(path):
        return Rig.from_dict(data)


def _require_schema(data: Any, schema: str, path: str | PathLike) -> None:
    found = data.get("schema") if isinstance(data, dict) else None
    if found == schema:
        return
    kind, _, version = schema.partition("/")
    if isinstance(found, str) and found.startswith(f"{kind}/"):
        newer = found.partition("/")[2]
        raise FileError(
            f"{path}: has schema {found!r}, and this version of xreg reads {schema!r}"
            + ("; update xreg" if newer.isdigit() and int(newer) > int(version) else "")
        )
    raise FileError(f"{path}: expected a JSON object with schema {schema!r}, got {found!r}")


def _host(value: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = tensor64(value, name, rows=True).detach().cpu().clone()
    if tuple(tensor.shape) != shape or not bool(tensor.isfinite().all()):
        raise GeometryError(f"{name} must be finite, of shape {list(shape)}, got {tensor.tolist()}")
    return tensor


def _rigid(matrix: Any, name: str) -> Tensor:
    from ..geometry import se3

    return se3.require_rigid(_host(matrix, name, (4, 4)), name)


def _inverse(pose: Tensor) -> Tensor:
    from ..geometry import se3

    return se3.inverse(pose)


def _covariance(value: Any) -> Tensor:
    matrix = _host(value, "covariance", (6, 6))
    scale = matrix.diagonal().clamp_min(0).sqrt()
    within = 1e-6 * torch.outer(scale, scale) + 1e-300
    if bool((matrix.diagonal() < 0).any()) or bool(((matrix - matrix.T).abs() > within).any()):
        raise GeometryError(
            f"covariance must be symmetric with a diagonal of zero or more (rad², mm²), got {matrix.tolist()}"
        )
    return matrix
