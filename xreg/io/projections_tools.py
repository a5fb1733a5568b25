"""Projection sets of NAF, SAX-NeRF, X-Gaussian (pickles), R²-Gaussian (folders) and TIGRE (in memory).

All are line integrals already, of an attenuation in 1 / the tool's own unit of length; a line integral has no
unit, so images are taken as they are and ``scale`` says what the tool's density 1 is in 1/mm.  Worlds are the
tools' own right-handed volume frames (x, y, z), in mm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import FileError, ImageError
from ..geometry import Rig
from ..geometry.conventions import CONVENTIONS
from .files import read_json
from .pickles import read_pickle
from .projections import ProjectionSet, load_array
from .voxel_grid import VoxelGrid

_PER_METRE = 1e-3  # NAF integrates in metres
_META = "meta_data.json"


def load_naf_pickle(path: str | PathLike) -> ProjectionSet:
    """Read a pickle of NAF, SAX-NeRF or X-Gaussian, without unpickling it (`read_pickle`).

    Training views become the set, validation views ``held_out``; ``image`` becomes the truth (density per
    metre, so scale is 1e-3).  Lengths of the file are mm, and offOrigin is left out, as NAF's own reader
    does. Pairs are (columns, rows).  Raises FileError, ImageError, GeometryError.
    """
    data = read_pickle(path)
    if not isinstance(data, Mapping) or not {"DSD", "DSO", "dDetector", "train"} <= data.keys():
        keys = sorted(map(str, data))[:20] if isinstance(data, Mapping) else type(data).__name__
        raise FileError(f"{path}: expected a NAF pickle with DSD, DSO, dDetector and train, got {keys}")
    try:
        train = _naf_views(data, data["train"])
        held_out = _naf_views(data, data["val"]) if data.get("val") else None
        grid, truth = None, None
        if data.get("nVoxel") is not None:
            counts = [int(n) for n in np.asarray(data["nVoxel"])]
            grid = VoxelGrid.box(
                counts[::-1], np.multiply(counts, np.asarray(data["dVoxel"], float)).tolist()
            )
        if data.get("image") is not None and grid is not None:
            truth = grid.volume(_from_xyz(data["image"]) * _PER_METRE)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, (FileError, ImageError)):
            raise
        raise FileError(f"{path}: an entry is missing or has another form ({error!r})") from error
    images, rig = train
    known = {"grid": grid, "scale": _PER_METRE, "provenance": {"format": "NAF pickle", "file": str(path)}}
    other = None if held_out is None else ProjectionSet(*held_out, **known)
    return ProjectionSet(images, rig, truth=truth, held_out=other, **known)


def _naf_views(data: Mapping[str, Any], views: Mapping[str, Any]) -> tuple[torch.Tensor, Rig]:
    images = _stack(views["projections"])
    tool = CONVENTIONS["naf"]
    height, width = images.shape[1:]
    known = {
        "DSD": data["DSD"],
        "DSO": data["DSO"],
        "nDetector": (width, height),
        "dDetector": tuple(np.asarray(data["dDetector"], float)),
        "offDetector": tuple(np.asarray(data.get("offDetector", (0, 0)), float)),
        "mode": str(data.get("mode", "cone")),
    }
    angles = np.asarray(views["angles"], float).ravel()[: len(images)]
    return images, Rig(tuple(tool.to_camera(tool.params(angle=a, **known)) for a in angles))


def load_r2_folder(folder: str | PathLike, *, unit_mm: float = 1.0) -> ProjectionSet:
    """Read an R²-Gaussian folder: meta_data.json and the .npy files it names.

    unit_mm: millimetres in one unit of its scanner (the published synthetic sets are cubes of two units, real
    sets are in mm).  proj_test becomes ``held_out``.  Paths must stay inside the folder.  Raises FileError,
    ImageError, GeometryError (R²-Gaussian ignores a detector offset, so a set with one is refused).
    """
    root = Path(folder)
    data = read_json(root / _META, "R²-Gaussian's meta_data.json")
    try:
        scanner = {k: v for k, v in data["scanner"].items() if v is not None}
        counts, edges = scanner["nVoxel"], np.multiply(scanner["sVoxel"], unit_mm)
        grid = VoxelGrid.box(counts[::-1], edges.tolist(), np.multiply(scanner.get("offOrigin", 0), unit_mm))
        train = _r2_views(root, scanner, data["proj_train"], unit_mm)
        test = _r2_views(root, scanner, data["proj_test"], unit_mm) if data.get("proj_test") else None
        truth = None
        if data.get("vol") and _inside(root, data["vol"]).is_file():
            truth = grid.volume(_from_xyz(load_array(_inside(root, data["vol"]))) / unit_mm)
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{root / _META}: an entry is missing or has another form ({error!r})") from error
    notes = {
        "format": "R²-Gaussian folder",
        "file": str(root),
        "unit_mm": unit_mm,
        "noise": scanner.get("noise"),
    }
    known = {"grid": grid, "scale": 1 / unit_mm, "provenance": notes}
    other = None if test is None else ProjectionSet(*test, **known)
    return ProjectionSet(*train, truth=truth, held_out=other, **known)


def _r2_views(
    root: Path, scanner: Mapping[str, Any], views: Sequence[Mapping[str, Any]], unit: float
) -> tuple[torch.Tensor, Rig]:
    shape = tuple(int(n) for n in scanner["nDetector"])
    images = _stack([load_array(_inside(root, view["file_path"]), shape) for view in views])
    tool = CONVENTIONS["r2_gaussian"]
    known = {
        "DSD": scanner["DSD"] * unit,
        "DSO": scanner["DSO"] * unit,
        "nDetector": shape,
        "sDetector": np.multiply(scanner["sDetector"], unit),
        "sVoxel": np.multiply(scanner["sVoxel"], unit),
        "offDetector": np.multiply(scanner.get("offDetector", (0.0, 0.0)), unit),
        "mode": scanner.get("mode", "cone"),
    }
    return images, Rig(tuple(tool.to_camera(tool.params(angle=view["angle"], **known)) for view in views))


def from_tigre(images: Any, geometry: Any, angles: Any) -> ProjectionSet:
    """A set from TIGRE's own objects: projections [N, V, U] as it stores them, its geometry, angles in
    radians.

    geometry: TIGRE's Geometry, or a mapping with the same names (DSD, DSO, nDetector, dDetector or sDetector,
    nVoxel and sVoxel; offDetector, offOrigin, COR, mode), in mm; DSD, DSO and offsets may be one a view.
    angles: [N] or [N, 3] (ZYZ).  World: centred on the volume.  Where offOrigin differs between the views,
    the volume's place does.  Raises ImageError, FileError, GeometryError.
    """
    get = geometry.get if isinstance(geometry, Mapping) else lambda name, d=None: getattr(geometry, name, d)
    images = _stack(images)
    count, tool = len(images), CONVENTIONS["tigre"]
    turns = np.asarray(angles, float).reshape(len(angles), -1)
    if len(turns) != count or turns.shape[1] not in (1, 3):
        raise ImageError(f"angles must be [N] or [N, 3] for {count} projections, got {turns.shape}")
    turns = np.pad(turns, ((0, 0), (0, 3 - turns.shape[1])))
    shape = images.shape[1:]
    pitch = get("dDetector")
    if pitch is None and get("sDetector") is not None:
        pitch = np.asarray(get("sDetector"), float) / shape
    if pitch is None or get("DSD") is None or get("DSO") is None:
        raise FileError("a TIGRE geometry needs DSD, DSO and dDetector (mm)")
    each = {
        "DSD": _each(get("DSD"), count, 1),
        "DSO": _each(get("DSO"), count, 1),
        "COR": _each(get("COR", 0.0), count, 1),
        "offDetector": _each(get("offDetector", (0.0, 0.0)), count, 2),
        "offOrigin": _each(get("offOrigin", (0.0, 0.0, 0.0)), count, 3),
    }
    cameras = []
    for n in range(count):
        own = {name: value[n] if value.ndim == 2 else float(value[n]) for name, value in each.items()}
        own |= {
            "nDetector": tuple(shape),
            "dDetector": pitch,
            "angles": turns[n],
            "mode": get("mode") or "cone",
        }
        cameras.append(tool.to_camera(tool.params(**own)))
    grid = None
    if get("nVoxel") is not None and get("sVoxel") is not None:
        grid = VoxelGrid.box([int(n) for n in get("nVoxel")], [float(s) for s in get("sVoxel")][::-1])
    return ProjectionSet(images, Rig(tuple(cameras)), grid, scale=1.0, provenance={"format": "TIGRE"})


def _each(value: Any, count: int, width: int) -> np.ndarray:
    """One value a view: [N] or [N, width]."""
    array = np.asarray(0.0 if value is None else value, float)
    if width == 1:
        return np.broadcast_to(array.ravel() if array.ndim else array, (count,))
    return np.broadcast_to(array, (count, width))


def _stack(images: Any) -> torch.Tensor:
    try:
        array = np.ascontiguousarray(np.asarray(images), dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ImageError(f"projections must be numbers of one size [N, H, W]: {error}") from error
    if array.ndim != 3:
        raise ImageError(f"projections must be [N, H, W], views of one size, got shape {list(array.shape)}")
    return torch.from_numpy(array.copy() if not array.flags.writeable else array)


def _from_xyz(volume: Any) -> torch.Tensor:
    """[x, y, z] as these tools keep volumes, to [D, H, W]."""
    array = np.asarray(volume, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 1, 0)))


def _inside(root: Path, name: str) -> Path:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise FileError(f"{root / _META}: names {name!r}, which lies outside of the folder")
    return path
