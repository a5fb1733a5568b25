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


def nvcc_path(torch):
    """nvcc, where it is installed beside a torch that was built for CUDA."""
    from torch.utils.cpp_extension import CUDA_HOME

    found = shutil.which("nvcc") or (CUDA_HOME and shutil.which("nvcc", path=f"{CUDA_HOME}/bin"))
    return found if found and torch.version.cuda else None


def cuda_jobs(nvcc, out, includes):
    """(command, object) for each CUDA source."""
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES]
    last = CUDA_ARCHITECTURES[-1]
    targets.append(f"-gencode=arch=compute_{last},code=compute_{last}")  # newer cards compile from PTX
    flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC", *targets]
    kernels, bind = out / "project_cu.o", out / "bind_cuda.o"
    return [
        ([nvcc, *flags, "-c", "cuda/project.cu", "-o", str(kernels)], kernels),
        (
            [nvcc, *flags, STABLE_ABI, "-DUSE_CUDA", *includes, "-c", "cuda/bind_cuda.cpp", "-o", str(bind)],
            bind,
        ),
    ]


class BuildKernels(build_ext):
    """Compiles cuda/ into xreg/_lib/: xreg_cpu always, xreg_cuda where it can be."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + (".dylib" if sys.platform == "darwin" else ".so")

    def run(self):
        torch, *_ = torch_paths()
        if nvcc_path(torch):
            self.extensions.append(Extension("xreg._lib.xreg_cuda", sources=[]))
        super().run()

    def build_extension(self, ext):
        torch, includes, libraries = torch_paths()
        out = Path(self.build_temp).resolve()
        out.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        include_flags = [f"-I{p}" for p in includes]
        search = [f"-L{p}" for p in libraries]
        if ext.name.endswith("cuda"):
            linker = [nvcc_path(torch)]
            jobs, names = cuda_jobs(*linker, out, include_flags), ["-ltorch", "-ltorch_cpu", "-ltorch_cuda"]
        else:
            linker = [os.environ.get("CXX", "c++")]
            if shutil.which(linker[0]) is None:
                sys.exit("xreg: no C++ compiler found (install g++, or name one in CXX)")
            jobs, names = host_jobs(linker, out, include_flags), ["-ltorch", "-ltorch_cpu"]
        run_all([command for command, _ in jobs])
        apple = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        run_all(
            [[*linker, "-shared", *[str(o) for _, o in jobs], *search, *names, *apple, "-o", str(target)]]
        )


setup(ext_modules=[Extension("xreg._lib.xreg_cpu", sources=[])], cmdclass={"build_ext": BuildKernels})
