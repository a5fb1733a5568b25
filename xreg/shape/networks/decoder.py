"""From features in space to labels: a light 3D U-Net on a lattice, and a head that answers at any voxel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from xreg.shape.networks.backproject import Lattice
from xreg.shape.networks.encoder import UNet
from xreg.shape.networks.orders import Orders, rows_of
from xreg.shape.schemes import Scheme

PLACE_MM = 200.0  # in which a voxel's place counts as one
_REACH = 5.0  # bones that a row's number moves for a unit


class SpaceDecoder(nn.Module):
    """Fused film features on a lattice, with each point's place, to features of space."""

    def __init__(self, fused: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.narrow = nn.Conv3d(fused + 3, widths[0], 1)
        self.body = UNet(widths[0], widths, 3)

    def forward(
        self, fused: Float[Tensor, "B C N"], place: Float[Tensor, "B N 3"], lattice: Lattice
    ) -> Float[Tensor, "B W d h w"]:
        x = torch.cat([fused, place.transpose(1, 2).to(fused.dtype) / PLACE_MM], 1)
        return self.body(self.narrow(x.unflatten(-1, lattice.counts)))[0]


class PointHead(nn.Module):
    """Label logits at single voxels, from the features of space around them and those of their own pixels.

    Fine detail comes from the films, not from a fine 3D network (as in PointRend, Kirillov et al. 2020).  The
    visual hull of each label is added with a weight that is learned.
    """

    def __init__(self, space: int, fused: int, hidden: int, names: Scheme, *, orders: bool) -> None:
        super().__init__()
        labels, rows = len(names), rows_of(names)
        self.space = nn.Conv1d(space, hidden, 1)
        self.films = nn.Conv1d(fused, hidden, 1, bias=False)
        self.hidden = nn.Conv1d(hidden, hidden, 1)
        self.out = nn.Conv1d(hidden, labels, 1)
        self.middle = [(max(map(len, groups)) - 1) / 2 for groups in rows]
        self.orders = Orders(rows, labels) if orders else None
        self.levels = nn.Conv1d(hidden, len(rows), 1) if rows else None
        self.trust = nn.Parameter(torch.full((labels - 1,), 0.5413))  # softplus of it is 1

    def start(self) -> None:
        """Begin with the background where no silhouette speaks for a bone."""
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            self.out.bias.zero_()

    def forward(
        self,
        space: Float[Tensor, "B W N"],
        fused: Float[Tensor, "B C N"],
        inside: Float[Tensor, "B K N"],
        labels: Int64[Tensor, " L"] | None = None,
    ) -> tuple[Float[Tensor, "B L N"], Float[Tensor, "B R N"]]:
        """Logits, and the numbers along the rows of bones (0 at the first) that are in them.

        labels: those that are asked for, the background first; by default all.  inside: theirs, without it.
        """
        asked = slice(None) if labels is None else labels
        x = F.silu(self.space(space) + self.films(fused))
        x = F.silu(self.hidden(x))
        levels = x[:, :0]
        if self.levels is not None:
            middle = x.new_tensor(self.middle)[:, None]
            levels = middle + _REACH * self.levels(x)
        x = F.conv1d(x, self.out.weight[asked], self.out.bias[asked])
        if self.orders is not None:
            x = x + self.orders(levels)[:, asked]
        trust = F.softplus(self.trust if labels is None else self.trust[labels[1:] - 1])
        return torch.cat([x[:, :1], x[:, 1:] + trust[:, None] * inside], 1), levels


def sample_space(
    features: Float[Tensor, "B W d h w"], lattice: Lattice, index: Float[Tensor, "B N 3"]
) -> Float[Tensor, "B W N"]:
    """Trilinear values of a lattice's features at voxels."""
    at = lattice.inside(index)[:, :, None, None]
    found = F.grid_sample(features.float(), at, "bilinear", "border", align_corners=False)
    return found[..., 0, 0]
