"""How machines and their settings change a film: contrast of dense matter, CLAHE, polarity."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import ImageError
from xreg.xray._inputs import kornia, per_film, raised
from xreg.xray.film import own_range


def contrast_curve(
    line_integrals: Float[Tensor, "B H W"],
    power: float | Float[Tensor, " B"] = 1.0,
    hardening: float | Float[Tensor, " B"] = 0.0,
) -> Float[Tensor, "B H W"]:
    """Dense against thin matter: m (p/m)^power about each film's mean m, then ln(1 + h p) / h.

    A power above 1 lifts dense matter over thin.  The second curve is the signal −ln E[exp(−X p)] of a beam
    whose attenuation, relative to its mean, is gamma distributed with variance h: the beam hardens on its
    way.  h = 0 leaves p.  Below 0 reads as 0.  Gradients flow to the line integrals; where these are 0 and
    the power is below 1, the power's own is 0.  Raises ImageError.
    """
    exponent = per_film(power, "power", line_integrals, low=0.05, high=20.0)[:, None, None]
    spread = per_film(hardening, "hardening", line_integrals, low=0.0, high=10.0)[:, None, None]
    thick = line_integrals.clamp_min(0.0)
    mean = thick.mean((-1, -2), keepdim=True).clamp_min(1e-6)
    thick = mean * raised(thick / mean, exponent)
    return torch.where(spread > 1e-6, torch.log1p(spread * thick) / spread.clamp_min(1e-6), thick)


def clahe(films: Float[Tensor, "B H W"], clip: float = 2.0, tiles: int = 4) -> Float[Tensor, "B H W"]:
    """Contrast limited adaptive histogram equalisation (kornia's), each film within its own range of values.

    clip: how many times its share in an even histogram a bin may hold.  tiles: along each side, fewer than
    its pixels.  A film is read in 256 levels.  No gradient.  Raises ImageError; BackendError without kornia.
    """
    if min(films.shape[-2:]) <= tiles:
        raise ImageError(f"CLAHE in {tiles} tiles a side needs more pixels, got {tuple(films.shape[-2:])}")
    low, high = own_range(films)
    extent = high - low
    scaled = ((films - low) / extent.clamp_min(1e-12)).clamp(0.0, 1.0)
    equal = kornia("enhance").equalize_clahe(scaled.detach()[:, None], float(clip), (tiles, tiles))[:, 0]
    return low + extent * equal


def invert(films: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """Bright and dark exchanged within each film's own range."""
    low, high = own_range(films)
    return low + high - films
