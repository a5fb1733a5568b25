"""Vertebrae counted along the spine: all of it at once, not each voxel for itself.

A network that saw few patients often knows that a voxel is vertebra better than which one, and then gives
several names a share of it.  Along the line through the spine's middle the level grows by one from each
vertebra's middle to the next.  The path is sought that agrees best with the labels' masks in the films, the
sacrum's among them, and with the usual distances, which are larger or smaller for the whole patient (dynamic
programming: A. J. Viterbi, IEEE Trans. Inf. Theory 13, 1967).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from xreg.geometry import Camera, se3
from xreg.io.voxel_grid import VoxelGrid
from xreg.shape.level import SHIFTS
from xreg.shape.networks.heads import FilmMaps
from xreg.shape.networks.views import Views
from xreg.shape.schemes import VERTEBRAE, Scheme
from xreg.shape.shares import Shares
from xreg.shape.spine_reading import LevelShares
from xreg.shape.strips import LINE_MM, middle_line

# From one vertebra's middle to the next, C1 first: means of seven labelled scans, smoothed by hand.
GAPS_MM = (
    15.0, 17.0, 15.0, 15.0, 15.0, 15.5, 17.5, 19.0, 21.0, 21.5, 22.0, 22.5, 23.5, 24.5, 25.0, 26.0, 27.0,
    29.0, 30.0, 32.0, 33.5, 34.0, 31.5, 29.0, 29.0,
)  # fmt: skip
_SIZES = (0.7, 0.76, 0.83, 0.91, 1.0, 1.1, 1.2, 1.32)  # of a patient, against those
_PARTS = 32  # of a level, that a path can tell apart
_SLOPES = (0.5, 1.8)  # least and greatest speed of a path, against the usual
_FLOOR = 0.02  # of a mask: a network is never that sure
_NEVER = -1e9
_SHARP = 0.5  # of a level, about a vertebra's middle, that is its own
_REACH_MM = 15.0  # beyond the ends of the line
_THIN_MM = 0.5  # of vertebrae along a ray: less is shown as none
_SACRAL = 3  # points of a line, one after the other, that are sacrum where it begins
_TOLD_MM, _FAR = 100.0, 0.2  # above the sacrum, where a number counts e times less; at least so much
_LEFT = 0.75  # of a level below a vertebra's middle: a path that leaves later has counted one more
_TRACE = 1e-3  # of being vertebra: less of it becomes background


@dataclass(frozen=True)
class SpineSettings:
    """What counts for a path.  labels: the logarithm of a label's share, for each cm of the line.

    pace, size: standard deviations, as logarithms, of the distance between two vertebrae against that of the
    patient, and of the patient against the usual.  sixth: what it costs to find L6.  keep: power of the
    network's own split of a voxel among vertebrae.  parts, numbers: as labels, of what a reader of the spine
    says of the part of a vertebra and of its number.
    """

    labels: float = 1.2
    pace: float = 0.2
    size: float = 0.12
    sixth: float = 3.0
    keep: float = 0.5
    parts: float = 1.0
    numbers: float = 0.5


@dataclass(frozen=True, eq=False)
class SpineLine:
    """The line through the spine's middle, from the top, and where on it which vertebra lies.

    points [n, 3], mm.  levels [n]: 0 at the middle of the scheme's first vertebra; NaN in the sacrum.  size:
    of the patient, against the usual.  numberings [5]: mean logarithm of what a reader gives the levels
    shifted by -2 to 2 (`xreg.shape.level`), None without one.
    """

    points: Float[Tensor, "n 3"]
    levels: Float[Tensor, " n"]
    size: float
    numberings: Float[Tensor, " 5"] | None = None

    def at(self, points: Float[Tensor, "m 3"]) -> Float[Tensor, " m"]:
        """The levels of points about the line, each by the line's nearest piece."""
        there = self.levels.isfinite()
        line, levels = self.points[there], self.levels[there]
        along = torch.gradient(line, dim=0)[0]
        length = along.norm(dim=1).clamp_min(1e-3)
        slope, along = torch.gradient(levels)[0] / length, along / length[:, None]
        nearest = torch.cat([torch.cdist(part, line).argmin(1) for part in points.split(1 << 15)])
        off = ((points - line[nearest]) * along[nearest]).sum(1)
        return levels[nearest] + off.clamp(-_REACH_MM, _REACH_MM) * slope[nearest]

    def names(self, names: Scheme) -> list[int]:
        """The scheme's numbers by level: vertebrae, and after the last of them the sacrum, where the line
        runs into it."""
        spine = list(names.groups["spine"])
        there = self.levels.isfinite()
        if bool(there.all()):
            return spine
        last = math.floor(float(self.levels[there][-1]) + 1 - _LEFT)
        return [*spine[: last + 1], names.index("sacrum")]

    def shared(
        self, points: Float[Tensor, "n 3"], names: Scheme
    ) -> tuple[Int64[Tensor, " k"], Float[Tensor, "n k"]]:
        """What part of each point belongs to which label: the scheme's numbers, of those that any may be."""
        numbers, levels = torch.tensor(self.names(names)), self.at(points)
        low, high = levels.aminmax() if len(levels) else (torch.zeros(()), torch.zeros(()))
        near = torch.arange(max(0, int(low.floor()) - 1), min(len(numbers), int(high.ceil()) + 2))
        off = ((levels[:, None] - near) / _SHARP).square_().square_()
        return numbers[near], off.neg_().softmax(1)


