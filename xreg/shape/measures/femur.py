"""Measures of the proximal femur: the head's sphere, the axes of neck and shaft.

- Head: a sphere fitted to the surface on the side away from the neck.
- Shaft axis: the line through centroids of sections further than three radii of the head below its centre.
- Neck axis: from the head's centre to the centroid of the neck's narrowest section.
- Neck-shaft angle: between the neck axis (to the head) and the shaft axis (to the knee), in space.
- Offset: distance of the head's centre from the shaft axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from .field import RIGHT, UP, BoneField, Bones, angle, unit
from .value import Measure, absent
from .vertebra import STAIRS, leave

_RADII = (10.0, 40.0)  # mm: no human femoral head is smaller or larger
_SHAFT_FROM = 3.0  # radii of the head below its centre; the lesser trochanter ends at about 2.7
_SHAFT_MM = 40.0  # of shaft are needed for its axis
_RAYS = 500


@dataclass(frozen=True, eq=False)
class Sphere:
    """A femoral head: centre (RAS mm) and radius (mm)."""

    center: Float[np.ndarray, " 3"]
    radius: float


def femur_measures(bones: Bones, side: str) -> list[Measure]:
    """Neck-shaft angle (degrees), offset and radius of the head (mm) of one side."""
    names = {"neck_shaft_angle": "°", "femoral_offset": "mm", "femoral_head_radius": "mm"}
    head = fit_head(bones, side)
    if isinstance(head, str):
        return [absent(f"{name}_{side}", unit_, head) for name, unit_ in names.items()]
    radius = Measure(f"femoral_head_radius_{side}", "mm", head.radius)
    field = bones[f"femur_{side}"]
    shaft = _shaft(field, head)
    if isinstance(shaft, str):
        return [*(absent(f"{n}_{side}", u, shaft) for n, u in list(names.items())[:2]), radius]
    point, down = shaft
    across = head.center - point
    across = across - (across @ down) * down
    items = [Measure(f"femoral_offset_{side}", "mm", float(np.linalg.norm(across))), radius]
    neck = _neck(field, head, point, down)
    if isinstance(neck, str):
        return [absent(f"neck_shaft_angle_{side}", "°", neck), *items]
    return [Measure(f"neck_shaft_angle_{side}", "°", angle(-neck, down)), *items]


def fit_head(bones: Bones, side: str) -> Sphere | str:
    """The head of the femur of a side, "left" or "right"; or, in words, why it cannot be told."""
    name = f"femur_{side}"
    if not bones.has(name):
        return f"{name} is missing"
    field = bones[name]
    inward = RIGHT if side == "left" else -RIGHT
    center, away = _first_center(field, inward), unit(inward + UP)
    radius = 0.0
    for _ in range(6):
        directions = _around(_RAYS)
        directions = directions[directions @ away > -0.15]
        hits = _cast(field, center, directions)
        if len(hits) < _RAYS // 5:
            return f"the head of {name} has no round surface in view"
        center, radius = fit_sphere(hits, STAIRS * field.spacing.max())
        if not (_RADII[0] <= radius <= _RADII[1]):
            return f"the head of {name} is not in view as a sphere (radius {radius:.0f} mm)"
        points = field.points
        near = points[np.linalg.norm(points - center, axis=1) < 2.5 * radius]
        if not len(near):
            return f"the head of {name} has no round surface in view"
        away = unit(center - near.mean(0))
    ends = center + 0.9 * radius * np.concatenate([np.eye(3), -np.eye(3)])
    if not bool(bones.grid.contains(torch.from_numpy(ends)).all()):
        return f"the head of {name} touches the edge of the volume"
    return Sphere(center, radius)


def fit_sphere(
    points: Float[np.ndarray, "N 3"], noise: float = 0.05
) -> tuple[Float[np.ndarray, " 3"], float]:
    """Centre and radius of the sphere through points, with Huber weights; ``noise`` as in `fit_plane`."""
    weight = np.ones(len(points))
    center, radius = points.mean(0), 0.0
    for _ in range(8):
        root = np.sqrt(weight)[:, None]
        table = np.concatenate([2 * points, np.ones((len(points), 1))], axis=1)
        answer = np.linalg.lstsq(table * root, (points**2).sum(1) * root[:, 0], rcond=None)[0]
        center, radius = answer[:3], float(np.sqrt(max(answer[3] + answer[:3] @ answer[:3], 0.0)))
        away = np.abs(np.linalg.norm(points - center, axis=1) - radius)
        scale = max(1.4826 * np.median(away), noise)
        weight = np.minimum(1.0, 1.5 * scale / np.maximum(away, 1e-9)) * (away < 4 * scale)
    return center, radius


def _first_center(field: BoneField, inward: np.ndarray) -> np.ndarray:
    """The thickest place in the upper part of the bone, nearer the midline than its middle."""
    depth = field.depth()
    index = np.argwhere(depth > 0)
    place = field.world(index)
    height, inside = place @ UP, place @ inward
    upper = height > height.max() - 70.0
    chosen = upper & (inside > np.median(inside[upper]))
    chosen = chosen if chosen.any() else upper  # a crumb of one column
    best = index[chosen][depth[tuple(index[chosen].T)].argmax()]
    return field.world(best[None])[0]


def _around(count: int) -> Float[np.ndarray, "n 3"]:
    """Directions spread evenly over the sphere (golden spiral)."""
    turn = np.arange(count) * np.pi * (3 - np.sqrt(5))
    height = 1 - (2 * np.arange(count) + 1) / count
    wide = np.sqrt(1 - height**2)
    return np.stack([wide * np.cos(turn), wide * np.sin(turn), height], axis=1)


def _cast(field: BoneField, center: np.ndarray, directions: np.ndarray) -> Float[np.ndarray, "n 3"]:
    """Where rays from a point leave the bone."""
    line = np.arange(0.0, 1.2 * _RADII[1], max(0.5, 0.25 * field.spacing.min()))
    values = field.sample(center + directions[:, None] * line[:, None])
    far = leave(values, line, 1, start=0)
    fine = np.isfinite(far)
    return center + directions[fine] * far[fine, None]


def _shaft(field: BoneField, head: Sphere) -> tuple[np.ndarray, np.ndarray] | str:
    """A point of the shaft's axis and its direction to the knee."""
    points, down = field.points, -UP
    middle = head.center
    for _ in range(4):
        along = (points - head.center) @ down
        start, slab = _SHAFT_FROM * head.radius, max(field.spacing.max(), 3.0)
        number = ((along - start) // slab).astype(int)
        length = along.max() - field.spacing.max() - start  # the last layer may be cut
        filled = np.bincount(number[number >= 0], minlength=1) > 0
        if not filled.all():  # what lies beyond a gap is a crumb, not the shaft
            length = min(length, filled.argmin() * slab)
        if length < _SHAFT_MM:
            length = max(length, 0.0)
            return f"{field.name} shows {length:.0f} mm of shaft of the {_SHAFT_MM:.0f} mm that an axis needs"
        sections = np.stack([points[number == n].mean(0) for n in range(int(length // slab))])
        middle = sections.mean(0)
        direction = np.linalg.svd(sections - middle)[2][0]
        down = direction if direction @ down > 0 else -direction
    return middle, down


def _neck(field: BoneField, head: Sphere, point: np.ndarray, down: np.ndarray) -> np.ndarray | str:
    """Unit vector of the neck's axis, from the head to the trochanters."""
    level = point + ((head.center - point) @ down) * down
    axis = unit(level + 1.2 * head.radius * down - head.center)
    for _ in range(8):
        side = unit(np.cross(axis, UP if abs(axis @ UP) < 0.9 else RIGHT))
        values, (_, across, along) = field.box(
            head.center, np.stack([np.cross(axis, side), side, axis]),
            (1.1 * head.radius, 1.1 * head.radius, 2.0 * head.radius), max(1.0, 0.4 * field.spacing.min()),
        )  # fmt: skip
        one = across[:, None, None]
        values = values * (one**2 + across[None, :, None] ** 2 <= (1.1 * head.radius) ** 2)
        area = values.sum((0, 1))
        reach = along >= 0.9 * head.radius
        if not (area[reach] > 0).all():
            return f"the neck of {field.name} is interrupted"
        narrow = along[reach][area[reach].argmin()]
        band = np.abs(along - narrow) <= 0.15 * head.radius
        part = values[:, :, band]
        mean = np.array([(part * one).sum(), (part * across[None, :, None]).sum()]) / part.sum()
        where = mean[0] * np.cross(axis, side) + mean[1] * side + narrow * axis
        axis = unit(where)
    return axis
