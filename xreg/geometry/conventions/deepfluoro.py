"""The DeepFluoro HDF5 file: one calibration ("proj-params") and a pose of the pelvis for each film.

A point of the CT (LPS mm) lies at extrinsic·inv(cam-to-pelvis-vol)·p in the camera, whose origin is the
source, x along columns, y along rows, z towards the source (the rg2/xReg frame "det-neg-z"). Films as stored
are therefore mirrored cameras here; "rot-180-for-up" concerns display only and does not enter. Source: the
dataset's README.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xreg.geometry import se3
from xreg.geometry._numbers import tensor64
from xreg.geometry.camera import Camera
from xreg.geometry.conventions import rg2_xreg
from xreg.geometry.conventions._common import Array, Matrix3, Matrix4, Params, Positive, require_mirrored

_IDENTITY: Matrix4 = tuple(map(tuple, np.eye(4).tolist()))
_WHY = "its films are stored with the columns seen from the detector's side"


@dataclass(frozen=True)
class DeepFluoro(Params):
    """Names as in the file (hyphens as underscores): px, mm; ``cam_to_pelvis_vol`` is the film's pose."""

    tool: ClassVar[str] = "deepfluoro"
    intrinsic: Matrix3
    extrinsic: Matrix4
    cam_to_pelvis_vol: Matrix4
    num_rows: int
    num_cols: int
    pixel_row_spacing: Positive
    pixel_col_spacing: Positive


def to_camera(params: DeepFluoro) -> Camera:
    """Return the camera of one film as stored; world: the CT in RAS mm."""
    p = params
    return rg2_xreg.to_camera(
        rg2_xreg.Rg2Camera(
            intrinsic=p.intrinsic,
            extrinsic=np.array(p.extrinsic)
            @ _inverse(p.cam_to_pelvis_vol, "cam_to_pelvis_vol of deepfluoro"),
            num_rows=p.num_rows,
            num_cols=p.num_cols,
            row_spacing=p.pixel_row_spacing,
            col_spacing=p.pixel_col_spacing,
        )
    )


def from_camera(camera: Camera, *, extrinsic: Matrix4 = _IDENTITY) -> DeepFluoro:
    """Return the entries of one film, for the file's fixed ``extrinsic`` (mm)."""
    require_mirrored(camera, True, "deepfluoro", _WHY)
    p = rg2_xreg.from_camera(camera)
    return DeepFluoro(
        intrinsic=p.intrinsic,
        extrinsic=extrinsic,
        cam_to_pelvis_vol=_inverse(p.extrinsic, "camera") @ np.array(extrinsic, dtype=np.float64),
        num_rows=p.num_rows,
        num_cols=p.num_cols,
        pixel_row_spacing=p.row_spacing,
        pixel_col_spacing=p.col_spacing,
    )


def _inverse(matrix: Matrix4, name: str) -> Array:
    """Invert a rigid matrix; the file's float32 rounding (up to 1e-4) is tolerated."""
    transform = se3.require_rigid(tensor64(matrix, name, rows=True), name, tolerance=1e-4)
    return se3.inverse(se3.nearest_rigid(transform)).numpy()
