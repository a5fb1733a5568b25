"""Examples of one bone laid onto each other, so that what is between them is the same bone of nobody.

Patients lie and stand differently, and a mean of bones that are turned against each other is a thin one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.shape.deform import base_points
from xreg.shape.moves import Moves, Pose, products

_STEPS = 60  # of Adam
_RATES = {"turn": 0.045, "shift": 0.03, "grow": 0.021}  # rad, parts of the size, logarithms
_STILL = 1e-4  # gradients that are as small move nothing: those of examples that are alike are rounding
_SOFT = 0.06  # of a bone's size, over which occupancy falls from .73 to .5
_NEAR = 0.25  # of a bone's size: points further from all examples' surfaces say nothing
_EVERY = 2  # points of the lattice along an edge
_CALM = 0.002  # what moves count for


def laid_together(distances: Float[Tensor, "M d h w"], reach: Float[Tensor, " 3"]) -> Pose:
    """Turns, shifts and scales of M examples, as they act, that make their occupancies most alike.

    distances: signed, on a lattice that goes from -reach to reach, both in units of the examples' sizes.
    What is lowered by Adam is the variance of occupancies among the examples as a part of their mean's
    square.  The mean of all moves is none, so that the bone stays as large and lies as examples do on
    average.  The same input gives the same bits.
    """
    count, points = len(distances), base_points(distances.shape[1:], reach) * reach
    every = (slice(None, None, _EVERY),) * 3
    near = distances[(slice(None), *every)].amin(0) < _NEAR
    at = products(points[every][near])
    free = {name: torch.zeros(count, 3, requires_grad=True) for name in _RATES}
    groups = [{"params": [free[name]], "lr": rate} for name, rate in _RATES.items()]
    optimiser = torch.optim.Adam(groups, betas=(0.8, 0.95), eps=_STILL)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, _STEPS)

    def pose() -> Pose:
        centred = {name: part - part.mean(0) for name, part in free.items()}
        return replace(Moves.none(count, 1), **centred).pose(reach.expand(count, 3))

    with torch.enable_grad():
        for _ in range(_STEPS):
            filled = _filled(distances, at, pose(), reach)
            mean = filled.mean(0)
            apart = (filled - mean).square().sum() / (count * mean.square().sum()).clamp_min(1e-9)
            calm = sum(part.square().mean() for part in free.values())
            optimiser.zero_grad()
            (apart + _CALM * calm).backward()
            optimiser.step()
            falling.step()
    with torch.no_grad():
        return pose()


def _filled(distances: Tensor, at: Tensor, pose: Pose, reach: Tensor) -> Float[Tensor, "M n"]:
    """How much of the points each moved example fills; gradients flow to the pose."""
    places = torch.stack([at @ one for one in pose.maps]) / reach
    found = F.grid_sample(
        distances[:, None], places[:, None, None], padding_mode="border", align_corners=True
    )
    return torch.sigmoid(found.view(len(distances), -1) / -_SOFT)
