"""Measures of the spine: heights and their loss, scoliosis, kyphosis and lordosis.

Angles are those of end plates, seen in the patient's coronal and sagittal planes as the world's axes give
them (x to the right, y to the front, z to the head).

- Height at the front, middle and back of a body: along its own axis, in the middle half of its width, of a
  parabola through the columns at 0.9, 0.5 and 0.1 of the depth from the posterior wall.
- Height loss: the greatest of 1 − front/back (wedge), 1 − middle/back (biconcave) and 1 − back / mean back of
  the neighbours in view (crush), in percent, not below 0.  Grade 0 below 20 %, 1 to 25 %, 2 to 40 %, 3 above
  (H. K. Genant et al., Journal of Bone and Mineral Research 8, 1993, 1137-1148); no grade is given where a
  voxel is more than a tenth of the height.
- Cobb angle, coronal: the greatest angle between an upper end plate and a lower end plate further down, in
  the coronal plane (J. R. Cobb, AAOS Instructional Course Lectures 5, 1948).  3D: between the normals of
  these two plates in space, which holds the sagittal curve of these levels too.
- Kyphosis T4-T12: upper plate of T4 against the lower one of T12.  Lordosis L1-S1: upper plate of L1 against
  that of the sacrum; L1-L5: against the lower one of L5.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..schemes import VERTEBRAE
from .field import ANTERIOR, RIGHT, UP, Bones, angle, unit
from .value import Measure, absent
from .vertebra import Plane, VertebralBody, fit_body, thickest

MEASURED = tuple(name for name in VERTEBRAE if name not in ("C1", "C2"))  # which have a body like the others
CURVE = tuple(name for name in MEASURED if name[0] in "TL")
GRADES = (20.0, 25.0, 40.0)  # percent of height lost
_LEAST = 3  # bodies of a curve
_COARSE = 0.1  # of a height: the largest voxel with which its loss is graded

Bodies = Mapping[str, VertebralBody | str]


def fit_bodies(bones: Bones) -> dict[str, VertebralBody | str]:
    """Bodies of all vertebrae that the scheme knows, or in words why there is none."""
    whole = [name for name in MEASURED if name in bones.scheme.names and not bones.why_not(name)]
    centers = {name: thickest(bones[name])[0] for name in whole}
    found: dict[str, VertebralBody | str] = {}
    for name in MEASURED:
        if name not in bones.scheme.names:
            continue
        why = bones.why_not(name)
        found[name] = why or fit_body(bones[name], _tangent(name, centers))
    return found


def heights(bodies: Bodies) -> list[Measure]:
    """Three heights (mm) and the loss (%) of each vertebra of which anything is there."""
    items: list[Measure] = []
    for name, body in bodies.items():
        parts = ("anterior", "middle", "posterior")
        if isinstance(body, str):
            items += [absent(f"height_{part}_{name}", "mm", body) for part in parts]
            items.append(absent(f"height_loss_{name}", "%", body))
            continue
        items += [
            Measure(f"height_{part}_{name}", "mm", value)
            for part, value in zip(parts, body.heights, strict=True)
        ]
        items.append(_loss(name, body, bodies))
    return items


def curves(bodies: Bodies, sacrum: Plane | str) -> list[Measure]:
    """Cobb angles, kyphosis and lordosis, degrees."""
    return [
        *_cobb(bodies),
        _between("kyphosis_T4_T12", _plate(bodies, "T4", "superior"), _plate(bodies, "T12", "inferior"), 1),
        _between("lordosis_L1_L5", _plate(bodies, "L1", "superior"), _plate(bodies, "L5", "inferior"), -1),
        _between("lordosis_L1_S1", _plate(bodies, "L1", "superior"), sacrum, -1),
    ]


def tilt(normal: np.ndarray, aside: np.ndarray) -> float:
    """Degrees by which a plate's normal leans from "up" to ``aside``, within their plane."""
    return float(np.degrees(np.arctan2(normal @ aside, normal @ UP)))


def _tangent(name: str, centers: Mapping[str, np.ndarray]) -> np.ndarray:
    """Direction to the head along the bodies next to this one; the world's where there are none."""
    place = MEASURED.index(name)
    nearby = [n for n in MEASURED[max(place - 1, 0) : place + 2] if n in centers]
    if name not in centers or len(nearby) < 2:
        return UP
    return unit(centers[nearby[0]] - centers[nearby[-1]])


def _loss(name: str, body: VertebralBody, bodies: Bodies) -> Measure:
    front, middle, back = body.heights
    place = MEASURED.index(name)
    around = [bodies.get(n) for n in (*MEASURED[max(place - 1, 0) : place], *MEASURED[place + 1 : place + 2])]
    backs = [other.heights[2] for other in around if isinstance(other, VertebralBody)]
    losses = {"wedge": 1 - front / back, "biconcave": 1 - middle / back}
    if backs:
        losses["crush"] = 1 - back / float(np.mean(backs))
    kind = max(losses, key=lambda k: losses[k])
    percent = 100 * max(losses[kind], 0.0)
    grade = int(np.searchsorted(GRADES, percent, side="right"))
    detail: dict[str, object] = {"grade": grade, "kind": kind if grade else "none"}
    if body.voxel > _COARSE * back:
        detail = {"grade": None, "kind": f"not graded: a voxel of {body.voxel:.1f} mm is too coarse"}
    return Measure(f"height_loss_{name}", "%", percent, detail=detail)


def _cobb(bodies: Bodies) -> list[Measure]:
    there = [(n, bodies[n]) for n in CURVE if isinstance(bodies.get(n), VertebralBody)]
    if len(there) < _LEAST:
        why = f"{len(there)} of the {_LEAST} thoracic and lumbar bodies that a curve needs"
        return [absent("cobb_coronal", "°", why), absent("cobb_3d", "°", why)]
    pairs = [
        (tilt(upper.superior.normal, RIGHT) - tilt(lower.inferior.normal, RIGHT), a, b)
        for place, (a, upper) in enumerate(there)
        for b, lower in there[place + 1 :]
    ]
    lean, a, b = max(pairs, key=lambda pair: abs(pair[0]))
    detail = {"upper": a, "lower": b, "convex": "left" if lean > 0 else "right"}
    known = dict(there)
    space = angle(known[a].superior.normal, known[b].inferior.normal)
    return [
        Measure("cobb_coronal", "°", abs(lean), detail=detail),
        Measure("cobb_3d", "°", space, detail={"upper": a, "lower": b}),
    ]


def _plate(bodies: Bodies, name: str, which: str) -> Plane | str:
    body = bodies.get(name, f"{name} is not in the scheme")
    return body if isinstance(body, str) else getattr(body, which)


def _between(name: str, upper: Plane | str, lower: Plane | str, sign: int) -> Measure:
    for plate in (upper, lower):
        if isinstance(plate, str):
            return absent(name, "°", plate)
    return Measure(name, "°", sign * (tilt(upper.normal, ANTERIOR) - tilt(lower.normal, ANTERIOR)))
