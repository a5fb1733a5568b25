"""The patients that Swin-X2S published: two films, labels, and what its networks made of the films.

One folder a patient: film_cor.nii.gz and film_sag.nii.gz (a film repeated in depth, 8 bit), label_<scheme>,
peer_<scheme>_<network>, and mostly ct.nii.gz, all on one grid.
Source: K. Liu et al., "Swin-X2S: Reconstructing 3D Shape from 2D Biplanar X-ray with Swin Transformers",
arXiv:2501.05961 (2025), and the repository of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from ..errors import FileError, ImageError, ShapeError
from ..geometry import Camera
from ..io import load_labels, read_nifti
from ..io.labels import same_grid
from ..io.voxel_grid import VoxelGrid
from .schemes import SCHEMES, scheme

# The headers say that index j grows to the back.  It grows to the front in every one of these patients
# (spinous processes and sacrum lie at small j, the liver at small i), so the second axis of each affine is
# turned round; taken as it is, it would mirror the patient.
# Scans that were stretched by a half kept the header of the scan before: true spacing over the header's.
STALE = {"s0561": 1.5, "verse083": 1.5}
REMARKS = {
    "s0561": "films carry speckle: line integrals wrapped round in 8 bit",
    "verse083": "the CT is squeezed along x and in HU: use the films and the labels only",
    "0694": "no CT (the one published was another posture)",
    "verse081": "the films fit a projection of the CT less well (r .92 to .95)",
}
_FILMS = {"cor": 1, "sag": 0}  # the index axis (i, j, k) along which a film is repeated


@dataclass(frozen=True, eq=False)
class ShippedCase:
    """One patient's folder, with the voxel spacing put right.

    films: float32 [2, D, n], 0 to 1, bright where attenuation is high; coronal, then sagittal; rows from the
    head to the feet, columns along the voxel index i and j.  cameras: parallel beams of these films, world
    RAS mm.  label_files, peer_files: by scheme, and by (scheme, network); `labels` and `peer` read them, and
    raise FileError and ShapeError.
    """

    patient: str
    films: Float[Tensor, "2 D n"]
    cameras: tuple[Camera, Camera]
    grid: VoxelGrid
    label_files: Mapping[str, Path]
    peer_files: Mapping[tuple[str, str], Path]
    ct_file: Path | None
    remark: str = ""

    def labels(self, which: str | None = None) -> Int16[Tensor, "D H W"]:
        """The label map of a scheme (by default the only one), int16 in that scheme's numbers."""
        return self._read(_the(self.label_files, which, f"{self.patient}: scheme"))

    def peer(self, which: str, network: str) -> Int16[Tensor, "D H W"]:
        """What a network predicted from the two films, in the scheme's numbers."""
        return self._read(
            _the(self.peer_files, (which, network), f"{self.patient}: scheme and network"), which
        )

    def _read(self, file: Path, which: str | None = None) -> Tensor:
        found = load_labels(file)
        affine = true_affine(found.affine, self.patient)
        if not same_grid(found.labels.shape, affine, self.grid.shape, self.grid.affine):
            raise ShapeError(f"{file}: is not on the grid of the films, {self.grid}; the folder mixes cases")
        values = found.labels.to(torch.int16)
        scheme(which or file.name.removesuffix(".nii.gz").split("_")[1]).require(values, str(file))
        return values


