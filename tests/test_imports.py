"""What `import xreg` brings in, and that every public name is there."""

import importlib
import json
import subprocess
import sys

import pytest

import xreg

HEAVY = ("torch", "numpy", "nibabel", "pydicom", "scipy", "PIL", "matplotlib", "jaxtyping", "roma")


def run_apart(script: str) -> dict:
    """What a script prints as JSON, run in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_loads_nothing_heavy() -> None:
    found = run_apart(
        "import sys, json; before = set(sys.modules); import xreg; new = set(sys.modules) - before;"
        "print(json.dumps(dict(new=sorted(new), version=xreg.__version__, names=dir(xreg))))"
    )
    assert not [name for name in found["new"] if name.split(".")[0] in HEAVY]
    assert [name for name in found["new"] if name.startswith("xreg")] == ["xreg"]
    assert found["version"] == xreg.__version__
    assert set(xreg.__all__) <= set(found["names"])


def test_using_the_renderer_touches_no_gpu() -> None:
    found = run_apart(
        "import json, warnings; warnings.simplefilter('ignore'); import torch, xreg\n"
        "mu = torch.rand(4, 5, 6); affine = torch.eye(4, dtype=torch.float64)\n"
        "volume = xreg.Volume(mu, affine)\n"
        "camera = xreg.Camera.c_arm(sdd=100., sod=80., size=(4, 4), spacing=2., isocenter=volume.center)\n"
        "image = xreg.drr(volume, camera)\n"
        "print(json.dumps(dict(cuda=torch.cuda.is_initialized(), device=image.device.type)))"
    )
    assert found == {"cuda": False, "device": "cpu"}


def test_a_name_loads_its_own_room_only() -> None:
    found = run_apart(
        "import sys, json, xreg; xreg.Camera;"
        "print(json.dumps([m for m in sys.modules if m.startswith('xreg.')]))"
    )
    assert "xreg.geometry.camera" in found
    assert not [m for m in found if m.split(".")[1] not in ("geometry", "errors")]


@pytest.mark.parametrize("name", xreg.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(xreg, name)
    assert value is not None
    assert name in dir(xreg)
    if name in xreg._HOMES:
        assert value is getattr(importlib.import_module(xreg._HOMES[name]), name)


def test_public_names_are_in_order_and_documented() -> None:
    assert list(xreg._HOMES) == sorted(xreg._HOMES)
    for name in xreg._HOMES:
        assert (getattr(xreg, name).__doc__ or "").strip(), f"xreg.{name} has no docstring"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'xreg' has no attribute 'regsiter'"):
        _ = xreg.regsiter
    assert not hasattr(xreg, "__wrapped__")
