"""Films straightened along the spine: each row lies across the line, each film has one strip.

Whatever the patient's posture and place, vertebrae then follow each other down a strip, discs lie across it,
and what is near the spine (ribs, sacrum, hips) lies beside it.  The line may come from labels or from what a
network found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int16
from torch import Tensor

from xreg.geometry import Camera
from xreg.io.voxel_grid import VoxelGrid
from xreg.shape.centroids import middles_of, points_of
from xreg.shape.networks.views import TOWARDS
from xreg.shape.schemes import VERTEBRAE, Scheme

STEP_MM = 3.0  # between the rows of a strip, and between its columns
REACH = 20  # columns to each side of the line
SACRUM = 25  # where the levels of the vertebrae end: C1 is 0, L6 is 24
LINE_MM = 6.0  # along a line
_SMOOTH_MM = 10.0  # of a line
_LEAST_MM2 = 150.0  # of spine in a slice, from which the line runs there
_ROUND = 4  # rows to each side, over which the line's direction is a mean
_WHOLE = 0.6  # of a gap: how far a vertebra's level goes on beyond its middle
_FEWEST = 20  # voxels of a vertebra


@dataclass(frozen=True, eq=False)
class Strips:
    """values [V, S, 41]: films 0 to 1 along a line.  across [V, 2]: where (x, y of the world) columns run."""

    values: Float[Tensor, "V S O"]
    across: Float[Tensor, "V 2"]


def straighten(
    films: Float[Tensor, "V H W"],
    cameras: Sequence[Camera],
    line: Float[Tensor, "S 3"],
    *,
    scale: float = 1.0,
    mirror: bool = False,
) -> Strips:
    """Strips of films along a line from head to foot (world mm), whose points are STEP_MM · scale apart.

    Columns run to the patient's right or to the front, half-way between both views as in `Views`.  mirror: as
    of the patient with left and right exchanged.  What lies beyond a film is 0.
    """
    along = F.pad(line.T[None], (_ROUND, _ROUND), mode="replicate")
    along = torch.gradient(F.avg_pool1d(along, 2 * _ROUND + 1, 1)[0].T, dim=0)[0]
    columns = STEP_MM * scale * torch.arange(-REACH, REACH + 1)
    values, ways = [], []
    for film, camera in zip(films, cameras, strict=True):
        pose = camera.world_from_camera.float().cpu()
        beam = pose[:3, 2].expand_as(line) if camera.parallel else line - pose[:3, 3]
        way = F.normalize(torch.linalg.cross(beam, along), dim=1)
        way = way * torch.sign((way.mean(0) * torch.tensor(TOWARDS)).sum())
        points = line[:, None] + columns[:, None] * way[:, None]
        pixels = camera.project(points.reshape(-1, 3).double()).float().nan_to_num(-1e3)
        height, width = film.shape
        at = ((2 * pixels + 1) / torch.tensor([width, height]) - 1).reshape(1, *points.shape[:2], 2)
        seen = F.grid_sample(film[None, None].float(), at, align_corners=False)[0, 0]
        mean = way.mean(0)[:2]
        if mirror:
            mean = mean * torch.tensor([-1.0, 1.0])
            if float(mean @ torch.tensor(TOWARDS[:2])) < 0:
                seen, mean = seen.flip(1), -mean
        values.append(seen)
        ways.append(mean)
    return Strips(torch.stack(values), torch.stack(ways))


def resampled(
    line: Float[Tensor, "n 3"], step: float, *, start: float = 0.0, count: int | None = None
) -> tuple[Float[Tensor, "S 3"], Float[Tensor, " S"]]:
    """Points ``step`` mm apart along a line from ``start`` mm on, and their places in the line's own index.

    Beyond its ends the line goes straight on.  count: how many; by default as far as the line goes.
    """
    length = F.pad((line[1:] - line[:-1]).norm(dim=1).cumsum(0), (1, 0))
    if count is None:
        count = int((float(length[-1]) - start) / step) + 1
    wanted = start + step * torch.arange(count)
    after = torch.searchsorted(length, wanted).clamp(1, len(line) - 1)
    part = (wanted - length[after - 1]) / (length[after] - length[after - 1]).clamp_min(1e-6)
    inside = part.clamp(0, 1)
    points = torch.lerp(line[after - 1], line[after], inside[:, None])
    reach = min(4, len(line) - 1)
    for end, other in ((0, reach), (len(line) - 1, len(line) - 1 - reach)):
        beyond = wanted < 0 if end == 0 else wanted > length[-1]
        way = F.normalize(line[end] - line[other], dim=0)
        points[beyond] = line[end] + (wanted[beyond, None] - length[end]).abs() * way
    return points, after - 1 + part


def middle_line(
    points: Float[Tensor, "n 3"], weight: Float[Tensor, " n"], voxel_mm3: float
) -> Float[Tensor, "m 3"]:
    """Middles of the spine's slices, from the top, smoothed; as far as there is enough of it."""
    low, high = points[:, 2].aminmax() if len(points) else (torch.zeros(()), torch.zeros(()))
    count = int((high - low) / LINE_MM) + 1
    slices = ((high - points[:, 2]) / LINE_MM).long().clamp(0, count - 1)
    heavy = weight.square()  # what is in doubt has little to say of where the middle is
    sums = torch.cat([weight[:, None], heavy[:, None], heavy[:, None] * points], 1)
    sums = sums.new_zeros(count, 5).index_add(0, slices, sums)
    reach = math.ceil(2.5 * _SMOOTH_MM / LINE_MM)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) * LINE_MM / _SMOOTH_MM) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    sums = F.conv1d(F.pad(sums.T[:, None], (reach, reach)), kernel)[:, 0].T
    there = (sums[:, 0] * voxel_mm3 / LINE_MM > _LEAST_MM2).nonzero()[:, 0]
    if not len(there):
        return points[:0]
    line = sums[:, 2:] / sums[:, 1:2].clamp_min(1e-9)
    line[:, 2] = high - (torch.arange(count) + 0.5) * LINE_MM
    return line[int(there[0]) : int(there[-1]) + 1]


