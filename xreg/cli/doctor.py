"""`xreg doctor`: what is installed, which kernels run here and why, and whether they are right."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import click

from xreg.cli.terminal import Fact, Terminal
from xreg.cli.verb import verb

TOLERANCE = 2e-5  # of the largest value: float32 kernels against float64 torch
_ISA = {
    "avx512": "the widest instructions that this CPU has",
    "avx2": "this CPU has no AVX-512",
    "base": "this CPU has neither AVX-512 nor AVX2, or is no x86",
    "scalar": "asked for",
}


@verb("doctor", "What is installed, which kernels run, and are they right?")
@click.option("--quick", is_flag=True, help="Leave out the self-test.")
def command(terminal: Terminal, quick: bool) -> dict[str, Any]:
    """Say what is installed, which backend runs and why, and test it.

    The test renders a small volume with each integrator (and derivatives of trilinear and exact), by the
    kernels and by the reference in plain torch, and prints how far they differ. Exit code 1 if that is too
    far.
    """
    with terminal.working("looking at this machine"):
        groups = {
            "system": _system(),
            "python packages": _packages(),
            "compilers": _compilers(),
            "kernels": _kernels(),
        }
    for title, facts in groups.items():
        terminal.facts(title, facts)
        terminal.say()
    result = {title: {f.name: f.to_json() for f in facts} for title, facts in groups.items()}
    if quick:
        return result
    with terminal.working("testing the kernels"):
        facts, worst = _self_test()
    terminal.facts("self-test", facts)
    passed = worst <= TOLERANCE
    verdict = (
        "passed" if passed else "FAILED: the kernels are wrong on this machine; rebuild them, and report it"
    )
    terminal.say(
        f"\nself-test {verdict} (off by {worst:.1e} of the largest value; {TOLERANCE:.0e} is allowed)"
    )
    test = {f.name: f.to_json() for f in facts}
    return {**result, "self-test": test, "passed": passed, "status": "done" if passed else "failed"}


def _system() -> list[Fact]:
    import torch

    from xreg import __version__

    facts = [
        Fact("xreg", __version__, note=os.path.dirname(os.path.dirname(os.path.dirname(__file__)))),
        Fact("python", platform.python_version(), note=sys.executable),
        Fact("system", f"{platform.system()} {platform.release()}", note=platform.machine()),
        Fact("CPU cores", os.cpu_count(), note=f"{_usable_cores()} usable by this process"),
        Fact(
            "torch threads",
            torch.get_num_threads(),
            note=f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}; the kernels use as many",
        ),
        Fact(
            "torch",
            torch.__version__,
            note=f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU",
        ),
    ]
    if torch.cuda.is_available():
        for n in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(n)
            facts.append(
                Fact(
                    f"GPU {n}",
                    about.name,
                    note=f"{about.total_memory / 2**30:.0f} GiB, sm_{about.major}{about.minor}",
                )
            )
    else:
        why = (
            "this torch is built for the CPU" if torch.version.cuda is None else "torch finds no CUDA device"
        )
        facts.append(Fact("GPU", None, note=why, text="none"))
    return facts


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _packages() -> list[Fact]:
    """What xreg requires, and the extras, from its own metadata."""
    facts, seen = [], set()
    for requirement in metadata.requires("xreg") or []:
        name = re.match(r"[A-Za-z0-9._-]+", requirement).group(0)
        extra = re.search(r"extra == ['\"]([^'\"]+)", requirement)
        wanted = requirement.split(";")[0].strip().removeprefix(name) or "any version"
        if name in seen:
            continue
        seen.add(name)
        use = f"for [{extra.group(1)}]" if extra else "required"
        try:
            facts.append(Fact(name, metadata.version(name), origin=use, note=wanted))
        except metadata.PackageNotFoundError:
            facts.append(Fact(name, None, origin=use, note=wanted, text="not installed"))
    return facts


def _compilers() -> list[Fact]:
    compiler = os.environ.get("CXX", "c++")
    return [
        Fact("C++", *_version_of(compiler), text="" if shutil.which(compiler) else "none"),
        Fact("nvcc", *_version_of("nvcc"), text="" if shutil.which("nvcc") else "none"),
    ]


def _version_of(program: str) -> tuple[str | None, str, str, str]:
    """The line of `program --version` that has a version in it, and where the program is."""
    path = shutil.which(program)
    if path is None:
        return None, "", "", f"{program} is not on the path; needed only to build"
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, "", "", f"{path} does not run: {error}"
    lines = [line.strip() for line in done.stdout.splitlines() if re.search(r"\d+\.\d+", line)]
    best = next((line for line in lines if "release" in line), lines[0] if lines else "")
    return best or None, "", "", path


def _kernels() -> list[Fact]:
    from xreg.ops.registry import backend, library_path

    name, path = backend(), library_path()
    asked = os.environ.get("XREG_ISA")
    if name == "reference":
        why = (
            f"{path.name} does not load in this torch" if path.exists() else f"{path.name} has not been built"
        )
        why += "; `pip install --no-build-isolation .` builds it, where a C++ compiler is"
    else:
        why = _ISA.get(name, "")
        if asked:
            why = (
                f"XREG_ISA={asked} asks for it"
                if asked == name
                else f"{why}; XREG_ISA={asked} cannot run here"
            )
    return [
        Fact("library", str(path) if path.exists() else None, text="" if path.exists() else "not built"),
        Fact("backend on the CPU", name, note=why),
        _cuda_backend(),
    ]


def _cuda_backend() -> Fact:
    import torch

    from xreg.ops.registry import cuda_reason, library_path

    name = "backend on the GPU"
    if not torch.cuda.is_available():
        return Fact(name, None, note="no GPU that torch can use", text="none")
    reason = cuda_reason()
    if reason is None:
        return Fact(name, "cuda", note=str(library_path("cuda")))
    return Fact(name, "reference", note=f"{reason}: plain torch answers, slowly. {_cuda_cure()}")


def _cuda_cure() -> str:
    """What to do where a CUDA torch has no kernels."""
    import torch

    build = "run `pip install --no-build-isolation .` in the sources of xreg"
    if shutil.which(os.environ.get("NVCC", "nvcc")) is None:
        return (
            f"There is no nvcc on the path: install the CUDA toolkit {torch.version.cuda} (or name its nvcc "
            f"in NVCC), and {build}"
        )
    return f"nvcc is here, so {build}"


def _self_test() -> tuple[list[Fact], float]:
    """Kernels (float32) against plain torch (float64), image and moments, of each integrator and device."""
    import torch

    from xreg.ops import reference, registry
    from xreg.ops.project import INTEGRATORS, metric_of

    registry.load()
    mu, rays = _small_scene()
    metric = metric_of(torch.diag(torch.tensor([0.9, 1.1, 1.7])))
    facts = []
    for name, number in INTEGRATORS.items():
        known = (metric, 14, 18, number, 60, True)
        with _one_thread():
            truth = reference.project(mu, 1.0, rays, *known)
        # the derivatives of these two jump where a ray meets a border between voxels
        what = ("image",) if name in ("siddon", "joseph") else ("image", "derivatives")
        for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
            title = name if device == "cpu" else f"{name} on the GPU"

            def run(device: str = device, known: tuple = known) -> Any:
                return torch.ops.xreg.project(mu.float().to(device), 1.0, rays.to(device), *known)

            facts.append(_compared(title, run, dict(zip(what, truth, strict=False))))
    if torch.cuda.is_available():
        facts += _gpu_tests(mu, rays, metric)
    return facts, max(error for fact in facts for error in fact.value.values())


def _gpu_tests(mu: Any, rays: Any, metric: Any) -> list[Fact]:
    """The transpose, and Joseph's rule over textures, on the GPU against plain torch on the CPU."""
    import torch

    from xreg.ops import reference, registry

    g = torch.linspace(-1, 1, 2 * 14 * 18, dtype=torch.float64).reshape(2, 14, 18)
    known = (1.0, *mu.shape, None, False)
    with _one_thread():
        back = reference.backproject(g, *known, rays, metric, 0, 60)
        image, _ = reference.project(mu, 1.0, rays, metric, 14, 18, 1, 1, False)

    def transpose() -> tuple[Any, ...]:
        return (torch.ops.xreg.backproject(g.float().cuda(), *known, rays.cuda(), metric, 0, 60),)

    facts = [_compared("transpose on the GPU", transpose, {"volume": back})]
    if registry.cuda_reason() is None:
        from xreg.ops.atlas import Atlas

        scale = float(mu.max()) / 32767
        voxels = (mu / scale).round().to(torch.int16)

        def textures() -> tuple[Any, ...]:
            return Atlas(voxels.cuda(), scale).project(rays.cuda(), metric, (14, 18))

        facts.append(_compared("joseph by textures", textures, {"image": image}))
    return facts


