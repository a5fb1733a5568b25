"""Films read once more in enlarged parts, so that small bones are as large as training ever showed them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.shape.networks.heads import FilmMaps
from xreg.shape.networks.views import USUAL_MM, film_inputs

_LEAST, _MOST = 1.15, 1.5  # times that parts are larger: less is not worth it, more lacks what tells levels
_FEW = 1.35  # times up to which two parts along an axis overlap enough, else three
Read = Callable[[Float[Tensor, "N 13 H W"]], FilmMaps]


def read_closer(
    read: Read, films: Float[Tensor, "N H W"], rays: Float[Tensor, "N 10"], finest_mm: float
) -> FilmMaps:
    """Means of what is read in each whole film and in overlapping parts of it that are enlarged.

    finest_mm: size that pixels may come to, the least of the training; a film that is about as fine is read
    once.  What a film shows (``presence``) is told by the whole of it.
    """
    return FilmMaps.joined(
        [_one(read, film[None], ray[None], finest_mm) for film, ray in zip(films, rays, strict=True)]
    )


def _one(read: Read, film: Tensor, ray: Tensor, finest_mm: float) -> FilmMaps:
    whole = read(film_inputs(film, ray))
    zoom = min(_MOST, USUAL_MM * math.exp(float(ray[0, 9])) / finest_mm)
    if zoom < _LEAST:
        return whole
    sums, count = _stacked(whole), torch.ones_like(film)
    closer = ray.clone()
    closer[:, 9] -= math.log(zoom)
    free = 1 - 1 / zoom
    steps = torch.linspace(-free, free, 2 if zoom <= _FEW else 3).tolist()
    for x, y in product(steps, steps):
        there, back = _zoomed(film.shape, 1 / zoom, x, y), _zoomed(film.shape, zoom, -x * zoom, -y * zoom)
        found = read(film_inputs(_sampled(film[None], there)[0], closer))
        sums = sums + _sampled(_stacked(found), back)
        count = count + _sampled(torch.ones_like(film)[None], back)[0]
    labels = whole.masks.shape[1]
    masks, thickness, level = (sums / count).split([labels, labels, 1], 1)
    return FilmMaps(masks, thickness, level[:, 0], whole.presence)


def _stacked(maps: FilmMaps) -> Float[Tensor, "N C H W"]:
    """All that is told pixel by pixel."""
    return torch.cat([maps.masks, maps.thickness, maps.level[:, None]], 1)


def _zoomed(shape: torch.Size, scale: float, x: float, y: float) -> Tensor:
    """Where grid_sample finds the pixels of a film (1, H, W) that is scaled about its middle and shifted."""
    change = torch.tensor([[[scale, 0.0, x], [0.0, scale, y]]])
    return F.affine_grid(change, [1, 1, *shape[-2:]], align_corners=False)


def _sampled(values: Tensor, at: Tensor) -> Tensor:
    return F.grid_sample(values, at.to(values), align_corners=False)
