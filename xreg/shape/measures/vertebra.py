"""A vertebral body: its frame, its end plates, its heights.

The body is found as the place where the bone is thickest; arch and processes are behind it.  In the body's
own frame (right, anterior, up) the label is sampled on a fine grid, end plates are the places where columns
along "up" leave the bone, and a plane is fitted to each; the frame then turns to the mean of the two planes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from .field import ANTERIOR, UP, BoneField, angle, unit

_REACH = 32.0  # mm to each side of the body's middle: half of the widest body and a margin
_STEP = 1.0  # mm, at least
_TURNS = (
    0.25,
    0.25,
    0.35,
    0.45,
    0.45,
)  # of depth and width to each side of the middle: the part of the plates
# that counts, turn by turn; a frame that is far off takes their rims for walls
_COLUMNS = 8  # of an end plate, at least
STAIRS = 0.4  # of a voxel: how far the stairs of a label map lie from its plane, and count in full
_WEDGE = 35.0  # degrees between the two plates of one body, and
_BULGE = 1.5  # times higher in the middle than at both ends: then it is not a whole body
_HEIGHTS_AT = (0.9, 0.5, 0.1)  # of the depth, from the posterior wall: anterior, middle, posterior


@dataclass(frozen=True, eq=False)
class Plane:
    """A point (RAS mm) and the unit normal, which points to the head."""

    point: Float[np.ndarray, " 3"]
    normal: Float[np.ndarray, " 3"]


@dataclass(frozen=True, eq=False)
class VertebralBody:
    """Middle (RAS mm), unit axes, end plates, sizes in mm."""

    name: str
    center: Float[np.ndarray, " 3"]
    right: Float[np.ndarray, " 3"]
    anterior: Float[np.ndarray, " 3"]
    up: Float[np.ndarray, " 3"]
    superior: Plane
    inferior: Plane
    heights: tuple[float, float, float]  # anterior, middle, posterior
    voxel: float  # mm of a voxel along "up"
    depth: float
    width: float


def thickest(field: BoneField) -> tuple[Float[np.ndarray, " 3"], float]:
    """Middle of the thickest part of a bone (RAS mm), and its radius (mm)."""
    from scipy.ndimage import label

    depth = field.depth()
    parts, _ = label(depth >= 0.8 * depth.max())
    mine = parts == parts[np.unravel_index(depth.argmax(), depth.shape)]
    return field.world(np.argwhere(mine)).mean(0), float(depth.max())


def front_of(field: BoneField, center: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Unit vector to the front, across ``up``: from centroid to body; the world's where that is unclear."""
    forward = center - field.points.mean(0)
    forward = forward - (forward @ up) * up
    spread = np.sqrt(field.points.var(0).sum())
    ahead = ANTERIOR - (ANTERIOR @ up) * up
    clear = np.linalg.norm(forward) > 0.15 * spread and forward @ ahead > 0
    return unit(forward if clear else ahead)


def fit_body(field: BoneField, up: np.ndarray = UP) -> VertebralBody | str:
    """The body of a vertebra, starting from a direction to the head; or, in words, why it cannot be told."""
    center, radius = thickest(field)
    forward = front_of(field, center, up)
    found: VertebralBody | str = ""
    for share in _TURNS:
        forward = unit(forward - (forward @ up) * up)
        found = _fit_once(field, center, np.stack([np.cross(forward, up), forward, up]), radius, share)
        if isinstance(found, str):
            return found
        center, up, forward = found.center, found.up, found.anterior
    wedge = angle(found.superior.normal, found.inferior.normal)
    if wedge > _WEDGE or not 0 < found.heights[1] < _BULGE * max(found.heights[0], found.heights[2]):
        return f"{field.name} has not the shape of a whole vertebral body"
    return found


def _fit_once(
    field: BoneField, center: np.ndarray, axes: np.ndarray, radius: float, share: float
) -> VertebralBody | str:
    """One turn: walls, end plates, and the frame that they give."""
    values, (across, ahead, upward) = field.box(
        center, axes, (_REACH,) * 3, max(_STEP, 0.5 * field.spacing.min())
    )
    walls = _walls(field.name, values, (across, ahead, upward), radius)
    if isinstance(walls, str):
        return walls
    (left, right), (back, front) = walls
    depth, width = front - back, right - left
    s, t = (across - 0.5 * (left + right))[:, None] / width, (ahead - back)[None] / depth
    top, bottom = leave(values, upward, 1), leave(values, upward, -1)
    there = np.isfinite(top - bottom)
    columns = there & ((s / share) ** 2 + ((t - 0.5) / share) ** 2 <= 1)
    if columns.sum() < _COLUMNS:
        return f"{field.name} is too small or too coarse for end plates"
    noise = STAIRS * field.spacing.max()
    planes = [fit_plane(across, ahead, where, columns, noise) for where in (top, bottom)]
    normals = [unit(np.array([-p[1], -p[2], 1.0]) @ axes) for p in planes]
    place = np.array([0.5 * (left + right), 0.5 * (back + front)])
    points = [center + np.array([*place, p[0] + p[1:] @ place]) @ axes for p in planes]
    band = there & (np.abs(s) <= 0.25) & (t >= 0.08) & (t <= 0.92)
    heights = _heights((top - bottom)[band], np.broadcast_to(t, band.shape)[band])
    up = unit(normals[0] + normals[1])
    forward = unit(axes[1] - (axes[1] @ up) * up)
    return VertebralBody(
        field.name, 0.5 * (points[0] + points[1]), np.cross(forward, up), forward, up,
        Plane(points[0], normals[0]), Plane(points[1], normals[1]), heights,
        float(np.linalg.norm(field.affine[:3, :3].T @ up)), float(depth), float(width),
    )  # fmt: skip