def load_shipped(folder: str | PathLike) -> ShippedCase:
    """Read a patient's folder; label maps are read when they are asked for.

    Affines are put right by `true_affine`, with the folder's name as the patient.  Raises FileError and
    ImageError.
    """
    place = Path(folder)
    if not place.is_dir():
        raise FileError(f"{place}: no such folder; expected a patient of Swin-X2S with film_cor.nii.gz")
    pair = {name: read_nifti(place / f"film_{name}.nii.gz") for name in _FILMS}
    grid = VoxelGrid(pair["cor"].values.shape, true_affine(pair["cor"].affine, place.name))
    if pair["sag"].values.shape != grid.shape or grid.shape[1] != grid.shape[2]:
        raise ImageError(
            f"{place}: its two films must have one shape [D, n, n], got {list(grid.shape)} and "
            f"{list(pair['sag'].values.shape)}"
        )
    films = [_film(pair[name].values, axis, place / f"film_{name}.nii.gz") for name, axis in _FILMS.items()]
    labels = {_parts(f)[1]: f for f in sorted(place.glob("label_*.nii.gz"))}
    peers = {tuple(_parts(f)[1:]): f for f in sorted(place.glob("peer_*_*.nii.gz"))}
    unknown = {name for name in (*labels, *(p[0] for p in peers)) if name not in SCHEMES}
    if unknown:
        raise FileError(f"{place}: names of its files speak of unknown schemes: {', '.join(sorted(unknown))}")
    ct = place / "ct.nii.gz"
    return ShippedCase(
        patient=place.name,
        films=torch.stack(films),
        cameras=tuple(grid_camera(grid, axis) for axis in _FILMS.values()),
        grid=grid,
        label_files=labels,
        peer_files=peers,
        ct_file=ct if ct.is_file() else None,
        remark=REMARKS.get(place.name, ""),
    )


def shipped_patients(folder: str | PathLike) -> list[Path]:
    """Folders of patients within ``folder``, sorted.  FileError where there is none."""
    found = sorted(f.parent for f in Path(folder).glob("*/film_cor.nii.gz"))
    if not found:
        raise FileError(f"{folder}: holds no patient of Swin-X2S (a folder with film_cor.nii.gz)")
    return found


def true_affine(affine: Float[Tensor, "4 4"], patient: str) -> Float[Tensor, "4 4"]:
    """The affine of one of these files (index to RAS mm) put right: j to the front, true voxel spacing.

    The first voxel stays where the header has it.  The result has a negative determinant, as LAS grids have.
    """
    right = affine.clone()
    right[:3, :3] *= STALE.get(patient, 1.0)
    right[:3, 1] *= -1
    return right


def grid_camera(grid: VoxelGrid, axis: int) -> Camera:
    """The parallel beam along an index axis (0 is i, 1 is j) whose pixels are the grid's columns of voxels.

    Image columns grow with the other index of the plane, rows against k.  Rays cross the whole grid.
    Raises GeometryError where the grid's axes are not at right angles.
    """
    across = 1 - axis
    directions = grid.affine[:3, :3] / torch.linalg.vector_norm(grid.affine[:3, :3], dim=0)
    right, down = directions[:, across], -directions[:, 2]
    beam = torch.linalg.cross(right, down)
    center, spacing = grid.center, grid.spacing
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.stack([right, down, beam])
    length = grid.extent[axis]
    pose[:3, 3] = -pose[:3, :3] @ (center - beam * length / 2)
    width, height = grid.size[across], grid.size[2]
    k = torch.eye(3, dtype=torch.float64)
    k[0, 0], k[1, 1] = 1 / spacing[across], 1 / spacing[2]
    k[0, 2], k[1, 2] = (width - 1) / 2, (height - 1) / 2
    return Camera(k, pose, (height, width), length, False, True)


def _film(values: np.ndarray, axis: int, file: Path) -> Float[Tensor, "D n"]:
    """One plane of the stack, rows from the top."""
    plane = values.take(0, axis=2 - axis)
    if not (values == np.expand_dims(plane, 2 - axis)).all():
        raise ImageError(
            f"{file}: expected one film repeated along index axis {'ijk'[axis]}, got another stack"
        )
    return torch.from_numpy(np.ascontiguousarray(plane[::-1], dtype=np.float32)) / 255.0


def _parts(file: Path) -> list[str]:
    return file.name.removesuffix(".nii.gz").split("_", 2)


def _the(files: Mapping, which: object, what: str) -> Path:
    if which is None and len(files) == 1:
        return next(iter(files.values()))
    if which not in files:
        raise ShapeError(f"{what} must be one of {list(files)}, got {which!r}")
    return files[which]