def count_vertebrae(
    points: Float[Tensor, "n 3"],
    found: Shares,
    grid: VoxelGrid,
    names: Scheme,
    maps: FilmMaps,
    views: Views,
    settings: SpineSettings = SpineSettings(),
    *,
    read: Callable[[Tensor], LevelShares] | None = None,
) -> SpineLine | None:
    """The spine's line and levels; None where there is too little spine to count, or it has no names.

    points: world mm of the voxels that may be bone.  found: what these may be.  maps: of the films in
    ``views``, whose grid this is.  read: what a reader of the spine says along a line, which then counts
    instead of the labels' shares.  All on the host.
    """
    spine = names.groups.get("spine", ())
    if [names.names[n] for n in spine] != list(VERTEBRAE):
        return None
    sacrum = names.names.index("sacrum") if "sacrum" in names.names else None
    numbers = [*spine, *([sacrum] if sacrum else [])]
    shares = found.columns(numbers)
    line = middle_line(points, shares.sum(1), grid.voxel_mm3)
    if len(line) < 4:
        return None
    states = (torch.arange(len(spine) * _PARTS) + 0.5) / _PARTS - 0.5
    if read is None:
        films = _in_films(line, grid, maps, views, numbers)
        own = settings.labels * (films + _in_space(line, points, shares)) / 2
        below = own[:, -1] if sacrum else torch.full_like(own[:, 0], _NEVER)
        low = states.floor().long().clamp(0, len(spine) - 2)
        own = torch.lerp(own[:, low], own[:, low + 1], (states - low).clamp(0, 1).expand(len(own), -1))
    else:
        said = read(line)
        near = _near_sacrum(line, said)
        told = said.weighed(settings.parts, settings.numbers * near)
        own, below = told.at(states), told.sacrum
    levels, size = _best_path(line, states, own, below, settings)
    if int(levels.isfinite().sum()) < 4:
        return None
    return SpineLine(line, levels, size, None if read is None else _numberings(said, levels, near))


def _near_sacrum(line: Float[Tensor, "n 3"], told: LevelShares) -> Float[Tensor, "n 1"]:
    """How much numbers count along a line: all alike without a sacrum, else the less the further above it.

    A vertebra's own look tells its number badly; that the sacrum follows tells it well, and the parts of
    vertebrae lead from there upwards.
    """
    weight = torch.ones(len(line), 1)
    sacral = told.numbers[:, -1] > math.log(0.5)
    rows = (F.avg_pool1d(sacral[None].float(), _SACRAL, 1)[0] == 1).nonzero()[:, 0]
    if not len(rows):
        return weight
    above = (line[1:] - line[:-1]).norm(dim=1).flip(0).cumsum(0).flip(0)
    above = (F.pad(above, (0, 1)) - above[rows[0]])[:, None]
    return torch.exp(-above.clamp_min(0) / _TOLD_MM).clamp_min(_FAR)


