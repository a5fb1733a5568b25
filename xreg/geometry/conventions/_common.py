"""What the converters share: parameter records, an image's axes in the world, Euler angles, and refusals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from xreg.errors import GeometryError
from xreg.geometry.camera import Camera

Pair = tuple[float, float]
Positive = float
PositivePair = Pair
Counts = tuple[int, int]
Vector = tuple[float, float, float]
PositiveVector = Vector
Matrix3 = tuple[Vector, Vector, Vector]
Matrix34 = tuple[tuple[float, ...], ...]
Matrix4 = tuple[tuple[float, ...], ...]
Array = NDArray[np.float64]

LOWEST_ROW_FIRST = (
    "row 0 of its projections is the lowest row, so the array is the mirror image of a pinhole's"
)

_SHAPES: dict[str, tuple[int, ...]] = {
    "int": (),
    "float": (),
    "Positive": (),
    "Pair": (2,),
    "PositivePair": (2,),
    "PositiveVector": (3,),
    "Counts": (2,),
    "Vector": (3,),
    "Matrix3": (3, 3),
    "Matrix34": (3, 4),
    "Matrix4": (4, 4),
}
_WHOLE = ("int", "Counts")
_CLOSE = 1e-6  # px, mm or rad: a difference below this is rounding
_P = TypeVar("_P", bound="Params")


@dataclass(frozen=True)
class Params:
    """A tool's own parameters of one view, in its own words and units; JSON can hold them.

    Lists, arrays and tensors become tuples. GeometryError if a value has the wrong kind, shape or sign.
    """

    tool: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _parse(getattr(self, field.name), str(field.type), f"{field.name} of {self.tool}")
            object.__setattr__(self, field.name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as plain JSON values, with the tool's name under "tool"."""
        return {"tool": self.tool} | {f.name: _listed(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls: type[_P], data: Mapping[str, Any]) -> _P:
        """Read what ``to_dict`` wrote; "tool" may be left out. GeometryError names what is wrong."""
        if not isinstance(data, Mapping):
            raise GeometryError(f"{cls.tool} parameters must be an object, got {type(data).__name__}")
        given = {k: v for k, v in data.items() if k != "tool"}
        if data.get("tool", cls.tool) != cls.tool:
            raise GeometryError(f"expected parameters of {cls.tool!r}, got those of {data['tool']!r}")
        needed = {f.name for f in fields(cls) if f.default is MISSING}
        missing, unknown = needed - given.keys(), given.keys() - {f.name for f in fields(cls)}
        if missing or unknown:
            raise GeometryError(
                f"{cls.tool} parameters: missing {sorted(missing)}, unknown {sorted(unknown)}; "
                f"they are {[f.name for f in fields(cls)]}"
            )
        return cls(**given)


class View(NamedTuple):
    """How an image array lies in the world: no flips to remember, since the axes say all.

    ``columns`` and ``rows`` are the unit directions in which the column and row index grow; ``beam`` runs
    from the source to the detector. ``center`` is the (column, row) where the beam axis meets the array.
    """

    columns: Array
    rows: Array
    beam: Array
    source: Array
    focal: Array
    center: Array
    size: tuple[int, int]
    sdd: float | None = None
    parallel: bool = False


def camera_from_view(view: View) -> Camera:
    """Return the camera of an array; it is mirrored where (columns, rows, beam) is a left-handed frame."""
    axes = np.stack([view.columns, view.rows, view.beam])
    mirrored = bool(np.linalg.det(axes) < 0)
    cx, cy = view.center
    if mirrored:
        axes = axes * np.array([[-1.0], [1.0], [1.0]])
        cx = view.size[1] - 1 - cx
    pose = np.eye(4)
    pose[:3, :3] = axes
    pose[:3, 3] = -axes @ view.source
    k = np.array([[view.focal[0], 0.0, cx], [0.0, view.focal[1], cy], [0.0, 0.0, 1.0]])
    return Camera(k, pose, view.size, view.sdd, mirrored, view.parallel)


def view_of(camera: Camera, tool: str, *, parallel: bool = False, needs_sdd: bool = True) -> View:
    """Return the axes of one camera's image, refusing what ``tool`` cannot say (a batch, skew, no sdd …)."""
    if camera.batch_shape:
        raise GeometryError(f"{tool} takes one camera at a time, got a batch {tuple(camera.batch_shape)}")
    if camera.parallel and not parallel:
        raise GeometryError(f"{tool} has no parallel beam here; only a pinhole camera can be converted")
    if camera.sdd is None and needs_sdd:
        raise GeometryError(
            f"{tool} needs the source-to-detector distance, which this camera lacks; set it with "
            "camera.replace(sdd=...) in mm"
        )
    k = camera.K.detach().cpu().numpy()
    if abs(k[0, 1]) > _CLOSE:
        raise GeometryError(f"{tool} has no skew, but K[0, 1] of this camera is {k[0, 1]:g} px")
    pose = camera.camera_from_world.detach().cpu().numpy()
    return View(
        columns=-pose[0, :3] if camera.mirrored else pose[0, :3],
        rows=pose[1, :3],
        beam=pose[2, :3],
        source=-pose[:3, :3].T @ pose[:3, 3],
        focal=np.array([k[0, 0], k[1, 1]]),
        center=camera.principal_point.detach().cpu().numpy(),
        size=camera.size,
        sdd=None if camera.sdd is None else float(camera.sdd.detach()),
        parallel=camera.parallel,
    )


def require_mirrored(camera: Camera, expected: bool, tool: str, why: str) -> None:
    """Raise GeometryError unless the stored image has the handedness that ``tool``'s arrays have."""
    if camera.mirrored != expected:
        raise GeometryError(
            f"{tool} cannot express a camera with mirrored={camera.mirrored}: {why}. Flip the image "
            "(numpy.fliplr or flipud) and pass camera.flip_columns() or camera.flip_rows() with it"
        )


def require_centered(view: View, tool: str) -> None:
    """Raise GeometryError unless the principal point is the middle of the image."""
    middle = np.array([(view.size[1] - 1) / 2, (view.size[0] - 1) / 2])
    if np.abs(view.center - middle).max() > _CLOSE:
        raise GeometryError(
            f"{tool} ignores detector offsets: the principal point must be the middle {middle.tolist()}, got "
            f"{view.center.tolist()}; crop or pad the image until it is"
        )


def choice(value: Any, allowed: Sequence[Any], name: str) -> Any:
    """Return ``value`` if it is one of ``allowed``, else raise GeometryError."""
    if value not in allowed:
        raise GeometryError(f"{name} must be one of {list(allowed)}, got {value!r}")
    return value


def rotation_about(axis: int, angle: float) -> Array:
    """Return the right-handed rotation by ``angle`` (rad) about x, y or z (0, 1, 2)."""
    c, s = math.cos(angle), math.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    r = np.eye(3)
    r[i, i], r[j, j], r[i, j], r[j, i] = c, c, -s, s
    return r


def zxy(a: float, b: float, c: float) -> Array:
    """Return Rz(a)·Rx(b)·Ry(c), radians."""
    return rotation_about(2, a) @ rotation_about(0, b) @ rotation_about(1, c)


def zxy_angles(r: Array) -> tuple[float, float, float]:
    """Return (a, b, c) with r = Rz(a)·Rx(b)·Ry(c), b in [−π/2, π/2]; c is 0 where only a ± c is defined."""
    cosine = math.hypot(r[0, 1], r[1, 1])
    b = math.atan2(r[2, 1], cosine)
    if cosine < 1e-9:
        return math.atan2(r[1, 0], r[0, 0]), b, 0.0
    return math.atan2(-r[0, 1], r[1, 1]), b, math.atan2(-r[2, 0], r[2, 2])


def _parse(value: Any, kind: str, name: str) -> Any:
    """Return ``value`` as the annotation ``kind`` wants it, or raise GeometryError naming it."""
    if kind.endswith(" | None"):
        if value is None:
            return None
        kind = kind.removesuffix(" | None")
    expected = {"str": str, "bool": bool}.get(kind)
    if expected is not None:
        if not isinstance(value, expected):
            raise GeometryError(f"{name} must be a {kind}, got {value!r:.80}")
        return value
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GeometryError(f"{name} must be numbers, got {value!r:.80}") from error
    shape = _SHAPES[kind]
    if array.shape != shape or not np.isfinite(array).all():
        raise GeometryError(f"{name} must be finite numbers of shape {shape}, got {value!r:.80}")
    if (kind.startswith("Positive") or kind in _WHOLE) and array.min() <= 0:
        raise GeometryError(f"{name} must be positive, got {value!r:.80}")
    if kind in _WHOLE:
        if (array != np.round(array)).any():
            raise GeometryError(f"{name} must be whole numbers, got {value!r:.80}")
        array = array.astype(int)
    return _tupled(array.tolist())


def vector(value: Any, name: str) -> Array:
    """Three finite numbers as an array, or GeometryError naming it."""
    return np.array(_parse(value, "Vector", name))


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, tuple) else value
