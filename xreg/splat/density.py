"""The densities alone: images are linear in them, so they are solved for by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GaussianError
from xreg.ops import registry
from xreg.ops.splatting import CUTOFF, KINDS, splat

Map = Callable[[Tensor], Tensor]


def image_maps(
    mean: Float[Tensor, "N 3"],
    scale: Float[Tensor, "N 3"],
    rotation: Float[Tensor, "N 4"],
    rays: Float[Tensor, "V 6 3"],
    size: tuple[int, int],
    *,
    kind: str = "exact",
) -> tuple[Map, Map]:
    """A and Aᵀ: densities [N] to images [V, H, W], and the transpose to rounding.  No gradient."""
    registry.load()
    shape = [t.detach().contiguous() for t in (mean, scale, rotation)]
    rays = rays.detach().contiguous()
    ones = torch.ones_like(shape[0][:, 0])

    def forward(density: Tensor) -> Tensor:
        return splat(*shape, density.detach(), rays, size, kind=kind)[0]

    def transposed(images: Tensor) -> Tensor:
        found = torch.ops.xreg.splat_backward(images.contiguous(), *shape, ones, rays, KINDS[kind], CUTOFF)
        return found[3]

    return forward, transposed


def solve_density(
    maps: tuple[Map, Map],
    films: Float[Tensor, "V H W"],
    weights: Float[Tensor, "V H W"],
    start: Float[Tensor, " N"],
    *,
    iterations: int = 8,
) -> Float[Tensor, " N"]:
    """Densities that lower ‖W (A ρ − films)‖², from ``start``, by CGLS scaled by the columns' size.

    weights: W² for each ray, zero or more.  Few iterations: as in `tomography.cgls`, stopping early is
    what keeps noise out.  The misfit never grows.  The scaling is one over the root of Aᵀ W² A 1, by which
    wide and narrow Gaussians move alike.  Raises GaussianError for iterations below 1.
    """
    if iterations < 1:
        raise GaussianError(f"iterations must be at least 1, got {iterations}")
    forward, transposed = maps
    root = weights.sqrt()
    columns = transposed(weights * forward(torch.ones_like(start))).clamp_min(0)
    met = columns > 1e-6 * columns.max()
    scaling = torch.where(met, columns, 1).rsqrt() * met
    density = start.detach().clone()
    residual = root * (films - forward(density))
    gradient = scaling * transposed(root * residual)
    direction, square = gradient.clone(), _square(gradient)
    for _ in range(iterations):
        seen = root * forward(scaling * direction)
        size = _square(seen)
        if not size > 0:
            break
        step = square / size
        density = density + step * scaling * direction
        residual = residual - step * seen
        gradient = scaling * transposed(root * residual)
        last, square = square, _square(gradient)
        direction = gradient + (square / last) * direction
    return density


def _square(x: Tensor) -> float:
    return float(x.double().square().sum())
