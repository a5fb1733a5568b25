"""What a training of labels in space compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from xreg.errors import ShapeError
from xreg.geometry import Camera
from xreg.shape.networks.views import Views, fitted
from xreg.shape.samples import Sample
from xreg.shape.schemes import scheme


@dataclass(frozen=True, eq=False)
class Cases:
    """A batch to learn from.

    labels [B, D, H, W]: numbers of the scheme.  known [B, L]: labels that the annotations could hold.
    """

    views: Views
    labels: Int64[Tensor, "B D H W"]
    known: Bool[Tensor, "B L"]

    @classmethod
    def of(cls, sample: Sample, *, mirror: bool = False) -> Cases:
        """One case, with left and right exchanged where asked; ShapeError for a sample without labels."""
        views, _, known = labelled_views(sample, mirror=mirror)
        labels = sample.labels
        if mirror:
            swap = scheme(sample.scheme).mirror
            labels, known = swap.to(labels.dtype)[labels.flip(2).long()], known[swap]
        return cls(views, labels.long()[None], known[None])

    @classmethod
    def batch(cls, cases: Sequence[Cases]) -> Cases:
        """Several as one; ShapeError where sizes differ."""
        views = Views.batch([case.views for case in cases])
        parts = (torch.cat([getattr(c, n) for c in cases]) for n in ("labels", "known"))
        return cls(views, *parts)

    def scaled(self, factor: float) -> Cases:
        """As if patient and machine were larger by a factor."""
        return replace(self, views=self.views.scaled(factor))

    def reframed(self, zoom: float, shift: Float[Tensor, 3]) -> Cases:
        """One case on a grid of as many voxels, ``zoom`` times as large; films follow it.

        shift (i, j, k): of the grid's middle, in parts of its old edges.  What lies beyond the old grid is
        background.
        """
        size = torch.tensor(self.views.shape[::-1], dtype=torch.float32)
        start = (size - 1) / 2 * (1 - zoom) + shift * size
        labels = self.labels
        for axis, first in zip((3, 2, 1), start.tolist(), strict=True):
            line = (first + zoom * torch.arange(labels.shape[axis])).round().long()
            there = ((line >= 0) & (line < labels.shape[axis])).to(labels.dtype)
            labels = labels.index_select(axis, line.clamp(0, labels.shape[axis] - 1))
            labels = labels * there.reshape([-1 if a == axis else 1 for a in range(4)])
        return replace(self, views=self.views.reframed(zoom, start), labels=labels)

    def to(self, device: torch.device | str) -> Cases:
        """All of it on another device."""
        moved = {n: getattr(self, n).to(device) for n in ("views", "labels", "known")}
        return replace(self, **moved)


def labelled_views(
    sample: Sample, *, mirror: bool = False
) -> tuple[Views, tuple[Camera, ...], Bool[Tensor, " L"]]:
    """A sample's films as a network reads them, their cameras, and the labels that it could hold.

    mirror: of the films alone.  ShapeError for a sample without labels.
    """
    if sample.labels is None:
        raise ShapeError(f"{sample.patient}: has no labels, and a training needs them")
    films, cameras = fitted(sample.films, sample.cameras, sample.grid)
    views = Views.of(films, cameras, sample.grid, mirror=mirror)
    known = sample.known
    known = torch.ones(len(scheme(sample.scheme)), dtype=torch.bool) if known is None else known
    return views, cameras, known
