"""How a bone of an atlas is moved: turned, shifted, grown, bent and mixed, as one map of points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import roma
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# of (1, x, y, z), those whose products are 1, x, y, z, xx, yy, zz, xy, yz, zx
_FIRST, _SECOND = [0, 0, 0, 0, 1, 2, 3, 1, 2, 3], [0, 1, 2, 3, 1, 2, 3, 2, 3, 1]


@dataclass(frozen=True, eq=False)
class Moves:
    """What is fitted of B bones: turn [B, 3] rad, shift [B, 3] and grow [B, 3] (log), bend [B, 3, 6].

    mix [B, M]: logits of what each of the atlas' examples counts for; those beyond a bone's count for
    nothing.
    """

    turn: Tensor
    shift: Tensor
    grow: Tensor
    bend: Tensor
    mix: Tensor

    @classmethod
    def none(cls, count: int, examples: int) -> Moves:
        moved = (torch.zeros(count, 3) for _ in range(3))
        return cls(*moved, torch.zeros(count, 3, 6), torch.zeros(count, examples))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.turn, self.shift, self.grow, self.bend, self.mix

    def pose(self, reach: Float[Tensor, "B 3"]) -> Pose:
        """What they do to points about bones of this reach.

        With h = (1, x, y, z) a point is turned, grown and shifted to y = h A, and then bent by the six
        products of two coordinates of y / reach.  Both are sums of h's products, see `products`.
        """
        back = roma.rotvec_to_rotmat(self.turn) * torch.exp(-self.grow)[:, None]
        linear = torch.cat([-self.shift[:, None] @ back, back], 1)
        parts = linear / reach[:, None]
        a, b = parts[:, _FIRST], parts[:, _SECOND]
        once = torch.tensor([0.5 if i == j else 1.0 for i, j in zip(_FIRST, _SECOND, strict=True)])
        m, n = ([index - 1 for index in row[4:]] for row in (_FIRST, _SECOND))  # those of coordinates
        bent = (a[..., m] * b[..., n] + b[..., m] * a[..., n]) * once[:, None]
        maps = bent @ self.bend.mT * reach.mean(1)[:, None, None] + F.pad(linear, (0, 0, 0, 6))
        return Pose(maps.unbind(), self.mix.unbind())


def products(points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 10"]:
    """1, x, y, z, xx, yy, zz, xy, yz and zx of each point."""
    whole = F.pad(points, (1, 0), value=1.0)
    return whole[:, _FIRST] * whole[:, _SECOND]


class Pose(NamedTuple):
    """Moves as they act, a bone each: maps [10, 3] from products of a point about the bone's place, in units
    of its size, to the point in the atlas' bone; mix [M]."""

    maps: tuple[Tensor, ...]
    mix: tuple[Tensor, ...]
