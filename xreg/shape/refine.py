"""Bones of an atlas moved, turned and bent until they fit what a network found and what the films show.

Each bone that the network finds is taken from the patient whose shape fits best, as a signed distance
(`xreg.shape.atlas`), and given a similarity with three scales and a quadratic bend.  Neighbours along the
spine and down the ribs turn and grow alike.  The bones are rendered by the differentiable projector; what is
lowered is the distance from the network's probabilities, from its thickness maps, and from the edges in the
films.  Ribs are fitted with them, since films show them too, but then taken from a whole cage that hangs on
the vertebrae (`xreg.shape.cage_fit`), if one comes to agree with the films.  The result and the network's
probabilities are then multiplied, each with a power.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from xreg.errors import ShapeError
from xreg.geometry import Camera
from xreg.renderer import drr
from xreg.shape.atlas import Atlas
from xreg.shape.cage_fit import CageFit, cosine, fit_cage
from xreg.shape.networks.heads import THICKNESS_MM
from xreg.shape.networks.views import fitted, pixel_mm
from xreg.shape.predict import DOUBT, ShapePrediction, prediction_of
from xreg.shape.scene import Moves, Scene, box_of, softness
from xreg.similarity import sobel

_EDGE = 80  # voxels along the longest edge of the grid on which bones are fitted
_GROUPS = 4  # volumes that neighbours along a row are spread over, so that a film tells them apart
_FAR = 12.0  # largest logit of an atlas' bone
_FILLED = -4.0  # logit from which an atlas' bone speaks for a voxel
_OPEN = 0.7  # of the network's share: as sure of background, where no atlas' bone is, there is none
_SEEN = 0.02  # of 50 mm of bone, from which a pixel shows it


@dataclass(frozen=True)
class RefineSettings:
    """How an atlas is fitted, and how much it counts.

    steps, rate: of Adam; films join after the first third.  trust: power of the network's probabilities, the
    atlas' being 1 - trust.  least: overlap (soft Dice) with the network below which a bone is left alone.
    turn_degrees, shift, grow, bend: standard deviations of a bone's pose and shape; shift in parts of its
    size, bend in parts of its extent.  prior, rows, films, maps: what those count for against the overlap.
    """

    steps: int = 28
    rate: float = 0.04
    trust: float = 0.35
    least: float = 0.2
    turn_degrees: float = 12.0
    shift: float = 0.25
    grow: float = 0.12
    bend: float = 0.05
    prior: float = 0.01
    rows: float = 0.01
    films: float = 1.0
    maps: float = 0.3

    def __post_init__(self) -> None:
        if self.steps < 3 or not self.rate > 0 or not 0 <= self.trust <= 1 or not 0 <= self.least <= 1:
            raise ShapeError(
                "refinement needs 3 steps or more, a rate above 0, trust and least in 0..1, got "
                f"{self.steps}, {self.rate}, {self.trust}, {self.least}"
            )
        if min(self.turn_degrees, self.shift, self.grow, self.bend) <= 0:
            raise ShapeError("standard deviations of a refinement must be above 0")


@dataclass(frozen=True)
class FittedBone:
    """A bone: its overlap (soft Dice) with the network before and after the fit, and whether it was used."""

    name: str
    example: int
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
    n = max(1, -(-max(found.grid.shape) // _EDGE))
    grid = found.grid.binned(n)
    seen = fitted(films, cameras, grid)
    scene = Scene.of(found, atlas, grid, n, _volumes(found.thickness, seen[1], grid))
    cage = fit_cage(found, films, cameras, atlas.cages)
    ribs = cage.logits(found.grid, found.scheme, softness(found.grid)) if cage and cage.used else {}
    bones, matches, drawn = (), (), {}
    if scene.names:
        maps = None if found.thickness is None else _grouped(found.thickness, scene, seen[1])
        with torch.enable_grad():
            moves, matches, overlaps = _fit(scene, seen, maps, settings)
        used = overlaps[1] >= settings.least
        used &= torch.tensor([number not in ribs for number in scene.numbers])
        bones = tuple(
            FittedBone(name, e, float(a), float(b), bool(u))
            for name, e, a, b, u in zip(scene.names, scene.examples, *overlaps, used, strict=True)
        )
        drawn = _drawn(found.grid, scene, moves, used)
    if ribs:
        found = replace(found, shares=cage.renamed(found.shares, found.grid, found.scheme))
    if drawn or ribs:
        found = _fused(found, drawn | ribs, settings)
    return Refined(found, bones, matches, atlas.patients, cage)


def _fit(
    scene: Scene,
    seen: tuple[Float[Tensor, "V H W"], Sequence[Camera]],
    maps: Float[Tensor, "V G H W"] | None,
    settings: RefineSettings,
) -> tuple[Moves, tuple[tuple[float, float], ...], tuple[Tensor, Tensor]]:
    """Moves of the bones; matches of the films and overlaps of the bones, before and after."""
    moves = Moves.none(len(scene.names))
    first = _state(scene, moves, seen)
    spread = torch.pi / 180 * settings.turn_degrees, settings.shift, settings.grow, settings.bend
    free = [part.requires_grad_() for part in moves.parts]
    groups = [
        {"params": [p], "lr": settings.rate * s / settings.grow} for p, s in zip(free, spread, strict=True)
    ]
    optimiser = torch.optim.Adam(groups, betas=(0.8, 0.95))
    for step in range(settings.steps):
        optimiser.zero_grad()
        filled = scene.filled(moves)
        loss = 1 - scene.overlaps(filled).mean()
        loss = loss + _prior(scene, [p / s for p, s in zip(moves.parts, spread, strict=True)], settings)
        if step >= settings.steps // 3:
            loss = loss + _film_loss(scene, filled, seen, maps, settings)
        loss.backward()
        optimiser.step()
    moves = Moves(*(p.detach() for p in moves.parts))
    last = _state(scene, moves, seen)
    return moves, tuple(zip(first[0], last[0], strict=True)), (first[1], last[1])


def _prior(scene: Scene, scaled: list[Tensor], settings: RefineSettings) -> Float[Tensor, ""]:
    """What moves cost, in standard deviations: each bone's own, and those that neighbours do not share."""
    cost = settings.prior * sum(p.square().flatten(1).sum(1).mean() for p in scaled)
    if scene.rows:
        a, b = torch.tensor(scene.rows).T
        alike = torch.cat([scaled[0], scaled[2]], 1)
        cost = cost + settings.rows * (alike[a] - alike[b]).square().sum(1).mean()
    return cost