def _walls(
    name: str, values: np.ndarray, lines: tuple[np.ndarray, np.ndarray, np.ndarray], radius: float
) -> tuple[tuple[float, float], tuple[float, float]] | str:
    """Left and right, back and front wall of the body (mm from its middle), at half its height."""
    across, ahead, upward = lines
    slab = values[:, :, np.abs(upward) <= 0.3 * radius].mean(2)
    wall = _ends(slab[np.abs(across) <= 0.35 * radius].mean(0), ahead)
    if wall is None:
        return f"the body of {name} cannot be told from its arch"
    back, front = max(wall[0], -1.6 * wall[1]), wall[1]
    depth = front - back
    middle = (ahead >= back + 0.4 * depth) & (ahead <= back + 0.8 * depth)
    sides = _ends(slab[:, middle].mean(1), across) if middle.any() else None
    return (sides, (back, front)) if sides is not None else f"the body of {name} has no sides in view"


def leave(
    values: Float[np.ndarray, "*n c"], line: Float[np.ndarray, " c"], way: int, start: int | None = None
) -> Float[np.ndarray, "*n"]:
    """Where each column (last axis) leaves the bone, from its middle or ``start`` in direction ``way``.

    The bone ends where the field falls through a half, linear between samples; NaN where it does not end, or
    does not begin.
    """
    start = len(line) // 2 if start is None else start
    run = values[..., start:] if way > 0 else values[..., start::-1]
    outside = run < 0.5
    first = outside.argmax(-1)
    fine = outside.any(-1) & (first > 0)
    inner = np.take_along_axis(run, np.maximum(first - 1, 0)[..., None], -1)[..., 0]
    outer = np.take_along_axis(run, first[..., None], -1)[..., 0]
    share = (inner - 0.5) / np.where(fine, inner - outer, 1.0)
    step = line[1] - line[0]
    return np.where(fine, line[start] + way * step * (first - 1 + share), np.nan)


def fit_plane(
    x: Float[np.ndarray, " a"],
    y: Float[np.ndarray, " b"],
    z: Float[np.ndarray, "a b"],
    use: Bool[np.ndarray, "a b"],
    noise: float = 0.05,
) -> Float[np.ndarray, " 3"]:
    """(c, p, q) of z = c + p x + q y over the columns in ``use``, with Huber weights against rims and spurs.

    Residuals up to one and a half times ``noise`` (mm), or their own spread if that is more, count in full.
    """
    a, b = np.broadcast_arrays(x[:, None], y[None])
    table = np.stack([np.ones(use.sum()), a[use], b[use]], axis=1)
    goal, weight = z[use], np.ones(use.sum())
    answer = np.zeros(3)
    for _ in range(6):
        root = np.sqrt(weight)
        answer = np.linalg.lstsq(table * root[:, None], goal * root, rcond=None)[0]
        away = np.abs(goal - table @ answer)
        scale = max(1.4826 * np.median(away), noise)
        weight = np.minimum(1.0, 1.5 * scale / np.maximum(away, 1e-9))
    return answer


def _ends(profile: np.ndarray, line: np.ndarray) -> tuple[float, float] | None:
    """Where a profile falls below a half on both sides of its middle."""
    low, high = (float(leave(profile[None], line, way)[0]) for way in (-1, 1))
    return (low, high) if np.isfinite([low, high]).all() and high > low else None


def _heights(height: np.ndarray, t: np.ndarray) -> tuple[float, float, float]:
    """Anterior, middle and posterior height (mm) of a parabola through the columns of the middle band."""
    if len(np.unique(t)) < 3:
        return (float("nan"),) * 3
    curve = np.polynomial.Polynomial.fit(t, height, 2)
    return tuple(float(curve(at)) for at in _HEIGHTS_AT)