def labelled_line(
    labels: Int16[Tensor, "D H W"], grid: VoxelGrid, names: Scheme
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, " n"]] | None:
    """The line of a labelled spine, and the level at each of its points: C1's middle is 0, L6's 24.

    SACRUM from where the sacrum begins; NaN where labels do not say.  Vertebrae that the grid cuts have no
    middle.  None for fewer than two whole vertebrae.
    """
    spine = [names.index(name) for name in VERTEBRAE if name in names.names]
    sacrum = names.index("sacrum") if "sacrum" in names.names else -1
    flat = torch.isin(labels.reshape(-1), torch.tensor([*spine, sacrum])).nonzero()[:, 0]
    line = middle_line(points_of(grid, flat), torch.ones(len(flat)), grid.voxel_mm3)
    if len(line) < 5:
        return None
    own = labels.reshape(-1)[flat].long()
    rows = flat // (labels.shape[1] * labels.shape[2])
    middles = middles_of(labels, grid, len(names)).float()
    along = F.normalize(torch.gradient(line, dim=0)[0], dim=1)
    length = F.pad((line[1:] - line[:-1]).norm(dim=1).cumsum(0), (1, 0))
    known = []
    for number in spine:
        there = own == number
        slices = rows[there]
        if int(there.sum()) < _FEWEST or int(slices.min()) == 0 or int(slices.max()) == labels.shape[0] - 1:
            continue
        nearest = int((line - middles[number]).norm(dim=1).argmin())
        away = (middles[number] - line[nearest]) @ along[nearest]
        known.append((float(length[nearest] + away), float(VERTEBRAE.index(names.names[number]))))
    if len(known) < 2:
        return None
    place, level = torch.tensor(sorted(known)).T.contiguous()
    gaps, steps = place.diff(), level.diff()
    if not bool((steps > 0).all()):
        return None
    slope = steps / gaps.clamp_min(1e-3)
    piece = (torch.searchsorted(place, length) - 1).clamp(0, len(slope) - 1)
    levels = level[piece] + (length - place[piece]) * slope[piece]
    inside = (levels >= level[0] - _WHOLE) & (levels <= level[-1] + _WHOLE)
    levels = levels.masked_fill(~inside, torch.nan)
    if bool((own == sacrum).any()) and float(level[-1]) >= VERTEBRAE.index("L5"):
        levels = levels.masked_fill(length > place[-1] + (_WHOLE + 0.15) / slope[-1], float(SACRUM))
    return line, levels
