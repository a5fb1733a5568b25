"""Builds the kernels: a host library always, a CUDA library where nvcc and a CUDA torch are.

The libraries are plain shared objects that register torch operators through LibTorch's stable ABI,
so they do not depend on the Python version and load in every torch from 2.10 on.  Each source is
compiled with the flags of its machine; `pip install --no-build-isolation .` builds against the torch
that is installed.
"""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10
SHARED = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
          "-fno-signed-zeros", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]  # fmt: skip
X86 = platform.machine().lower() in {"x86_64", "amd64"}
ISA_FLAGS = {
    "base": [],
    "avx2": ["-march=x86-64-v3", "-mtune=haswell"],
    # The tuning matters: without it GCC does not use gathers or 512-bit registers.
    "avx512": ["-march=x86-64-v4", "-mtune=skylake-avx512", "-mprefer-vector-width=512"],
}
CUDA_ARCHITECTURES = ["80", "90"]


def torch_paths():
    """Include and library folders of the torch that is installed."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        sys.exit("xreg: install torch first, then run pip with --no-build-isolation (or use `make install`)")
    return torch, cpp_extension.include_paths(), cpp_extension.library_paths()


def host_jobs(compiler, out, includes):
    """(command, object) for each host source; the fast projector once for each instruction set."""
    jobs = []
    for isa in ["base", "avx2", "avx512"] if X86 else ["base"]:
        obj = out / f"project_{isa}.o"
        flags = [*SHARED, *ISA_FLAGS[isa], "-fopenmp-simd", f"-DXREG_ISA={isa}"]
        jobs.append(([*compiler, *flags, "-c", "cuda/project_cpu.cpp", "-o", str(obj)], obj))
    x86 = ["-DXREG_X86"] if X86 else []
    for name, extra in [("rays_cpu", []), ("select_cpu", x86), ("bind_cpu", [STABLE_ABI, *includes])]:
        obj = out / f"{name}.o"
        jobs.append(([*compiler, *SHARED, *extra, "-c", f"cuda/{name}.cpp", "-o", str(obj)], obj))
    return jobs


def run_all(commands):
    """Run commands on all cores; stop at the first that fails, with what it printed."""

    def one(command):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"xreg: {' '.join(command)} failed\n{done.stdout}{done.stderr}")

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        list(pool.map(one, commands))


class BuildKernels(build_ext):
    """Compiles cuda/ into xreg/_lib/."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + (".dylib" if sys.platform == "darwin" else ".so")

    def build_extension(self, ext):
        torch, includes, libraries = torch_paths()
        out = Path(self.build_temp).resolve()
        out.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = [os.environ.get("CXX", "c++")]
        if shutil.which(compiler[0]) is None:
            sys.exit("xreg: no C++ compiler found (install g++, or name one in CXX)")
        include_flags = [f"-I{p}" for p in includes]
        jobs = host_jobs(compiler, out, include_flags)
        run_all([command for command, _ in jobs])
        link = ["-shared", *[str(o) for _, o in jobs], *[f"-L{p}" for p in libraries], "-ltorch", "-ltorch_cpu", "-lc10"]
        if sys.platform == "darwin":
            link += ["-undefined", "dynamic_lookup"]
        run_all([[*compiler, *link, "-o", str(target)]])


setup(ext_modules=[Extension("xreg._lib.xreg_cpu", sources=[])], cmdclass={"build_ext": BuildKernels})
