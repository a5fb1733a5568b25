"""Where vertebrae start: a network errs for each by itself, and a spine runs straight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

DOUBT_MM = 8.0  # how far a network errs in a vertebra's middle
BEND_MM = 4.0  # standard deviation of a middle's second difference along the spine
_ROUNDS = 5


def second_differences(
    places: Float[Tensor, "B 3"], lines: Sequence[tuple[int, int, int]]
) -> Float[Tensor, "R 3"]:
    """How rows of three bend, mm."""
    a, b, c = torch.tensor(lines).T
    return places[a] + places[c] - 2 * places[b]


def straightened(
    places: Float[Tensor, "B 3"], lines: Sequence[tuple[int, int, int]], trust: Float[Tensor, " B"]
) -> Float[Tensor, "B 3"]:
    """Places moved so that rows of three run straighter, outliers the most.

    trust: 0 to 1, how much a place counts.  Least squares of both, weights as of a Cauchy distribution.
    """
    start, count = places.double(), len(places)
    bends = second_differences(torch.eye(count, dtype=torch.float64), lines)
    weight = torch.ones(count, dtype=torch.float64)
    for _ in range(_ROUNDS):
        known = trust.double() * weight / DOUBT_MM**2
        stiff = bends.mT @ bends / BEND_MM**2 + known.diag()
        made = torch.linalg.solve(stiff, known[:, None] * start)
        weight = 1 / (1 + (made - start).square().sum(1) / DOUBT_MM**2)
    return made.float()
