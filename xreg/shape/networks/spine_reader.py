"""A small network that reads the spine's levels off straightened films (`xreg.shape.strips`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xreg.shape.networks.encoder import norm
from xreg.shape.strips import REACH, SACRUM

PARTS = 8  # of a vertebra, from the middle of the disc above it to that of the disc below
_AROUND = 15  # rows and columns over which a strip's local mean and contrast are taken
_DILATIONS = (1, 2, 4, 8, 16) * 2  # of what looks along the spine: 62 rows to each side, twice


class SpineReader(nn.Module):
    """Strips of any number of films to what lies at each of their rows.

    Place within a vertebra and number of the vertebra are told apart from each other: the former is seen in
    any piece of spine, and so needs few patients; the latter needs the sacrum or the ribs in view.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        deep = 3 * width
        strides = ((4, width, 1), (width, width, 2), (width, width, 1), (width, 2 * width, 2),
                   (2 * width, 2 * width, 1), (2 * width, 2 * width, 2))  # fmt: skip
        self.across = nn.Sequential(*(_block(i, o, s) for i, o, s in strides))
        self.column = nn.Conv2d(2 * width, deep, (1, -(-(2 * REACH + 1) // 8)))
        self.join = nn.Conv1d(2 * deep, deep, 1)
        self.along = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(deep, deep, 3, padding=d, dilation=d, bias=False), norm(deep), nn.SiLU(),
                nn.Dropout(0.1), nn.Conv1d(deep, deep, 1),
            )
            for d in _DILATIONS
        )  # fmt: skip
        self.out = nn.Conv1d(deep, PARTS + SACRUM + 1, 1)

    def forward(
        self, values: Float[Tensor, "B V S O"], across: Float[Tensor, "B V 2"]
    ) -> tuple[Float[Tensor, "B 8 S"], Float[Tensor, "B 26 S"]]:
        """Logits of the part of a vertebra, and of the level (the last is the sacrum's), at each row."""
        film = values.flatten(0, 1)[:, None]
        known = {"kernel_size": _AROUND, "stride": 1, "padding": _AROUND // 2, "count_include_pad": False}
        off = film - F.avg_pool2d(film, **known)
        contrast = off / (F.avg_pool2d(off.square(), **known) + 1e-4).sqrt()
        ways = across.flatten(0, 1)[:, :, None, None].expand(-1, -1, *film.shape[-2:])
        seen = self.column(self.across(torch.cat([film - 0.4, 0.5 * contrast, ways], 1)))[..., 0]
        seen = seen.unflatten(0, values.shape[:2])
        rows = self.join(torch.cat([seen.mean(1), seen.amax(1)], 1))
        for layer in self.along:
            rows = rows + layer(rows)
        return self.out(rows).split([PARTS, SACRUM + 1], 1)


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, (1, stride), 1, bias=False)
    return nn.Sequential(conv, norm(outputs), nn.SiLU())