def _numberings(
    told: LevelShares, levels: Float[Tensor, " n"], weight: Float[Tensor, "n 1"]
) -> Float[Tensor, " 5"]:
    """How well each shift of the levels agrees with what was read, on weighted average along the line."""
    there = levels.isfinite()
    number, last = levels[there].round().long(), told.numbers.shape[1] - 2
    moved = number[:, None] + torch.tensor(SHIFTS)
    said = told.numbers[there].gather(1, moved.clamp(0, last))
    said = said.masked_fill((moved < 0) | (moved > last), math.log(1e-4))
    return (said * weight[there]).sum(0) / weight[there].sum()


def renumbered(
    points: Float[Tensor, "n 3"],
    found: Shares,
    names: Scheme,
    line: SpineLine,
    keep: float = SpineSettings.keep,
) -> Shares:
    """Each voxel's probability of being a vertebra, shared out among them by where it lies on the line.

    Where the line runs into the sacrum, what lies beyond the last vertebra is sacrum too.  keep: as in
    `SpineSettings`.
    """
    vertebra = torch.isin(found.labels, torch.tensor(names.groups["spine"]))
    total = found.values[:, vertebra].sum(1)
    there = (total > _TRACE).nonzero()[:, 0]
    near, shares = line.shared(points[there], names)
    if keep:
        own = (found.columns(near)[there] / total[there, None]).clamp(1e-3, 1.0)
        shares = (shares.log() + keep * own.log()).softmax(1)
    labels = torch.cat([found.labels[~vertebra], near]).unique()
    made = found.values.new_zeros(len(found), len(labels))
    made[:, torch.searchsorted(labels, found.labels[~vertebra])] = found.values[:, ~vertebra]
    made[there[:, None], torch.searchsorted(labels, near)] += total[there, None] * shares
    made[:, 0] += total.masked_fill_(total > _TRACE, 0.0)
    return Shares(found.voxels, labels, made)


def renumbered_maps(
    thickness: Float[Tensor, "V L H W"], cameras: Sequence[Camera], names: Scheme, line: SpineLine
) -> Float[Tensor, "V L H W"]:
    """The vertebrae's thickness in films, shared out among them by where the pixel lies on the line.

    A pixel counts as the point of its ray at the depth of the line's middle.  What lies beyond the last
    vertebra is the sacrum's, as in `renumbered`.
    """
    spine, made = list(names.groups["spine"]), thickness.clone()
    middle = line.points[line.levels.isfinite()].mean(0)
    for film, camera in zip(made, cameras, strict=True):
        total = film[spine].sum(0)
        there = total > _THIN_MM
        v, u = there.nonzero().T
        depth = float(se3.apply(camera.camera_from_world, middle[None].double())[0, 2])
        points = camera.unproject(torch.stack([u, v], 1).double(), depth).float()
        near, shares = line.shared(points, names)
        film[spine] = 0.0
        for column, number in enumerate(near.tolist()):
            film[number, v, u] += total[v, u] * shares[:, column]
    return made


def _in_films(
    line: Float[Tensor, "n 3"],
    grid: VoxelGrid,
    maps: FilmMaps,
    views: Views,
    numbers: list[int],
) -> Float[Tensor, "n K"]:
    """Logarithms of the labels' shares along the line by the masks, means over the films."""
    index = se3.apply(grid.index_from_world, line.double()).float()
    at, seen = views.pixels(index[None])
    found = F.avg_pool2d(maps.masks[:, [n - 1 for n in numbers]].sigmoid(), 3, 1, 1, count_include_pad=False)
    found = F.grid_sample(found, at[0][:, :, None], padding_mode="border", align_corners=False)[..., 0]
    weight = seen[0][:, None].to(found)
    count = weight.sum(0).clamp_min(1)
    logs = ((found + _FLOOR).log() * weight).sum(0) / count
    return (logs - logs.logsumexp(0)).T


