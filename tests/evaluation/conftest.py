from pathlib import Path

import pytest
from evaluation_files import write_cases


@pytest.fixture(scope="session")
def cases(tmp_path_factory) -> Path:
    """A manifest of three simulated cases with two starts each."""
    return write_cases(tmp_path_factory.mktemp("cases"))
