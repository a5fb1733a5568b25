"""What gradients are compared with."""

from collections.abc import Callable

import torch
from torch import Tensor


def by_differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a scalar function in every number of `at`."""
    gradient = torch.empty_like(at)
    for i in range(at.numel()):
        change = torch.zeros_like(at).reshape(-1)
        change[i] = step
        change = change.reshape(at.shape)
        gradient.reshape(-1)[i] = (function(at + change) - function(at - change)) / (2 * step)
    return gradient
