"""Builds the CUDA sources for a card that the host plays (`cuda_runtime_api.h` beside this)."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CUDA = ROOT / "cuda"
TORCH = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"]  # as setup.py compiles the binding
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
DEVICE = ["-D__CUDACC__", "-include", "cuda_runtime_api.h"]
LAUNCH = re.compile(r"([\w:]+(?:<[\w ,:<>]*?>)?)<<<(.*?)>>>\(", re.S)


def translated(source: str) -> str:
    """A CUDA source as C++: launches become calls, and the operators answer for tensors on the host."""
    return re.sub(r"(_IMPL\(\w+, )CUDA,", r"\1CPU,", LAUNCH.sub(r"card::launch(\1, \2)(", source))


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def build() -> Path:
    """The library of operators, compiled anew where a source has changed."""
    sources = sorted([*CUDA.glob("*.cu"), CUDA / "bind_cuda.cpp", HERE / "card.cpp"])
    read = [*CUDA.glob("*"), *HERE.rglob("*")]
    text = b"".join(p.read_bytes() for p in sorted(read) if p.suffix in {".cu", ".cuh", ".h", ".cpp", ".py"})
    folder = ROOT / "build" / "host-card"
    library = folder / f"xreg_card_{hashlib.sha256(text + torch.__version__.encode()).hexdigest()[:12]}.so"
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{p}" for p in (HERE, CUDA, *cpp_extension.include_paths())]
    libraries = [*(f"-L{p}" for p in cpp_extension.library_paths()), "-ltorch", "-ltorch_cpu"]
    with tempfile.TemporaryDirectory(dir=folder) as place, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(lambda s: _compile(s, Path(place), includes), sources))
        made = Path(place) / library.name
        # its own answers for torch's CUDA half go before those of a torch without one
        _run([compiler(), "-shared", "-Wl,-Bsymbolic", *objects, *libraries, "-o", str(made)])
        for old in folder.glob("*.so"):
            old.unlink(missing_ok=True)
        made.replace(library)
    return library


def _compile(source: Path, folder: Path, includes: list[str]) -> str:
    there = folder / f"{source.stem}_{source.suffix[1:]}.cpp"
    there.write_text(f'#line 1 "{source}"\n{translated(source.read_text())}')
    made = there.with_suffix(".o")
    extra = DEVICE if source.suffix == ".cu" else TORCH
    _run([compiler(), *FLAGS, *extra, *includes, "-c", str(there), "-o", str(made)])
    return str(made)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed\n{done.stdout}{done.stderr}")
