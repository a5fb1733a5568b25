"""Where the compiled library is missing or broken, the torch reference answers and says so once."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import fallback_scene
import numpy as np
import pytest

import xreg
from xreg.ops import registry

HEAD = """
import json, warnings
from pathlib import Path
from fallback_scene import quantised_and_differentiated, render
from xreg.ops import registry
"""


def run_apart(script: str) -> dict:
    """What a script prints as JSON, run in a fresh interpreter."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def without_library(tmp_path_factory: pytest.TempPathFactory) -> dict:
    hidden = tmp_path_factory.mktemp("hidden") / "xreg_cpu.so"
    return run_apart(f"""
        registry.library_path = lambda half="cpu": Path({str(hidden)!r})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            images = render()
            more = quantised_and_differentiated()
            backend = registry.backend()
            switched = registry.use_backend("base")
            loaded = registry.load()
        print(json.dumps(dict(images=images, more=more, backend=backend, switched=switched, loaded=loaded,
                              warnings=[(w.category.__name__, str(w.message)) for w in caught])))
    """)


def test_it_warns_once_and_says_why(without_library: dict) -> None:
    ours = [w for w in without_library["warnings"] if "xreg" in w[1]]
    assert len(ours) == 1
    kind, message = ours[0]
    assert kind == "RuntimeWarning"
    assert "xreg_cpu.so has not been built" in message
    assert "pip install" in message
    assert without_library["warnings"] == ours


def test_it_says_which_backend_answers(without_library: dict) -> None:
    assert without_library["backend"] == "reference"
    assert without_library["loaded"] is False
    assert without_library["switched"] is False


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", ["trilinear", "joseph", "siddon", "exact", "labels", "jacobian"])
def test_it_gives_the_same_image(without_library: dict, name: str) -> None:
    expected = np.array(fallback_scene.render()[name])
    found = np.array(without_library["images"][name])
    assert expected.max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max(), rtol=0)


def test_a_library_that_does_not_load_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "xreg_cpu.so"
    broken.write_bytes(b"not a library")
    found = run_apart(f"""
        registry.library_path = lambda half="cpu": Path({str(broken)!r})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            registry.load()
            registry.load()
        print(json.dumps([str(w.message) for w in caught]))
    """)
    assert len(found) == 1
    assert "xreg_cpu.so does not load in torch" in found[0]


def test_int16_and_gradients_work_without_it(without_library: dict) -> None:
    found = without_library["more"]
    assert found["dtype"] == "torch.float32"
    assert found["error"] < 1e-4
    assert found["pose"] > 0
    assert found["adjoint"] == pytest.approx(1.0, abs=1e-9)


def test_the_library_is_found_where_it_was_built() -> None:
    path = registry.library_path()
    assert path.parent == Path(xreg.__file__).parent / "_lib"
    assert path.suffix in {".so", ".dylib"}


def test_a_card_without_kernels_is_slow_and_says_so_once() -> None:
    found = run_apart("""
        import torch
        registry.cuda_reason = lambda: "xreg_cuda.so has not been built"
        slow = registry._slow_on_a_card(lambda *arguments: sum(arguments))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            answers = [slow(1, 2), slow(3, 4)]
        print(json.dumps(dict(answers=answers, warnings=[str(w.message) for w in caught])))
    """)
    assert found["answers"] == [3, 7]
    assert len(found["warnings"]) == 1
    assert "slow torch reference on the GPU, because xreg_cuda.so has not been built" in found["warnings"][0]
