"""What a training compares with: labels of a case, and what their bones look like in each film."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from xreg.errors import ShapeError
from xreg.shape.films import label_thickness
from xreg.shape.networks.heads import THICKNESS_MM
from xreg.shape.networks.views import Views, fitted
from xreg.shape.samples import Sample
from xreg.shape.schemes import scheme


@dataclass(frozen=True, eq=False)
class Cases:
    """A batch to learn from.

    labels [B, D, H, W]: numbers of the scheme.  known [B, L]: labels that the annotations could hold.
    thickness [B·V, L-1, H, W]: of each structure along each pixel's ray, in units of 50 mm, in films the way
    round that ``views`` has them.
    """

    views: Views
    labels: Int64[Tensor, "B D H W"]
    known: Bool[Tensor, "B L"]
    thickness: Float[Tensor, "N K H W"]

    @classmethod
    def of(cls, sample: Sample, *, mirror: bool = False) -> Cases:
        """One case, with left and right exchanged where asked; ShapeError for a sample without labels."""
        if sample.labels is None:
            raise ShapeError(f"{sample.patient}: has no labels, and a training needs them")
        names = scheme(sample.scheme)
        films, cameras = fitted(sample.films, sample.cameras, sample.grid)
        views = Views.of(films, cameras, sample.grid, mirror=mirror)
        labels, known = sample.labels, sample.known
        known = torch.ones(len(names), dtype=torch.bool) if known is None else known
        maps = [label_thickness(labels, sample.grid, camera, len(names)) for camera in cameras]
        thick = torch.stack(maps)
        if mirror:
            swap = names.mirror
            labels, known, thick = swap.to(labels.dtype)[labels.flip(2).long()], known[swap], thick[:, swap]
        thick = views.turned(thick[None])[0, :, 1:] / THICKNESS_MM
        return cls(views, labels.long()[None], known[None], thick)

    @classmethod
    def batch(cls, cases: Sequence[Cases]) -> Cases:
        """Several as one; ShapeError where sizes differ."""
        views = Views.batch([case.views for case in cases])
        parts = (torch.cat([getattr(c, n) for c in cases]) for n in ("labels", "known", "thickness"))
        return cls(views, *parts)

    def scaled(self, factor: float) -> Cases:
        """As if patient and machine were larger by a factor."""
        return replace(self, views=self.views.scaled(factor), thickness=self.thickness * factor)

    def to(self, device: torch.device | str) -> Cases:
        """All of it on another device."""
        moved = {n: getattr(self, n).to(device) for n in ("views", "labels", "known", "thickness")}
        return replace(self, **moved)
