"""Features of films in space: each voxel looks up its own pixel in every film, however many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from xreg.shape.networks.views import Views

CERTAIN = 30.0  # a logit whose probability is 1


@dataclass(frozen=True)
class Lattice:
    """Every n-th voxel of a grid of ``shape`` (D, H, W), from ``start`` (k, j, i) on, which may be a half."""

    shape: tuple[int, int, int]
    step: int = 1
    start: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def coarse(cls, shape: tuple[int, int, int], step: int) -> Lattice:
        """The middles of blocks of step³ voxels, the last of which may reach out of the grid."""
        return cls(shape, step, ((step - 1) / 2,) * 3)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Points along k, j and i."""
        if self.step == 1 or min(self.start) != int(min(self.start)):
            return tuple(-(-n // self.step) for n in self.shape)
        return tuple(-(-(n - int(s)) // self.step) for n, s in zip(self.shape, self.start, strict=True))

    def index(self, device: torch.device | str = "cpu") -> Float[Tensor, "N 3"]:
        """Indices (i, j, k) of the points, i fastest."""
        axes = [
            s + self.step * torch.arange(n, dtype=torch.float32, device=device)
            for s, n in zip(self.start, self.counts, strict=True)
        ]
        k, j, i = torch.meshgrid(*axes, indexing="ij")
        return torch.stack([i, j, k], -1).reshape(-1, 3)

    def index_at(self, flat: Integer[Tensor, " n"]) -> Float[Tensor, "n 3"]:
        """Indices (i, j, k) of some of the points, by their number, i fastest."""
        _, height, width = self.counts
        place = torch.stack([flat % width, flat // width % height, flat // (width * height)], -1)
        return place * self.step + torch.tensor(self.start[::-1], device=flat.device)

    def take(self, values: Integer[Tensor, "*b D H W"]) -> Tensor:
        """Values of the grid at the points; for a start at whole voxels."""
        k, j, i = (slice(int(s), None, self.step) for s in self.start)
        return values[..., k, j, i]

    def inside(self, index: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
        """The indices told from -1 to 1 between this lattice's outer faces, as grid_sample counts."""
        start = index.new_tensor(self.start[::-1])
        count = index.new_tensor(self.counts[::-1])
        return (2 * (index - start) / self.step + 1) / count - 1


class Places(Protocol):
    """Voxels that a network is asked about: a `Lattice`, or `xreg.shape.points.Points`."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Points of a case, as its axes tell them."""

    def index(self, device: torch.device | str = "cpu") -> Float[Tensor, "*b N 3"]:
        """Indices (i, j, k) of the points."""

    def take(self, values: Tensor) -> Tensor:
        """Values [B, …, D, H, W] of the grids at the points."""


def stride(shape: tuple[int, int, int], count: int) -> int:
    """Voxels between points of which about ``count`` lie along a grid's longest edge, and one along each."""
    return min(max(1, round(max(shape) / count)), *shape)


def look_up(
    maps: Float[Tensor, "N C h w"], views: Views, index: Float[Tensor, "B N 3"]
) -> tuple[Float[Tensor, "B V C N"], Bool[Tensor, "B V N"]]:
    """Bilinear values of the films' maps at voxels, 0 outside, and which films see which voxel.

    maps: of all films of all cases, covering the films' extent at any resolution.  Gradients flow to them.
    """
    b, v = views.films.shape[:2]
    at, seen = views.pixels(index)
    at = at.flatten(0, 1)[:, :, None]  # coordinates need float32
    found = F.grid_sample(maps.float(), at, "bilinear", "border", align_corners=False)
    found = found[..., 0].unflatten(0, (b, v))
    return found * seen[:, :, None].to(found.dtype), seen


def fuse(values: Float[Tensor, "B V C N"], seen: Bool[Tensor, "B V N"]) -> Float[Tensor, "B C3 N"]:
    """Mean, greatest and deviation over the films that see a voxel, and what part of the films does.

    The same for films in any order; 3·C + 1 channels, zero where no film sees the voxel.
    """
    weight = seen[:, :, None].to(values.dtype)
    count = weight.sum(1)
    mean = values.sum(1) / count.clamp_min(1)
    spread = ((values - mean[:, None]).square() * weight).sum(1) / count.clamp_min(1)
    greatest = values.masked_fill(~seen[:, :, None], -torch.inf).amax(1)
    greatest = torch.where(count > 0, greatest, 0.0)
    return torch.cat([mean, greatest, (spread + 1e-6).sqrt(), count / values.shape[1]], 1)


def hull(masks: Float[Tensor, "B V L N"], seen: Bool[Tensor, "B V N"]) -> Float[Tensor, "B L N"]:
    """Least logit over the films that a structure covers the voxel's pixel: a visual hull a label.

    masks: logits.  30, which is certain, where no film sees the voxel.  A. Laurentini, "The visual hull
    concept for silhouette-based image understanding", PAMI 16 (1994).
    """
    return masks.masked_fill(~seen[:, :, None], CERTAIN).amin(1)
