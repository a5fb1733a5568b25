"""DeepDRR 1.2: an intrinsic matrix at pixel corners and a camera frame like OpenCV's.

u, v of its matrix are corner coordinates (the kernel samples at +0.5), so (W/2, H/2) is a centred detector.
Its kernel writes columns first, but the image that ``project`` returns is an ordinary (rows, columns) array.
The world is whatever the volume's frame is: "RAS" or "LPS". Source: geo/camera_intrinsic_transform.py,
project_kernel.cu, device/mobile_carm.py.
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
    Vector,
    choice,
    require_mirrored,
    rotation_about,
    view_of,
)
from xreg.geometry.conventions.lps import camera_from_ras

_WORLDS = ("RAS", "LPS")


@dataclass(frozen=True)
class DeepDRR(Params):
    """``camera_intrinsics`` px at corners, ``camera3d_from_world`` mm, sensor px, distance mm."""

    tool: ClassVar[str] = "deepdrr"
    camera_intrinsics: Matrix3
    camera3d_from_world: Matrix4
    sensor_width: int
    sensor_height: int
    source_to_detector_distance: Positive
    world: str = "RAS"


def to_camera(params: DeepDRR) -> Camera:
    """Return the camera of the image that ``Projector.project`` returns; world RAS mm."""
    p = params
    k = np.array(p.camera_intrinsics)
    if np.abs([k[0, 1], k[1, 0], *k[2, :2], k[2, 2] - 1]).max() > 0:
        raise GeometryError(
            f"camera_intrinsics of deepdrr must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {k}"
        )
    pose = np.array(p.camera3d_from_world)
    if choice(p.world, _WORLDS, "world of deepdrr") == "LPS":
        pose = camera_from_ras(pose)
    k = k - np.array([[0.0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    return Camera(k, pose, (p.sensor_height, p.sensor_width), p.source_to_detector_distance)


def from_camera(camera: Camera, *, world: str = "RAS") -> DeepDRR:
    """Return DeepDRR's parameters of a camera, in a "RAS" or "LPS" world."""
    require_mirrored(camera, False, "deepdrr", "its camera frame is right-handed")
    view = view_of(camera, "deepdrr")
    pose = camera.camera_from_world.detach().cpu().numpy()
    if choice(world, _WORLDS, "world of deepdrr") == "LPS":
        pose = camera_from_ras(pose)
    (fx, fy), (cx, cy) = view.focal, view.center + 0.5
    return DeepDRR(
        camera_intrinsics=[[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]],
        camera3d_from_world=pose,
        sensor_width=view.size[1],
        sensor_height=view.size[0],
        source_to_detector_distance=view.sdd,
        world=world,
    )


def mobile_c_arm(
    *,
    alpha: float = 0.0,
    beta: float = 0.0,
    gamma: float = 0.0,
    isocenter: Vector = (0.0, 0.0, 0.0),
    source_to_detector_distance: float = 1020.0,
    source_to_isocenter_vertical_distance: float = 530.0,
    source_to_isocenter_horizontal_offset: float = 0.0,
    sensor_width: int = 1536,
    sensor_height: int = 1536,
    pixel_size: float = 0.194,
    rotate_camera_left: bool = True,
    world: str = "RAS",
) -> DeepDRR:
    """Return the parameters of DeepDRR's ``MobileCArm`` with its own words and defaults (degrees, mm, px).

    The device frame is taken for the world. The arm's rotation is Ry(β)·Rx(α) about the isocentre; the
    source is at (0, offset, −530) in the arm's frame, and by default the camera is then turned a quarter to
    the left.
    """
    a, b, g = np.radians([alpha, beta, gamma])
    device_from_arm = np.eye(4)
    device_from_arm[:3, :3] = rotation_about(1, b) @ rotation_about(0, a)
    device_from_arm[:3, 3] = isocenter
    camera_from_arm = np.eye(4)
    offset = -source_to_isocenter_horizontal_offset
    camera_from_arm[:3, 3] = (0.0, offset, source_to_isocenter_vertical_distance)
    turn = np.eye(4)
    turn[:3, :3] = rotation_about(2, g) @ rotation_about(2, np.pi / 2 if rotate_camera_left else 0.0)
    focal = source_to_detector_distance / pixel_size
    return DeepDRR(
        camera_intrinsics=[[focal, 0.0, sensor_width / 2], [0.0, focal, sensor_height / 2], [0.0, 0.0, 1.0]],
        camera3d_from_world=turn @ camera_from_arm @ np.linalg.inv(device_from_arm),
        sensor_width=sensor_width,
        sensor_height=sensor_height,
        source_to_detector_distance=source_to_detector_distance,
        world=world,
    )
