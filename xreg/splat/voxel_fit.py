"""Gaussians fitted to voxels, without casting a ray: a CT as Gaussians in seconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.ops.splatting import voxelize
from xreg.splat.adam import Parameters
from xreg.splat.gaussians import Gaussians
from xreg.volume import Volume

RATES = (0.1, 0.03, 0.02, 0.02)  # of mean (voxels), log-scale, rotation, density (of the largest voxel)
DECAY = 0.1


def fit_to_volume(
    start: Gaussians,
    volume: Volume,
    *,
    steps: int = 60,
    finished: Callable[[int], bool] | None = None,
) -> Gaussians:
    """Move, shape and weigh Gaussians until their voxels come near a volume's; least squares by Adam.

    start: for instance `Gaussians.from_volume(volume, count)`.  Densities may end below zero: sums of both
    signs
    follow edges better.  finished: asked with the number of each step; True ends it.  Same bits for the same
    input on the CPU.  No gradient.
    """
    mu = volume.mu.detach().to(start.mean)
    voxel = abs(float(torch.linalg.det(volume.affine[:3, :3]))) ** (1 / 3)
    peak = float(mu.max())
    if not len(start) or steps < 1:
        return start.detach()
    parameters = Parameters(start, RATES, voxel=voxel, peak=peak)
    for number in range(steps):
        with torch.enable_grad():
            field: Float[Tensor, "D H W"] = voxelize(*parameters.tensors(), volume.affine, volume.shape)
            ((field - mu) / peak).square().mean().backward()
        parameters.step(DECAY ** (number / steps))
        if finished is not None and finished(number):
            break
    return parameters.gaussians()
