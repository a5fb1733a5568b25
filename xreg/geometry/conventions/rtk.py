"""RTK's circular geometry: IEC 61217 fixed frame, degrees, and the ITK header of the projection image.

In the frame turned by M = Rz(−InPlane)·Rx(−OutOfPlane)·Ry(−Gantry) the source is at (Sx, Sy, SID) and the
detector's origin at (Px, Py, SID − SDD); u runs along +x, v along +y, so row 0 of an array read by ITK is
the lowest and the array is mirrored against a pinhole. A patient lying head first supine has (x, y, z) of
the fixed frame = (left, superior, anterior). Source: rtkThreeDCircularProjectionGeometry.cxx and RTK's "3D
circular geometry" page.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from xreg.geometry.camera import Camera
from xreg.geometry.conventions._common import (
    LOWEST_ROW_FIRST,
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
    zxy,
    zxy_angles,
)

# x of the fixed frame is the patient's left, y the head, z the front.
IEC_FROM_RAS_HFS: Array = np.array([[-1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])


@dataclass(frozen=True)
class RTK(Params):
    """Arguments of ``AddProjection`` (mm, degrees) and the image's size (u, v), spacing and origin (mm).

    ``patient_position`` "HFS" puts the camera's world in the patient (RAS); null leaves the fixed frame.
    """

    tool: ClassVar[str] = "rtk"
    sid: Positive
    sdd: Positive
    gantry_angle: float
    size: Counts
    spacing: PositivePair
    origin: Pair
    _: KW_ONLY
    proj_offset_x: float = 0.0
    proj_offset_y: float = 0.0
    out_of_plane_angle: float = 0.0
    in_plane_angle: float = 0.0
    source_offset_x: float = 0.0
    source_offset_y: float = 0.0
    patient_position: str | None = "HFS"


def to_camera(params: RTK) -> Camera:
    """Return the camera of the array as ITK reads it (row 0 lowest); world by ``patient_position``."""
    p = params
    gantry, tilt, turn = np.radians([p.gantry_angle, p.out_of_plane_angle, p.in_plane_angle])
    m = zxy(-turn, -tilt, -gantry)
    world = _iec_from_world(p.patient_position)
    u, v, back = m @ world
    source = world.T @ m.T @ np.array([p.source_offset_x, p.source_offset_y, p.sid])
    middle = np.array([p.source_offset_x - p.proj_offset_x, p.source_offset_y - p.proj_offset_y])
    return camera_from_view(
        View(
            columns=u,
            rows=v,
            beam=-back,
            source=source,
            focal=p.sdd / np.array(p.spacing),
            center=(middle - np.array(p.origin)) / np.array(p.spacing),
            size=(p.size[1], p.size[0]),
            sdd=p.sdd,
        )
    )


def from_camera(camera: Camera, *, patient_position: str | None = "HFS") -> RTK:
    """Return RTK's parameters for the array that ``camera`` describes; the image origin is put at its middle.

    The camera must be mirrored, as RTK's arrays are: flip the rows of an ordinary image and its camera first.
    """
    require_mirrored(camera, True, "rtk", LOWEST_ROW_FIRST)
    view = view_of(camera, "rtk")
    world = _iec_from_world(patient_position)
    m = np.stack([world @ view.columns, world @ view.rows, -(world @ view.beam)])
    sx, sy, sid = m @ world @ view.source
    spacing = view.sdd / view.focal
    height, width = view.size
    origin = -(np.array([width, height]) - 1) / 2 * spacing
    px, py = np.array([sx, sy]) - origin - view.center * spacing
    turn, tilt, gantry = np.degrees(zxy_angles(m))
    return RTK(
        sid=sid,
        sdd=view.sdd,
        gantry_angle=-gantry,
        size=(width, height),
        spacing=spacing,
        origin=origin,
        proj_offset_x=px,
        proj_offset_y=py,
        out_of_plane_angle=-tilt,
        in_plane_angle=-turn,
        source_offset_x=sx,
        source_offset_y=sy,
        patient_position=patient_position,
    )


def _iec_from_world(patient_position: str | None) -> Array:
    choice(patient_position, ["HFS", None], "patient_position of rtk")
    return IEC_FROM_RAS_HFS[:3, :3] if patient_position == "HFS" else np.eye(3)
