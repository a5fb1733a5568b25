"""From films to labelled bones: label schemes, scores, meshes and clinical measures.

World is RAS mm; label maps are integers [D, H, W] on a `VoxelGrid`.  Names load on first use.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "SCHEMES": "schemes",
    "Scheme": "schemes",
    "Scores": "scores",
    "ShapeModel": "predict",
    "ShapePrediction": "predict",
    "ShapeTrainSettings": "train_settings",
    "ShippedCase": "shipped",
    "Measure": "measures",
    "Measures": "measures",
    "ReconstructSettings": "reconstruction",
    "Reconstruction": "reconstruction",
    "align_surface": "reference",
    "bone_meshes": "meshes",
    "compare_surfaces": "reference",
    "load_shipped": "shipped",
    "measure": "measures",
    "measure_probabilities": "measures",
    "read_references": "reference",
    "reconstruct": "reconstruction",
    "relabel": "schemes",
    "save_mesh": "meshes",
    "save_reconstruction": "report",
    "scheme": "schemes",
    "score": "scores",
    "shipped_patients": "shipped",
    "sides": "schemes",
    "surface_mesh": "meshes",
    "train": "training",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
