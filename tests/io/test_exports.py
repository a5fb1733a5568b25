import subprocess
import sys

import pytest

import xreg.io


def test_every_name_resolves():
    for name in xreg.io.__all__:
        assert callable(getattr(xreg.io, name))
    assert "load_volume" in dir(xreg.io)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = xreg.io.nothing_of_this_name


def test_importing_loads_no_file_library():
    code = (
        "import sys, xreg.io, xreg.volume; "
        "sys.exit(any(m in sys.modules for m in ('nibabel', 'pydicom', 'PIL', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
