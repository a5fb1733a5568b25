"""The circle on which the sources of a scan lie, found from its cameras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from xreg.errors import GeometryError
from xreg.geometry import Camera, Rig
from xreg.tomography.projector import list_of

_USE_OTHERS = "FDK needs a circular scan; os_sart, cgls and fista_tv take any views"


@dataclass(frozen=True, eq=False)
class Orbit:
    """A circular scan.

    center [3]: world RAS mm.  axis [3]: unit; angles grow counter-clockwise about it.  radius: mm from
    source to axis.  angles [V]: radians in [0, 2π), of each source.  depth [V]: the isocentre's depth in
    each view, mm. widths [V]: the angle that each view stands for.  span: from the first to the last view,
    2π of a full circle.
    start: angle of the first view of an arc.
    sideways: the axis runs along image rows, and not along columns, of the stored images.
    """

    center: Float64[Tensor, " 3"]
    axis: Float64[Tensor, " 3"]
    radius: float
    angles: Float64[Tensor, " V"]
    depth: Float64[Tensor, " V"]
    widths: Float64[Tensor, " V"]
    span: float
    start: float
    sideways: bool

    @property
    def full(self) -> bool:
        """Whether views go all the way round."""
        return self.span >= 2 * math.pi - 1e-9


def orbit_of(cameras: Rig | Camera | Sequence[Camera], *, tolerance: float = 0.01) -> Orbit:
    """Find centre, axis and angles of a circular scan.

    tolerance: how far sources may leave the circle, in its radii, and viewing axes miss the isocentre or the
    detector's edges lean against the axis, in radians.  The mean circle is used; jitter within the tolerance
    is still projected as each camera says.  Raises GeometryError, naming the view, for any other scan, fewer
    than three views, or a parallel beam.
    """
    views = list_of(cameras)
    if len(views) < 3 or any(camera.parallel for camera in views):
        kind = "a parallel beam" if any(camera.parallel for camera in views) else f"{len(views)} view(s)"
        raise GeometryError(f"a circle needs three pinhole views or more, got {kind}; {_USE_OTHERS}")
    pose = torch.stack([camera.world_from_camera.detach().cpu() for camera in views])
    sources, beams = pose[:, :3, 3], pose[:, :3, 2]
    center, axis, radius = _circle(sources, tolerance)
    depth = ((center - sources) * beams).sum(-1)
    toward = (center - sources) / (center - sources).norm(dim=-1, keepdim=True)
    miss = torch.linalg.cross(beams, toward).norm(dim=-1)
    _require(
        miss, tolerance, "the line from the source along the detector's normal misses the isocentre by", "rad"
    )
    _require((depth <= 0).double(), 0.5, "the isocentre lies behind the source", "")
    sideways = _leaning(pose, axis, tolerance)
    x, y = _plane(sources[0] - center, axis)
    away = sources - center
    angles = torch.atan2(away @ y, away @ x) % (2 * math.pi)
    widths, span, start = _widths(angles)
    return Orbit(center, axis, radius, angles, depth, widths, span, start, sideways)


def _circle(sources: Tensor, tolerance: float) -> tuple[Tensor, Tensor, float]:
    """Centre, axis and radius by least squares: the plane first, then the circle in it."""
    mean = sources.mean(0)
    spread = torch.linalg.svd(sources - mean)
    size = float(spread.S[0])
    if size == 0 or float(spread.S[1]) < 1e-6 * size:
        raise GeometryError(
            f"the sources lie in one place or on a line, so there is no circle; {_USE_OTHERS}"
        )
    axis = spread.Vh[2]
    if float(axis[axis.abs().argmax()]) < 0:
        axis = -axis  # one sign for one scan: the largest entry positive
    x, y = _plane(sources[0] - mean, axis)
    flat = torch.stack([(sources - mean) @ x, (sources - mean) @ y], 1)
    rows = torch.cat([2 * flat, torch.ones(len(flat), 1, dtype=flat.dtype)], 1)
    found = torch.linalg.lstsq(rows, (flat * flat).sum(1, keepdim=True)).solution[:, 0]
    center = mean + found[0] * x + found[1] * y
    away = sources - center
    height = away @ axis
    inside = (away - height[:, None] * axis).norm(dim=1)
    radius = float(inside.mean())
    _require(
        torch.maximum(height.abs(), (inside - radius).abs()) / radius,
        tolerance,
        "the source leaves the circle by",
        "radii",
    )
    return center, axis, radius


def _leaning(pose: Tensor, axis: Tensor, tolerance: float) -> bool:
    """Whether the axis runs along image rows; GeometryError where it runs along neither edge."""
    along_rows, along_columns = ((pose[:, :3, a] @ axis).abs() for a in (0, 1))
    sideways = bool(along_rows.mean() > along_columns.mean())
    # sine of the angle between the axis and the edge that it should run along
    lean = (1 - (along_rows if sideways else along_columns) ** 2).clamp_min(0).sqrt()
    _require(lean, tolerance, "the detector's edges lean against the axis of rotation by", "rad")
    return sideways


def _plane(first: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors across the axis, right-handed with it; the first near ``first``."""
    x = first - (first @ axis) * axis
    x = x / x.norm()
    return x, torch.linalg.cross(axis, x)


def _widths(angles: Tensor) -> tuple[Tensor, float, float]:
    """The angle that each view stands for, the span and the start of the arc.

    A view's width is half of the gaps to its neighbours; the first and last of an arc count the gap that they
    have twice.  The scan is an arc where its largest gap is more than 2.5 others and more than ten degrees.
    """
    order = angles.argsort(stable=True)
    sorted_angles = angles[order]
    gaps = torch.diff(sorted_angles, append=sorted_angles[:1] + 2 * math.pi)  # after each view
    worst = int(gaps.argmax())
    typical = float(gaps.median())
    arc = float(gaps[worst]) > max(2.5 * typical, math.radians(10.0))
    before = gaps.roll(1)
    share = (gaps + before) / 2
    start = sorted_angles[(worst + 1) % len(angles)]
    span = 2 * math.pi
    if arc:
        share[worst] = before[worst]
        share[(worst + 1) % len(angles)] = gaps[(worst + 1) % len(angles)]
        span -= float(gaps[worst])
    widths = torch.empty_like(share)
    widths[order] = share
    return widths, span, float(start)


def _require(error: Tensor, limit: float, what: str, unit: str) -> None:
    worst = int(error.argmax())
    if float(error[worst]) > limit:
        size = f" {float(error[worst]):.3g} {unit} (allowed: {limit:g})" if unit else ""
        raise GeometryError(f"view {worst} of the scan is not on a circle: {what}{size}. {_USE_OTHERS}")
