"""The C++ toolkit rg2/xReg: a CameraModel of intrinsics, extrinsics and a frame type. World LPS mm.

x runs along columns and y along rows. In "det-neg-z" (its default) the detector lies at −z and the focal
lengths in pixels are negative: u = K₀₀·x/z + cx, a left-handed array, which is a mirrored camera here. In
"det-pos-z" it is OpenCV. Pixel centres at integers; a naive principal point is (n − 1)/2. Source:
xregPerspectiveXform.h/.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xreg.errors import GeometryError
from xreg.geometry.camera import Camera
from xreg.geometry.conventions._common import (
    Matrix3,
    Matrix4,
    Params,
    Positive,
    View,
    camera_from_view,
    choice,
    require_mirrored,
    view_of,
)
from xreg.geometry.conventions.lps import camera_from_ras, flip_points

FRAMES = ("origin-at-focal-pt-det-neg-z", "origin-at-focal-pt-det-pos-z")
_WHY = "with the detector at −z its arrays are mirrored, with the detector at +z they are not"


@dataclass(frozen=True)
class Rg2Camera(Params):
    """Names as in its HDF5 files; ``intrinsic`` px, ``extrinsic`` camera from LPS world (mm), spacing mm."""

    tool: ClassVar[str] = "rg2_xreg"
    intrinsic: Matrix3
    extrinsic: Matrix4
    num_rows: int
    num_cols: int
    row_spacing: Positive
    col_spacing: Positive
    cam_coord_frame_type: str = FRAMES[0]


def to_camera(params: Rg2Camera) -> Camera:
    """Return the camera of the projection as stored; world RAS mm."""
    p = params
    choice(p.cam_coord_frame_type, FRAMES, "cam_coord_frame_type of rg2_xreg")
    z = -1.0 if p.cam_coord_frame_type == FRAMES[0] else 1.0
    k = np.array(p.intrinsic)
    focal = z * np.array([k[0, 0], k[1, 1]])
    if focal.min() <= 0 or np.abs([k[0, 1], k[1, 0], *k[2, :2], k[2, 2] - 1]).max() > 0:
        raise GeometryError(
            f"intrinsic of rg2_xreg must be [[{z:+.0f}f, 0, cx], [0, {z:+.0f}f, cy], [0, 0, 1]] for the "
            f"frame {p.cam_coord_frame_type!r}, got {k.tolist()}"
        )
    pose = camera_from_ras(np.array(p.extrinsic))
    rotation = pose[:3, :3]
    sdd = (focal[0] * p.col_spacing + focal[1] * p.row_spacing) / 2
    return camera_from_view(
        View(
            columns=rotation[0],
            rows=rotation[1],
            beam=z * rotation[2],
            source=-rotation.T @ pose[:3, 3],
            focal=focal,
            center=k[:2, 2],
            size=(p.num_rows, p.num_cols),
            sdd=sdd,
        )
    )


def from_camera(camera: Camera, *, cam_coord_frame_type: str = "auto") -> Rg2Camera:
    """Return the parameters of a camera; "auto" is det-neg-z for a mirrored one, det-pos-z otherwise."""
    if cam_coord_frame_type == "auto":
        cam_coord_frame_type = FRAMES[0] if camera.mirrored else FRAMES[1]
    choice(cam_coord_frame_type, FRAMES, "cam_coord_frame_type of rg2_xreg")
    require_mirrored(camera, cam_coord_frame_type == FRAMES[0], f"rg2_xreg ({cam_coord_frame_type})", _WHY)
    view = view_of(camera, "rg2_xreg")
    z = -1.0 if camera.mirrored else 1.0
    axes = np.stack([flip_points(view.columns), flip_points(view.rows), z * flip_points(view.beam)])
    extrinsic = np.eye(4)
    extrinsic[:3, :3] = axes
    extrinsic[:3, 3] = -axes @ flip_points(view.source)
    fx, fy = z * view.focal
    return Rg2Camera(
        intrinsic=[[fx, 0.0, view.center[0]], [0.0, fy, view.center[1]], [0.0, 0.0, 1.0]],
        extrinsic=extrinsic,
        num_rows=view.size[0],
        num_cols=view.size[1],
        row_spacing=view.sdd / view.focal[1],
        col_spacing=view.sdd / view.focal[0],
        cam_coord_frame_type=cam_coord_frame_type,
    )
