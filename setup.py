"""Builds the kernels: a host library always, a CUDA library where nvcc and a CUDA torch are.

`python setup.py cuda_check` compiles the CUDA sources wherever nvcc is, with any torch and no card,
and writes down the registers that each kernel takes.

The libraries are plain shared objects that register torch operators through LibTorch's stable ABI,
so they do not depend on the Python version and load in every torch from 2.10 on.  Each source is
compiled with the flags of its machine; `pip install --no-build-isolation .` builds against the torch
that is installed.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10
SHARED = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
          "-fno-signed-zeros", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"]  # fmt: skip
X86 = platform.machine().lower() in {"x86_64", "amd64"}
ISA_FLAGS = {
    "base": [],
    "avx2": ["-march=x86-64-v3", "-mtune=haswell"],
    # The tuning matters: without it GCC does not use gathers or 512-bit registers.
    "avx512": ["-march=x86-64-v4", "-mtune=skylake-avx512", "-mprefer-vector-width=512"],
}
CUDA_ARCHITECTURES = ["sm_80", "sm_90"]  # and PTX, from which newer cards compile
INTEGRATORS = ["trilinear", "joseph", "siddon", "exact"]  # as numbered in cuda/api.h
ANY = "any"  # a kernel that does not march


def torch_paths():
    """Include and library folders of the torch that is installed."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        sys.exit("xreg: install torch first, then run pip with --no-build-isolation (or use `make install`)")
    return torch, cpp_extension.include_paths(), cpp_extension.library_paths()


def host_jobs(compiler, out, includes):
    """(command, object) for each host source; the fast kernels once for each instruction set."""
    jobs = []
    for name, isa in product(["splat", "project"], ["avx512", "avx2", "base"] if X86 else ["base"]):
        obj = out / f"{name}_{isa}.o"
        flags = [*SHARED, *ISA_FLAGS[isa], "-fopenmp-simd", f"-DXREG_ISA={isa}"]
        jobs.append(([*compiler, *flags, "-c", f"cuda/{name}_cpu.cpp", "-o", str(obj)], obj))
    x86 = ["-DXREG_X86"] if X86 else []
    torch = [STABLE_ABI, *includes]
    for name, extra in [("rays_cpu", []), ("splat_oracle", []), ("select_cpu", x86), ("bind_cpu", torch)]:
        obj = out / f"{name}.o"
        jobs.append(([*compiler, *SHARED, *extra, "-c", f"cuda/{name}.cpp", "-o", str(obj)], obj))
    return jobs


def run_all(commands):
    """Run commands on all cores and return what they printed; stop at the first that fails."""

    def one(command):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"xreg: {' '.join(command)} failed\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return list(pool.map(one, commands))


def find_nvcc():
    """nvcc from NVCC, the path or a CUDA toolkit in its usual place; None where there is none."""
    if "NVCC" in os.environ:
        return shutil.which(os.environ["NVCC"])
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(f"{h}/bin" for h in homes if h))


def cuda_jobs(nvcc, out, includes):
    """(command, object) for each CUDA source."""
    # One front end for all cards: nothing here is particular to the newer, and it is half of the time.
    oldest = CUDA_ARCHITECTURES[0].replace("sm", "compute")
    targets = f"-gencode=arch={oldest},code=[{','.join([*CUDA_ARCHITECTURES, oldest])}]"
    flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC"]
    jobs = []
    for source in sorted((ROOT / "cuda").glob("*.cu")):
        obj = out / f"{source.stem}_cu.o"
        jobs.append(([nvcc, *flags, targets, "-Xptxas=-v", "-c", f"cuda/{source.name}", "-o", str(obj)], obj))
    bind = out / "bind_cuda.o"
    torch_flags = [STABLE_ABI, "-DUSE_CUDA", *includes]
    jobs.append(([nvcc, *flags, *torch_flags, "-c", "cuda/bind_cuda.cpp", "-o", str(bind)], bind))
    return jobs