@torch.no_grad()
def _state(scene: Scene, moves: Moves, seen: tuple[Tensor, Sequence[Camera]]) -> tuple[list[float], Tensor]:
    filled = scene.filled(moves)
    shadows = [_shadows(scene, filled, camera).sum(0) for camera in seen[1]]
    return [float(_match(f, s)) for f, s in zip(seen[0], shadows, strict=True)], scene.overlaps(filled)


def _film_loss(
    scene: Scene,
    filled: list[Tensor],
    seen: tuple[Tensor, Sequence[Camera]],
    maps: Tensor | None,
    settings: RefineSettings,
) -> Float[Tensor, ""]:
    loss = 0.0
    for number, (film, camera) in enumerate(zip(*seen, strict=True)):
        shadows = _shadows(scene, filled, camera)
        loss = loss + settings.films * (1 - _match(film, shadows.sum(0))) / len(seen[0])
        if maps is not None:
            apart = (shadows - maps[number]).abs().sum() / maps[number].abs().sum().clamp_min(1e-3)
            loss = loss + settings.maps * apart / len(seen[0])
    return loss


def _shadows(scene: Scene, filled: list[Tensor], camera: Camera) -> Float[Tensor, "G H W"]:
    """Thickness (in 50 mm) of groups of bones along a camera's rays; gradients flow to what is filled."""
    images = []
    for group in range(_GROUPS):
        members = [n for n, number in enumerate(scene.numbers) if number % _GROUPS == group]
        if not members:
            images.append(torch.zeros(camera.size))
            continue
        voxels = torch.cat([scene.voxels[n] for n in members])
        values = torch.cat([filled[n] for n in members])
        body = torch.zeros(scene.grid.shape).reshape(-1).index_add(0, voxels, values).clamp_max(1.0)
        volume = scene.grid.volume(body.reshape(scene.grid.shape))
        images.append(drr(volume, camera, integrator="joseph", storage="float") / THICKNESS_MM)
    return torch.stack(images)


