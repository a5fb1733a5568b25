"""What all films share: a residual U-Net that reads one film and its geometry."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xreg.shape.networks.views import FILM_CHANNELS


def norm(channels: int) -> nn.GroupNorm:
    """Group norm (Wu and He 2018) with groups of at least four channels."""
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0 and (channels // g >= 4 or g == 1))
    return nn.GroupNorm(groups, channels)


class Block(nn.Module):
    """Two 3-wide convolutions with group norm and a way past them (He et al. 2016), in 2D or 3D."""

    def __init__(self, inputs: int, outputs: int, dims: int, stride: int = 1) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.first = conv(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = norm(outputs)
        self.second = conv(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = norm(outputs)
        same = stride == 1 and inputs == outputs
        self.past = nn.Identity() if same else conv(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.first_norm(self.first(x)))
        return F.silu(self.second_norm(self.second(y)) + self.past(x))


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) of residual blocks, one a level each way; any size of input.

    What skips the deeper levels is stacked.  Adding it would halve the work at the finest level; whether it
    learns as well has not been settled.

    Level n has widths[n] channels and a 2^n coarser grid.  It gives the features of the finest level, and
    those of the deepest.
    """

    def __init__(self, inputs: int, widths: Sequence[int], dims: int) -> None:
        super().__init__()
        self.dims, self.multiple = dims, 2 ** (len(widths) - 1)
        self.down = nn.ModuleList(
            Block(inputs if n == 0 else widths[n - 1], width, dims, 1 if n == 0 else 2)
            for n, width in enumerate(widths)
        )
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        pairs = list(pairwise(widths))
        self.narrow = nn.ModuleList(conv(deep, fine, 1, bias=False) for fine, deep in pairs)
        self.up = nn.ModuleList(Block(2 * fine, fine, dims) for fine, _ in pairs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[2:]
        pads = [p for n in reversed(size) for p in (0, -n % self.multiple)]
        x = F.pad(x, pads) if any(pads) else x
        kept = []
        for level in self.down:
            x = level(x)
            kept.append(x)
        deepest = kept.pop()
        for narrow, up, skip in zip(reversed(self.narrow), reversed(self.up), reversed(kept), strict=True):
            x = F.interpolate(narrow(x), scale_factor=2, mode="nearest")
            x = up(torch.cat([x, skip], 1))
        return x[(..., *(slice(n) for n in size))], deepest


class FilmEncoder(nn.Module):
    """Films [N, 13, H, W] with their geometry to features [N, C, H, W] and a summary [N, deepest].

    Its channels lie side by side in memory, which is quicker.
    """

    def __init__(self, widths: Sequence[int], features: int) -> None:
        super().__init__()
        self.body = UNet(FILM_CHANNELS, widths, 2)
        self.out = nn.Conv2d(widths[0], features, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Float[Tensor, "N 13 H W"]) -> tuple[Tensor, Tensor]:
        fine, deep = self.body(x.contiguous(memory_format=torch.channels_last))
        return self.out(fine), deep.mean((-1, -2))
