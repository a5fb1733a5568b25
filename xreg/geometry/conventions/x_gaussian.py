"""X-Gaussian: NAF's circle with a field of view that takes pixels for one unit of length.

Its focal length in pixels is DSD itself; detector offsets are ignored, and width and height are swapped,
which only a square image survives. Views are converted by choosing the unit of length so that a pixel
measures one: ``scene_scale`` says how many of those units a millimetre has. Source:
scene/dataset_readers.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xreg.errors import GeometryError
from xreg.geometry.camera import Camera
from xreg.geometry.conventions._common import (
    Counts,
    Pair,
    Params,
    Positive,
    PositivePair,
    View,
    camera_from_view,
    require_centered,
    view_of,
)
from xreg.geometry.conventions.naf import circle_axes, circle_position

_CLOSE = 1e-9


@dataclass(frozen=True)
class XGaussian(Params):
    """Keys of the pickle, in scene units, and one angle (rad); ``scene_scale``: scene units per mm."""

    tool: ClassVar[str] = "x_gaussian"
    DSD: Positive
    DSO: Positive
    nDetector: Counts
    angle: float
    dDetector: PositivePair = (1.0, 1.0)
    offDetector: Pair = (0.0, 0.0)
    scene_scale: Positive = 1.0


def to_camera(params: XGaussian) -> Camera:
    """Return the camera of one projection; world: the scene in mm. GeometryError where the tool is wrong."""
    p = params
    if p.nDetector[0] != p.nDetector[1]:
        raise GeometryError(f"x_gaussian swaps width and height: the image must be square, got {p.nDetector}")
    if max(abs(d - 1.0) for d in p.dDetector) > _CLOSE or any(p.offDetector):
        raise GeometryError(
            "x_gaussian takes pixels for one unit and ignores offsets, so its view differs from the data's: "
            f"got dDetector {p.dDetector}, offDetector {p.offDetector}; scale lengths until a pixel is 1"
        )
    if p.scene_scale <= 0:
        raise GeometryError(f"scene_scale of x_gaussian must be positive (units per mm), got {p.scene_scale}")
    count = np.array(p.nDetector, dtype=np.float64)
    return camera_from_view(
        View(
            *circle_axes(p.angle),
            source=p.DSO / p.scene_scale * np.array([math.cos(p.angle), math.sin(p.angle), 0.0]),
            focal=np.array([p.DSD, p.DSD]),
            center=(count - 1) / 2,
            size=p.nDetector,
            sdd=p.DSD / p.scene_scale,
        )
    )


def from_camera(camera: Camera) -> XGaussian:
    """Return the entries for a centred, square view on the circle, in units of one pixel."""
    view = view_of(camera, "x_gaussian")
    angle, dso = circle_position(camera, view, "x_gaussian")
    require_centered(view, "x_gaussian")
    if view.size[0] != view.size[1] or abs(view.focal[0] / view.focal[1] - 1.0) > _CLOSE:
        raise GeometryError(
            f"x_gaussian needs square images of square pixels, got {view.size} pixels and focal lengths "
            f"{view.focal.tolist()} px; crop or resize first"
        )
    scale = view.focal[0] / view.sdd
    return XGaussian(DSD=view.focal[0], DSO=dso * scale, nDetector=view.size, angle=angle, scene_scale=scale)
