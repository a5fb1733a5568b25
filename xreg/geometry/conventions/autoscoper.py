"""Autoscoper and XMALab: the text of a MayaCam 2.0 calibration.

Blocks: image size (width, height), camera matrix, rotation, translation; camera_from_world as OpenCV's,
pixel centres at integers, rows down from the top of the stored image. The row direction was checked on
Autoscoper's sample wrist: eleven metal beads triangulate to 0.6 px as read, and to tens of pixels with rows
or columns flipped. The file knows no detector distance; lengths are those of the calibration cube, here mm,
and the world is the cube's, not the patient's. Source: libautoscoper/src/Camera.cpp (loadMayaCam2), and the
sample data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xreg.errors import GeometryError
from xreg.geometry import se3
from xreg.geometry._numbers import tensor64
from xreg.geometry.camera import Camera
from xreg.geometry.conventions._common import Counts, Matrix3, Params, Vector, require_mirrored, view_of

_BLOCKS = {"image size": 1, "camera matrix": 3, "rotation": 3, "translation": 3}


@dataclass(frozen=True)
class MayaCam2(Params):
    """The blocks of the file; ``sdd`` (mm), if known, is not written to it."""

    tool: ClassVar[str] = "autoscoper"
    image_size: Counts
    camera_matrix: Matrix3
    rotation: Matrix3
    translation: Vector
    sdd: float | None = None


def parse(text: str) -> MayaCam2:
    """Read the text of a MayaCam 2.0 file; GeometryError names the block that is missing or malformed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lowered = [line.lower() for line in lines]
    blocks: dict[str, list[list[float]]] = {}
    for name, count in _BLOCKS.items():
        try:
            start = lowered.index(name) + 1
            rows = [[float(v) for v in line.split(",")] for line in lines[start : start + count]]
        except ValueError as error:
            raise GeometryError(
                f"a MayaCam 2.0 file needs the line {name!r} and {count} line(s) of numbers after it; {error}"
            ) from error
        blocks[name] = rows
    return MayaCam2(
        image_size=blocks["image size"][0],
        camera_matrix=blocks["camera matrix"],
        rotation=blocks["rotation"],
        translation=[value for row in blocks["translation"] for value in row],
    )


def write(params: MayaCam2) -> str:
    """Return the text of a MayaCam 2.0 file, every digit kept."""
    p = params

    def table(rows: tuple[tuple[float, ...], ...]) -> str:
        return "\n".join(",".join(repr(float(v)) for v in row) for row in rows)

    size = ",".join(str(v) for v in p.image_size)
    translation = "\n".join(repr(float(v)) for v in p.translation)
    return (
        f"image size\n{size}\n\ncamera matrix\n{table(p.camera_matrix)}\n\n"
        f"rotation\n{table(p.rotation)}\n\ntranslation\n{translation}\n"
    )


def to_camera(params: MayaCam2) -> Camera:
    """Return the camera of the undistorted image; world: the calibration's, mm.

    A rotation typed with few digits (off by up to 1e-3) is replaced by the nearest one.
    """
    p = params
    rotation = tensor64(p.rotation, "rotation of autoscoper", rows=True)
    pose = se3.from_rt(rotation, tensor64(p.translation, "translation of autoscoper"))
    se3.require_rigid(pose, "rotation of autoscoper", tolerance=1e-3)
    return Camera(p.camera_matrix, se3.nearest_rigid(pose), p.image_size[::-1], p.sdd)


def from_camera(camera: Camera) -> MayaCam2:
    """Return the blocks of a MayaCam 2.0 file for a camera."""
    require_mirrored(camera, False, "autoscoper", "its calibration is a right-handed pinhole")
    view = view_of(camera, "autoscoper", needs_sdd=False)
    pose = camera.camera_from_world.detach().cpu().numpy()
    (fx, fy), (cx, cy) = view.focal, view.center
    return MayaCam2(
        image_size=view.size[::-1],
        camera_matrix=np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]),
        rotation=pose[:3, :3],
        translation=pose[:3, 3],
        sdd=view.sdd,
    )
