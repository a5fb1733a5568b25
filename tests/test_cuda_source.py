"""The CUDA sources hold together: their interface without nvcc, and that they compile where it is."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch
from torch.utils import cpp_extension

ROOT = pathlib.Path(__file__).resolve().parents[1]
KERNELS = {"project", "project + moments", "sort", "label_moments", "spread", "spread, any order"}
TEXTURE = {"atlas", "atlas + moments"}  # Joseph's rule in float32 only
HELPERS = {
    ("fill", "float"),
    ("largest", "float"),
    ("largest", "double"),
    ("weigh", "float"),
    ("weigh", "double"),
}
SPLAT = {
    "splat", "splat + moments", "splat_prepare", "splat_weigh", "splat_sums", "splat_chain",
    "voxel", "voxel_prepare", "voxel_backward",
}  # fmt: skip
LISTS = {("add_parts", "float"), ("cell_ends", "float")}
INTEGRATORS = 4


def cuda_check(*words: str) -> None:
    command = [sys.executable, "setup.py", "-q", "cuda_check", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if "there is no nvcc here" in done.stdout:
        pytest.skip("nvcc is not installed, so the CUDA sources cannot be compiled")


def test_every_launcher_is_defined_once() -> None:
    names = re.findall(r"cudaError_t (xreg_cuda_\w+)", (ROOT / "cuda" / "api_cuda.h").read_text())
    sources = "".join(path.read_text() for path in (ROOT / "cuda").glob("*.cu"))
    assert len(names) == 12
    for name in names:
        assert len(re.findall(rf'extern "C" cudaError_t {name}\([^;]*\{{', sources)) == 1, name


def test_the_binding_compiles() -> None:
    cuda_check("--only=bind_cuda.cpp")


@pytest.fixture(scope="module")
def everything() -> None:
    """All CUDA sources compiled, once."""
    cuda_check()


@pytest.mark.slow
@pytest.mark.usefixtures("everything")
def test_the_kernels_compile() -> None:
    table = (ROOT / "build" / "cuda-check.txt").read_text()
    rows = re.findall(r"^(sm_\d+) (.+?) +(float|double)((?: +(?:\d+(?:\+\d+)?|-))+)$", table, re.M)
    wanted = {(kernel, real) for kernel in KERNELS for real in ("float", "double")}
    wanted |= {(kernel, "float") for kernel in TEXTURE} | HELPERS | LISTS
    wanted |= {(kernel, real) for kernel in SPLAT for real in ("float", "double")}
    assert {row[:3] for row in rows} == {(card, *one) for card in ("sm_80", "sm_90") for one in wanted}
    for card, kernel, real, cells in rows:
        taken = [[int(n) for n in cell.split("+")] for cell in cells.split() if cell != "-"]
        assert len(taken) == (INTEGRATORS if kernel in KERNELS else 1)
        limit = 128 if real == "float" else 168  # four blocks of 128 threads fit an SM, or three
        limit = 255 if kernel == "splat_chain" else limit  # once a Gaussian, all in float64
        assert all(0 < registers <= limit for registers, *_ in taken), (card, kernel, real)
        assert all(sum(spilled) <= 64 for _, *spilled in taken), (card, kernel, real)


LOAD = """
import ctypes, sys, torch
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
from xreg.ops import registry
torch.ops.load_library(sys.argv[2])
has = torch._C._dispatch_has_kernel_for_dispatch_key
assert all(has(f"xreg::{name}", "CUDA") for name in registry.SCHEMAS)
assert has("xreg_cuda::atlas_new", "CUDA") and has("xreg_cuda::atlas_project", "CUDA")
assert torch.ops.xreg_cuda.atlas_free(0) == 0
"""


@pytest.mark.slow
@pytest.mark.usefixtures("everything")
@pytest.mark.skipif(
    bool(torch.version.cuda), reason="this torch has CUDA, and `make install` links the library"
)
def test_the_library_links_and_registers(tmp_path: pathlib.Path) -> None:
    """In a torch for the CPU, with the one function of torch's CUDA half that is called made up."""
    compiler, nvcc = shutil.which("cc"), shutil.which(os.environ.get("NVCC", "nvcc"))
    if not (compiler and nvcc):
        pytest.skip("cc and nvcc are not on the path")
    stub, library, source = (tmp_path / name for name in ("stub.so", "xreg_cuda.so", "stub.c"))
    source.write_text("int aoti_torch_get_current_cuda_stream(int d, void** s) { *s = 0; return d; }")
    objects = sorted(map(str, (ROOT / "build" / "cuda-check").glob("*.o")))
    folders = [f"-L{path}" for path in cpp_extension.library_paths()]
    for command in (
        [compiler, "-shared", "-fPIC", str(source), "-o", str(stub)],
        [nvcc, "-shared", *objects, *folders, "-ltorch", "-ltorch_cpu", "-o", str(library)],
        [sys.executable, "-c", LOAD, str(stub), str(library)],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