def resources(printed):
    """{(architecture, kernel, result): {integrator: (registers, bytes spilled)}} from what ptxas -v printed.

    Variants of a kernel (voxel type, index width, label rule) count as one, by their worst; one that does not
    march has ANY for its integrator.
    """
    found = {}
    entries = re.findall(
        r"entry function '(\S+)' for '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", printed, re.S
    )
    for name, card, spilled, registers in entries:
        if not (ours := re.search(r"\d([a-z_]+)_kernel", name)) or "3cub" in name:
            continue  # a kernel of the toolkit's
        kernel = ours.group(1)
        fixed = re.search(r"_kernelI.*?IntegratorELS\w*_(\d)E", name)
        if kernel == "spread" and "WholeE" not in name:
            kernel = "spread, any order"
        moments = " + moments" if "Lb1E" in name and not kernel.endswith("prepare") else ""
        result = "double" if re.search("VoxelsId|_kernelId", name) else "float"
        row = found.setdefault((card, kernel + moments, result), {})
        column = INTEGRATORS[int(fixed.group(1))] if fixed else ANY
        worst = row.get(column, (0, 0))
        new = (int(registers), int(spilled))
        row[column] = tuple(max(pair) for pair in zip(worst, new, strict=True))
    return found


def resource_table(found):
    """The registers of a thread, and after a plus the bytes that it spills."""
    columns = [*INTEGRATORS, ANY]
    head = f"{'registers + bytes spilled':32}" + "".join(f"{name:>11}" for name in columns)
    lines = []
    for card, kernel, result in sorted(found):
        cells = [found[card, kernel, result].get(name) for name in columns]
        shown = ["-" if c is None else f"{c[0]}+{c[1]}" if c[1] else str(c[0]) for c in cells]
        lines.append(f"{card} {kernel:19} {result:6}" + "".join(f"{cell:>11}" for cell in shown))
    return "\n".join([head, *lines]) + "\n"


class CudaCheck(Command):
    """Compiles the CUDA sources and writes what their kernels take to build/cuda-check.txt."""

    description = "compile the CUDA sources as a check, where nvcc is installed"
    user_options = [("only=", None, "the one source to compile")]  # noqa: RUF012

    def initialize_options(self):
        self.only = None

    def finalize_options(self):
        pass

    def run(self):
        nvcc = find_nvcc()
        if nvcc is None:
            print("xreg: there is no nvcc here, so the CUDA sources are not compiled")
            return
        out = ROOT / "build" / "cuda-check"
        out.mkdir(parents=True, exist_ok=True)
        _, includes, _ = torch_paths()
        jobs = cuda_jobs(nvcc, out, [f"-I{p}" for p in includes])
        if self.only:
            run_all([command for command, _ in jobs if f"cuda/{self.only}" in command])
            return
        printed = "".join(run_all([command for command, _ in jobs]))
        out.with_suffix(".txt").write_text(resource_table(resources(printed)))
        print("xreg: the CUDA sources compile; build/cuda-check.txt says what each kernel takes")


class BuildKernels(build_ext):
    """Compiles cuda/ into xreg/_lib/: xreg_cpu always, xreg_cuda where it can be."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + (".dylib" if sys.platform == "darwin" else ".so")

    def run(self):
        torch, *_ = torch_paths()
        if torch.version.cuda and find_nvcc():
            self.extensions.append(Extension("xreg._lib.xreg_cuda", sources=[]))
        elif torch.version.cuda:
            print(
                f"xreg: this torch is built for CUDA {torch.version.cuda}, but there is no nvcc here. Only "
                "the host's kernels are built, and plain torch answers on the GPU, slowly. Install the CUDA "
                "toolkit, put nvcc on the path (or name it in NVCC), and install xreg again"
            )
        super().run()

    def build_extension(self, ext):
        _, includes, libraries = torch_paths()
        out = Path(self.build_temp).resolve()
        out.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        include_flags = [f"-I{p}" for p in includes]
        search = [f"-L{p}" for p in libraries]
        if ext.name.endswith("cuda"):
            linker = [find_nvcc()]
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


setup(
    ext_modules=[Extension("xreg._lib.xreg_cpu", sources=[])],
    cmdclass={"build_ext": BuildKernels, "cuda_check": CudaCheck},
)
