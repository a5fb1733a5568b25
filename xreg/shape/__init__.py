"""From films to labelled bones: label schemes, scores, meshes and clinical measures.

World is RAS mm; label maps are integers [D, H, W] on a `VoxelGrid`.  Names load on first use.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "SCHEMES": "schemes",
    "Scheme": "schemes",
    "relabel": "schemes",
    "scheme": "schemes",
    "sides": "schemes",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
