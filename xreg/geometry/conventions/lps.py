"""DICOM's and ITK's patient frame (x to the Left, y Posterior, z Superior) against RAS+, both in mm.

The change of frame is diag(−1, −1, 1), its own inverse; it is a half turn about z, not a reflection.
"""

from __future__ import annotations

import numpy as np

from xreg.geometry.conventions._common import Array

RAS_FROM_LPS: Array = np.diag([-1.0, -1.0, 1.0, 1.0])
LPS_FROM_RAS: Array = RAS_FROM_LPS


def flip_points(points: Array) -> Array:
    """Turn LPS points or vectors [..., 3] into RAS ones, or back."""
    return np.asarray(points, dtype=np.float64) * np.array([-1.0, -1.0, 1.0])


def camera_from_ras(camera_from_lps: Array) -> Array:
    """Turn an extrinsic matrix [..., 4, 4] that takes LPS points into one that takes RAS points, or back."""
    return np.asarray(camera_from_lps, dtype=np.float64) @ LPS_FROM_RAS


def conjugate(transform: Array) -> Array:
    """Turn a motion [..., 4, 4] in LPS (such as an ITK transform) into the same motion in RAS, or back."""
    return RAS_FROM_LPS @ np.asarray(transform, dtype=np.float64) @ LPS_FROM_RAS
