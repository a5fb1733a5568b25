"""The CUDA sources hold together: their interface without nvcc, and that they compile where it is."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
KERNELS = {"project", "project + moments", "sort", "label_moments", "spread"}
INTEGRATORS = 4


def cuda_check(*words: str) -> None:
    command = [sys.executable, "setup.py", "-q", "cuda_check", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if "there is no nvcc here" in done.stdout:
        pytest.skip("nvcc is not installed, so the CUDA sources cannot be compiled")


def test_every_launcher_is_defined_once() -> None:
    names = re.findall(r"xreg_cuda_\w+", (ROOT / "cuda" / "api_cuda.h").read_text())
    sources = "".join(path.read_text() for path in (ROOT / "cuda").glob("*.cu"))
    assert len(names) == 4
    for name in names:
        assert len(re.findall(rf'extern "C" cudaError_t {name}\(', sources)) == 1, name


def test_the_binding_compiles() -> None:
    cuda_check("--only=bind_cuda.cpp")


@pytest.mark.slow
def test_the_kernels_compile() -> None:
    cuda_check()
    table = (ROOT / "build" / "cuda-check.txt").read_text()
    rows = re.findall(r"^(sm_\d+) (\w+(?: \+ \w+)?) +(float|double)((?: +\d+(?:\+\d+)?)+)$", table, re.M)
    assert {row[:3] for row in rows} == {
        (card, kernel, real)
        for card in ("sm_80", "sm_90")
        for kernel in KERNELS
        for real in ("float", "double")
    }
    for card, kernel, real, cells in rows:
        taken = [[int(n) for n in cell.split("+")] for cell in cells.split()]
        assert len(taken) == INTEGRATORS
        limit = 128 if real == "float" else 168  # four blocks of 128 threads fit an SM, or three
        assert all(0 < registers <= limit for registers, *_ in taken), (card, kernel, real)
        assert all(sum(spilled) <= 64 for _, *spilled in taken), (card, kernel, real)
