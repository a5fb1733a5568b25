"""Label maps drawn from a probability volume, so that any measure gets a spread."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int16
from torch import Tensor

from ...errors import ShapeError
from ...io.voxel_grid import VoxelGrid
from ..shares import Shares

_TINY = 1e-6
_NEVER = 1e-16  # of probability in a voxel: no draw of Gumbel's (-3.4 to 27.7 here) lets it win over 1 / L
_SUM = 0.01  # by which probabilities may miss 1


Box = tuple[slice, slice, slice]


def draw_labels(
    probabilities: Float[Tensor, "L D H W"] | Shares,
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
    The same seed gives the same maps.  Of `Shares` the labels' own numbers are drawn, and no more than a box
    about each label is held.  Raises ShapeError for probabilities that are none.
    """
    if count < 1 or not correlation_mm > 0:
        raise ShapeError(f"count and correlation_mm must be positive, got {count} and {correlation_mm}")
    generator = torch.Generator().manual_seed(seed)
    logs = (_logs_of if isinstance(probabilities, Shares) else _logs)(probabilities, grid)
    device = next(iter(logs.values()))[1].device
    for _ in range(count):
        best = torch.full(grid.shape, -torch.inf, device=device)
        labels = torch.zeros(grid.shape, dtype=torch.int16, device=device)
        for n, (box, log) in logs.items():
            rank = log + _gumbel(grid, correlation_mm, generator, box).to(device)
            better = rank > best[box]
            best[box] = torch.where(better, rank, best[box])
            labels[box][better] = n
        yield labels


def _logs(probabilities: Float[Tensor, "L D H W"], grid: VoxelGrid) -> dict[int, tuple[Box, Tensor]]:
    """Of each label that is anywhere: a box that holds it, and the logarithms of its probability there."""
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
    boxes = {n: _box(values[n] > _NEVER) for n in range(len(values)) if float(values[n].max()) > _TINY}
    return {n: (box, _log(values[n][box])) for n, box in boxes.items()}


def _logs_of(shares: Shares, grid: VoxelGrid) -> dict[int, tuple[Box, Tensor]]:
    """The same of shares: elsewhere all is background."""
    index, made = torch.stack(torch.unravel_index(shares.voxels, grid.shape)), {}
    for n, values in zip(shares.labels.tolist(), shares.values.T, strict=True):
        there = values > _NEVER
        if n == 0:
            whole = values.new_ones(grid.shape)
            whole[tuple(index)] = values
            made[n] = (slice(None),) * 3, _log(whole)
        elif float(values[there].amax() if bool(there.any()) else 0.0) > _TINY:
            own = index[:, there]
            low, high = own.amin(1), own.amax(1) + 1
            part = values.new_zeros((high - low).tolist())
            part[tuple(own - low[:, None])] = values[there]
            box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
            made[n] = box, _log(part)
    return made


def _log(values: Tensor) -> Tensor:
    return values.float().clamp_min(1e-30).log()


def _box(there: Bool[Tensor, "D H W"]) -> Box:
    """The smallest box about what is true."""
    lines = (there.flatten(1).any(1), there.any(2).any(0), there.any(1).any(0))
    ends = [line.nonzero()[[0, -1], 0].tolist() for line in lines]
    return tuple(slice(a, b + 1) for a, b in ends)


def _gumbel(
    grid: VoxelGrid, correlation_mm: float, generator: torch.Generator, box: Box
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