def _in_space(
    line: Float[Tensor, "n 3"], points: Float[Tensor, "m 3"], probabilities: Float[Tensor, "m K"]
) -> Float[Tensor, "n K"]:
    """Logarithms of the labels' shares of each slice of the line, by the probabilities of its voxels."""
    slices = ((line[0, 2] - points[:, 2]) / LINE_MM).round().long()
    inside = (slices >= 0) & (slices < len(line))
    sums = probabilities.new_zeros(len(line), probabilities.shape[1])
    sums.index_add_(0, slices[inside], probabilities[inside])
    shares = sums / sums.sum(1, keepdim=True).clamp_min(1e-6)
    logs = (shares + _FLOOR).log()
    return logs - logs.logsumexp(1, keepdim=True)


def _best_path(
    line: Float[Tensor, "n 3"],
    states: Float[Tensor, " K"],
    own: Float[Tensor, "n K"],
    below: Float[Tensor, " n"],
    settings: SpineSettings,
) -> tuple[Float[Tensor, " n"], float]:
    """Levels along the line (NaN in the sacrum), and the patient's size, by dynamic programming.

    own, below: what a cm of the line gains at each level, and in the sacrum.
    Each size is a row: they are worked out side by side, and the best is taken.
    """
    count, levels = len(states) // _PARTS, states
    steps = (line[1:] - line[:-1]).norm(dim=1)
    length = F.pad(steps, (1, 0), value=LINE_MM)[:, None] / 10  # cm
    gain, below = length * own, length[:, 0] * below
    sizes = torch.tensor(_SIZES)
    gaps = sizes[:, None] * torch.tensor(GAPS_MM[:count])[levels.round().long().clamp(0, count - 1)]
    fifth = count - 2  # L5, before L6
    leave = torch.where(levels > fifth + _LEFT, -settings.sixth, 0.0)
    leave = torch.where(levels > fifth + 0.3, leave, _NEVER)
    score, last = gain[0].expand(len(sizes), -1), torch.full((len(sizes),), _NEVER)
    score = score - torch.where(levels > fifth + 0.5, settings.sixth, 0.0)  # a line that begins there
    back, entered = [], []
    for n, step in enumerate(steps.tolist(), 1):
        best, moved = _advance(score, step / gaps * _PARTS, settings.pace, step / 10)
        into, place = (score + leave).max(1)
        entered.append(torch.where(into > last, place, -1))
        last = torch.maximum(into, last) + below[n]
        back.append(moved)
        score = best + gain[n]
    ends, at = score.max(1)
    total = torch.maximum(ends, last) - 0.5 * (sizes.log() / settings.size) ** 2
    row = int(total.argmax())
    state = -1 if float(last[row]) > float(ends[row]) else int(at[row])
    path = [state]
    for moved, place in zip(reversed(back), reversed(entered), strict=True):
        state = int(place[row]) if state < 0 else state - int(moved[row, state])
        path.append(state)
    found = torch.tensor(path[::-1])
    return torch.where(found < 0, torch.nan, levels[found.clamp_min(0)]), _SIZES[row]


def _advance(
    score: Float[Tensor, "S K"], usual: Float[Tensor, "S K"], pace: float, cm: float
) -> tuple[Float[Tensor, "S K"], Int64[Tensor, "S K"]]:
    """The best way to each state from those before it, and how many states it came."""
    most = int(usual.max() * _SLOPES[1]) + 1
    moves = torch.arange(most + 1)
    before = F.pad(score, (most, 0), value=_NEVER).unfold(1, most + 1, 1).flip(2)
    ratio = moves.clamp_min(0.3) / usual[..., None]
    cost = 0.5 * (ratio.log() / pace).square() * cm / 3  # a gap is about 3 cm
    cost = torch.where((ratio < _SLOPES[0]) | (ratio > _SLOPES[1]), -_NEVER, cost)
    return (before - cost).max(2)
