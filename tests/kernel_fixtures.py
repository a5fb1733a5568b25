"""Fixtures for what runs on the compiled kernels; the conftest of such tests imports them."""

import warnings
from collections.abc import Iterator

import pytest
import torch

from xreg.ops import registry


@pytest.fixture(scope="session", autouse=True)
def operators() -> bool:
    """Whether the compiled kernels answer; without them the reference is under test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return registry.load()


@pytest.fixture
def compiled(operators: bool) -> None:
    """For tests that compare the kernels with the reference."""
    if not operators:
        pytest.skip("the compiled library is not here; build it with pip install --no-build-isolation .")


@pytest.fixture(params=["avx512", "avx2", "base", "scalar"])
def backend(request: pytest.FixtureRequest, compiled: None) -> Iterator[str]:
    """Each host build in turn; the one that was chosen before comes back afterwards."""
    before = registry.backend()
    if not registry.use_backend(request.param):
        pytest.skip(f"this machine does not run the {request.param} kernels")
    yield request.param
    assert registry.use_backend(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
