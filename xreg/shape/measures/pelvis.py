"""Measures of the pelvis in its sagittal plane: incidence, sacral slope, tilt.

The sagittal plane stands across the hip axis (the line of the centres of both femoral heads); its vertical is
the world's z within it.  With the sacral plate's middle P and normal n, and the middle H of the hip axis:

- Sacral slope SS: of the plate against the horizontal; positive where it falls to the front.
- Pelvic tilt PT: between HP and the vertical; positive where the plate lies behind the hips.
- Pelvic incidence PI: between the plate's normal and PH.  PI = PT + SS holds for these three, and is checked.

J. Legaye et al., European Spine Journal 7 (1998), 99-103.  PI belongs to the bones; SS and PT change with
posture, and are those of the picture (a CT is taken lying).
"""

from __future__ import annotations

import numpy as np

from ...errors import ShapeError
from ...io.grid import closest_axes
from .femur import Sphere, fit_head
from .field import ANTERIOR, RIGHT, UP, Bones, angle, unit
from .spine import Bodies
from .value import Measure, absent
from .vertebra import STAIRS, Plane, VertebralBody, fit_plane, leave

_NAMES = ("pelvic_incidence", "sacral_slope", "pelvic_tilt")
_START = np.array([0.0, np.sin(np.radians(40)), np.cos(np.radians(40))])  # of a plate that nothing tells of
_HALF = (13.0, 10.0)  # mm to the sides and to front and back: the part of the plate that is fitted
_LEAN = (-10.0, 85.0)  # degrees to the front: no sacral plate lies otherwise
_AGREE = 0.01  # degrees by which PI may differ from PT + SS


def sacral_plate(bones: Bones, bodies: Bodies) -> Plane | str:
    """The upper plate of the sacrum; or, in words, why it cannot be told.

    The search starts below the lowest lumbar body, or where the bone is thickest if there is none.
    """
    if not bones.has("sacrum"):
        return "sacrum is missing"
    field = bones["sacrum"]
    if _upper_face(bones) in field.faces:
        return "sacrum touches the upper edge of the volume"
    start = _start(bones, bodies)
    if start is None:
        return "the sacrum has no bone in its midline"
    up, inside = start
    plane = Plane(inside, up)
    for _ in range(6):
        forward = unit(ANTERIOR - (ANTERIOR @ up) * up)
        axes = np.stack([np.cross(forward, up), forward, up])
        values, (across, ahead, upward) = field.box(inside, axes, (16.0, 26.0, 30.0), 1.0)
        top = leave(values, upward, 1)
        use = np.isfinite(top) & (np.abs(across) <= _HALF[0])[:, None] & (np.abs(ahead) <= _HALF[1])[None]
        if use.sum() < 60:
            return "the upper plate of the sacrum is not clear of other bone"
        c, p, q = fit_plane(across, ahead, top, use, STAIRS * field.spacing.max())
        up = unit(np.array([-p, -q, 1.0]) @ axes)
        shift = _to_middle(values, across, ahead, upward, c)
        point = inside + np.array([0.0, shift, c + q * shift]) @ axes
        plane = Plane(point, up)
        inside = point - 8.0 * up
    lean = np.degrees(np.arctan2(plane.normal @ ANTERIOR, plane.normal @ UP))
    if not _LEAN[0] <= lean <= _LEAN[1]:
        return f"the upper plate of the sacrum cannot be told (it would lean by {lean:.0f}°)"
    return plane


def pelvic_measures(bones: Bones, plate: Plane | str) -> list[Measure]:
    """Pelvic incidence, sacral slope, pelvic tilt, degrees.  Raises ShapeError should PI not be PT + SS."""
    heads = [fit_head(bones, side) for side in ("left", "right")]
    for part in (plate, *heads):
        if isinstance(part, str):
            return [absent(name, "°", part) for name in _NAMES]
    incidence, slope, lean = pelvic_angles(plate, *heads)
    return [Measure(name, "°", value) for name, value in zip(_NAMES, (incidence, slope, lean), strict=True)]


def pelvic_angles(plate: Plane, left: Sphere, right: Sphere) -> tuple[float, float, float]:
    """PI, SS and PT (degrees) of a plate and two heads.  Raises ShapeError should PI not be PT + SS."""
    hips = 0.5 * (left.center + right.center)
    aside = unit(right.center - left.center)
    up = unit(UP - (UP @ aside) * aside)
    front = np.cross(up, aside)
    normal = plate.normal - (plate.normal @ aside) * aside
    line = plate.point - hips
    line = line - (line @ aside) * aside
    slope = float(np.degrees(np.arctan2(normal @ front, normal @ up)))
    lean = float(np.degrees(np.arctan2(-(line @ front), line @ up)))
    ahead = np.cross(normal, line) @ aside  # which side of the line the normal points to
    incidence = float(np.copysign(angle(normal, line), ahead))
    if abs((incidence - slope - lean + 180) % 360 - 180) > _AGREE:
        raise ShapeError(
            f"pelvic incidence {incidence:.2f}° is not tilt {lean:.2f}° + slope {slope:.2f}°: the sacral "
            "plate or the femoral heads are misplaced"
        )
    return incidence, slope, lean


def _upper_face(bones: Bones) -> tuple[int, int]:
    """The index axis that runs most nearly along the body, and its end at the head: 0 or 1."""
    axes, against = closest_axes(bones.grid.affine)
    axis = axes.index(2)
    return axis, 0 if against[axis] else 1


def _start(bones: Bones, bodies: Bodies) -> tuple[np.ndarray, np.ndarray] | None:
    """A first normal of the plate, and a point within S1 below it; None where nothing lies in the middle."""
    field = bones["sacrum"]
    lumbar = [b for n in ("L6", "L5", "L4") if isinstance(b := bodies.get(n), VertebralBody)]
    if lumbar:
        plate = lumbar[0].inferior
        line = np.arange(0.0, 60.0, 1.0)
        inside = field.sample(plate.point - line[:, None] * plate.normal) >= 0.5
        if inside.any():
            return plate.normal, plate.point - (line[inside.argmax()] + 8.0) * plate.normal
    depth = field.depth()
    index = np.argwhere(depth > 0)
    places = field.world(index)
    midline = np.abs((places - places.mean(0)) @ RIGHT) < 12.0
    if not midline.any():  # crumbs to both sides
        return None
    return _START, places[midline][depth[tuple(index[midline].T)].argmax()]


def _to_middle(
    values: np.ndarray, across: np.ndarray, ahead: np.ndarray, upward: np.ndarray, top: float
) -> float:
    """mm to the front by which the plate's middle lies from here: half way from promontory to canal."""
    layer = (upward <= top - 3.0) & (upward >= top - 9.0)
    if not layer.any():
        return 0.0
    profile = values[np.abs(across) <= 6.0][:, :, layer].mean((0, 2))
    front, back = (float(leave(profile, ahead, way)) for way in (1, -1))
    if not np.isfinite([front, back]).all() or not 15.0 <= front - back <= 50.0:
        return 0.0
    return 0.5 * (front + back)