def _compared(title: str, run: Callable[[], tuple[Any, ...]], truths: dict[str, Any]) -> Fact:
    """How far each result of a run is from what is true, and how long it took."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the facts above say which backend answers
        found = run()
    errors = {w: _relative(f.cpu(), t) for (w, t), f in zip(truths.items(), found, strict=False)}
    taken = f"{1000 * (time.perf_counter() - start):.1f} ms"
    return Fact(title, errors, note=taken, text=", ".join(f"{w} {e:.1e}" for w, e in errors.items()))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Plain torch on small tensors is quicker on one thread, where other programs keep the cores busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _small_scene() -> tuple[Any, Any]:
    """A smooth volume [10, 14, 12] and two views through it, in voxel coordinates."""
    import torch

    generator = torch.Generator().manual_seed(0)
    mu = torch.rand(10, 14, 12, generator=generator, dtype=torch.float64) * 0.05
    sources = torch.tensor([[5.3, -60.2, 4.1], [-58.7, 6.4, 5.2]], dtype=torch.float64)
    corners = torch.tensor([[-6.1, 80.3, -4.2], [83.4, -7.7, -4.9]], dtype=torch.float64)
    across = torch.tensor([[1.25, 0.02, 0.01], [0.03, 1.45, 0.02]], dtype=torch.float64)
    down = torch.tensor([[0.01, 0.03, 1.31], [0.02, 0.01, 1.37]], dtype=torch.float64)
    still = torch.zeros_like(sources)
    return mu, torch.stack([sources, still, still, corners - sources, across, down], 1)


def _relative(found: Any, true: Any) -> float:
    """The largest difference over the largest value; infinite where a value is NaN or infinite."""
    error = float((found.double() - true).abs().max() / true.abs().max())
    return error if math.isfinite(error) else math.inf
