"""How bones of an atlas are moved until films and a network's maps of them agree with their shadows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.errors import ShapeError
from xreg.geometry import Camera
from xreg.io.voxel_grid import VoxelGrid
from xreg.shape.moves import Moves
from xreg.shape.scene import Scene
from xreg.shape.shadows import Canvas, alike, edge_match, spine_sought

_BEND_MM = 4.0  # standard deviation of a vertebra's second difference along the spine
_MIDDLE_MM, _TWIST = 4.0, 0.07  # of a sacrum's way off the middle between the hips, and of its turn (rad)


@dataclass(frozen=True)
class RefineSettings:
    """How an atlas is fitted, and how much it counts.

    steps, rate: of Adam, on a grid of up to 80 voxels an edge, where examples are mixed too; close_steps,
    close_rate: of those that follow on the prediction's own grid, where that is finer, the rate as a part of
    the first.  trust: power of the network's probabilities, the atlas' being 1 - trust; rib_trust: the same
    where a rib is.  least: overlap (soft Dice) with the network below which a bone is left alone.
    turn_degrees, shift, grow, bend: standard deviations of a bone's pose and shape; shift in parts of its
    size, bend in parts of its extent; mix: of the logits of what an example counts for.  prior, rows, line:
    what those count for, what neighbours do not share, and a bend in the line of vertebrae; pelvis: what a
    sacrum does that is off the middle of the hips or turned against them; films, maps, overlap: what the
    edges in the films, the network's thickness maps and its probabilities count for.
    """

    steps: int = 16
    rate: float = 0.04
    close_steps: int = 24
    close_rate: float = 0.5
    trust: float = 0.05
    rib_trust: float = 0.6
    least: float = 0.1
    turn_degrees: float = 12.0
    shift: float = 0.25
    grow: float = 0.12
    bend: float = 0.05
    mix: float = 2.0
    prior: float = 0.01
    rows: float = 0.01
    line: float = 0.01
    pelvis: float = 0.01
    films: float = 1.0
    maps: float = 1.0
    overlap: float = 0.1

    def __post_init__(self) -> None:
        shares = self.trust, self.rib_trust, self.least
        if self.steps < 1 or self.close_steps < 0 or not all(0 <= share <= 1 for share in shares):
            raise ShapeError(
                "refinement needs a step or more, trust, rib_trust and least in 0..1, got "
                f"{self.steps}, {self.close_steps}, {self.trust}, {self.rib_trust}, {self.least}"
            )
        if min(self.rate, self.close_rate) <= 0:
            raise ShapeError(f"rates of a refinement must be above 0, got {self.rate}, {self.close_rate}")
        if min(self.spread) <= 0:
            raise ShapeError("standard deviations of a refinement must be above 0")

    @property
    def spread(self) -> tuple[float, ...]:
        """Standard deviations of the parts of `Moves`."""
        return torch.pi / 180 * self.turn_degrees, self.shift, self.grow, self.bend, self.mix


@dataclass(frozen=True, eq=False)
class Seen:
    """Films at the grid on which bones are fitted, and what a network says of bones' thickness.

    maps: as `xreg.shape.shadows.grouped` gives them, None from a network that does not say; in views
    ``told``; blocks: for the scene's blocks of voxels.
    """

    films: Float[Tensor, "V H W"]
    cameras: Sequence[Camera]
    maps: Float[Tensor, "V G H W"] | None
    told: Sequence[Camera]
    blocks: bool = False


@dataclass(frozen=True, eq=False)
class BoneFit:
    """Bones where they came to lie.  matches: of the edges in each film, and overlaps: of each bone with the
    network, before and after."""

    scene: Scene
    moves: Moves
    matches: tuple[tuple[float, float], ...]
    overlaps: tuple[Float[Tensor, " B"], Float[Tensor, " B"]]


def fit_bones(
    scene: Scene, seen: Seen, settings: RefineSettings, *, close: tuple[VoxelGrid, Seen] | None = None
) -> BoneFit:
    """Move a scene's bones until they fit; the same input gives the same bits.

    close: a finer grid and what is seen at it, where the last steps are done.
    """
    first = _state(scene, scene.still, seen)
    if settings.films:
        scene = spine_sought(scene, seen.films, seen.cameras)
    moves = _descended(scene, scene.still, seen, settings, settings.steps)
    scene, moves = scene.settled(moves)
    slower, there, at = replace(settings, rate=settings.rate * settings.close_rate), scene, seen
    if close is not None:
        grid, at = close
        slower, there = replace(slower, overlap=0.0), scene.closer(moves, grid)
    moves = _descended(there, moves, at, slower, settings.close_steps)
    last = _state(scene, moves, seen)
    return BoneFit(scene, moves, tuple(zip(first[0], last[0], strict=True)), (first[1], last[1]))


def _descended(scene: Scene, start: Moves, seen: Seen, settings: RefineSettings, steps: int) -> Moves:
    """Moves after so many steps of Adam."""
    free = [part.clone().requires_grad_() for part in start.parts]
    rates = [settings.rate / settings.grow * s for s in settings.spread]
    groups = [{"params": [part], "lr": rate} for part, rate in zip(free, rates, strict=True)]
    optimiser = torch.optim.Adam(groups, betas=(0.8, 0.95))
    drawn = Canvas.of(scene, seen.cameras), Canvas.of(scene, seen.told, blocks=seen.blocks)
    for _ in range(steps):
        optimiser.zero_grad()
        with torch.enable_grad():
            _loss(scene, Moves(*free), seen, drawn, settings).backward()
        optimiser.step()
    return Moves(*(part.detach() for part in free))


def _loss(
    scene: Scene, moves: Moves, seen: Seen, drawn: tuple[Canvas, Canvas], settings: RefineSettings
) -> Float[Tensor, ""]:
    """drawn: where shadows are, to be compared with the films and with the maps."""
    filled, dense = scene.filled(moves)
    loss = _prior(scene, moves, settings)
    if settings.overlap:
        loss = loss + settings.overlap * (1 - scene.overlaps(filled).mean())
    if settings.films:
        loss = loss + settings.films * _apart(edge_match, seen.films, drawn[0].shadow(dense))
    if settings.maps and seen.maps is not None:
        loss = loss + settings.maps * _apart(alike, drawn[1].group_shadows(filled), seen.maps)
    return loss


def _apart(match: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """How far views are from matching, in the mean."""
    return 1 - torch.stack([match(*both) for both in zip(a, b, strict=True)]).mean()


def _prior(scene: Scene, moves: Moves, settings: RefineSettings) -> Float[Tensor, ""]:
    """What moves cost: each bone's own, in standard deviations, and those that neighbours do not share."""
    scaled = [part / s for part, s in zip(moves.parts, settings.spread, strict=True)]
    cost = settings.prior * sum(part.square().flatten(1).sum(1).mean() for part in scaled)
    if scene.rows:
        a, b = torch.tensor(scene.rows).T
        both = torch.cat([scaled[0], scaled[2]], 1)
        cost = cost + settings.rows * (both[a] - both[b]).square().sum(1).mean()
    if scene.lines:
        a, b, c = torch.tensor(scene.lines).T
        places = scene.places(moves)
        bends = (places[a] + places[c] - 2 * places[b]) / _BEND_MM
        cost = cost + settings.line * bends.square().sum(1).mean()
    if scene.pelvis:
        cost = cost + settings.pelvis * _skew(scene, moves)
    return cost


