"""The volume within the rib cage.

In each axial slab the convex hull of ribs 1 to 10 of both sides and of thoracic vertebrae, from the top of
the first ribs to the lowest point of the tenth; the sum of hulls times the slab's height.  Where the cage is
open at the front (sternum and cartilage are no labels) the hull closes it by a straight line.
"""

from __future__ import annotations

import numpy as np

from .field import Bones
from .value import Measure, absent

_RIBS = tuple(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 11))
_SPINE = tuple(f"T{n}" for n in range(1, 13))
_SLAB = 3.0  # mm, at least


def ribcage_volume(bones: Bones) -> Measure:
    """Volume in cm³ (millilitres)."""
    for rib in _RIBS:
        if why := bones.why_not(rib):
            return absent("ribcage_volume", "cm³", why)
    ribs = np.concatenate([bones[rib].points for rib in _RIBS])
    spine = [bones[name].points for name in _SPINE if bones.has(name)]
    spacing = bones[_RIBS[0]].spacing
    matrix = np.abs(bones.grid.affine[:3, :3].numpy()).sum(1)  # of a voxel's box, along the world's axes
    slab = max(_SLAB, float(spacing.max()), float(matrix[2]))
    low, high = ribs[:, 2].min() - matrix[2] / 2, ribs[:, 2].max() + matrix[2] / 2
    count = max(1, round((high - low) / slab))
    slab = (high - low) / count
    points = np.concatenate([ribs, *spine])
    number = np.floor((points[:, 2] - low) / slab).astype(int)
    areas = [_hull(points[number == n, :2], matrix[:2] / 2) for n in range(count)]
    return Measure(
        "ribcage_volume", "cm³", float(np.sum(areas) * slab / 1000), detail={"slab_mm": float(slab)}
    )


def _hull(points: np.ndarray, half: np.ndarray) -> float:
    """Area (mm²) of the convex hull of the boxes about points."""
    from scipy.spatial import ConvexHull

    if not len(points):
        return 0.0
    corners = [points + half * np.array(sign) for sign in ((-1, -1), (-1, 1), (1, -1), (1, 1))]
    return float(ConvexHull(np.concatenate(corners)).volume)  # in the plane, this is the area
