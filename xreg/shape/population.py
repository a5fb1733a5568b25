"""New patients from few: bones moved and resized, bodies bent and scaled, tissues changed, fields cut.

A new patient is one resampling of an old one.  What is added up before is a velocity on a coarse lattice: a
similarity a bone, blended by how near the bones are (a polyaffine velocity: V. Arsigny et al., "Polyrigid and
polyaffine transformations", Medical Image Analysis 9 (2005)), smooth noise at two scales, and the way to
another patient's bones.  Its flow has an inverse, which is checked on every draw (`deform.invertible`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.errors import ShapeError
from xreg.geometry import Camera, se3
from xreg.io import VoxelGrid
from xreg.shape.bones import BoneMotion, middles, polyaffine_velocity
from xreg.shape.deform import invertible, random_field
from xreg.shape.films import AP, CEILING, LATERAL, FilmLook, facing_camera, make_films, normalise
from xreg.shape.patients import Patient, sample_points
from xreg.shape.samples import Sample
from xreg.shape.schemes import scheme as scheme_of
from xreg.shape.tissue import in_body_of, vary_tissue

__all__ = ["Exposure", "Variation", "draw_sample", "expose_grid", "film_patient", "refined", "vary"]

_DRAWS = 4


@dataclass(frozen=True)
class Variation:
    """How much patients differ; numbers are standard deviations unless said.

    bone_degrees, bone_mm, bone_scale: similarity of each bone.  coarse, fine: (distance between bumps in mm,
    size in mm) of the smooth deformations.  between: largest part of the way to another patient's bones.
    mirror: chance.  zoom: of the whole, as a log.  turn_degrees, shift_mm: of the whole.  crop: chance of a
    smaller field of view, and crop_least the least part of each edge that it keeps.  tissue_hu: of organs,
    bumps of ``tissue_mm``; bone_gain: of what exceeds 150 HU, as a log.
    lattice: voxels between the points at which the deformation is worked out.
    """

    bone_degrees: float = 3.0
    bone_mm: float = 1.5
    bone_scale: float = 0.04
    coarse: tuple[float, float] = (120.0, 8.0)
    fine: tuple[float, float] = (40.0, 1.5)
    between: float = 0.6
    mirror: float = 0.5
    zoom: float = 0.08
    turn_degrees: float = 4.0
    shift_mm: float = 8.0
    crop: float = 0.3
    crop_least: float = 0.6
    tissue_hu: float = 20.0
    tissue_mm: float = 60.0
    bone_gain: float = 0.15
    lattice: int = 2

    def __post_init__(self) -> None:
        chances = (self.mirror, self.crop, self.between)
        if not all(0 <= c <= 1 for c in chances) or not 0.1 <= self.crop_least <= 1 or self.lattice < 1:
            raise ShapeError(
                "mirror, crop and between must lie in 0..1, crop_least in 0.1..1 and lattice be 1 or more, "
                f"got {chances}, {self.crop_least}, {self.lattice}"
            )


@dataclass(frozen=True)
class Exposure:
    """How films differ.  tilt_degrees: of each view, both angles.  perspective: chance of a source, at
    ``distance_mm`` (least, most) from the grid's middle.  threshold_hu: standard deviation about 0.  ceiling:
    log standard deviation about 32767 HU·mm.  wrap: chance of speckle.
    """

    tilt_degrees: float = 0.0
    perspective: float = 0.0
    distance_mm: tuple[float, float] = (900.0, 1800.0)
    threshold_hu: float = 20.0
    ceiling: float = 0.25
    wrap: float = 0.3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tilt_degrees) and self.tilt_degrees >= 0):
            raise ShapeError(f"tilt_degrees must be a number of 0 or more, got {self.tilt_degrees}")


def vary(
    patient: Patient,
    generator: torch.Generator,
    variation: Variation = Variation(),
    *,
    grid: VoxelGrid | None = None,
    toward: Patient | None = None,
) -> Patient:
    """A new patient, on ``grid`` (by default the patient's own, and a part of it where the field is cut).

    generator: on the host; the same state gives the same bits there, and the same patient on any device.
    toward: another patient of the same scheme, to whose bones a part of the way is gone.  What lies beyond
    the old patient's field is air.  ``known`` is kept, with sides exchanged where the patient is mirrored.
    """
    warp = _draw_warp(patient, generator, variation, grid or patient.grid, toward)
    hu, labels = patient.at(warp.points(warp.grid, patient))
    hu = vary_tissue(hu, warp.grid, variation, generator)
    return replace(patient, hu=hu, grid=warp.grid, **_sides(patient, labels, warp))


def draw_sample(
    patient: Patient,
    generator: torch.Generator,
    variation: Variation = Variation(),
    exposure: Exposure = Exposure(),
    *,
    grid: VoxelGrid | None = None,
    toward: Patient | None = None,
    body: Patient | None = None,
    fine: int = 1,
    size: tuple[int, int] | None = None,
) -> Sample:
    """A new patient's coronal and sagittal films, and its labels on ``grid``, as a training takes them.

    body: another patient, in whose soft tissue the bones are put (`xreg.shape.tissue`).
    fine: how much finer than the labels' grid the voxels are of which films are made, 2 where the patient is
    kept at twice the resolution.  size: (H, W) of both films, by default about such a voxel a pixel.  The
    rest as in `vary`.  Draws again, up to four times, where a cut field shows no bone; then ShapeError.
    """
    for _ in range(_DRAWS):
        warp = _draw_warp(patient, generator, variation, grid or patient.grid, toward)
        labels = patient.labels_at(warp.points(warp.grid, patient))
        if bool((labels > 0).any()):
            break
    else:
        raise ShapeError(f"{patient.name}: no bone in {_DRAWS} draws; cut and shift the field less")
    dense = refined(warp.grid, fine)
    points = warp.points(dense, patient)
    hu = patient.hu_at(points)
    if body is not None:
        hu = in_body_of(hu, patient.labels_at(points), dense, body, generator)
    hu = vary_tissue(hu, dense, variation, generator)
    films, cameras = expose_grid(hu, dense, generator, exposure, size=size)
    sides = _sides(patient, labels, warp)
    return Sample(films, cameras, grid=warp.grid, scheme=patient.scheme, patient=patient.name, **sides)


def film_patient(
    patient: Patient,
    generator: torch.Generator,
    exposure: Exposure = Exposure(),
    *,
    size: tuple[int, int] | None = None,
) -> Sample:
    """A patient as it is, as a Sample: its films with cameras and looks drawn by ``exposure``."""
    films, cameras = expose_grid(patient.hu, patient.grid, generator, exposure, size=size)
    return Sample(films, cameras, patient.labels, patient.grid, patient.scheme, patient.name, patient.known)


def expose_grid(
    hu: Float[Tensor, "D H W"],
    grid: VoxelGrid,
    generator: torch.Generator,
    exposure: Exposure = Exposure(),
    *,
    size: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, "2 h w"], tuple[Camera, Camera]]:
    """A coronal and a sagittal film of CT numbers, normalised, and their cameras; drawn by ``exposure``."""
    size = size or (grid.size[2], max(grid.size[:2]))
    draw = torch.rand(3, generator=generator).tolist()
    low, high = exposure.distance_mm
    distance = low + (high - low) * draw[0] if draw[1] < exposure.perspective else None
    known = {"size": size, "sod": distance, "sdd": None if distance is None else 1.3 * distance}
    tilts = (exposure.tilt_degrees * torch.randn(2, 2, generator=generator)).tolist()
    views = [
        facing_camera(grid, direction, tilt=tuple(tilt), **known)
        for direction, tilt in zip((AP, LATERAL), tilts, strict=True)
    ]
    threshold, ceiling, amount = torch.randn(3, generator=generator).tolist()
    look = FilmLook(
        threshold_hu=exposure.threshold_hu * threshold,
        ceiling=CEILING * math.exp(exposure.ceiling * ceiling),
        wrap=min(0.08 + 0.08 * abs(amount), 0.4) if draw[2] < exposure.wrap else 0.0,
    )
    films = normalise(make_films(hu, grid, views, look))
    return films, tuple(camera.to(hu.device) for camera in views)


@dataclass(frozen=True)
class _Warp:
    """From a new grid to points of the old patient: a flow on a lattice, then the whole body's motion."""

    grid: VoxelGrid
    back: Float[Tensor, "4 4"]
    lattice: VoxelGrid
    moved: Float[Tensor, "3 d h w"]
    mirrored: bool

    def points(self, grid: VoxelGrid, patient: Patient) -> Float[Tensor, "D H W 3"]:
        """Where the voxels of a grid come from, in grid_sample's coordinates of the patient."""
        device = patient.hu.device
        at = sample_points(grid, self.lattice, torch.eye(4, dtype=torch.float64), device)
        moved = F.grid_sample(self.moved[None], at[None], padding_mode="border", align_corners=True)[0]
        axes = self.lattice.affine[:3, :3] / torch.linalg.vector_norm(self.lattice.affine[:3, :3], dim=0)
        turn = patient.grid.index_from_world[:3, :3] @ self.back[:3, :3] @ axes
        unit = torch.tensor([2.0 / max(m - 1, 1) for m in patient.grid.size], dtype=torch.float64)
        whole = (unit[:, None] * turn).to(torch.float32).to(device)
        return sample_points(grid, patient.grid, self.back, device) + moved.permute(1, 2, 3, 0) @ whole.T


def _draw_warp(
    patient: Patient,
    generator: torch.Generator,
    variation: Variation,
    grid: VoxelGrid,
    toward: Patient | None,
) -> _Warp:
    if toward is not None and toward.scheme != patient.scheme:
        raise ShapeError(f"patients must share a scheme, got {patient.scheme!r} and {toward.scheme!r}")
    target = _cut(grid, variation, generator)
    back, mirrored = _whole_body(target, variation, generator)
    lattice = _lattice(target, variation.lattice)
    spacing = lattice.spacing
    noise = [
        random_field(lattice.shape, spacing, scale, generator) * size
        for scale, size in (variation.coarse, variation.fine)
    ]
    labels = patient.labels_at(sample_points(lattice, patient.grid, back, patient.hu.device))
    aim = None
    if toward is not None:
        there = lattice.index_from_world @ torch.linalg.inv(back) @ toward.grid.affine
        aim = middles(toward.labels, there, spacing)
    motion = BoneMotion(variation.bone_degrees, variation.bone_mm, variation.bone_scale, variation.between)
    bones = polyaffine_velocity(labels, aim, spacing, motion, generator)
    moved = invertible((noise[0] + noise[1]).to(bones) + bones, spacing)
    return _Warp(target, back, lattice, moved, mirrored)


def _sides(patient: Patient, labels: Tensor, warp: _Warp) -> dict[str, Tensor | None]:
    """Labels and known, with left and right exchanged where the patient was mirrored."""
    known = patient.known
    if warp.mirrored:
        swap = scheme_of(patient.scheme).mirror
        labels = swap.to(labels.device)[labels.long()].to(torch.int16)
        known = None if known is None else known[swap.to(known.device)]
    return {"labels": labels, "known": known}


def refined(grid: VoxelGrid, n: int) -> VoxelGrid:
    """The grid of n³ voxels for each."""
    change = torch.diag(torch.tensor([1.0 / n, 1.0 / n, 1.0 / n, 1.0], dtype=torch.float64))
    change[:3, 3] = (1.0 / n - 1.0) / 2
    return VoxelGrid(tuple(n * m for m in grid.shape), grid.affine @ change)


def _cut(grid: VoxelGrid, variation: Variation, generator: torch.Generator) -> VoxelGrid:
    """The grid, or one of as many smaller voxels within it."""
    chance, part = torch.rand(2, generator=generator).tolist()
    place = torch.rand(3, generator=generator, dtype=torch.float64)
    if chance >= variation.crop:
        return grid
    part = variation.crop_least + (1 - variation.crop_least) * part
    size = torch.tensor(grid.size, dtype=torch.float64)
    change = torch.diag(torch.tensor([part, part, part, 1.0], dtype=torch.float64))
    change[:3, 3] = (place * (1 - part)) * size - 0.5 * (1 - part)  # outer faces stay within outer faces
    return VoxelGrid(grid.shape, grid.affine @ change)


def _whole_body(
    grid: VoxelGrid, variation: Variation, generator: torch.Generator
) -> tuple[Float[Tensor, "4 4"], bool]:
    """Old world from new: zoom, turn and shift about the field's middle, and left for right."""
    draw = torch.randn(7, generator=generator, dtype=torch.float64)
    mirrored = bool(torch.rand((), generator=generator) < variation.mirror)
    matrix = se3.exp(torch.cat([draw[:3] * math.radians(variation.turn_degrees), torch.zeros(3).double()]))
    matrix[:3, :3] *= math.exp(variation.zoom * float(draw[6]))
    if mirrored:
        matrix[:3, :3] = matrix[:3, :3] @ torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    matrix[:3, 3] = grid.center + draw[3:6] * variation.shift_mm - matrix[:3, :3] @ grid.center
    return matrix, mirrored


def _lattice(grid: VoxelGrid, n: int) -> VoxelGrid:
    """Every n-th voxel, and on until the last one lies within."""
    change = torch.diag(torch.tensor([n, n, n, 1.0], dtype=torch.float64))
    return VoxelGrid(tuple(max(4, -(-(m - 1) // n) + 1) for m in grid.shape), grid.affine @ change)
