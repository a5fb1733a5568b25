import os
from pathlib import Path

import projector_cases as cases
import pytest
from kernel_fixtures import backend, compiled, operators, threads
from torch import Tensor

__all__ = ["backend", "chest_ct", "compiled", "mu", "operators", "threads"]


@pytest.fixture
def mu() -> Tensor:
    return cases.random_volume()


@pytest.fixture(scope="session")
def chest_ct() -> Path:
    """A real chest CT, 512 x 512 x 133."""
    kept = Path(__file__).parents[2] / ".cache" / "cxr.nii.gz"
    path = Path(os.environ.get("XREG_CHEST_CT", kept))
    if not path.is_file():
        pytest.skip(f"no chest CT at {path}; set XREG_CHEST_CT to a NIfTI file")
    return path
