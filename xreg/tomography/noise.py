"""How noisy line integrals are, told by the images themselves, and what each ray then counts.

Sources: J. Immerkær, Comput. Vis. Image Underst. 64 (1996), for the noise; K. Sauer, C. Bouman, IEEE TSP 41
(1993), for weights by the photons of a ray.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_MEDIAN = 0.6745  # of |n|, n normal
_AIR = 0.1  # of the largest line integral: below it images may have been cut off at zero
_GROUPS, _FEWEST = 8, 200  # of pixels of one line integral, by which noise is told to grow; pixels in each
_AROUND = 5  # pixels: over so many a ray's own noise is averaged out
_MODEL = 0.003  # of the largest line integral: what voxels do not explain, noise or none
_LEAST = 0.2  # of the largest weight: rays that count less are learned too slowly


def noise_of(images: Float[Tensor, "V H W"]) -> float:
    """Standard deviation of a pixel's noise, by what a second difference along both axes leaves (its median).

    Independent pixels are meant; detectors that blur hide part of theirs.  0 for images below 3×3.
    """
    if min(images.shape[-2:]) < 3:
        return 0.0
    return float(_left(images).abs().median()) / _MEDIAN


def noise_growth(images: Float[Tensor, "V H W"]) -> float:
    """β of a noise whose variance grows as exp(β line integral); 1 for photons of a single energy, 0 or more.

    A line through the logarithms of the variances of pixels of like line integrals, air left out.  0 where
    there are too few pixels to tell.
    """
    if min(images.shape[-2:]) < _AROUND:
        return 0.0
    lines, left = _means(images)[:, 1:-1, 1:-1].reshape(-1), _left(images).reshape(-1)
    inside = lines > _AIR * float(images.max())
    lines, order = lines[inside].sort()
    if len(lines) < _GROUPS * _FEWEST:
        return 0.0
    groups = zip(lines.chunk(_GROUPS), left[inside][order].chunk(_GROUPS), strict=True)
    found = [(float(line.mean()), float(rest.abs().median())) for line, rest in groups]
    if min(spread for _, spread in found) <= 0:
        return 0.0
    x, spread = torch.tensor(found, dtype=torch.float64).unbind(1)
    x, y = x - x.mean(), 2 * spread.log()
    return max(0.0, float((x * y).sum() / x.square().sum().clamp_min(1e-30)))


def ray_weights(images: Float[Tensor, "V H W"]) -> Float[Tensor, "V H W"]:
    """What each ray counts in a least-squares fit: one over the variance of its noise, with a mean of one.

    The variance is that of `noise_of`, growing as `noise_growth` tells with the mean line integral around
    the pixel (not its own, by which noise would weigh itself), and a part that no noise explains.  No ray
    counts less than a fifth of the most certain one, or a descent would be slow to heed it.  Same dtype and
    device; no gradient.
    """
    images = images.detach()
    lines, top = _means(images), float(images.max())
    inside = lines > _AIR * top
    middle = float(lines[inside].median()) if bool(inside.any()) else 0.0
    model = (_MODEL * top) ** 2
    variance = noise_of(images) ** 2 * torch.exp(noise_growth(images) * (lines - middle)) + model
    weights = (float(variance.min()) / variance.clamp_min(1e-30)).clamp_min(_LEAST)
    return weights / weights.mean()


def _left(images: Tensor) -> Tensor:
    """Second differences along both axes, of the noise's standard deviation where there is nothing else."""
    line = images.new_tensor([1.0, -2.0, 1.0])
    return torch.nn.functional.conv2d(images.detach()[:, None], torch.outer(line, line)[None, None])[:, 0] / 6


def _means(images: Tensor) -> Tensor:
    """Mean of the pixels around each, at borders of fewer."""
    pool = torch.nn.functional.avg_pool2d
    return pool(images.detach()[:, None], _AROUND, 1, _AROUND // 2, count_include_pad=False)[:, 0]
