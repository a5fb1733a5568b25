"""Watertight surfaces of bones, from label maps or probabilities, in RAS mm.

A bone is cut out with a margin of zeros, smoothed if wished, and its surface found by marching cubes
(T. Lewiner et al., Journal of Graphics Tools 8, 2003; scikit-image) at the level that keeps the bone's
volume.  The margin closes the surface where a bone leaves the grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ..errors import FileError, ShapeError
from ..io import atomic_write
from ..io.voxel_grid import VoxelGrid
from ..optional import optional
from .schemes import Scheme, scheme

if TYPE_CHECKING:
    from trimesh import Trimesh

SUFFIXES = (".stl", ".ply")
# Where four voxels about an edge of a cell are alike in pairs, which of them meet is a tie that two cells can
# decide in two ways; a level a little aside decides it.  In masks of bones that left 6 surfaces of 87 open.
_ASIDE = (0.0, -1e-3, 1e-3, -1e-2, 1e-2)
_HALVINGS = 8  # of the range of levels, which leave a volume to within about a percent
_REACH = 4.0  # standard deviations of the smoothing that the margin holds


def bone_meshes(
    labels: Integer[Tensor, "D H W"],
    grid: VoxelGrid,
    which: str | Scheme = "all",
    *,
    names: Iterable[str] | None = None,
    smooth_mm: float = 0.0,
) -> dict[str, Trimesh]:
    """One closed surface a bone that is present (or those of ``names``), by name.

    labels: [D, H, W] in the scheme's numbers.  smooth_mm: standard deviation of a Gaussian that takes the
    stairs away; volumes stay.  Raises ShapeError for unknown labels or absent names, BackendError without
    scikit-image or trimesh.
    """
    known = scheme(which)
    values = torch.as_tensor(labels).detach().cpu()
    known.require(values)
    numbers = torch.unique(values).tolist()
    wanted = [known.names[n] for n in numbers if n] if names is None else list(names)
    absent = [name for name in wanted if known.index(name) not in numbers]
    if absent:
        raise ShapeError(f"the label map holds no voxel of {', '.join(absent)}")
    array = values.numpy()
    return {
        name: surface_mesh((array == known.index(name)).astype(np.float32), grid, smooth_mm=smooth_mm)
        for name in wanted
    }


def surface_mesh(
    field: Float[Tensor, "D H W"], grid: VoxelGrid, *, level: float = 0.5, smooth_mm: float = 0.0
) -> Trimesh:
    """The closed surface of where a field (a mask or a probability, 0 to 1) exceeds a level; normals outward.

    smooth_mm: as in `bone_meshes`; the level is then moved so that the voxels' volume lies within.
    Raises ShapeError where nothing exceeds the level or the surface is not closed, BackendError.
    """
    trimesh = surface_package("trimesh", "trimesh")
    measure = surface_package("skimage.measure", "scikit-image")
    values = np.asarray(torch.as_tensor(field).detach().cpu(), dtype=np.float32)
    if values.shape != grid.shape or not np.isfinite(values).all():
        raise ShapeError(
            f"field must be finite and of the grid's shape {list(grid.shape)}, got {list(values.shape)}"
        )
    inside = values > level
    if not inside.any() or not level > 0:
        raise ShapeError(
            f"no voxel of the field exceeds the level {level}, which must be above 0; there is no surface"
        )
    spacing = np.array(grid.spacing)[::-1]
    margin = 2 + np.ceil(_REACH * smooth_mm / spacing).astype(int)
    values, start = _cut(values, inside, margin)
    if smooth_mm > 0:
        values, level = _smoothed(values, int(inside.sum()), smooth_mm / spacing, measure)
    matrix = grid.affine.numpy()
    for aside in _ASIDE:
        corners, faces, _, _ = measure.marching_cubes(values, level=level * (1 + aside))
        places = (corners + start)[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]
        mesh = trimesh.Trimesh(places, faces, process=True)
        if mesh.is_watertight:
            break
    else:
        raise ShapeError(
            f"the surface at level {level:.3g} is not closed; take another level or smooth_mm above 0"
        )
    if mesh.volume < 0:
        mesh.invert()
    return mesh


def save_mesh(path: str | PathLike, mesh: Trimesh) -> None:
    """Write a surface as binary STL or PLY (by the suffix), RAS mm, atomically.  Raises FileError."""
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise FileError(f"{file}: a surface is written as {' or '.join(SUFFIXES)}; choose such a name")
    data = mesh.export(file_type=file.suffix.lower()[1:])
    with atomic_write(file) as temporary:
        Path(temporary).write_bytes(data)


def _cut(values: np.ndarray, inside: np.ndarray, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part about what is inside, with a margin whose outermost layer is 0, and where it starts."""
    from scipy.ndimage import find_objects

    box = find_objects(inside.astype(np.int8))[0]
    low, high = np.array([s.start for s in box]) - margin, np.array([s.stop for s in box]) + margin
    first, last = np.maximum(low, 0), np.minimum(high, values.shape)
    part = values[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    return np.pad(part, list(zip(first - low + 1, high - last + 1, strict=True))), low - 1


def _smoothed(values: np.ndarray, count: int, sigma: np.ndarray, measure: Any) -> tuple[np.ndarray, float]:
    """The field after a Gaussian, and the level whose surface holds the volume of ``count`` voxels."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(values, sigma, truncate=_REACH)
    low, high = 0.02 * float(smooth.max()), 0.98 * float(smooth.max())
    for _ in range(_HALVINGS):
        level = 0.5 * (low + high)
        corners, faces, _, _ = measure.marching_cubes(smooth, level=level)
        a, b, c = (corners[faces[:, n]].astype(np.float64) for n in range(3))
        volume = abs(np.einsum("ni,ni->n", a, np.cross(b, c)).sum()) / 6
        low, high = (level, high) if volume > count else (low, level)
    return smooth, 0.5 * (low + high)


def surface_package(module: str, package: str) -> Any:
    """A package that surfaces need; BackendError, with how to install it, where it is missing."""
    return optional(module, f"surfaces of bones need the package {package}: pip install 'xreg[shape]'")
