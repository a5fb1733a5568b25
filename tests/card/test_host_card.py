"""The CUDA sources, compiled for a card that the host plays, pass the tests of the operators.

Their launchers, blocks, barriers, shuffles, shared memory and sums run as written.  What stays for a real
card is its speed, its compiler, the order of its memory and how its textures really round.
"""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import host_card
import pytest

HERE = Path(__file__).parent
TESTS = HERE.parent
OPERATORS = (
    *(f"ops/test_{name}.py" for name in ("builds", "kernels", "labels", "gradients")),
    *(f"splat/test_splat_{name}.py" for name in ("operators", "values", "gradients", "culling")),
    "splat/test_voxelize.py",
    "card/on_card.py",
)
FAILED = 719  # cudaErrorLaunchFailure
BAD_LAUNCH = 9  # cudaErrorInvalidConfiguration


@pytest.fixture(scope="module")
def compiler() -> str:
    if not sys.platform.startswith("linux"):
        pytest.skip("the card that the host plays is for Linux")
    if (found := host_card.compiler()) is None:
        pytest.skip("there is no C++ compiler to build the card that the host plays with")
    return found


def run_there(*words: str, **environment: str) -> int:
    """How many tests passed on the host's card; all have to."""
    command = [sys.executable, "-m", "pytest", "-p", "card_plugin", "-p", "no:cacheprovider", *words]
    path = [str(HERE), str(TESTS / "ops"), str(TESTS / "splat"), os.environ.get("PYTHONPATH", "")]
    known = {"PYTHONPATH": os.pathsep.join(path), "XREG_CARD": str(host_card.build())}
    done = subprocess.run(
        command, cwd=TESTS.parent, capture_output=True, text=True, env=os.environ | known | environment
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout).group(1))


@pytest.mark.usefixtures("compiler")
def test_the_operators() -> None:
    assert run_there("-o", "addopts=-m 'not slow'", *(str(TESTS / name) for name in OPERATORS)) > 700


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_what_takes_minutes_there() -> None:
    assert run_there("-o", "addopts=-m slow", str(HERE / "on_card.py")) == 1


@pytest.mark.usefixtures("compiler")
def test_sums_in_any_order() -> None:
    """As XREG_CUDA_ATOMICS asks for."""
    words = ("-o", "addopts=", str(HERE / "on_card.py"), "-k", "order or cotangents")
    assert run_there(*words, XREG_CUDA_ATOMICS="1") >= 26


@pytest.fixture(scope="module")
def faults(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    there = tmp_path_factory.mktemp("faults")
    source, made = there / "faults.cpp", there / "faults.so"
    source.write_text(host_card.translated((HERE / "faults.cu").read_text()))
    device = ["-D__CUDACC__", "-include", "cuda_runtime_api.h", f"-I{HERE}"]
    command = [
        compiler,
        *host_card.FLAGS,
        *device,
        str(source),
        str(HERE / "card.cpp"),
        "-shared",
        "-o",
        str(made),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


def results(faults: ctypes.CDLL, name: str, seed: int) -> list[int]:
    out = (ctypes.c_int * 256)()
    faults.card_order(seed)
    assert getattr(faults, name)(out) == 0
    return list(out)


def sound(faults: ctypes.CDLL) -> bool:
    """Whether a kernel without faults has its result in any order."""
    half = [sum(range(32, 64))] * 32 + [sum(range(32))] * 32
    return all(results(faults, "sound", seed) == 4 * half for seed in range(4))


def test_a_sound_kernel_has_its_result_in_any_order(faults: ctypes.CDLL) -> None:
    assert sound(faults)


def test_a_missing_barrier_shows(faults: ctypes.CDLL) -> None:
    assert len({tuple(results(faults, "racing", seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize("name", ["early", "two_barriers", "lonely"])
def test_threads_that_wait_for_ever_are_a_fault(faults: ctypes.CDLL, name: str) -> None:
    out = (ctypes.c_int * 64)()
    assert getattr(faults, name)(out) == FAILED
    assert sound(faults), "the card goes on"


@pytest.mark.parametrize("launch", [(0, 1, 64), (1, 0, 64), (1, 65536, 64), (1, 1, 0), (1, 1, 1025)], ids=str)
def test_launches_beyond_the_limits_are_refused(faults: ctypes.CDLL, launch: tuple[int, ...]) -> None:
    assert faults.launched(*launch, (ctypes.c_int * 64)()) == BAD_LAUNCH


def test_a_copy_arrives_when_the_host_waits(faults: ctypes.CDLL) -> None:
    before, after = ctypes.c_int(), ctypes.c_int()
    faults.copied(ctypes.byref(before), ctypes.byref(after))
    assert (before.value, after.value) == (-1, 7)
