import os
import pathlib

import pytest
from hypothesis import settings

# The same examples every time: what passed passes again.  `--hypothesis-profile search` looks for others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("same")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real test data; tests that need it are skipped where it is absent."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    root = pathlib.Path(os.environ.get("XREG_SHARED", default))
    if not root.is_dir():
        pytest.skip("the shared data folder is not here (set XREG_SHARED)")
    return root
