"""Bones of an atlas moved, turned, bent and mixed until they fit what a network found and what films show.

Each bone that the network finds is a mixture of the patients' of the atlas, as a signed distance with a
density (`xreg.shape.atlas`), and given a similarity with three scales and a quadratic bend.  The spine starts
where its shadow lies best in the films; a network errs more in where it is than in whether.  The bones are
rendered by the differentiable projector; what is lowered is the distance from the edges in the films and from
the network's thickness maps (`xreg.shape.bone_fit`).  Ribs are then taken from a whole cage that hangs on
these vertebrae (`xreg.shape.cage_fit`), or fitted one by one where none comes to agree with the films.  The
result and the network's probabilities are multiplied, each with a power.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from xreg.errors import ShapeError
from xreg.geometry import Camera
from xreg.io.voxel_grid import VoxelGrid
from xreg.shape.atlas import Atlas
from xreg.shape.bone_fit import BoneFit, RefineSettings, Seen, fit_bones
from xreg.shape.cage import rib_numbers
from xreg.shape.cage_fit import CageFit, fit_cage
from xreg.shape.networks.views import fitted, pixel_mm
from xreg.shape.predict import DOUBT, ShapePrediction, prediction_of
from xreg.shape.scene import Scene, softness
from xreg.shape.schemes import Scheme
from xreg.shape.shadows import grouped
from xreg.shape.shares import Shares
from xreg.shape.starts import started_by_maps

_EDGE = 80  # voxels along the longest edge of the grid on which bones are fitted
_FAR = 12.0  # largest logit of an atlas' bone
_FILLED = -4.0  # logit from which an atlas' bone speaks for a voxel
_OPEN = 0.7  # of the network's share: as sure of background, where no atlas' bone is, there is none
Drawn = dict[int, tuple[Int64[Tensor, " n"], Float[Tensor, " n"]]]


@dataclass(frozen=True)
class FittedBone:
    """A bone: its overlap (soft Dice) with the network before and after the fit, and whether it was used."""

    name: str
    before: float
    after: float
    used: bool


@dataclass(frozen=True, eq=False)
class Refined:
    """The refined prediction, its bones, and the match of the edges in each film before and after.

    cage: that of the ribs, None where none could be hung up.
    """

    prediction: ShapePrediction
    bones: tuple[FittedBone, ...]
    matches: tuple[tuple[float, float], ...]
    patients: tuple[str, ...]
    cage: CageFit | None = None

    @property
    def text(self) -> str:
        """What was done, in a line."""
        said = []
        if self.bones:
            used = sum(bone.used for bone in self.bones)
            films = ", ".join(f"film {n} {a:.2f} to {b:.2f}" for n, (a, b) in enumerate(self.matches))
            said.append(f"{used} of {len(self.bones)} bones by the atlas; edges match {films}")
        if self.cage is not None and self.cage.used:
            ribs, before, after = len(self.cage.ribs.unique()), self.cage.before, self.cage.after
            said.append(f"{ribs} ribs as one cage, {before:.2f} to {after:.2f}")
        return "; ".join(said) or "no bone fitted"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "patients": list(self.patients),
            "bones": [asdict(bone) for bone in self.bones],
            "edge_correlation": [{"before": a, "after": b} for a, b in self.matches],
            "rib_cage": None if self.cage is None else self.cage.to_json(),
        }


def refine(
    found: ShapePrediction,
    films: Float[Tensor, "V H W"],
    cameras: Sequence[Camera],
    atlas: Atlas,
    settings: RefineSettings = RefineSettings(),
) -> Refined:
    """Fit an atlas' bones to a prediction and its films, and make one of both.

    films: 0 to 1, bright where attenuation is high.  Bones that the atlas lacks, or that do not come to fit,
    keep the network's probabilities.  No gradient; the same input gives the same bits.
    Raises ShapeError for an atlas of another scheme.
    """
    if atlas.scheme != found.scheme.name:
        raise ShapeError(
            f"the atlas speaks the scheme {atlas.scheme!r} and the network {found.scheme.name!r}; take the "
            "atlas that was made beside this network"
        )
    ribs = set(rib_numbers(found.scheme))
    fits = [_bones_of(found, films, cameras, atlas, ribs, settings)]
    drawn = _drawn(found.grid, fits[0], settings)
    cage = fit_cage(_named(found, drawn, settings), films, cameras, atlas.cages)
    if cage is not None and cage.used:
        found = replace(found, shares=cage.renamed(found.shares, found.grid, found.scheme))
        more = cage.logits(found.grid, found.scheme, softness(found.grid))
    else:
        others = set(range(len(found.scheme))) - ribs
        fits.append(_bones_of(found, films, cameras, atlas, others, settings, close=False))
        more = _drawn(found.grid, fits[1], settings)
    drawn |= more
    made = _fused(found, drawn, settings) if drawn else found
    fits = [fit for fit in fits if fit is not None]
    bones = tuple(bone for fit in fits for bone in _listed(fit, settings))
    return Refined(made, bones, fits[0].matches if fits else (), atlas.patients, cage)


def _bones_of(
    found: ShapePrediction,
    films: Float[Tensor, "V H W"],
    cameras: Sequence[Camera],
    atlas: Atlas,
    without: Collection[int],
    settings: RefineSettings,
    *,
    close: bool = True,
) -> BoneFit | None:
    """Bones of the atlas but some, fitted; None where none of them was found.

    close: whether the last steps are done on the prediction's own grid, where the network tells thickness.
    """
    n = max(1, -(-max(found.grid.shape) // _EDGE))
    grid = found.grid.binned(n)
    fine, own = fitted(films, cameras, found.grid)
    films, cameras = fitted(films, cameras, grid)
    scene = Scene.of(found, atlas, grid, n, volumes=_volumes(found.thickness, cameras, grid), without=without)
    if not scene.names:
        return None
    maps = None
    if found.thickness is not None:
        maps = grouped(found.thickness, scene, cameras)
        scene = started_by_maps(scene, found.thickness, found.told or own, found.scheme)
    finer = None
    if close and n > 1 and maps is not None:  # by edges alone, bones become too small
        finer = found.grid, Seen(fine, own, maps, cameras, blocks=True)
    return fit_bones(scene, Seen(films, cameras, maps, cameras), settings, close=finer)


def _listed(fit: BoneFit, settings: RefineSettings) -> list[FittedBone]:
    before, after = (overlap.tolist() for overlap in fit.overlaps)
    return [
        FittedBone(name, a, b, b >= settings.least)
        for name, a, b in zip(fit.scene.names, before, after, strict=True)
    ]


def _volumes(
    thickness: Float[Tensor, "V L H W"] | None, cameras: Sequence[Camera], grid: VoxelGrid
) -> Float[Tensor, " L"] | None:
    """Each structure's volume by its thickness in the films, mm³, as if it were in the middle of the grid."""
    if thickness is None:
        return None
    edges = torch.tensor([pixel_mm(camera, grid.center) for camera in cameras])
    return (thickness.mean((-1, -2)) * (edges.square() * math.prod(cameras[0].size))[:, None]).mean(0)


