"""From a CT and label maps to training samples: one upright grid, one scheme, films by our projector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from xreg.errors import FileError, ShapeError
from xreg.io import VoxelGrid, load_labels, read_nifti
from xreg.io.labels import require_same_grid
from xreg.shape.datasets import Case
from xreg.shape.films import FilmLook, facing_camera, make_films, normalise
from xreg.shape.patients import Patient
from xreg.shape.population import refined
from xreg.shape.samples import Sample
from xreg.shape.schemes import SCHEMES, Scheme, bone_name, relabel, scheme, sides
from xreg.shape.shipped import ShippedCase, load_shipped
from xreg.volume import Volume

TARGET = "all"
UPRIGHT = (-1.0, 1.0, 1.0)  # i to the left, j to the front, k to the head, as in the films of Swin-X2S
_ON_BONE = 60.0  # HU that labelled bone must have above what is not labelled
# 8-bit CTs of Swin-X2S: the stored number that is 0 HU, and HU a step.  From peaks of air, fat and muscle,
# and the number from which voxels count in the films.
SHIPPED_HU = {
    "0510": (125.5, 23.9),
    "0532": (101.0, 19.8),
    "s0308": (70.5, 18.4),
    "s0561": (94.0, 11.8),
    "verse081": (88.5, 13.0),
    "verse230": (70.5, 17.2),
}


@dataclass(frozen=True)
class Preparation:
    """How samples are made.

    shape: voxels (D, H, W) of the labels' grid.  voxel_mm: their edge; None: as small as shows all of the CT.
    fine: how much finer the CT is kept of which films are made.  views: degrees round and up from the view
    from the front, a film; (-90, 0) is from the right.
    sdd, sod: mm, None for parallel beams.  size: (H, W) of films, by default about a
    fine voxel a pixel.  sides: "check" refuses label maps whose left is on the right of their affine, but
    exchanges RibSeg's, whose documents do not say which side comes first; "swap" exchanges the labels of all
    those, "trust" takes all as they are.
    """

    shape: tuple[int, int, int] = (80, 64, 64)
    voxel_mm: float | None = None
    fine: int = 2
    views: tuple[tuple[float, float], ...] = ((0.0, 0.0), (-90.0, 0.0))
    sdd: float | None = None
    sod: float | None = None
    size: tuple[int, int] | None = None
    look: FilmLook = FilmLook()  # noqa: RUF009
    sides: str = "check"


def read_patient(
    case: Case,
    *,
    source: Scheme | None = None,
    rescale: tuple[float, float] | None = None,
    check_sides: str = "check",
) -> Patient:
    """A case's CT and labels on the CT's own grid, in the scheme of 54 bones.

    source: the scheme of the label map, where the case does not say.  rescale: (slope, intercept) of a CT
    that is not in HU.  Raises FileError, VolumeError (grids that differ), ShapeError (unknown labels, none of
    a bone, sides exchanged, labels that do not lie on bone).
    """
    volume = Volume.load(case.ct, rescale=rescale)
    labels, known = _bones(case, volume, source)
    labels, known = _right_sides(labels, known, volume.affine, case, check_sides)
    if not bool((labels > 0).any()):
        raise ShapeError(f"{case.labels or case.ct.parent}: no bone of the scheme {TARGET!r} is labelled")
    patient = Patient(volume.hu, labels, VoxelGrid.of(volume), case.name, TARGET, known)
    require_on_bone(patient)
    return patient


def upright_grid(grid: VoxelGrid, shape: tuple[int, int, int], voxel_mm: float | None = None) -> VoxelGrid:
    """A cubic grid along the patient's axes about the middle of another: i left, j front, k head.

    voxel_mm: the edge of a voxel, by default as small as lets the box of the other grid fit in.
    """
    corners = grid.box_corners
    extent = corners.amax(0) - corners.amin(0)
    counts = torch.tensor(shape[::-1], dtype=torch.float64)
    edge = float((extent / counts).max()) if voxel_mm is None else float(voxel_mm)
    return upright(shape, edge, (corners.amax(0) + corners.amin(0)) / 2)


def upright(shape: tuple[int, int, int], edge: float, middle: Float64[Tensor, " 3"]) -> VoxelGrid:
    """The grid of cubic voxels (edge in mm) about a point (RAS mm): i to the left, j to the front, k up."""
    affine = torch.diag(torch.tensor([*(edge * u for u in UPRIGHT), 1.0], dtype=torch.float64))
    counts = torch.tensor(shape[::-1], dtype=torch.float64)
    affine[:3, 3] = middle - affine[:3, :3] @ ((counts - 1) / 2)
    return VoxelGrid(shape, affine)


def prepare(patient: Patient, how: Preparation = Preparation()) -> tuple[Sample, Patient]:
    """The sample of a patient, films by our projector, and the patient on the finer upright grid."""
    grid = upright_grid(patient.grid, how.shape, how.voxel_mm)
    dense = patient.on(refined(grid, how.fine))
    labels = dense.binned(how.fine).labels if how.fine > 1 else dense.labels
    if not bool((labels > 0).any()):
        raise ShapeError(
            f"{patient.name}: no bone is left on a grid of {how.shape} voxels of {grid.spacing[0]:.3g} mm; "
            "take more or larger voxels"
        )
    size = how.size or (dense.grid.size[2], max(dense.grid.size[:2]))
    cameras = tuple(
        facing_camera(dense.grid, size=size, sdd=how.sdd, sod=how.sod, tilt=view) for view in how.views
    )
    films = normalise(make_films(dense.hu, dense.grid, cameras, how.look))
    return Sample(films, cameras, labels, grid, TARGET, patient.name, patient.known), dense


def prepare_shipped(folder: Path, how: Preparation = Preparation()) -> tuple[Sample, Patient]:
    """The sample of a patient of Swin-X2S with its own two films, and the patient to draw others from.

    Where the CT is missing or wrong, that patient is bones in a body of soft tissue (`Patient.from_labels`).
    """
    case = load_shipped(folder)
    labels, known = _shipped_labels(case)
    if case.ct_file is not None and case.patient in SHIPPED_HU:
        zero, step = SHIPPED_HU[case.patient]
        stored = torch.from_numpy(read_nifti(case.ct_file).values.copy()).float()
        patient = Patient((stored - zero) * step, labels, case.grid, case.patient, TARGET, known)
        require_on_bone(patient)
    else:
        patient = Patient.from_labels(labels, case.grid, case.patient, scheme=TARGET, known=known)
    grid = upright_grid(case.grid, how.shape, how.voxel_mm)
    coarse = patient.on(grid).labels
    films = normalise(case.films)
    return Sample(films, case.cameras, coarse, grid, TARGET, case.patient, known), patient


def write(folder: Path, sample: Sample, patient: Patient) -> Path:
    """Save both into ``folder``/NAME; returns that folder."""
    place = folder / sample.patient
    sample.save(place)
    patient.save(place)
    return place


def require_on_bone(patient: Patient) -> None:
    """ShapeError where labelled voxels are hardly denser than the body: another posture, or scan."""
    bone = patient.labels > 0
    body = ~bone & (patient.hu > -300)
    if not bool(body.any()):
        return
    inside, outside = float(patient.hu[bone].mean()), float(patient.hu[body].mean())
    if inside < outside + _ON_BONE:
        raise ShapeError(
            f"{patient.name}: labelled voxels have {inside:.0f} HU on average and the body about them "
            f"{outside:.0f}, so labels do not lie on bone; are CT and labels of one scan and posture, and "
            "is the CT in HU (rescale=)?"
        )


def _bones(case: Case, volume: Volume, source: Scheme | None) -> tuple[Tensor, Tensor]:
    """Labels on the CT's grid in the scheme of bones, and which of it the annotation could hold."""
    target = SCHEMES[TARGET]
    if case.parts:
        return _from_parts(case, volume, target)
    found = load_labels(case.labels)
    require_same_grid(found, volume.shape, volume.affine, case.labels, case.ct)
    if source is None and case.scheme is None and found.names:
        source = Scheme.of_table(case.labels.name, found.names)
    source = source or (None if case.scheme is None else scheme(case.scheme))
    if source is None:
        raise ShapeError(
            f"{case.labels}: carries no names, so say what its numbers are: --scheme ({', '.join(SCHEMES)}) "
            "or --names with a table"
        )
    return relabel(found.labels, source, target, what=str(case.labels)), source.known_in(target)


