"""Label maps on coarser grids."""

from __future__ import annotations

import torch
from jaxtyping import Int16
from torch import Tensor


def commonest(labels: Int16[Tensor, "D H W"], n: int) -> Int16[Tensor, "d h w"]:
    """The commonest label of each block of n³ voxels, the smallest on a tie."""
    d, h, w = (m // n for m in labels.shape)
    blocks = labels[: d * n, : h * n, : w * n].reshape(d, n, h, n, w, n).permute(0, 2, 4, 1, 3, 5)
    blocks = blocks.reshape(-1, n**3)
    made = blocks.amin(1)
    mixed = (made != blocks.amax(1)).nonzero()[:, 0]
    values = blocks[mixed].sort(1).values
    run = torch.searchsorted(values, values, right=True) - torch.searchsorted(values, values)
    first = run * (n**3 + 1) - torch.arange(n**3, device=labels.device)  # of the longest run
    made[mixed] = values.gather(1, first.argmax(1, keepdim=True))[:, 0]
    return made.reshape(d, h, w)
