"""The operators of xreg: one schema each, whichever library answers.

Schemas and shapes are registered here once.  The compiled library (`xreg/_lib`) provides the kernels;
where it is missing, the torch references (`reference`, `splat_reference`) answer in its place and says so
once.
"""

import ctypes
import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

BEAM = "Tensor rays, Tensor metric"
SCHEMAS = {
    "project": f"(Tensor mu, float scale, {BEAM}, int height, int width, int integrator, int steps,"
    " bool moments) -> (Tensor, Tensor)",
    "project_labels": f"(Tensor mu, float scale, Tensor labels, int channels, bool soft, {BEAM}, int height,"
    " int width, int integrator, int steps) -> Tensor",
    "label_moments": f"(Tensor cotangent, Tensor mu, float scale, Tensor labels, bool soft, {BEAM},"
    " int integrator, int steps) -> Tensor",
    "backproject": "(Tensor cotangent, float scale, int depth, int rows, int cols, Tensor? labels, bool soft,"
    f" {BEAM}, int integrator, int steps) -> Tensor",
}
GAUSSIANS = "Tensor mean, Tensor scale, Tensor rotation, Tensor density"
SPLAT_SCHEMAS = {
    "splat": f"({GAUSSIANS}, Tensor rays, int height, int width, int kind, float cutoff, bool moments)"
    " -> (Tensor, Tensor)",
    "splat_backward": f"(Tensor cotangent, {GAUSSIANS}, Tensor rays, int kind, float cutoff)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "voxelize": f"({GAUSSIANS}, Tensor affine, int depth, int rows, int cols, float cutoff) -> Tensor",
    "voxelize_backward": f"(Tensor cotangent, {GAUSSIANS}, Tensor affine, float cutoff)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
}
SCHEMAS |= SPLAT_SCHEMAS
LIBRARY = torch.library.Library("xreg", "DEF")


def _result(mu):
    return torch.float64 if mu.dtype == torch.float64 else torch.float32


def _fake_project(mu, scale, rays, metric, height, width, integrator, steps, moments):
    image = mu.new_empty((rays.shape[0], height, width), dtype=_result(mu))
    return image, image.new_empty((rays.shape[0], 6 if moments else 0, height, width))


def _fake_project_labels(mu, scale, labels, channels, soft, rays, metric, height, width, integrator, steps):
    return mu.new_empty((rays.shape[0], channels, height, width), dtype=_result(mu))


def _fake_label_moments(cotangent, mu, scale, labels, soft, rays, metric, integrator, steps):
    return cotangent.new_empty((rays.shape[0], 6, *cotangent.shape[-2:]))


def _fake_backproject(cotangent, scale, depth, rows, cols, labels, soft, rays, metric, integrator, steps):
    return cotangent.new_empty((depth, rows, cols))


def _fake_splat(mean, scale, rotation, density, rays, height, width, kind, cutoff, moments):
    views = rays.shape[0]
    return mean.new_empty((views, height, width)), mean.new_empty((views, 6 if moments else 0, height, width))


def _fake_splat_backward(cotangent, mean, scale, rotation, density, rays, kind, cutoff):
    return tuple(t.new_empty(t.shape) for t in (mean, scale, rotation, density, rays))


def _fake_voxelize(mean, scale, rotation, density, affine, depth, rows, cols, cutoff):
    return mean.new_empty((depth, rows, cols))


def _fake_voxelize_backward(cotangent, mean, scale, rotation, density, affine, cutoff):
    return tuple(t.new_empty(t.shape) for t in (mean, scale, rotation, density))


FAKES = {
    "project": _fake_project,
    "project_labels": _fake_project_labels,
    "label_moments": _fake_label_moments,
    "backproject": _fake_backproject,
    "splat": _fake_splat,
    "splat_backward": _fake_splat_backward,
    "voxelize": _fake_voxelize,
    "voxelize_backward": _fake_voxelize_backward,
}


def _register() -> None:
    for name, schema in SCHEMAS.items():
        LIBRARY.define(name + schema)
        torch.library.register_fake(f"xreg::{name}", FAKES[name], lib=LIBRARY)


def library_path(half: str = "cpu") -> Path:
    """Where the compiled library is, or would be: the 'cpu' half or the 'cuda' half."""
    folder = Path(__file__).parent.parent / "_lib"
    found = [p for p in sorted(folder.glob(f"xreg_{half}.*")) if p.suffix in {".so", ".dylib"}]
    return found[0] if found else folder / f"xreg_{half}.so"


def _open(path: Path) -> str:
    """Load a library of operators; empty, or why it could not be."""
    if not path.exists():
        return f"{path.name} has not been built"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load in torch {torch.__version__}: {error}"
    return ""


def _fall_back(key: str) -> None:
    """Let the torch reference answer for a device."""
    from xreg.ops import reference, splat_reference

    for name in SCHEMAS:
        answer = getattr(splat_reference if name in SPLAT_SCHEMAS else reference, name)
        LIBRARY.impl(name, _slow_on_a_card(answer) if key == "CUDA" else answer, key)


@functools.cache
def _say_slow_on_a_card() -> None:
    warnings.warn(
        f"xreg runs on its slow torch reference on the GPU, because {cuda_reason()}. `pip install "
        f"--no-build-isolation .` builds the kernels where nvcc of CUDA {torch.version.cuda} is on the path; "
        "`xreg doctor` says more.",
        RuntimeWarning,
        stacklevel=2,
    )


def _slow_on_a_card(answer: Callable) -> Callable:
    """The reference, for tensors on a card: it says once that the kernels are missing."""

    def run(*arguments):
        _say_slow_on_a_card()
        return answer(*arguments)

    return run


@functools.cache
def cuda_reason() -> str | None:
    """Why the CUDA kernels do not answer for tensors on a card, and plain torch does; None where they do."""
    if not torch.version.cuda:
        return f"torch {torch.__version__} is built without CUDA"
    return _open(library_path("cuda")) or None


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The compiled host library, or None with the reason why it is not used."""
    _fall_back("MPS")
    if cuda_reason() is not None:
        _fall_back("CUDA")
    reason = _open(library_path())
    if not reason:
        library = ctypes.CDLL(str(library_path()))
        library.xreg_isa.restype = ctypes.c_char_p
        return library, ""
    _fall_back("CPU")
    warnings.warn(
        f"xreg runs on its slow torch reference, because {reason}. Build the kernels with "
        "`pip install --no-build-isolation .` where a C++ compiler is installed; `xreg doctor` says more.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None, reason


def load() -> bool:
    """Make the operators ready; True where the compiled host kernels answer."""
    return _load()[0] is not None


# As torch.compiler.assume_constant_result, whose import costs a second: torch.compile calls it while tracing.
load._dynamo_marked_constant = True


def backend(device: torch.device | str = "cpu") -> str:
    """Which kernels answer: 'avx512', 'avx2', 'base' or 'scalar' on the host, 'cuda' on a card; 'reference'
    where none of ours do.
    """
    if torch.device(device).type == "cuda":
        return "reference" if cuda_reason() else "cuda"
    library, _ = _load()
    return "reference" if library is None else library.xreg_isa().decode()


def use_backend(name: str) -> bool:
    """Run the named build of the host kernels from now on; False where this machine cannot."""
    library, _ = _load()
    return library is not None and bool(library.xreg_set_isa(name.encode()))


_register()