def _from_parts(case: Case, volume: Volume, target: Scheme) -> tuple[Tensor, Tensor]:
    labels = torch.zeros(volume.shape, dtype=torch.int16)
    known = torch.zeros(len(target), dtype=torch.bool)
    known[0] = True
    for name, file in case.parts:
        bone = bone_name(name)
        if bone not in target.names[1:]:
            continue
        part = load_labels(file)
        require_same_grid(part, volume.shape, volume.affine, file, case.ct)
        number = target.index(bone)
        labels[part.labels > 0] = number
        known[number] = True
    if not bool(known[1:].any()):
        raise ShapeError(
            f"{case.parts[0][1].parent}: no file is named like a bone, such as vertebrae_L1.nii.gz"
        )
    return labels, known


def _right_sides(
    labels: Tensor, known: Tensor, affine: Tensor, case: Case, check: str
) -> tuple[Tensor, Tensor]:
    if check == "trust" or sides(labels, affine, TARGET) >= 0:
        return labels, known
    if check == "swap" or case.scheme == "ribseg":  # whose documents do not say which side comes first
        swap = SCHEMES[TARGET].mirror
        return swap[labels.long()].to(torch.int16), known[swap]
    raise ShapeError(
        f"{case.labels or case.ct.parent}: left bones lie on the right of the affine. Either its x axis is "
        "wrong (then mend the header of CT and labels) or the labels are exchanged (then say --sides swap)"
    )


def _shipped_labels(case: ShippedCase) -> tuple[Tensor, Tensor]:
    """All label maps of a patient in one, in the scheme of bones."""
    target = SCHEMES[TARGET]
    labels = torch.zeros(case.grid.shape, dtype=torch.int16)
    known = torch.zeros(len(target), dtype=torch.bool)
    if not case.label_files:
        raise FileError(f"{case.patient}: has no label_SCHEME.nii.gz")
    for name in case.label_files:
        found = relabel(case.labels(name), name, target, what=f"{case.patient}/label_{name}")
        labels = torch.where(labels > 0, labels, found)
        known |= scheme(name).known_in(target)
    if sides(labels, case.grid.affine, target) < 0:
        raise ShapeError(f"{case.patient}: left and right are exchanged")
    return labels, known