def _match(film: Float[Tensor, "H W"], shadow: Float[Tensor, "H W"]) -> Float[Tensor, ""]:
    """Correlation of the gradients of a film and of bone thickness, near the bones."""
    near = F.max_pool2d((shadow.detach() > _SEEN).float()[None], 7, 1, 3)[0] > 0
    slopes = torch.stack(sobel(torch.stack([film.to(shadow), shadow])))[:, :, near]
    a, b = slopes.transpose(0, 1).flatten(1)
    return cosine(a, b)


def _volumes(
    thickness: Float[Tensor, "V L H W"] | None, cameras: Sequence[Camera], grid: VoxelGrid
) -> Float[Tensor, " L"] | None:
    """Each structure's volume by its thickness in the films, mm³, as if it were in the middle of the grid."""
    if thickness is None:
        return None
    edges = torch.tensor([pixel_mm(camera, grid.center) for camera in cameras])
    return (thickness.mean((-1, -2)) * (edges.square() * math.prod(cameras[0].size))[:, None]).mean(0)


def _grouped(
    thickness: Float[Tensor, "V L H W"], scene: Scene, cameras: Sequence[Camera]
) -> Float[Tensor, "V G h w"]:
    """The network's thickness of the bones that are fitted, in the groups of `_shadows` and their units.

    It may be finer than the films are here, since the grid was binned.
    """
    thickness = F.adaptive_avg_pool2d(thickness, cameras[0].size)
    made = thickness.new_zeros(thickness.shape[0], _GROUPS, *thickness.shape[-2:])
    for number in scene.numbers:
        made[:, number % _GROUPS] += thickness[:, number] / THICKNESS_MM
    return made


@torch.no_grad()
def _drawn(
    grid: VoxelGrid, scene: Scene, moves: Moves, used: Tensor
) -> dict[int, tuple[Int64[Tensor, " n"], Float[Tensor, " n"]]]:
    """Of each bone that is used, by its number: voxels about it, and the log odds that it fills them."""
    drawn, pose = {}, moves.pose()
    for bone in used.nonzero()[:, 0].tolist():
        voxels, points = box_of(grid, scene.points[bone])
        logit = scene.logit(pose, bone, points, grid).clamp(-_FAR, _FAR)
        near = (logit > _FILLED).nonzero()[:, 0]
        drawn[scene.numbers[bone]] = voxels[near], logit[near]
    return drawn


@torch.no_grad()
def _fused(
    found: ShapePrediction, drawn: Mapping[int, tuple[Tensor, Tensor]], settings: RefineSettings
) -> ShapePrediction:
    """Both opinions multiplied, each with a power, at the voxels that either counts as bone."""
    voxels = torch.cat([found.shares.voxels, *(v for v, _ in drawn.values())]).unique()
    numbers = torch.tensor([0, *sorted(drawn)])
    both = found.shares.on(voxels, torch.cat([found.shares.labels, numbers]).unique())
    places = torch.searchsorted(both.labels, numbers)
    mine = both.values[:, places]
    share = mine.sum(1, keepdim=True)
    asked = mine[:, 0] < _OPEN * share[:, 0]
    for own, _ in drawn.values():
        asked[torch.searchsorted(voxels, own)] = True
    rows = asked.nonzero()[:, 0]
    place = asked.cumsum(0) - 1
    logits = mine.new_full((len(rows), len(numbers)), (settings.trust - 1) * _FAR)
    logits[:, 0] = 0.0
    for column, number in enumerate(numbers[1:].tolist(), 1):
        own, logit = drawn[number]
        logits[place[torch.searchsorted(voxels, own)], column] = (1 - settings.trust) * logit
    own = mine[rows].div_(share[rows].clamp_min(1e-9)).clamp_min_(1e-5).log_()
    mine.zero_()[:, 0] = share[:, 0]
    mine[rows] = share[rows] * logits.add_(own, alpha=settings.trust).softmax(1)
    both.values[:, places] = mine
    made = prediction_of([both.likely(DOUBT)], found.grid, found.scheme, found.warnings)
    kept = {name: getattr(found, name) for name in ("thickness", "uncounted", "numberings")}
    return replace(made, **kept)
