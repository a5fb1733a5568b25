"""PyTorch3D's PerspectiveCameras in NDC: +x left, +y up, +z forward, row vectors (x_camera = x_world·R + T).

With s = min(W, H)/2 a pixel corner coordinate is (W/2, H/2) − s·(x_ndc, y_ndc), and x_ndc = f·x/z + p. Pixel
centres are at +0.5. The package is not needed here. Source: PyTorch3D, docs/notes/cameras.md and
renderer/camera_conversions.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xreg.geometry.camera import Camera
from xreg.geometry.conventions._common import (
    Counts,
    Matrix3,
    Pair,
    Params,
    PositivePair,
    Vector,
    require_mirrored,
    view_of,
)

_FLIP = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class PyTorch3D(Params):
    """``R``, ``T`` (mm), ``focal_length`` and ``principal_point`` in NDC, ``image_size`` (H, W).

    ``sdd`` (mm) is no word of PyTorch3D's; it is kept, if known, so that rays have an end.
    """

    tool: ClassVar[str] = "pytorch3d"
    R: Matrix3
    T: Vector
    focal_length: PositivePair
    principal_point: Pair
    image_size: Counts
    sdd: float | None = None


def to_camera(params: PyTorch3D) -> Camera:
    """Return the camera of the rendered image; the world is PyTorch3D's own, taken as RAS mm."""
    p = params
    height, width = p.image_size
    s = min(height, width) / 2
    fx, fy = s * np.array(p.focal_length)
    cx, cy = np.array([width, height]) / 2 - s * np.array(p.principal_point) - 0.5
    pose = np.eye(4)
    pose[:3, :3] = (np.array(p.R) * _FLIP).T
    pose[:3, 3] = np.array(p.T) * _FLIP
    return Camera([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], pose, p.image_size, p.sdd)


def from_camera(camera: Camera) -> PyTorch3D:
    """Return the arguments of ``PerspectiveCameras(..., in_ndc=True)`` for a camera."""
    require_mirrored(camera, False, "pytorch3d", "its camera frame is right-handed")
    view = view_of(camera, "pytorch3d", needs_sdd=False)
    height, width = view.size
    s = min(height, width) / 2
    pose = camera.camera_from_world.detach().cpu().numpy()
    return PyTorch3D(
        R=pose[:3, :3].T * _FLIP,
        T=pose[:3, 3] * _FLIP,
        focal_length=view.focal / s,
        principal_point=-(view.center + 0.5 - np.array([width, height]) / 2) / s,
        image_size=view.size,
        sdd=view.sdd,
    )
