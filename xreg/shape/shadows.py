"""What bones of a scene show in films, and how well that matches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.geometry import Camera
from xreg.renderer import drr
from xreg.shape.cage_fit import cosine
from xreg.shape.networks.heads import THICKNESS_MM
from xreg.shape.scene import GROUPS, Scene
from xreg.similarity import sobel

_SEEN = 0.02  # of 50 mm of bone, from which a pixel shows it
_AWAY_MM, _STEP_MM = 16.0, 4.0  # how far the ends of a spine are sought from where they start
_CALM = 0.02  # of a film's match, that moving an end so far must gain
_ALIKE = 0.1  # sine of the angle between two beams from which both count


def shadows(
    scene: Scene,
    members: Sequence[int],
    values: Sequence[Tensor],
    cameras: Sequence[Camera],
    *,
    most: float | None = None,
    blocks: bool = False,
) -> Float[Tensor, "V H W"]:
    """Sum along each camera's rays of values in bones' voxels, in 50 mm; gradients flow to the values.

    members: the bones.  most: of a voxel that several of them fill.  blocks: of the scene's blocks of voxels
    instead, which is quicker.
    """
    if not members:
        return torch.zeros(len(cameras), *cameras[0].size)
    grid, places = (scene.coarse, scene.blocks) if blocks else (scene.grid, scene.voxels)
    body = torch.zeros(grid.shape).reshape(-1)
    body = body.index_add(0, torch.cat([places[n] for n in members]), torch.cat([values[n] for n in members]))
    if blocks:
        body = body * (scene.grid.voxel_mm3 / grid.voxel_mm3)
    if most is not None:
        body = body.clamp_max(most)
    volume = grid.volume(body.reshape(grid.shape))
    seen = [drr(volume, camera, integrator="joseph", storage="float") for camera in cameras]
    return torch.stack(seen) / THICKNESS_MM


def group_shadows(
    scene: Scene, filled: Sequence[Tensor], cameras: Sequence[Camera], *, blocks: bool = False
) -> Float[Tensor, "V G H W"]:
    """Thickness (in 50 mm) of groups of bones along each camera's rays; blocks: as in `shadows`."""
    groups = ([n for n, own in enumerate(scene.groups) if own == group] for group in range(GROUPS))
    cast = [shadows(scene, group, filled, cameras, most=1.0, blocks=blocks) for group in groups]
    return torch.stack(cast, 1)


def grouped(
    thickness: Float[Tensor, "V L H W"], scene: Scene, cameras: Sequence[Camera]
) -> Float[Tensor, "V G h w"]:
    """The network's thickness of the bones that are fitted, as `group_shadows` has it.

    It may be finer than the films are here, since the grid was binned.
    """
    thickness = F.adaptive_avg_pool2d(thickness, cameras[0].size)
    made = thickness.new_zeros(thickness.shape[0], GROUPS, *thickness.shape[-2:])
    for number, group in zip(scene.numbers, scene.groups, strict=True):
        made[:, group] += thickness[:, number] / THICKNESS_MM
    return made


def alike(shadows: Float[Tensor, "G H W"], maps: Float[Tensor, "G H W"]) -> Float[Tensor, ""]:
    """Mean cosine of groups' shadows and maps, of the groups that a map shows: no scale counts."""
    shown = maps.flatten(1).amax(1) > 0
    pairs = zip(shadows[shown], maps[shown], strict=True)
    return torch.stack([cosine(a, b) for a, b in pairs]).mean() if bool(shown.any()) else maps.new_zeros(())


def edge_match(film: Float[Tensor, "H W"], cast: Float[Tensor, "H W"]) -> Float[Tensor, ""]:
    """Correlation of the gradients of a film and of bones' shadow, near the bones."""
    near = F.max_pool2d((cast.detach() > _SEEN).float()[None], 7, 1, 3)[0] > 0
    slopes = torch.stack(sobel(torch.stack([film.to(cast), cast])))[:, :, near]
    a, b = slopes.transpose(0, 1).flatten(1)
    return cosine(a, b)


@torch.no_grad()
def spine_sought(scene: Scene, films: Float[Tensor, "V H W"], cameras: Sequence[Camera]) -> Scene:
    """The spine shifted and tilted as a whole to where its shadow matches the films best.

    A network may see a spine too far to the back or the front, its upper end more than the lower, by more
    than a descent finds back.  In each film its ends are moved across it, and what lies between in
    proportion; along it nothing moves, since levels tell that better.  Shadows are drawn once, and moved by
    whole pixels.
    """
    spine = sorted({n for line in scene.lines for n in line})
    if not spine:
        return scene
    rest, dense = sorted(set(range(len(scene.names))) - set(spine)), scene.filled(scene.still)[1]
    places = scene.place[spine]
    row = F.normalize(places[-1] - places[0], dim=0)
    part = ((places - places[0]) @ row / (places[-1] - places[0]).norm()).clamp(0, 1)
    ends = torch.cartesian_prod(*[torch.arange(-_AWAY_MM, _AWAY_MM + 1, _STEP_MM)] * 2)
    ends = ends[ends.abs().amax(1).argsort(stable=True)]  # of equals the nearest
    moves = torch.lerp(ends[:, :1], ends[:, 1:], part)
    cost = _CALM * (ends / _AWAY_MM).square().sum(1)
    ways, found = [], []
    for film, camera in zip(films, cameras, strict=True):
        way = F.normalize(torch.linalg.cross(row, camera.camera_from_world[2, :3].to(row)), dim=0)
        own = [shadows(scene, [n], dense, [camera])[0] for n in spine]
        others = shadows(scene, rest, dense, [camera])[0]
        slope = camera.project((places + way).double()) - camera.project(places.double())
        pixels = (moves[..., None] * slope.float()).round().long().tolist()
        matches = torch.tensor([float(edge_match(film, _laid(own, by, others))) for by in pixels])
        ways.append(way)
        found.append(moves[int((matches - cost).argmax())])
    across = torch.linalg.pinv(torch.stack([*ways, row]), rtol=_ALIKE) @ torch.stack(
        [*found, torch.zeros(len(spine))]
    )
    whole = scene.place.clone()
    whole[spine] += across.T
    return replace(scene, place=whole)


def _laid(
    images: Sequence[Float[Tensor, "H W"]], by: Sequence[Sequence[int]], upon: Float[Tensor, "H W"]
) -> Float[Tensor, "H W"]:
    """Images, each moved by its pixels (right, down), added to another."""
    whole = upon.clone()
    for image, move in zip(images, by, strict=True):
        whole += _moved(image, *move)
    return whole


def _moved(image: Float[Tensor, "H W"], right: int, down: int) -> Float[Tensor, "H W"]:
    """An image moved by whole pixels; zeros come in."""
    made = torch.zeros_like(image)
    (to_rows, from_rows), (to_columns, from_columns) = (
        (slice(max(0, n), max(0, size + min(0, n))), slice(max(0, -n), max(0, size - max(0, n))))
        for n, size in zip((down, right), image.shape, strict=True)
    )
    made[to_rows, to_columns] = image[from_rows, from_columns]
    return made
