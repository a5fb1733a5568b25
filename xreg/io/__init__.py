"""Reading and writing: CT volumes, label maps, radiographs, projection sets, poses, cameras, landmarks.

Names are resolved when they are first used, so that ``import xreg.io`` loads none of the file libraries.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "atomic_write": "files",
    "read_json": "files",
    "write_json": "files",
    "read_nifti": "nifti",
    "write_nifti": "nifti",
    "LabelMap": "labels",
    "load_labels": "labels",
    "load_volume": "volumes",
    "save_volume": "volumes",
    "Provenance": "provenance",
    "Radiograph": "radiograph",
    "load_radiograph": "radiograph",
    "linearise": "intensity",
    "field_mask": "intensity",
    "read_image": "images",
    "save_image": "images",
    "save_png16": "images",
    "load_dicom_ct": "dicom_ct",
    "PoseRecord": "poses",
    "load_pose": "poses",
    "save_pose": "poses",
    "load_tfm": "poses",
    "save_tfm": "poses",
    "load_camera": "poses",
    "save_camera": "poses",
    "load_rig": "poses",
    "save_rig": "poses",
    "ProjectionSet": "projections",
    "save_projections": "projections",
    "load_projections": "projections_any",
    "from_tigre": "projections_tools",
    "VoxelGrid": "voxel_grid",
    "Landmarks": "landmarks",
    "PixelLandmarks": "landmarks",
    "MatchedLandmarks": "landmarks",
    "load_landmarks": "landmarks",
    "save_landmarks": "landmarks",
    "load_pixels": "landmarks",
    "match_landmarks": "landmarks",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
