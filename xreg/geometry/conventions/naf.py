"""NAF's pickle: a source on a circle about z, rows downwards, lengths mm in the file (metres in the network).

Camera to world is Rz(angle)·Rz(90°)·Rx(−90°) with the source at (DSO·cos, DSO·sin, 0): columns along the
tangent, rows down. The reader counts the column direction first in every pair (its generator counts rows
first in nDetector and dDetector, so an oblong detector needs a pickle of one's own). The sign of the second
detector offset is opposite to TIGRE's, and ``offOrigin`` does not move the rays. Images are TIGRE's with the
rows flipped, line integrals per metre. Source: src/dataset/tigre.py (get_rays, angle2pose), generateData.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xreg.errors import GeometryError
from xreg.geometry.camera import Camera
from xreg.geometry.conventions._common import (
    Array,
    Counts,
    Pair,
    Params,
    Positive,
    PositivePair,
    View,
    camera_from_view,
    choice,
    require_mirrored,
    view_of,
)

_CLOSE = 1e-6


@dataclass(frozen=True)
class NAF(Params):
    """Keys of the pickle and one of its angles (rad); pairs are (column, row) direction, mm."""

    tool: ClassVar[str] = "naf"
    DSD: Positive
    DSO: Positive
    nDetector: Counts
    dDetector: PositivePair
    angle: float
    offDetector: Pair = (0.0, 0.0)
    mode: str = "cone"


def to_camera(params: NAF) -> Camera:
    """Return the camera of one projection as NAF casts its rays; world: NAF's volume frame, in mm."""
    p = params
    parallel = choice(p.mode, ["cone", "parallel"], "mode of naf") == "parallel"
    pitch = np.array(p.dDetector)
    return camera_from_view(
        View(
            *circle_axes(p.angle),
            source=p.DSO * np.array([math.cos(p.angle), math.sin(p.angle), 0.0]),
            focal=(1.0 if parallel else p.DSD) / pitch,
            center=(np.array(p.nDetector) - 1) / 2 - np.array(p.offDetector) / pitch,
            size=(p.nDetector[1], p.nDetector[0]),
            sdd=p.DSD,
            parallel=parallel,
        )
    )


def from_camera(camera: Camera) -> NAF:
    """Return NAF's parameters; GeometryError unless the view circles about z and looks at the origin."""
    view = view_of(camera, "naf", parallel=True)
    angle, dso = circle_position(camera, view, "naf")
    pitch = (1.0 if view.parallel else view.sdd) / view.focal
    height, width = view.size
    return NAF(
        DSD=view.sdd,
        DSO=dso,
        nDetector=(width, height),
        dDetector=pitch,
        angle=angle,
        offDetector=(np.array([(width - 1) / 2, (height - 1) / 2]) - view.center) * pitch,
        mode="parallel" if view.parallel else "cone",
    )


def circle_axes(angle: float) -> tuple[Array, Array, Array]:
    """Return the column, row and beam directions of Rz(angle)·Rz(90°)·Rx(−90°)."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([-s, c, 0.0]), np.array([0.0, 0.0, -1.0]), np.array([-c, -s, 0.0])


def circle_position(camera: Camera, view: View, tool: str) -> tuple[float, float]:
    """Return (angle rad, DSO mm), or raise GeometryError naming what ``tool`` cannot express."""
    require_mirrored(camera, False, tool, "its rows run down and its columns along the orbit")
    angle = math.atan2(-view.beam[1], -view.beam[0])
    off = np.abs(np.stack([view.columns, view.rows, view.beam]) - np.stack(circle_axes(angle))).max()
    if off > _CLOSE:
        raise GeometryError(
            f"{tool} turns the source about the z axis with rows along −z; this camera is off by {off:.3g} "
            "(direction cosines); turn the world first with camera.moved"
        )
    dso = float(-view.beam @ view.source)
    miss = np.abs(view.source + dso * view.beam).max()
    if miss > _CLOSE or dso <= 0:
        raise GeometryError(
            f"{tool} looks at the origin of the world; this camera misses it by {miss:.4g} mm; shift the "
            "world first with camera.moved"
        )
    return angle, dso
