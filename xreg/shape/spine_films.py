"""Where along the spine each vertebra lies, by the edges that the films show there.

Numbers along the spine come from all of it at once (`xreg.shape.spine`), and are then right to a part of a
vertebra.  The films tell that part: an atlas' vertebrae are put where they are thought to be, and rendered;
what they would show beside the spine's line at each level is compared with what the films show at each point
of the line.  Discs look alike, so that this says nothing of numbers: the path that is sought keeps to the
labels too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.geometry import Camera, se3
from xreg.io.voxel_grid import VoxelGrid
from xreg.renderer import drr
from xreg.shape.atlas import Atlas
from xreg.shape.networks.heads import THICKNESS_MM
from xreg.shape.networks.views import Views, fitted
from xreg.shape.predict import ShapePrediction, prediction_of
from xreg.shape.scene import Moves, Scene
from xreg.shape.spine import SpineLine, SpineSettings, best_line, renumbered, state_levels

_ROUNDS = 2
_ACROSS_MM = 24.0  # to each side of the line …
_APART_MM = 4.0  # … in such steps
_STEP_MM = 1.5  # along it
_NEAR_MM = 3.0  # about a point of the line
_MOST = 2.5  # standard deviations of a slope, beyond which it counts no more
_AWAY = 0.8  # of a level, by which a bone may be moved


def settle_levels(
    found: ShapePrediction,
    films: Float[Tensor, "V H W"],
    cameras: Sequence[Camera],
    atlas: Atlas,
    edge: int,
    settings: SpineSettings | None = None,
) -> ShapePrediction:
    """A prediction whose vertebrae were counted, moved along the spine to where the films show them.

    edge: voxels along the longest edge of the grid on which the atlas is rendered.  The same prediction where
    nothing was counted, or the atlas has no such bones.
    """
    line = found.spine
    if line is None or found.uncounted is None:
        return found
    n = max(1, -(-max(found.grid.shape) // edge))
    grid = found.grid.binned(n)
    films, cameras = fitted(films, cameras, grid)
    views = Views.of(films, cameras, grid)
    voxels, own = found.uncounted
    spine = found.scheme.groups["spine"]
    probabilities = found.probabilities
    for _ in range(_ROUNDS):
        told = replace(found, voxels=voxels, probabilities=probabilities)
        scene = Scene.of(told, atlas, grid, n, only=spine)
        shadows = _shadows(scene, line, spine, cameras)
        if shadows is None:
            break
        seen = _fits(line, views, grid, views.turned(shadows[None, :, None])[0, :, 0], len(spine))
        better = best_line(line.points, line.own, settings or SpineSettings(), seen)
        if better is None:
            break
        line = better
        probabilities = renumbered(voxels, own, found.grid, found.scheme, line)
    made = prediction_of(voxels, probabilities[None], found.grid, found.scheme, found.warnings)
    return replace(made, thickness=found.thickness, uncounted=found.uncounted, spine=line)


def _shadows(
    scene: Scene, line: SpineLine, spine: Sequence[int], cameras: Sequence[Camera]
) -> Float[Tensor, "V H W"] | None:
    """Thickness (in 50 mm) of the vertebrae, each moved along the line to its level; None without any."""
    moves = Moves.none(len(scene.names))
    volume = torch.zeros(scene.grid.shape).reshape(-1)
    wanted = torch.tensor([float(spine.index(n)) for n in scene.numbers])
    shifts, near = line.shifts(scene.place, wanted)
    for bone in (near < _AWAY).nonzero()[:, 0].tolist():
        moves.shift[bone] = shifts[bone] / scene.size[bone]
        volume.index_add_(0, scene.voxels[bone], scene.occupancy(moves, bone))
    if not bool(volume.any()):
        return None
    body = scene.grid.volume(volume.clamp_max(1.0).reshape(scene.grid.shape))
    return torch.stack([drr(body, c, integrator="joseph", storage="float") for c in cameras]) / THICKNESS_MM


def _fits(
    line: SpineLine, views: Views, grid: VoxelGrid, shadows: Float[Tensor, "V H W"], count: int
) -> Float[Tensor, "n S"]:
    """How well the films fit each level, at each point of the line: mean product of slopes along it."""
    there = line.levels.isfinite()
    marks, points = _resampled(line.points[there])
    levels = _interpolated(marks, _lengths(line.points[there]), line.levels[there])
    bones = torch.gradient(_strips(points, views, grid, shadows), dim=1)[0]
    states = state_levels(count)
    known = (states >= levels[0]) & (states <= levels[-1])
    at = torch.searchsorted(levels.contiguous(), states).clamp(1, len(levels) - 1)
    part = (states - levels[at - 1]) / (levels[at] - levels[at - 1]).clamp_min(1e-4)
    part = part.clamp(0, 1)[None, :, None]
    bones = (bones[:, at - 1] * (1 - part) + bones[:, at] * part) * known[None, :, None]
    bones = bones / bones[:, known].square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-6)
    marks, points = _resampled(line.points)
    films = torch.gradient(_strips(points, views, grid, views.films[0]), dim=1)[0]
    films = films / films.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-6)
    both = torch.einsum("vno,vko->nk", films.clamp(-_MOST, _MOST), bones.clamp(-_MOST, _MOST))
    both = both / (films.shape[0] * films.shape[2])
    near = ((marks - _lengths(line.points)[:, None]).abs() <= _NEAR_MM).float()
    return near @ both / near.sum(1, keepdim=True).clamp_min(1)


def _strips(
    points: Float[Tensor, "n 3"], views: Views, grid: VoxelGrid, images: Float[Tensor, "V H W"]
) -> Float[Tensor, "V n O"]:
    """Values of images to both sides of a line's shadow, square to it in each image."""
    index = se3.apply(grid.index_from_world, points.double()).float()
    half = torch.tensor([images.shape[-1], images.shape[-2]]) / 2
    pixels = views.pixels(index[None])[0][0] * half
    along = torch.gradient(pixels, dim=1)[0]
    length = along.norm(dim=-1, keepdim=True)
    across = torch.stack([-along[..., 1], along[..., 0]], -1) / length.clamp_min(1e-6)
    step = torch.gradient(points, dim=0)[0].norm(dim=1).mean()
    scale = length.mean(1, keepdim=True) / step  # pixels a mm
    off = torch.arange(-_ACROSS_MM, _ACROSS_MM + 1e-3, _APART_MM)
    at = pixels[:, :, None] + (across * scale)[:, :, None] * off[:, None]
    return F.grid_sample(images[:, None], at / half, padding_mode="border", align_corners=False)[:, 0]


def _lengths(points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Way along a line of points, mm."""
    return F.pad((points[1:] - points[:-1]).norm(dim=1).cumsum(0), (1, 0))


def _resampled(points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " m"], Float[Tensor, "m 3"]]:
    """Even marks along a line, mm, and the points there."""
    ways = _lengths(points)
    marks = torch.linspace(0, float(ways[-1]), int(ways[-1] / _STEP_MM) + 2)
    return marks, _interpolated(marks, ways, points)


def _interpolated(at: Float[Tensor, " m"], ways: Float[Tensor, " n"], values: Tensor) -> Tensor:
    """Values [n, …] known at growing ways, between them."""
    after = torch.searchsorted(ways.contiguous(), at).clamp(1, len(ways) - 1)
    part = ((at - ways[after - 1]) / (ways[after] - ways[after - 1]).clamp_min(1e-6)).clamp(0, 1)
    part = part.reshape(-1, *[1] * (values.ndim - 1))
    return values[after - 1] * (1 - part) + values[after] * part
