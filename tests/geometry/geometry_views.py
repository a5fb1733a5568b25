"""A view with every awkward property, and the change of frame that the tests apply by hand."""

from typing import Any

import numpy as np

from xreg.geometry import Camera

LPS = np.array([-1.0, -1.0, 1.0])  # times RAS coordinates: LPS, and back


def awkward(**words: Any) -> Camera:
    """A rolled C-arm view off its axis, with oblong pixels and a shifted principal point."""
    defaults = {"sdd": 1020.0, "sod": 620.0, "size": (200, 261), "spacing": (0.9, 1.1), "primary": 33.0}
    defaults |= {
        "secondary": -21.0,
        "roll": 14.0,
        "isocenter": (10, -30, 50),
        "principal_point": (120.3, 88.8),
    }
    return Camera.c_arm(**(defaults | words))
