"""Label maps drawn from a probability volume, so that any measure gets a spread."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int16
from torch import Tensor

from ...errors import ShapeError
from ...io.voxel_grid import VoxelGrid

_TINY = 1e-6
_NEVER = 1e-16  # of probability in a voxel: no draw of Gumbel's (-3.4 to 27.7 here) lets it win over 1 / L
_SUM = 0.01  # by which probabilities may miss 1


def draw_labels(
    probabilities: Float[Tensor, "L D H W"],
    grid: VoxelGrid,
    *,
    count: int = 16,
    correlation_mm: float = 10.0,
    seed: int = 0,
) -> Iterator[Int16[Tensor, "D H W"]]:
    """Draw label maps whose voxels follow the probabilities, and whose borders move as wholes.

    In each voxel the label with the greatest log p + G is taken.  G is of Gumbel's distribution, so each
    label is drawn with just its probability; here it is smooth in space, a normal field of about
    ``correlation_mm`` mapped to Gumbel's quantiles (the rule: R. D. Luce, Individual Choice Behavior, 1959).
    The same seed gives the same maps.  Raises ShapeError for probabilities that are none.
    """
    values = torch.as_tensor(probabilities).detach()
    if values.ndim != 4 or tuple(values.shape[1:]) != grid.shape or not values.is_floating_point():
        raise ShapeError(
            f"probabilities must be floating [L, {', '.join(map(str, grid.shape))}], got {values.dtype} "
            f"{list(values.shape)}"
        )
    total = values.sum(0)
    if not bool((values >= 0).all()) or not bool(((total - 1).abs() < _SUM).all()):
        raise ShapeError(
            "probabilities must be zero or more and add up to 1 in each voxel; apply softmax to logits"
        )
    if count < 1 or not correlation_mm > 0:
        raise ShapeError(f"count and correlation_mm must be positive, got {count} and {correlation_mm}")
    generator = torch.Generator().manual_seed(seed)
    boxes = {n: _box(values[n] > _NEVER) for n in range(len(values)) if float(values[n].max()) > _TINY}
    logs = {n: values[n][box].float().clamp_min(1e-30).log() for n, box in boxes.items()}
    for _ in range(count):
        best = torch.full(grid.shape, -torch.inf, device=values.device)
        labels = torch.zeros(grid.shape, dtype=torch.int16, device=values.device)
        for n, box in boxes.items():
            rank = logs[n] + _gumbel(grid, correlation_mm, generator, box).to(best.device)
            better = rank > best[box]
            best[box] = torch.where(better, rank, best[box])
            labels[box][better] = n
        yield labels


def _box(there: Bool[Tensor, "D H W"]) -> tuple[slice, slice, slice]:
    """The smallest box about what is true."""
    lines = (there.flatten(1).any(1), there.any(2).any(0), there.any(1).any(0))
    ends = [line.nonzero()[[0, -1], 0].tolist() for line in lines]
    return tuple(slice(a, b + 1) for a, b in ends)


def _gumbel(
    grid: VoxelGrid, correlation_mm: float, generator: torch.Generator, box: tuple[slice, slice, slice]
) -> Float[Tensor, "d h w"]:
    """A smooth field, at each voxel of a box of Gumbel's distribution."""
    spacing = grid.spacing[::-1]
    coarse = [max(2, round(n * s / correlation_mm) + 1) for n, s in zip(grid.shape, spacing, strict=True)]
    field = torch.randn(coarse, generator=generator)
    power = torch.ones(())
    for dim, part in enumerate(box):
        weights = _weights(coarse[dim], grid.shape[dim])[part]
        field = torch.movedim(torch.movedim(field, dim, -1) @ weights.T, -1, dim)
        shape = [1, 1, 1]
        shape[dim] = len(weights)
        power = power * (weights**2).sum(1).view(shape)
    uniform = torch.special.ndtr((field / power.sqrt()).double()).clamp(1e-12, 1 - 1e-12)
    return -torch.log(-torch.log(uniform)).float()


def _weights(coarse: int, fine: int) -> Float[Tensor, "fine coarse"]:
    """Cosine interpolation from knots spread over a line of samples."""
    at = torch.linspace(0, coarse - 1, fine)
    away = (at[:, None] - torch.arange(coarse)).abs().clamp_max(1)
    return 0.5 + 0.5 * torch.cos(torch.pi * away)
