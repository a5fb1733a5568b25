"""What single voxels of a grid may be, kept for those alone that may be bone, and for labels that are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Shares:
    """Probabilities of labels at some voxels of a grid; all other voxels are background.

    voxels [n]: flat indices, ascending.  labels [K]: numbers that any of them may be, ascending, the
    background's 0 first.  values [n, K]: rows add up to one.
    """

    voxels: Int64[Tensor, " n"]
    labels: Int64[Tensor, " K"]
    values: Float[Tensor, "n K"]

    @classmethod
    def of(cls, voxels: Int64[Tensor, " n"], dense: Float[Tensor, "n L"]) -> Shares:
        """From probabilities of all labels of a scheme; those that are nowhere are left out."""
        there = dense.amax(0) > 0 if len(dense) else dense.new_zeros(dense.shape[1], dtype=torch.bool)
        there[0] = True
        labels = there.nonzero()[:, 0]
        return cls(voxels, labels, dense[:, labels])

    def __len__(self) -> int:
        return len(self.voxels)

    def to(self, device: torch.device | str) -> Shares:
        """The same on another device."""
        return Shares(*(part.to(device) for part in (self.voxels, self.labels, self.values)))

    def columns(self, numbers: Sequence[int] | Int64[Tensor, " k"]) -> Float[Tensor, "n k"]:
        """Probabilities of these labels, zero for one that is nowhere."""
        numbers = torch.as_tensor(numbers, device=self.labels.device)
        place = torch.searchsorted(self.labels, numbers).clamp_max(len(self.labels) - 1)
        there = self.labels[place] == numbers
        made = self.values[:, place]
        return made if bool(there.all()) else made * there.to(made.dtype)

    def of_label(self, number: int) -> Float[Tensor, " n"]:
        """The probability of one label."""
        return self.columns([number])[:, 0]

    def sums(self) -> dict[int, float]:
        """Voxels' probabilities added up, by label."""
        return dict(zip(self.labels.tolist(), self.values.double().sum(0).tolist(), strict=True))

    def only(self, known: Bool[Tensor, " L"]) -> Shares:
        """Without the labels that are not known: their share becomes the background's."""
        kept = known[self.labels]
        if bool(kept.all()):
            return self
        values = self.values[:, kept]
        values[:, 0] += self.values[:, ~kept].sum(1)
        return replace(self, labels=self.labels[kept], values=values)

    def likely(self, doubt: float) -> Shares:
        """Without the voxels whose background has 1 - doubt or more."""
        kept = (self.values[:, 0] < 1 - doubt).nonzero()[:, 0]
        return replace(self, voxels=self.voxels[kept], values=self.values[kept])

    def best(self) -> Int64[Tensor, " n"]:
        """The likeliest label of each voxel."""
        return self.labels[self.values.argmax(1)]

    def entropy(self) -> Float[Tensor, " n"]:
        """Doubt of each voxel, nats."""
        return -torch.xlogy(self.values, self.values).sum(1)

    def on(self, voxels: Int64[Tensor, " m"], labels: Int64[Tensor, " k"]) -> Shares:
        """On other voxels, where those that it lacks are background, and with more labels."""
        values = self.values
        if len(labels) > len(self.labels):
            values = values.new_zeros(len(values), len(labels))
            values[:, torch.searchsorted(labels, self.labels)] = self.values
        nothing = torch.eye(1, len(labels), dtype=values.dtype, device=values.device)
        if not len(self):
            return Shares(voxels, labels, nothing.repeat(len(voxels), 1))
        rows = torch.searchsorted(self.voxels, voxels).clamp_max(len(self) - 1)
        values = values[rows]
        values[self.voxels[rows] != voxels] = nothing
        return Shares(voxels, labels, values)

    def but(self, other: Shares) -> Shares:
        """Another opinion where that says something, this one elsewhere; ``other`` knows all labels."""
        made = self.on(torch.cat([self.voxels, other.voxels]).unique(), other.labels)
        made.values[torch.searchsorted(made.voxels, other.voxels)] = other.values
        return made


def aligned(runs: Sequence[Shares]) -> list[Shares]:
    """Several opinions on the voxels and labels that any of them knows."""
    if len(runs) == 1:
        return list(runs)
    voxels, labels = (torch.cat([getattr(r, name) for r in runs]).unique() for name in ("voxels", "labels"))
    return [run.on(voxels, labels) for run in runs]


def mean(runs: Sequence[Shares]) -> Shares:
    """The mean of aligned opinions."""
    if len(runs) == 1:
        return runs[0]
    return replace(runs[0], values=torch.stack([run.values for run in runs]).mean(0))
