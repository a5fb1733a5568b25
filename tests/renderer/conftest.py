import pytest
import torch
from small_body import SIZE, make_volume
from torch import Tensor

from xreg import Volume


@pytest.fixture
def volume() -> Volume:
    return make_volume()


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
