"""What is predicted in each film: where each bone covers it, how thick it is, whether it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xreg.shape.networks.orders import Orders
from xreg.shape.schemes import Scheme

THICKNESS_MM = 50.0  # in which thickness counts as one


@dataclass(frozen=True, eq=False)
class FilmMaps:
    """Predictions in the films [N = B·V]; labels are 1 to L - 1.

    masks [N, L-1, H, W]: logits that a structure covers a pixel.  thickness [N, L-1, H, W]: its length along
    the ray in units of 50 mm.  level [N, H, W]: the number of the vertebra, 0 to 1 from the first to the
    last, meant where there is one.  presence [N, L-1]: logits that the film shows it.
    """

    masks: Float[Tensor, "N K H W"]
    thickness: Float[Tensor, "N K H W"]
    level: Float[Tensor, "N H W"]
    presence: Float[Tensor, "N K"]

    @classmethod
    def mean(cls, several: Sequence[FilmMaps]) -> FilmMaps:
        """The mean of what was said of the same films."""
        parts = zip(*(maps._parts for maps in several), strict=True)
        return cls(*(torch.stack(part).mean(0) for part in parts))

    @classmethod
    def joined(cls, several: Sequence[FilmMaps]) -> FilmMaps:
        """Those of all films, one after the other."""
        return cls(*(torch.cat(part) for part in zip(*(maps._parts for maps in several), strict=True)))

    def to(self, device: torch.device | str) -> FilmMaps:
        """The maps on another device."""
        return FilmMaps(*(part.to(device) for part in self._parts))

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.masks, self.thickness, self.level, self.presence

    @property
    def centroids(self) -> Float[Tensor, "N K 2"]:
        """Middles (u, v) of the thickness, as parts of the film's width and height."""
        return centroids(self.thickness)


def centroids(thickness: Float[Tensor, "N K H W"]) -> Float[Tensor, "N K 2"]:
    """Middles (u, v), weighted by thickness, as parts of the film's width and height; 0.5 of nothing."""
    height, width = thickness.shape[-2:]
    total = thickness.sum((-1, -2)).clamp_min(1e-6)
    u = (torch.arange(width, device=thickness.device) + 0.5) / width
    v = (torch.arange(height, device=thickness.device) + 0.5) / height
    at = torch.stack([(thickness.sum(-2) @ u.to(thickness)), (thickness.sum(-1) @ v.to(thickness))], -1)
    return torch.where(total[..., None] > 1e-5, at / total[..., None], 0.5)


class FilmHeads(nn.Module):
    """Features and summary of films to `FilmMaps`."""

    def __init__(self, features: int, summary: int, names: Scheme, *, orders: bool) -> None:
        super().__init__()
        labels, spine = len(names), names.groups.get("spine", ())
        self.orders = Orders(((spine,),) if spine else (), labels) if orders else None
        self.last = max(1, len(spine) - 1)
        self.masks = nn.Conv2d(features, labels - 1, 1)
        self.thickness = nn.Conv2d(features, labels - 1, 1)
        self.level = nn.Conv2d(features, 1, 1)
        self.presence = nn.Linear(summary, labels - 1)

    def start(self) -> None:
        """Begin with rare structures, as they are: otherwise the first steps unlearn the background."""
        nn.init.constant_(self.masks.bias, -4.0)
        nn.init.constant_(self.thickness.bias, -4.0)
        nn.init.constant_(self.level.bias, 0.5)

    def forward(self, features: Tensor, summary: Tensor) -> FilmMaps:
        features = features.contiguous()
        level, masks = _pointwise(self.level, features), _pointwise(self.masks, features)
        if self.orders is not None:
            near = self.orders((level * self.last).flatten(2))
            masks = masks + near[:, 1:].unflatten(-1, level.shape[-2:])
        return FilmMaps(
            masks, F.softplus(_pointwise(self.thickness, features)), level[:, 0], self.presence(summary)
        )


def _pointwise(conv: nn.Conv2d, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N K H W"]:
    """A convolution one pixel wide, as a product of matrices: on one thread a third of its time."""
    weight = conv.weight.flatten(1).expand(len(x), -1, -1)
    return torch.baddbmm(conv.bias[:, None], weight, x.flatten(2)).unflatten(2, x.shape[2:])
