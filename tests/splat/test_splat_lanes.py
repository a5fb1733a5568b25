"""The fast exponential and inverse root of the host kernels are as near as they say."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

SOURCE = Path(__file__).with_name("splat_lanes.cpp")
CUDA = Path(__file__).parents[2] / "cuda"


# what the builds of setup.py are compiled for, and what a machine must say of itself to run them
BUILDS = {
    "base": ([], ()),
    "avx2": (["-march=x86-64-v3"], ("AVX2", "AVX512")),
    "avx512": (["-march=x86-64-v4"], ("AVX512",)),
}


@pytest.fixture(scope="module", params=BUILDS)
def lanes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target, machines = BUILDS[request.param]
    if machines and torch.backends.cpu.get_cpu_capability() not in machines:
        pytest.skip(f"this machine cannot run the {request.param} build")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler to build the functions with")
    made = tmp_path_factory.mktemp("lanes") / "lanes.so"
    flags = ["-std=c++17", "-O2", "-Wno-unknown-pragmas", "-Wno-psabi", "-fno-math-errno", "-shared", "-fPIC"]
    done = subprocess.run(
        [compiler, *flags, *target, f"-I{CUDA}", str(SOURCE), "-o", str(made)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(made))
    library.fast_sum.restype = library.slight.restype = ctypes.c_double
    return library


def run(function, x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x, dtype=np.float32)
    y = np.empty_like(x)
    at = lambda a: a.ctypes.data_as(ctypes.POINTER(ctypes.c_float))  # noqa: E731
    function(at(x), at(y), len(x))
    return y.astype(np.float64)


def test_exp2(lanes: ctypes.CDLL) -> None:
    x = np.concatenate([np.linspace(0, 124.9, 1 << 18), np.arange(125)]).astype(np.float32)
    x = x[: len(x) // 16 * 16]
    error = run(lanes.fast_exp2_minus, x) * np.exp2(x.astype(np.float64)) - 1
    assert np.abs(error).max() < 3e-7


def test_inverse_sqrt(lanes: ctypes.CDLL) -> None:
    x = np.exp(np.linspace(np.log(1e-6), np.log(1e6), 1 << 18)).astype(np.float32)
    error = run(lanes.fast_inverse_sqrt, x) * np.sqrt(x.astype(np.float64)) - 1
    assert np.abs(error).max() < 1e-6


def test_inverse_sqrt_near_one(lanes: ctypes.CDLL) -> None:
    e = np.linspace(-lanes.slight(), lanes.slight(), 1 << 18, dtype=np.float32)
    error = run(lanes.fast_inverse_sqrt_near_one, e) * np.sqrt(1 + e.astype(np.float64)) - 1
    assert np.abs(error).max() < 4e-7


def test_sum(lanes: ctypes.CDLL) -> None:
    x = np.arange(1, lanes.fast_lanes() + 1, dtype=np.float32) ** 2
    assert lanes.fast_sum(x.ctypes.data_as(ctypes.POINTER(ctypes.c_float))) == float(x.sum())
