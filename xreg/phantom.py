"""A chest made of formulas: a CT with labels where no real one is at hand.

Lungs, heart, liver, spine with discs, ribs, sternum, collar bones and shoulder blades, none of them
symmetric, so that a mirrored or upside-down pose does not fit.  Millimetres, RAS+, centred on the origin.
It is no atlas; it has the sizes and CT numbers of an adult.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from xreg.errors import VolumeError
from xreg.volume import Volume

EXTENT_MM = (360.0, 260.0, 320.0)
LABELS = {
    1: "body",
    2: "lungs",
    3: "heart",
    4: "liver",
    5: "spine",
    6: "ribs",
    7: "sternum",
    8: "shoulder girdle",
}
AIR, LUNG, FAT, BLOOD, LIVER, DISC, SPONGY, CORTICAL = -1000.0, -820.0, -90.0, 45.0, 60.0, 80.0, 260.0, 700.0
SPINE_BEND = (9.0, 22.0)  # mm: how far the spine leaves a straight line, sideways and in depth
RIBS = 10


@dataclass(frozen=True)
class _Blob:
    """An ellipsoid: centre and half axes in mm, turned by degrees about y (in the frontal plane)."""

    center: tuple[float, float, float]
    half: tuple[float, float, float]
    turn: float = 0.0


@dataclass(frozen=True)
class _Tube:
    """A bone along a curve: points in mm, and its radius there."""

    points: Float[np.ndarray, "n 3"]
    radius: float


def chest_phantom(*, spacing: float = 2.0, energy_kev: float = 70.0) -> Volume:
    """The chest as a Volume with labels, on a grid of ``spacing`` mm (from 1 to 8).

    Borders are a voxel wide, so that renders are smooth.  The same numbers come out each time.  Raises
    VolumeError for another spacing.
    """
    if not 1.0 <= spacing <= 8.0:
        raise VolumeError(f"spacing of the phantom must lie between 1 and 8 mm, got {spacing}")
    canvas = _Canvas(spacing)
    _paint_soft_parts(canvas)
    _paint_bones(canvas)
    affine = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([axis[0] for axis in canvas.axes], dtype=torch.float64)
    return Volume.from_hu(
        torch.from_numpy(canvas.hu),
        affine,
        energy_kev=energy_kev,
        labels=torch.from_numpy(canvas.labels),
        label_names=LABELS,
        provenance={"format": "phantom", "file": "built-in chest phantom", "units": "hu"},
    )


class _Canvas:
    """CT numbers and labels [D, H, W] that shapes are painted on, the later over the earlier."""

    def __init__(self, spacing: float) -> None:
        self.spacing = spacing
        self.axes = [_axis(extent, spacing) for extent in EXTENT_MM]
        shape = tuple(len(axis) for axis in reversed(self.axes))
        self.hu = np.full(shape, AIR, dtype=np.float32)
        self.labels = np.zeros(shape, dtype=np.uint8)

    def box(self, low: np.ndarray, high: np.ndarray) -> tuple[tuple[slice, ...], list[np.ndarray]]:
        """The voxels within these bounds (and two more), as slices of the arrays and their x, y, z."""
        parts = []
        for axis, a, b in zip(self.axes, low, high, strict=True):
            first, last = np.searchsorted(axis, [a - 2 * self.spacing, b + 2 * self.spacing])
            parts.append(slice(first, last))
        x, y, z = (axis[part] for axis, part in zip(self.axes, parts, strict=True))
        return tuple(reversed(parts)), [x[None, None, :], y[None, :, None], z[:, None, None]]

    def paint(self, part: tuple[slice, ...], inside_mm: np.ndarray, hu: float, label: int) -> None:
        """Put a CT number where ``inside_mm``, the depth below the surface, is positive; with a soft edge."""
        share = np.clip(inside_mm / self.spacing + 0.5, 0.0, 1.0).astype(np.float32)
        self.hu[part] += share * (np.float32(hu) - self.hu[part])
        self.labels[part][share > 0.5] = label

    def blob(self, shape: _Blob, hu: float, label: int, *, above: float | None = None) -> None:
        """Paint an ellipsoid, or only what of it lies higher than z = ``above`` (a dome's surface)."""
        center, half = np.array(shape.center), np.array(shape.half)
        part, (x, y, z) = self.box(center - half.max(), center + half.max())
        c, s = math.cos(math.radians(shape.turn)), math.sin(math.radians(shape.turn))
        dx, dy, dz = x - center[0], y - center[1], z - center[2]
        u = np.stack(np.broadcast_arrays(c * dx + s * dz, dy, -s * dx + c * dz)) / half[:, None, None, None]
        radius = np.sqrt((u * u).sum(0))
        slope = np.sqrt(((u / half[:, None, None, None]) ** 2).sum(0)) / np.maximum(radius, 1e-6)
        inside = (1.0 - radius) / np.maximum(slope, 1e-6)  # mm, to first order
        if above is not None:
            inside = np.minimum(inside, z - above)
        self.paint(part, inside, hu, label)

    def tube(self, bone: _Tube, hu: float, label: int) -> None:
        """Paint a round bone along its curve, with a shell denser than its inside."""
        for start, end in zip(bone.points[:-1], bone.points[1:], strict=True):
            low, high = np.minimum(start, end) - bone.radius, np.maximum(start, end) + bone.radius
            part, (x, y, z) = self.box(low, high)
            if 0 in self.hu[part].shape:
                continue
            along = end - start
            t = ((x - start[0]) * along[0] + (y - start[1]) * along[1] + (z - start[2]) * along[2]) / (
                along @ along
            )
            t = np.clip(t, 0.0, 1.0)
            away = np.sqrt(sum((p - a - t * d) ** 2 for p, a, d in zip((x, y, z), start, along, strict=True)))
            self.paint(part, bone.radius - away, hu, label)


def _axis(extent: float, spacing: float) -> np.ndarray:
    count = round(extent / spacing)
    return (np.arange(count) - (count - 1) / 2) * spacing


def _paint_soft_parts(canvas: _Canvas) -> None:
    x, y, z = (
        a.reshape(shape) for a, shape in zip(canvas.axes, [(1, 1, -1), (1, -1, 1), (-1, 1, 1)], strict=True)
    )
    everything = (slice(None),) * 3
    width = 158.0 - 26.0 / (1.0 + np.exp(-(z - 105.0) / 14.0))  # narrower at the neck, sloping shoulders
    depth = 100.0 + 8.0 * np.cos((z + 40.0) / 90.0)
    for shrink, hu in ((0.0, FAT), (14.0, BLOOD)):
        radius = (np.abs(x / (width - shrink)) ** 2.6 + np.abs(y / (depth - shrink)) ** 2.4) ** (1 / 2.5)
        canvas.paint(everything, (1.0 - radius) * 90.0 * np.ones_like(z), hu, 1)
    canvas.blob(_Blob((66.0, 6.0, -14.0), (56.0, 76.0, 150.0), 3.0), LUNG, 2, above=-112.0)
    canvas.blob(_Blob((-68.0, 4.0, -20.0), (52.0, 74.0, 150.0), -3.0), LUNG, 2, above=-122.0)
    canvas.blob(
        _Blob((58.0, 10.0, -110.0), (84.0, 82.0, 62.0), 6.0), LIVER, 4
    )  # the right dome stands higher
    canvas.blob(_Blob((-70.0, 6.0, -122.0), (76.0, 86.0, 48.0), -4.0), BLOOD, 1)
    canvas.blob(_Blob((-74.0, 30.0, -112.0), (30.0, 26.0, 24.0)), LUNG, 1)  # air in the stomach
    canvas.blob(_Blob((-26.0, 34.0, -46.0), (62.0, 44.0, 54.0), -32.0), BLOOD, 3)
    canvas.blob(_Blob((8.0, 26.0, 20.0), (26.0, 24.0, 62.0), 6.0), BLOOD, 3)
    canvas.blob(_Blob((0.0, 8.0, 120.0), (9.0, 9.0, 60.0)), LUNG, 1)  # windpipe
    for n, (cx, cy, cz) in enumerate(
        ((44.0, 12.0, 4.0), (-46.0, 6.0, -4.0), (62.0, -20.0, -34.0), (-70.0, -14.0, 40.0))
    ):
        canvas.blob(_Blob((cx, cy, cz), (5.0 + n, 5.0, 17.0), 20.0 * (n - 1.5)), BLOOD, 2)  # large vessels


def _paint_bones(canvas: _Canvas) -> None:
    for n, z in enumerate(np.arange(-150.0, 165.0, 27.0)):
        cx, cy = _spine_at(z)
        size = 17.0 - 0.25 * n
        canvas.blob(_Blob((cx, cy, z + 13.5), (size - 2, size - 4, 6.0)), DISC, 5)
        canvas.blob(_Blob((cx, cy, z), (size + 2, size, 14.5)), CORTICAL, 5)
        canvas.blob(_Blob((cx, cy, z), (size - 1, size - 3, 12.0)), SPONGY, 5)
        for side in (-1.0, 1.0):
            canvas.blob(
                _Blob((cx + side * 22.0, cy - 20.0, z + 3.0), (15.0, 5.0, 4.5), -side * 16.0), CORTICAL, 5
            )
        canvas.blob(_Blob((cx, cy - 34.0, z - 6.0), (4.0, 15.0, 9.0)), CORTICAL, 5)
    for bone in _ribs():
        canvas.tube(bone, CORTICAL, 6)
    canvas.blob(_Blob((2.0, 88.0, 42.0), (19.0, 6.0, 62.0), -2.0), SPONGY, 7)
    for side, lift in ((1.0, 0.0), (-1.0, 7.0)):  # one shoulder hangs lower
        points = [(14, 78, 108 + lift), (60, 64, 122 + lift), (104, 20, 128 + lift), (136, -20, 126 + lift)]
        canvas.tube(_Tube(np.array(points, dtype=float) * [side, 1, 1], 6.5), CORTICAL, 8)
        canvas.blob(_Blob((side * 104.0, -76.0, 66.0 + lift), (30.0, 5.0, 58.0), -side * 14.0), SPONGY, 8)


def _spine_at(z: float) -> tuple[float, float]:
    return SPINE_BEND[0] * math.sin(z / 95.0), -62.0 + SPINE_BEND[1] * math.cos(z / 110.0) - 12.0


def _ribs() -> Iterator[_Tube]:
    """Ten pairs: from the spine outwards, down, and round to the front; the left ones 4 mm lower."""
    angle = np.radians(np.linspace(-70.0, 62.0, 19))
    for n in range(RIBS):
        z = 118.0 - 24.0 * n
        wide = 76.0 + 58.0 * math.sin(math.pi * (n + 1.2) / (RIBS + 3.5))
        deep = 62.0 + 24.0 * math.sin(math.pi * (n + 1.0) / (RIBS + 2.0))
        for side in (1.0, -1.0):
            points = np.stack(
                [
                    side * (4.0 + wide * np.cos(angle)) + _spine_at(z)[0] * 0.4,
                    deep * np.sin(angle) - 2.0,
                    z
                    - 34.0 * (np.sin(angle) + 0.94) / 1.8
                    - (4.0 if side < 0 else 0.0)
                    + 6.0 * np.cos(angle),
                ],
                1,
            )
            yield _Tube(points, 5.2)