def _skew(scene: Scene, moves: Moves) -> Float[Tensor, ""]:
    """How far a sacrum is off its place between the hips and turned against them, in standard deviations.

    An atlas that does not know the place asks for the middle alone, and lets it tilt about the axis from hip
    to hip.
    """
    sacrum, left, right = scene.pelvis
    places = scene.places(moves)
    if scene.ring is not None:
        bones, hips = list(scene.pelvis), [left, right]
        size = (scene.size[hips] * moves.grow[hips].mean(1).exp()).mean()
        return scene.ring.off(places[bones], moves.turn[bones], size)
    across = F.normalize(scene.place[left] - scene.place[right], dim=0)
    off = (places[sacrum] - (places[left] + places[right]) / 2) @ across
    turn = moves.turn[sacrum] - (moves.turn[left] + moves.turn[right]) / 2
    turn = turn - (turn @ across) * across
    return (off / _MIDDLE_MM).square() + (turn / _TWIST).square().sum()


@torch.no_grad()
def _state(scene: Scene, moves: Moves, seen: Seen) -> tuple[list[float], Float[Tensor, " B"]]:
    """How edges match in each film, and how bones overlap with the network's."""
    filled, dense = scene.filled(moves)
    cast = Canvas.of(scene, seen.cameras).shadow(dense)
    matches = [float(edge_match(film, one)) for film, one in zip(seen.films, cast, strict=True)]
    return matches, scene.overlaps(filled)