@torch.no_grad()
def _drawn(grid: VoxelGrid, fit: BoneFit | None, settings: RefineSettings) -> Drawn:
    """Of each bone that is used, by its number: voxels about it, and the log odds that it fills them."""
    drawn: Drawn = {}
    if fit is None:
        return drawn
    scene, pose = fit.scene, fit.scene.pose(fit.moves)
    for bone in (fit.overlaps[1] >= settings.least).nonzero()[:, 0].tolist():
        voxels, _, logit = scene.lying(pose, bone, grid, _FILLED)
        drawn[scene.numbers[bone]] = voxels, logit.clamp_max(_FAR)
    return drawn


def _named(found: ShapePrediction, drawn: Drawn, settings: RefineSettings) -> ShapePrediction:
    """A prediction with the labels that the atlas' bones bring."""
    if not drawn:
        return found
    product, labels = _product(found.shares, found.scheme, drawn, settings), found.labels.clone()
    labels.reshape(-1)[product.voxels] = product.best().to(labels)
    return replace(found, labels=labels)


@torch.no_grad()
def _fused(found: ShapePrediction, drawn: Drawn, settings: RefineSettings) -> ShapePrediction:
    """The network's opinion, and the product of both where the atlas says something."""
    both = found.shares.but(_product(found.shares, found.scheme, drawn, settings))
    made = prediction_of([both.likely(DOUBT)], found.grid, found.scheme, found.warnings)
    kept = {name: getattr(found, name) for name in ("thickness", "told", "uncounted", "numberings")}
    return replace(made, **kept)


@torch.no_grad()
def _product(found: Shares, names: Scheme, drawn: Drawn, settings: RefineSettings) -> Shares:
    """Both opinions multiplied, each with a power, at the voxels that either counts as one of these bones."""
    numbers = torch.tensor([0, *sorted(drawn)])
    maybe = (found.values[:, 0] < _OPEN).nonzero()[:, 0]
    theirs = replace(found, values=found.values[maybe]).columns(numbers)
    maybe = maybe[theirs[:, 0] < _OPEN * theirs.sum(1)]
    voxels = torch.cat([found.voxels[maybe], *(v for v, _ in drawn.values())]).unique()
    both = found.on(voxels, torch.cat([found.labels, numbers]).unique())
    places = torch.searchsorted(both.labels, numbers)
    mine = both.values[:, places]
    share = mine.sum(1, keepdim=True)
    logits, trust = torch.full_like(mine, -_FAR), torch.full_like(share, settings.trust)
    logits[:, 0] = 0.0
    ribs = rib_numbers(names)
    for column, number in enumerate(numbers[1:].tolist(), 1):
        own, logit = drawn[number]
        rows = torch.searchsorted(voxels, own)
        logits[rows, column] = logit
        if number in ribs:
            trust[rows] = settings.rib_trust
    mine = mine.div_(share.clamp_min(1e-9)).clamp_min_(1e-5).log_()
    both.values[:, places] = share * torch.lerp(logits, mine, trust).softmax(1)
    return both
