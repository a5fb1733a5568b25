"""Where a body is put, and how far a pose is from another."""

import numpy as np
import torch

from xreg import Volume, se3
from xreg.metrics import mtre


def moved(body: Volume, degrees, mm, start=None):
    xi = torch.tensor([*np.deg2rad(degrees), *mm], dtype=torch.float64)
    return se3.retract(torch.eye(4, dtype=torch.float64) if start is None else start, xi, body.center)


def target_error(body: Volume, a, b) -> float:
    """Mean distance (mm) between where two poses put the corners of the body's inner half."""
    points = body.center + 0.5 * (body.grid_corners - body.center)
    return mtre(a, b, points)
