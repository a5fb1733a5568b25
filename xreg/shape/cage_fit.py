"""A rib cage hung on counted vertebrae, and moved as a whole until it agrees with two films.

All ribs share a few numbers, parabolas along the levels: how wide, deep and high the cage is, how its ribs
slope.  Each rib may turn a little for itself.  (A lean or yaw of the whole passes, in a side film, for left
ribs being right ones, and led astray.)  A cage is a cloud of points, whose shadow is quickly drawn: what is
lowered is how far it is from the thickness of ribs that a network sees in the films, whichever ribs it takes
them for, and from the fine structure of the films themselves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import roma
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from xreg.geometry import Camera, se3
from xreg.io.voxel_grid import VoxelGrid
from xreg.shape.cage import LEVELS, RibCage, level_gap, rib_numbers, spine_at
from xreg.shape.centroids import middles_of, points_of
from xreg.shape.networks.views import fitted, pixel_mm
from xreg.shape.predict import ShapePrediction
from xreg.shape.schemes import Scheme
from xreg.shape.shares import Shares
from xreg.training import schedule

_SHARED = 9  # parabolas of a cage, see `_Fit.moved`
_STEPS, _TRIAL = 48, 12  # of Adam; so many of each cage, before the best goes on
_RATE = 0.035  # at first; it falls to nothing, or where ribs come to lie would hang on how sums are rounded
_SPREAD, _TURN = 0.15, 0.05  # standard deviations of the shared numbers, and of a rib's own turn (rad)
_PRIOR = 0.02  # what these count for
_STIFF = 100.0  # times more for a rib's own turn in the first third
_SHIFT = 20.0  # mm, unit of a shared shift
_BLUR_MM = (16.0, 8.0, 4.0, 2.0)  # of shadows, in turn
_FINE_MM, _COARSE_MM = 3.0, 16.0  # what lies between is a film's fine structure
_FILMS = 1.0  # what the films count for, after the first third; maps of ribs from the side mislead
_NEAR_MM = 1.5  # thickness of ribs that a network sees, from which their film is looked at
_SPECK = 0.15  # of the films' range: a pixel that far from its neighbours' median is none
_POINTS = 1500  # of a cage, while it is fitted
_MATCH, _MATCH_MM = 0.6, _BLUR_MM[2]  # of shadows that are so blurred, from which a cage is used
_FILL = 0.7  # of a cube's edge, from its middle to where a rib ends
_TRACE = 0.03  # of being a rib: less of it is none
_NAMING = 600  # points of a cage by which voxels are named
_TAIL = 4.0  # log odds below which a rib says nothing


@dataclass(frozen=True, eq=False)
class CageFit:
    """points [N, 3]: world mm, of ribs [N] (0 to 23), each for a cube of edges [N] mm.  before, after: how
    the shadow agrees with the ribs in the films, 0 to 1.  patient: whose cage it was."""

    points: Float[Tensor, "N 3"]
    ribs: Int64[Tensor, " N"]
    edges: Float[Tensor, " N"]
    before: float
    after: float
    patient: str

    @property
    def used(self) -> bool:
        """Whether it agrees well enough."""
        return self.after >= _MATCH

    def logits(
        self, grid: VoxelGrid, names: Scheme, soft_mm: float
    ) -> dict[int, tuple[Int64[Tensor, " m"], Float[Tensor, " m"]]]:
        """Of each rib, by its number in a scheme: voxels about it, and the log odds that it fills them.

        soft_mm: over which occupancy falls from .73 to .5.
        """
        from scipy.spatial import cKDTree

        reach = float(self.edges.max()) + _TAIL * soft_mm
        voxels = _about(self.points, grid, reach)
        tree = cKDTree(self.points.numpy())
        away, nearest = tree.query(points_of(grid, voxels).numpy(), distance_upper_bound=reach)
        met = away < reach
        voxels, nearest = voxels[met], torch.from_numpy(nearest[met])
        away = torch.from_numpy(away[met]).float()
        logit = (_FILL * self.edges[nearest] - away) / soft_mm
        kept = logit > -_TAIL
        voxels, logit, ribs = voxels[kept], logit[kept], self.ribs[nearest[kept]]
        numbers = rib_numbers(names)
        return {numbers[r]: (voxels[ribs == r], logit[ribs == r]) for r in ribs.unique().tolist()}

    def renamed(self, found: Shares, grid: VoxelGrid, names: Scheme) -> Shares:
        """Each voxel's probability of being any rib of this cage becomes that of the nearest.

        Traces of it become background.
        """
        from scipy.spatial import cKDTree

        own = torch.tensor(rib_numbers(names))[self.ribs.unique()].sort().values
        labels = torch.cat([found.labels, own]).unique()
        made = found.on(found.voxels, labels)
        columns = torch.searchsorted(labels, own)
        total = made.values[:, columns].sum(1)
        there = (total > _TRACE).nonzero()[:, 0]
        made.values[:, 0] += total.masked_fill(total > _TRACE, 0.0)
        made.values[:, columns] = 0.0
        few = slice(None, None, max(1, len(self.ribs) // _NAMING))
        nearest = cKDTree(self.points[few].numpy()).query(points_of(grid, found.voxels[there]).numpy())[1]
        number = torch.tensor(rib_numbers(names))[self.ribs[few][torch.from_numpy(nearest)]]
        made.values[there, torch.searchsorted(labels, number)] = total[there]
        return made

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        known = {name: getattr(self, name) for name in ("patient", "before", "after", "used")}
        return {**known, "ribs": len(self.ribs.unique())}


@dataclass(frozen=True, eq=False)
class _Seen:
    """A film: its camera, a pixel's size, thickness of ribs (mm) for each blur, its fine structure and where
    that counts."""

    camera: Camera
    pixel: float
    ribs: dict[float, Float[Tensor, "h w"]]
    fine: Float[Tensor, "h w"]
    near: Float[Tensor, "h w"]


def fit_cage(
    found: ShapePrediction,
    films: Float[Tensor, "V H W"],
    cameras: Sequence[Camera],
    cages: Sequence[RibCage],
) -> CageFit | None:
    """The cage that comes to agree best with the films; None without one, or without spine or ribs to go by.

    found: a prediction with thickness maps and counted vertebrae.  films: 0 to 1, bright where attenuation
    is high.  The same input gives the same bits.  No gradient.
    """
    names = found.scheme
    spine = spine_at(middles_of(found.labels, found.grid, len(names)), names)
    known = spine[:, 0].isfinite()
    if not cages or not rib_numbers(names) or found.thickness is None or int(known.sum()) < 2:
        return None
    seen = [
        _seen(film, camera, maps, found)
        for film, camera, maps in zip(*fitted(films, cameras, found.grid), found.thickness, strict=True)
    ]
    if min(float(one.near.max()) for one in seen) == 0:
        return None
    tried = []
    for cage in cages:
        cage = cage.only(known[cage.ribs % LEVELS])
        if len(cage.ribs):
            fit = _Fit(cage, spine)
            before = fit.match(seen)
            fit.descend(seen, 0, _TRIAL)
            tried.append((fit.match(seen), before, fit))
    if not tried:
        return None
    _, before, best = max(tried, key=lambda one: one[0])
    best.descend(seen, _TRIAL, _STEPS)
    with torch.no_grad():
        points, edges = best.moved(best.cage)
    return CageFit(points, best.cage.ribs, edges, before, best.match(seen), best.cage.patient)


def _seen(film: Tensor, camera: Camera, maps: Float[Tensor, "L h w"], found: ShapePrediction) -> _Seen:
    from scipy.ndimage import median_filter

    ribs = maps[list(rib_numbers(found.scheme))].sum(0)
    if ribs.shape != film.shape:
        ribs = F.interpolate(ribs[None, None], film.shape, mode="area")[0, 0]
    pixel = pixel_mm(camera, found.grid.center)
    usual = torch.from_numpy(median_filter(film.float().numpy(), 3))
    clean = torch.where((film - usual).abs() > _SPECK, usual, film.float())
    near = (_blurred((ribs > _NEAR_MM).float(), 2.0) > 0.1).float()
    blurs = {blur: _blurred(ribs, blur / pixel) for blur in _BLUR_MM}
    return _Seen(camera, pixel, blurs, clean - _blurred(clean, _COARSE_MM / pixel), near)


class _Fit:
    """A cage, and the numbers by which it is moved."""

    def __init__(self, cage: RibCage, spine: Float[Tensor, "12 3"]) -> None:
        self.cage, self.spine, self.size = cage, spine.nan_to_num(), level_gap(spine) / cage.gap
        self.few = cage.only(torch.arange(0, len(cage.ribs), max(1, len(cage.ribs) // _POINTS)))
        self.share = len(cage.ribs) / len(self.few.ribs)
        self.shared = torch.zeros(_SHARED, 3, requires_grad=True)
        self.turn = torch.zeros(2 * LEVELS, 3, requires_grad=True)
        own = [{"params": [self.shared], "own": 1.0}, {"params": [self.turn], "own": 0.5}]
        self.optimiser = torch.optim.Adam(own, lr=_RATE, betas=(0.8, 0.95))

    def moved(self, cage: RibCage) -> tuple[Float[Tensor, "N 3"], Float[Tensor, " N"]]:
        """World points, and the edges of the cubes that they stand for."""
        level = (torch.arange(LEVELS) - (LEVELS - 1) / 2) / ((LEVELS - 1) / 2)
        along = level[:, None] ** torch.arange(3) @ self.shared.T
        wide, uneven, deep, high, slope, swing, flare, out, up = along.repeat(2, 1).T
        side = torch.tensor([-1.0, 1.0]).repeat_interleave(LEVELS)
        grow = self.size * torch.stack([wide + side * uneven, deep, high], 1).exp()
        turn = torch.stack([slope, side * swing, side * flare], 1) + self.turn
        change = roma.rotvec_to_rotmat(turn) * grow[:, None]
        start = self.spine.repeat(2, 1) + _SHIFT * torch.stack([torch.zeros_like(out), out, up], 1)
        points = (change[cage.ribs] @ cage.points[:, :, None])[..., 0] + start[cage.ribs]
        return points, cage.edges * grow.prod(1)[cage.ribs] ** (1 / 3)

    def shadow(self, seen: _Seen) -> Float[Tensor, "h w"]:
        """Thickness (mm) along a film's rays."""
        points, edges = self.moved(self.few)
        at = seen.camera.project(points.double()).float()
        return _splatted(at, self.share * edges**3 / seen.pixel**2, tuple(seen.fine.shape))

    @torch.no_grad()
    def match(self, films: Sequence[_Seen]) -> float:
        """How the shadows agree with the ribs in the films, 0 to 1, mean of the films."""
        return sum(float(_alike(self.shadow(one), one, _MATCH_MM)) for one in films) / len(films)

    def descend(self, films: Sequence[_Seen], first: int, last: int) -> None:
        for step in range(first, last):
            blur, early = _BLUR_MM[step * len(_BLUR_MM) // _STEPS], step < _STEPS // 3
            for group in self.optimiser.param_groups:
                group["lr"] = group["own"] * _RATE * schedule(step / _STEPS, 0.0)
            with torch.enable_grad():
                own = (self.turn / _TURN).square().mean() * (_STIFF if early else 1.0)
                loss = _PRIOR * ((self.shared / _SPREAD).square().sum(1).mean() + own)
                for one in films:
                    shadow = self.shadow(one)
                    loss = loss - _alike(shadow, one, blur)
                    if not early:
                        loss = loss - _FILMS * _fine_match(shadow, one)
                self.optimiser.zero_grad()
                loss.backward()
            self.optimiser.step()


def _alike(shadow: Tensor, seen: _Seen, blur_mm: float) -> Float[Tensor, ""]:
    """Cosine between a shadow and the thickness that a network sees."""
    return cosine(_blurred(shadow, blur_mm / seen.pixel), seen.ribs[blur_mm])


def _fine_match(shadow: Tensor, seen: _Seen) -> Float[Tensor, ""]:
    """Correlation of a shadow's fine structure with a film's, where there are ribs."""
    a = _blurred(shadow, _FINE_MM / seen.pixel)
    a, b = a - _blurred(a, _COARSE_MM / seen.pixel), seen.fine
    count = seen.near.sum()
    return cosine(*((x - (x * seen.near).sum() / count) * seen.near for x in (a, b)))


def cosine(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """Of the angle between two images, taken as vectors; 0 where one is empty."""
    return (a * b).sum() / (a.square().sum() * b.square().sum()).clamp_min(1e-18).sqrt()


def _about(points: Float[Tensor, "N 3"], grid: VoxelGrid, reach: float) -> Int64[Tensor, " m"]:
    """Flat indices of the voxels within about ``reach`` mm of any point."""
    index = se3.apply(grid.index_from_world, points.double()).round().long()
    n = math.ceil(reach / min(grid.spacing))
    index = index[((index >= -n) & (index < torch.tensor(grid.size) + n)).all(1)]
    there = torch.zeros([m + 4 * n for m in grid.shape], dtype=torch.bool)
    i, j, k = (index + 2 * n).T
    for dk, dj, di in itertools.product(range(-n, n + 1), repeat=3):
        there[k + dk, j + dj, i + di] = True
    d, h, w = grid.shape
    return there[2 * n : 2 * n + d, 2 * n : 2 * n + h, 2 * n : 2 * n + w].reshape(-1).nonzero()[:, 0]


def _splatted(
    at: Float[Tensor, "N 2"], values: Float[Tensor, " N"], size: tuple[int, int]
) -> Float[Tensor, "h w"]:
    """Values shared out among the four pixels about each place; gradients flow to places and values."""
    low = at.detach().floor()
    part, corner = at - low, low.long()
    image = values.new_zeros(size[0] * size[1])
    for du in (0, 1):
        for dv in (0, 1):
            u, v = corner[:, 0] + du, corner[:, 1] + dv
            weight = (part[:, 0] if du else 1 - part[:, 0]) * (part[:, 1] if dv else 1 - part[:, 1])
            inside = (u >= 0) & (u < size[1]) & (v >= 0) & (v < size[0])
            place = torch.where(inside, v * size[1] + u, 0)
            image = image.index_add(0, place, values * weight * inside)
    return image.reshape(size)


def _blurred(image: Float[Tensor, "h w"], sigma: float) -> Float[Tensor, "h w"]:
    """Gaussian blur, px; zeros beyond the border."""
    reach = math.ceil(3 * sigma)
    away = torch.arange(-reach, reach + 1.0)
    kernel = torch.exp(-(away**2) / (2 * max(sigma, 1e-3) ** 2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    once = F.conv2d(image[None, None], kernel, padding=(reach, 0))
    return F.conv2d(once, kernel.mT, padding=(0, reach))[0, 0]
