"""xvr: a DiffDRR view from the words of an X-ray DICOM header.

The pose is DiffDRR's with angles (PositionerPrimaryAngle, PositionerSecondaryAngle, 0) and the translation
(0, DistanceSourceToPatient, 0), negated for "PA". ``x0``, ``y0`` are what xvr hands to DiffDRR in mm: its
releases pass x0 = −DetectorActiveOrigin[1] and y0 = DetectorActiveOrigin[0]; later versions drop the minus.
(DICOM counts that attribute in detector elements, not mm.) With "AP" the source is anterior, so a positive
primary angle moves the detector to the patient's right, against DICOM; with "PA" the two agree. It registers
with ``voxel_shift=0``, which puts voxels half a voxel off. Source: xvr/io/xray.py, registrar/base.py.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from xreg.errors import GeometryError
from xreg.geometry.camera import Camera
from xreg.geometry.conventions import diffdrr
from xreg.geometry.conventions._common import Params, Positive, PositivePair, Vector, choice

_CLOSE = 1e-6


@dataclass(frozen=True)
class Xvr(Params):
    """Angles in degrees, lengths in mm, ``pixel_spacing`` (row, column); ``isocenter``: RAS."""

    tool: ClassVar[str] = "xvr"
    primary_angle: float
    secondary_angle: float
    source_to_patient: Positive
    source_to_detector: Positive
    rows: int
    columns: int
    pixel_spacing: PositivePair
    _: KW_ONLY
    x0: float = 0.0
    y0: float = 0.0
    orientation: str = "AP"
    reverse_x_axis: bool = False
    isocenter: Vector = (0.0, 0.0, 0.0)


def to_camera(params: Xvr) -> Camera:
    """Return the camera of xvr's DRR; world RAS mm, volume at its ``isocenter``."""
    p = params
    sign = -1.0 if choice(p.orientation, ["AP", "PA"], "orientation of xvr") == "PA" else 1.0
    return diffdrr.to_camera(
        diffdrr.DiffDRR(
            rotation=np.radians([p.primary_angle, p.secondary_angle, 0.0]),
            translation=(0.0, sign * p.source_to_patient, 0.0),
            sdd=p.source_to_detector,
            height=p.rows,
            width=p.columns,
            delx=p.pixel_spacing[1],
            dely=p.pixel_spacing[0],
            x0=p.x0,
            y0=p.y0,
            orientation=p.orientation,
            reverse_x_axis=p.reverse_x_axis,
            isocenter=p.isocenter,
        )
    )


def from_camera(camera: Camera, *, isocenter: Vector = (0.0, 0.0, 0.0), orientation: str = "AP") -> Xvr:
    """Return xvr's parameters; GeometryError if the view is rolled or does not look at ``isocenter``."""
    choice(orientation, ["AP", "PA"], "orientation of xvr")
    p = diffdrr.from_camera(camera, isocenter=isocenter, orientation=orientation)
    x, y, z = p.translation
    distance = -y if orientation == "PA" else y
    if abs(p.rotation[2]) > _CLOSE or max(abs(x), abs(z)) > _CLOSE or distance <= 0:
        raise GeometryError(
            "xvr's header pose has two angles and a distance: the beam axis must pass through the isocenter "
            f"{tuple(isocenter)} without roll, but roll is {np.degrees(p.rotation[2]):.4g}° and the source "
            f"lies at ({x:.4g}, {y:.4g}, {z:.4g}) mm in the rotated frame; use the diffdrr convention"
        )
    return Xvr(
        primary_angle=np.degrees(p.rotation[0]),
        secondary_angle=np.degrees(p.rotation[1]),
        source_to_patient=distance,
        source_to_detector=p.sdd,
        rows=p.height,
        columns=p.width,
        pixel_spacing=(p.dely, p.delx),
        x0=p.x0,
        y0=p.y0,
        orientation=orientation,
        reverse_x_axis=p.reverse_x_axis,
        isocenter=isocenter,
    )
