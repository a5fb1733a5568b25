"""Films and their cameras to labelled bones: labels with doubt, surfaces, measures, and a look back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from xreg.errors import InputWarning, ShapeError
from xreg.geometry import Camera
from xreg.io.voxel_grid import VoxelGrid
from xreg.shape.atlas import Atlas
from xreg.shape.film_checks import (
    MOST_VOXELS,
    Agreement,
    agreements,
    check_films,
    facing_point,
    require_room,
    seen_grid,
)
from xreg.shape.films import label_thickness, normalise
from xreg.shape.level import SURE, LevelDecision, decide_level
from xreg.shape.measures import Measures, draw_labels, measure
from xreg.shape.meshes import bone_meshes
from xreg.shape.networks.views import fitted
from xreg.shape.predict import ShapePrediction
from xreg.shape.reference import ReferenceFit, compare_surfaces
from xreg.shape.refine import Refined, refine
from xreg.shape.schemes import Scheme
from xreg.shape.shares import Shares

if TYPE_CHECKING:
    from trimesh import Trimesh

# Correlation of fine structure, film against bones: the true labels of published patients have .32 to .67,
# the same upside down .35 at most and mostly below .2.
LEAST_MATCH = 0.25
_FINE_MM = 20.0  # standard deviation of the blur whose rest is fine structure
_ABOUT_MM = 10.0  # round the bones' shadow that is looked at
_LEAST_MM = 1.0  # of bone along a ray, from which a pixel shows it
_MASS = 1e-4  # of probability in any voxel, from which a label takes part in drawing


class Model(Protocol):
    """What a reconstruction needs of a network; `ShapeModel` is one."""

    scheme: Scheme
    facts: dict[str, Any]
    source: str

    def predict(
        self, films: Tensor, cameras: Sequence[Camera], grid: VoxelGrid, **known: Any
    ) -> ShapePrediction:
        """Labels from films."""


@dataclass(frozen=True, eq=False)
class FilmFit:
    """A film against the bones that were reconstructed, at the network's resolution.

    film [H, W], 0 to 1.  thickness [H, W]: mm of any bone along each ray.  shadows uint8 [H, W]: number of
    the structure that is thickest there, 0 for none.  rendered: the fine structure that the bones would
    give, gain · (thickness − its blur by 20 mm).  residual: the film's fine structure less that, NaN away
    from the bones.  correlation: of both, near the bones.

    So the residual holds what soft tissue, inner structure of bone and noise leave, and bones that are
    missing or misplaced; it does not see what every label map of the same silhouette shares, so neither
    names nor levels nor what lies along the rays.
    """

    film: Float[Tensor, "H W"]
    thickness: Float[Tensor, "H W"]
    shadows: UInt8[Tensor, "H W"]
    rendered: Float[Tensor, "H W"]
    residual: Float[Tensor, "H W"]
    gain: float
    correlation: float
    camera: Camera

    @property
    def residual_rms(self) -> float | None:
        """Of the residual near the bones, in parts of the film's range; None for a film that shows none."""
        inside = self.residual[self.residual.isfinite()]
        return float(inside.square().mean().sqrt()) if len(inside) else None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "correlation": self.correlation,
            "residual_rms": self.residual_rms,
            "gain_per_mm": self.gain,
            "camera": self.camera.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Labelled bones from films, with what speaks for and against them.

    prediction: labels, probabilities and doubt on the grid (RAS mm).  meshes: closed surfaces by name.
    rejected: why this should not be used as it is; empty where its own checks pass.  facts: the model's.
    refined: what an atlas added, where there was one; the prediction is then the refined one.  references:
    what `xreg.shape.reference.compare_surfaces` found, where surfaces to compare with were given.
    """

    prediction: ShapePrediction
    meshes: dict[str, Trimesh]
    measures: Measures
    level: LevelDecision
    fits: tuple[FilmFit, ...]
    agreement: tuple[Agreement, ...]
    warnings: tuple[str, ...]
    rejected: tuple[str, ...]
    facts: dict[str, Any]
    source: str
    refined: Refined | None = None
    references: tuple[ReferenceFit, ...] = ()

    @property
    def bones(self) -> tuple[str, ...]:
        """Names of the structures that were found."""
        return tuple(self.prediction.scheme.names[n] for n in self.prediction.labels.unique().tolist() if n)


@dataclass(frozen=True)
class ReconstructSettings:
    """How bones are reconstructed.

    voxel_mm: edge of the grid's voxels; None for as many along its longest edge as the training's grids have,
    times the whole number that brings them nearest to 160.  variants: looks of the films, 1 to 5.
    draws: label maps from which measures get their ±.  smooth_mm: of the surfaces.  seed: of the draws.
    """

    voxel_mm: float | None = None
    variants: int = 1
    draws: int = 8
    smooth_mm: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 2 or self.smooth_mm < 0:
            raise ShapeError(
                f"draws must be 2 or more and smooth_mm not below 0, got {self.draws} and {self.smooth_mm}"
            )


def reconstruct(
    films: Sequence[Float[Tensor, "H W"]],
    cameras: Sequence[Camera],
    model: Model,
    *,
    grid: VoxelGrid | None = None,
    center: Sequence[float] | None = None,
    normalised: bool = False,
    atlas: Atlas | None = None,
    references: Mapping[str, Trimesh] | None = None,
    settings: ReconstructSettings = ReconstructSettings(),
    tell: Callable[[str], None] = lambda text: None,
) -> Reconstruction:
    """Bones from films [H, W] (bright where attenuation is high), one camera each, world RAS mm.

    grid: where labels are wanted; by default what all films show about the point that they face, or about
    ``center`` (RAS mm).  normalised: whether films are as `films.normalise` gives them.  atlas: shapes of
    bones that are fitted to what the network finds and to the films (`xreg.shape.refine`).  references:
    surfaces by name that the bones found are compared with, no more.  tell: is told what is being done.
    Raises ImageError for films that do not fit their cameras, GeometryError for cameras that do not face one
    point, ShapeError where the network finds no bone; InputWarning for films that disagree or are alone.
    """
    stack, cameras = check_films(films, cameras).cpu(), tuple(camera.to("cpu") for camera in cameras)
    stack = stack if normalised else normalise(stack)
    point = facing_point(cameras, grid.center if grid is not None else center)
    if grid is None:
        own = int(model.facts.get("voxels", MOST_VOXELS))
        most = own * max(1, round(MOST_VOXELS / own))  # whole numbers of voxels to one of the training's
        grid = seen_grid(cameras, point, settings.voxel_mm, most)
    require_room(grid)
    tell("comparing the films")
    agreement = agreements(stack, cameras, point)
    said = [found.warning for found in agreement if found.warning]
    if len(cameras) > 1 and not agreement:
        said.append("the beams run the same way: depth along them is a guess, as of one film")
    for text in said:
        warnings.warn(text, InputWarning, stacklevel=2)
    tell("asking the network")
    found = model.predict(stack, cameras, grid, variants=settings.variants, normalised=True)
    if not bool((found.labels > 0).any()):
        raise ShapeError(
            f"{model.source}: finds no bone in these films. Are they bright where attenuation is high (sign "
            "and intensity), do the cameras hold, and was the network trained on such anatomy?"
        )
    refined = None
    if atlas is not None:
        tell("fitting the bones of the atlas")
        refined = refine(found, stack, cameras, atlas)
        found = refined.prediction
    tell("surfaces")
    meshes = bone_meshes(found.labels, grid, found.scheme, smooth_mm=settings.smooth_mm)
    compared = ()
    if references:
        tell("comparing with the references")
        compared = compare_surfaces(meshes, references)
        said += _without(meshes, references)
    tell("measures")
    measures = measure(found.labels, grid, found.scheme, samples=_drawn(found, settings))
    tell("bones back into the films")
    fits = tuple(fit_film(f, c, found) for f, c in zip(*fitted(stack, cameras, grid), strict=True))
    told = found.uncounted or found.shares
    level = decide_level(found.labels, told, grid, found.scheme, numberings=found.numberings)
    said += [*found.warnings, *(f"vertebrae: {note}" for note in level.notes)]
    return Reconstruction(
        prediction=found,
        meshes=meshes,
        measures=measures,
        level=level,
        fits=fits,
        agreement=agreement,
        warnings=tuple(dict.fromkeys(said)),
        rejected=_rejected(level, fits),
        facts=model.facts,
        source=model.source,
        refined=refined,
        references=compared,
    )


def fit_film(film: Float[Tensor, "H W"], camera: Camera, found: ShapePrediction) -> FilmFit:
    """What a film shows of the bones that were found in it."""
    from scipy.ndimage import gaussian_filter

    thick = label_thickness(found.labels, found.grid, camera, len(found.scheme)).cpu()
    most, number = thick[1:].max(0)
    total = thick[1:].sum(0)
    at = camera.project(found.grid.center[None])
    moved = camera.project(found.grid.center[None] + camera.world_from_camera[:3, 0])
    pixels = float((moved - at).norm())  # a mm at the grid's middle
    values, bone = film.cpu().double().numpy(), total.double().numpy()
    fine = [x - gaussian_filter(x, _FINE_MM * pixels) for x in (values, bone)]
    near = gaussian_filter((bone > _LEAST_MM).astype(float), _ABOUT_MM * pixels / 2) > 0.05
    gain, match = 0.0, 0.0
    if near.any():
        a, b = (x[near] - x[near].mean() for x in fine)
        power = float(b @ b)
        gain = max(0.0, float(a @ b) / power) if power > 0 else 0.0
        match = float(a @ b) / max(float(np.sqrt(power * (a @ a))), 1e-12)
    rendered = gain * fine[1]
    residual = np.where(near, fine[0] - rendered, np.nan)
    shadows = torch.where(most > _LEAST_MM, number + 1, 0).to(torch.uint8)
    parts = (torch.from_numpy(x).float() for x in (rendered, residual))
    return FilmFit(film.cpu(), total, shadows, *parts, gain, match, camera)


def _drawn(found: ShapePrediction, settings: ReconstructSettings) -> list[Tensor]:
    """Label maps as likely as the one that was found, in the scheme's numbers."""
    most = found.shares.values.amax(0).tolist()
    numbers = [0, *(n for n, p in zip(found.shares.labels.tolist(), most, strict=True) if n and p > _MASS)]
    kept = found.shares.columns(numbers)
    kept = torch.where(kept > _MASS, kept, 0.0)  # so that a bone is drawn about where it lies, and quickly
    shares = Shares(found.shares.voxels, torch.tensor(numbers), kept / kept.sum(1, keepdim=True))
    return list(draw_labels(shares, found.grid, count=settings.draws, seed=settings.seed))


def _without(meshes: Mapping[str, Trimesh], references: Mapping[str, Trimesh]) -> list[str]:
    """A warning of references that could not be compared with."""
    missing = [name for name in references if name not in meshes]
    return [f"references of bones that were not found: {', '.join(missing)}"] if missing else []


def _rejected(level: LevelDecision, fits: tuple[FilmFit, ...]) -> tuple[str, ...]:
    reasons = []
    if not level.sure:
        why = "; ".join(level.notes) or f"below {100 * SURE:.0f} %"
        reasons.append(f"the vertebral level is not certain: {level.text}; {why}")
    reasons += [
        f"film {n} does not show the bones where they were found (correlation {fit.correlation:.2f}, from "
        f"{LEAST_MATCH} on it passes)"
        for n, fit in enumerate(fits)
        if not fit.correlation >= LEAST_MATCH
    ]
    return tuple(reasons)
