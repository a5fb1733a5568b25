"""R²-Gaussian's meta_data.json: NAF's circle, pairs in the order (v, u), the scene scaled into [−1, 1]³.

The reader multiplies every length and every image by scene_scale = 2 / max(sVoxel). It takes the field of
view from ``sDetector`` and ignores ``offDetector``, so an offset detector is refused here. Pixel centres at
integers. Source: r2_gaussian/dataset/dataset_readers.py.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from xreg.errors import GeometryError
from xreg.geometry.camera import Camera
from xreg.geometry.conventions._common import (
    Counts,
    Pair,
    Params,
    Positive,
    PositivePair,
    PositiveVector,
    Vector,
    View,
    camera_from_view,
    choice,
    require_centered,
    view_of,
)
from xreg.geometry.conventions.naf import circle_axes, circle_position


@dataclass(frozen=True)
class R2Gaussian(Params):
    """Keys of "scanner" and one angle (rad); detector pairs (v, u), ``sVoxel`` (x, y, z); mm."""

    tool: ClassVar[str] = "r2_gaussian"
    DSD: Positive
    DSO: Positive
    nDetector: Counts
    sDetector: PositivePair
    sVoxel: PositiveVector
    angle: float
    _: KW_ONLY
    offDetector: Pair = (0.0, 0.0)
    mode: str = "cone"

    @property
    def scene_scale(self) -> float:
        """Scene units per mm: multiply points (and line integrals) in mm by it to get the tool's."""
        return 2.0 / max(self.sVoxel)


def to_camera(params: R2Gaussian) -> Camera:
    """Return the camera of one projection; world: the scene in mm, that is scene points / ``scene_scale``."""
    p = params
    choice(p.mode, ["cone"], "mode of r2_gaussian (its parallel mode is not converted)")
    if any(p.offDetector):
        raise GeometryError(
            f"r2_gaussian ignores offDetector, so its view differs from the data's: got {p.offDetector} "
            "(v, u) mm; crop or pad the projections until the offset is zero"
        )
    count = np.array(p.nDetector[::-1], dtype=np.float64)
    return camera_from_view(
        View(
            *circle_axes(p.angle),
            source=p.DSO * np.array([math.cos(p.angle), math.sin(p.angle), 0.0]),
            focal=p.DSD * count / np.array(p.sDetector[::-1]),
            center=(count - 1) / 2,
            size=p.nDetector,
            sdd=p.DSD,
        )
    )


def from_camera(camera: Camera, *, size_mm: Vector = (256.0, 256.0, 256.0)) -> R2Gaussian:
    """Return the scanner entries for a view on the circle; ``size_mm``, the volume's, sets the scale."""
    view = view_of(camera, "r2_gaussian")
    angle, dso = circle_position(camera, view, "r2_gaussian")
    require_centered(view, "r2_gaussian")
    pitch = view.sdd / view.focal
    return R2Gaussian(
        DSD=view.sdd,
        DSO=dso,
        nDetector=view.size,
        sDetector=(view.size[0] * pitch[1], view.size[1] * pitch[0]),
        sVoxel=size_mm,
        angle=angle,
    )
