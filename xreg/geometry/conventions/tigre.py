"""TIGRE (Python): arrays in reverse order, one angle (or three, ZYZ) in radians, cone or parallel beam.

With R = Rz(α)·Ry(θ)·Rz(ψ) the source is at R·(DSO, 0, 0); on the detector, columns run along R·y and rows
along R·z, so row 0 is the lowest and the array is mirrored against a pinhole. ``offOrigin`` moves the
volume, which is the same as moving everything else back: the camera's world here is centred on the volume,
x, y, z along its last, middle and first array axis. Lengths mm. Source: Common/CUDA/Siddon_projection.cu
(computeDeltas, eulerZYZ).
"""

from __future__ import annotations

import math
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
    Vector,
    View,
    camera_from_view,
    choice,
    require_mirrored,
    rotation_about,
    view_of,
)


@dataclass(frozen=True)
class TIGRE(Params):
    """TIGRE's own names; pairs are (v, u), ``offOrigin`` is (z, y, x); ``angles`` α, θ, ψ in rad."""

    tool: ClassVar[str] = "tigre"
    DSD: Positive
    DSO: float
    nDetector: Counts
    dDetector: PositivePair
    angles: Vector
    offDetector: Pair = (0.0, 0.0)
    offOrigin: Vector = (0.0, 0.0, 0.0)
    _: KW_ONLY
    COR: float = 0.0
    mode: str = "cone"


def to_camera(params: TIGRE) -> Camera:
    """Return the camera of a projection array as TIGRE stores it; world: centred on the volume, mm."""
    p = params
    choice(p.mode, ["cone", "parallel"], "mode of tigre")
    rotation = _zyz(*p.angles)
    alpha = p.angles[0]
    shift = p.COR * np.array([-math.sin(alpha), math.cos(alpha), 0.0]) - np.array(p.offOrigin[::-1])
    count, pitch, offset = (
        np.array(v[::-1], dtype=np.float64) for v in (p.nDetector, p.dDetector, p.offDetector)
    )
    parallel = p.mode == "parallel"
    return camera_from_view(
        View(
            columns=rotation[:, 1],
            rows=rotation[:, 2],
            beam=-rotation[:, 0],
            source=p.DSO * rotation[:, 0] + shift,
            focal=(1.0 if parallel else p.DSD) / pitch,
            center=(count - 1) / 2 - offset / pitch,
            size=p.nDetector,
            sdd=p.DSD,
            parallel=parallel,
        )
    )


def from_camera(camera: Camera) -> TIGRE:
    """Return TIGRE's parameters for the array that ``camera`` describes, the volume centred on the origin.

    DSO is the depth of the origin; what the source misses it by sideways goes into ``offOrigin``. The camera
    must be mirrored, as TIGRE's arrays are: flip the rows of an ordinary image and its camera first.
    """
    require_mirrored(camera, True, "tigre", LOWEST_ROW_FIRST)
    view = view_of(camera, "tigre", parallel=True)
    rotation = np.stack([-view.beam, view.columns, view.rows], axis=1)
    dso = float(-view.beam @ view.source)
    pitch = (1.0 if view.parallel else view.sdd) / view.focal
    height, width = view.size
    offset = (np.array([(width - 1) / 2, (height - 1) / 2]) - view.center) * pitch
    return TIGRE(
        DSD=view.sdd,
        DSO=dso,
        nDetector=view.size,
        dDetector=pitch[::-1],
        angles=_zyz_angles(rotation),
        offDetector=offset[::-1],
        offOrigin=(dso * rotation[:, 0] - view.source)[::-1],
        mode="parallel" if view.parallel else "cone",
    )


def _zyz(alpha: float, theta: float, psi: float) -> Array:
    return rotation_about(2, alpha) @ rotation_about(1, theta) @ rotation_about(2, psi)


def _zyz_angles(r: Array) -> Vector:
    """Return (α, θ, ψ) with θ in [0, π]; on a plain circular orbit θ = ψ = 0."""
    sine = math.hypot(r[0, 2], r[1, 2])
    if sine < 1e-9:
        theta = 0.0 if r[2, 2] > 0 else math.pi
        return math.atan2(r[1, 0], r[0, 0]) if theta == 0.0 else math.atan2(-r[1, 0], -r[0, 0]), theta, 0.0
    return math.atan2(r[1, 2], r[0, 2]), math.atan2(sine, r[2, 2]), math.atan2(r[2, 1], -r[2, 0])
