"""The last voxels: total variation once more, that knows from the Gaussians where edges are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.io.voxel_grid import VoxelGrid
from xreg.splat.start import tv_volume
from xreg.splat.views import Views

FIRST = 0.4  # what the first volume counts beside the Gaussians, where both tell of edges
FINISHED = 0.5  # what the finished voxels count beside the Gaussians in a fit's volume
RESERVE = 0.15  # of a time budget is kept for this


def finished_voxels(
    views: Views,
    grid: VoxelGrid,
    body: Float[Tensor, "D H W"],
    first: Float[Tensor, "D H W"],
    *,
    passes: int,
    seconds: float | None = None,
    on_pass: Callable[[int], bool | None] | None = None,
) -> Float[Tensor, "D H W"]:
    """Attenuation in 1/mm: FISTA-TV that begins with the mean of two volumes, and spares the edges of it.

    body: voxels of the fitted Gaussians; first: those that they began from.  The two err differently, so that
    their mean shows edges that neither is sure of; edges of the first volume alone gain next to nothing.
    passes: few, for the minimum itself is rougher.  on_pass: told the number of each; True ends it.
    """
    mean = torch.lerp(body, first.to(body), FIRST).clamp_min(0)
    return tv_volume(views, grid, passes, guide=mean, seconds=seconds, on_pass=on_pass)
