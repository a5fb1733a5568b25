"""Voxels that a step of a training compares: as many of a small bone as of a large one, each with its weight.

Voxels drawn evenly give a vertebra a handful, and its Dice is then mostly chance.  Here each label gives up
to a fixed number, and the background many near bones and many elsewhere; a voxel weighs as many as it was
drawn from, so that sums over the points estimate sums over the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from xreg.shape.networks import Lattice

_CELL = 4  # voxels along an edge: background in a bone's cell, or beside one, is near
_NEAR, _FAR = 24, 32  # times as many points of the background as of a label


@dataclass(frozen=True, eq=False)
class Points:
    """Voxels of a batch of grids of one shape, by flat index [B, N], and what each weighs [B, N]."""

    flat: Int64[Tensor, "B N"]
    weight: Float[Tensor, "B N"]
    shape: tuple[int, int, int]

    @classmethod
    def draw(cls, labels: Int64[Tensor, "B D H W"], most: int, generator: torch.Generator) -> Points:
        """Up to ``most`` voxels of each label, and of the background in proportion; weights add up to all."""
        drawn = [_drawn(one, most, generator) for one in labels]
        longest = max(len(flat) for flat, _ in drawn)
        flat = torch.stack([F.pad(x[None], (0, longest - len(x)), "replicate")[0] for x, _ in drawn])
        weight = torch.stack([F.pad(w, (0, longest - len(w))) for _, w in drawn])
        return cls(flat, weight, tuple(labels.shape[1:]))

    def to(self, device: torch.device | str) -> Points:
        """The points on another device."""
        return Points(self.flat.to(device), self.weight.to(device), self.shape)

    @property
    def counts(self) -> tuple[int]:
        """Points of a case, as `Lattice.counts` tells those of a lattice."""
        return (self.flat.shape[1],)

    def index(self, device: torch.device | str = "cpu") -> Float[Tensor, "B N 3"]:
        """Indices (i, j, k) of the points."""
        return Lattice(self.shape).index_at(self.flat.to(device))

    def take(self, values: Tensor) -> Tensor:
        """Values [B, …, D, H, W] of the grids at the points: [B, …, N]."""
        values = values.flatten(-3)
        flat = self.flat.reshape(len(self.flat), *[1] * (values.ndim - 2), -1)
        return values.gather(-1, flat.expand(*values.shape[:-1], -1))


def _drawn(
    labels: Int64[Tensor, "D H W"], most: int, generator: torch.Generator
) -> tuple[Int64[Tensor, " n"], Float[Tensor, " n"]]:
    bone = labels.reshape(-1) > 0
    parts = [_of_labels(labels.reshape(-1), bone, most, generator)]
    cells, near = _cells_near(bone.reshape(labels.shape))
    if near:
        inside = cells.reshape(-1).nonzero()[:, 0]
        chosen = inside[torch.randint(len(inside), (3 * _NEAR * most,), generator=generator)]
        parts.append(_weighed(_within(chosen, cells, labels.shape, generator), bone, _NEAR * most, near))
    far = int((~bone).sum()) - near
    if far:
        flat = torch.randint(bone.numel(), (4 * _FAR * most,), generator=generator)
        flat = flat[~cells[tuple(x // _CELL for x in torch.unravel_index(flat, labels.shape))]]
        parts.append(_weighed(flat, bone, _FAR * most, far))
    flat, weight = (torch.cat(x) for x in zip(*parts, strict=True))
    return flat, weight


def _of_labels(
    flat: Int64[Tensor, " M"], bone: Tensor, most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Up to ``most`` voxels of each label."""
    index = bone.nonzero()[:, 0]
    own = flat[index]
    order = (own + torch.rand(len(own), generator=generator, dtype=torch.float64)).argsort()
    index, own = index[order], own[order]
    counts = torch.bincount(own, minlength=1)
    rank = torch.arange(len(own)) - (counts.cumsum(0) - counts)[own]
    kept = own[rank < most]
    return index[rank < most], counts[kept] / counts[kept].clamp_max(most)


def _cells_near(bone: Tensor) -> tuple[Tensor, int]:
    """Which cells hold bone or lie beside one that does, and how many voxels of background are in them."""
    cells = F.max_pool3d(bone[None].float(), _CELL, ceil_mode=True)
    cells = (F.max_pool3d(cells, 3, 1, 1) > 0)[0]
    d, h, w = (
        (n - _CELL * torch.arange(c)).clamp_max(_CELL) for n, c in zip(bone.shape, cells.shape, strict=True)
    )
    voxels = d[:, None, None] * h[:, None] * w
    return cells, int(voxels[cells].sum()) - int(bone.sum())


def _within(chosen: Tensor, cells: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A voxel in each of some cells; those beyond the grid are left out."""
    inner = torch.randint(_CELL, (3, len(chosen)), generator=generator)
    place = [c * _CELL + n for c, n in zip(torch.unravel_index(chosen, cells.shape), inner, strict=True)]
    inside = torch.stack([p < n for p, n in zip(place, shape, strict=True)]).all(0)
    k, j, i = (p[inside] for p in place)
    return (k * shape[1] + j) * shape[2] + i


def _weighed(flat: Tensor, bone: Tensor, most: int, count: int) -> tuple[Tensor, Tensor]:
    """Those of background, at most so many, which stand for ``count``."""
    flat = flat[~bone[flat]][:most]
    return flat, torch.full((len(flat),), count / max(1, len(flat)))
