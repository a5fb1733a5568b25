"""How many Gaussians there are: the ones that pull are split, the ones that show nothing are dropped."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.geometry import se3  # noqa: F401  (documents the frame: RAS mm)
from xreg.splat.adam import Parameters

SHRINK = 1.6  # of the split axis, as in B. Kerbl et al., 3D Gaussian Splatting (2023)
