"""What bones of a scene show in films, and how well that matches them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from xreg.geometry import Camera
from xreg.io.voxel_grid import VoxelGrid
from xreg.ops.project import metric_of, project
from xreg.renderer import rays_in_volume
from xreg.shape.cage_fit import cosine
from xreg.shape.networks.heads import THICKNESS_MM
from xreg.shape.scene import GROUPS, Scene
from xreg.similarity import sobel

_SEEN = 0.02  # of 50 mm of bone, from which a pixel shows it
_AWAY_MM, _STEP_MM = 16.0, 4.0  # how far the ends of a spine are sought from where they start
_CALM = 0.02  # of a film's match, that moving an end so far must gain
_ALIKE = 0.1  # sine of the angle between two beams from which both count


@dataclass(frozen=True, eq=False)
class Canvas:
    """The part of a grid that holds bones' voxels, and films' rays through it: shadows are drawn from it.

    shape (D, H, W): of the part.  places: of each bone's voxels, flat indices into it.  groups: bones that
    cast one shadow together.  part: what a value counts for, 1 but for voxels in blocks.  rays, metric, size:
    as `xreg.ops.project` takes them.
    """

    shape: tuple[int, int, int]
    places: tuple[Int64[Tensor, " n"], ...]
    groups: tuple[tuple[int, ...], ...]
    part: float
    rays: Float[Tensor, "V 6 3"]
    metric: Float[Tensor, " 6"]
    size: tuple[int, int]

    @classmethod
    def of(cls, scene: Scene, cameras: Sequence[Camera], *, blocks: bool = False) -> Canvas:
        """Of all bones of a scene, in films of one size.

        blocks: of the scene's blocks of voxels instead, which is quicker.
        """
        grid, flat = (scene.coarse, scene.blocks) if blocks else (scene.grid, scene.voxels)
        index = torch.stack(torch.unravel_index(torch.cat(flat), grid.shape))
        low, high = torch.tensor([[0] * 3, [1] * 3])  # one voxel, where no bone is left on the grid
        if index.numel():
            low, high = index.amin(1), index.amax(1) + 1
        shape = tuple((high - low).tolist())
        k, j, i = index - low[:, None]
        places = ((k * shape[1] + j) * shape[2] + i).split([len(one) for one in flat])
        affine = grid.affine.clone()
        affine[:3, 3] += affine[:3, :3] @ low.flip(0).double()
        volume = VoxelGrid(shape, affine).volume(torch.ones(shape))
        rays = torch.stack([rays_in_volume(volume, camera) for camera in cameras])
        groups = tuple(
            tuple(n for n, own in enumerate(scene.groups) if own == group) for group in range(GROUPS)
        )
        part = scene.grid.voxel_mm3 / grid.voxel_mm3
        return cls(shape, places, groups, part, rays, metric_of(affine[:3, :3]), cameras[0].size)

    def shadow(
        self, values: Sequence[Tensor], members: Iterable[int] | None = None, *, most: float | None = None
    ) -> Float[Tensor, "V H W"]:
        """Sum along each film's rays of values in bones' voxels, in 50 mm; gradients flow to the values.

        members: the bones, by default all.  most: of a voxel that several of them fill.
        """
        members = range(len(values)) if members is None else list(members)
        if not members:
            return torch.zeros(len(self.rays), *self.size)
        body = torch.zeros(math.prod(self.shape))
        filled = torch.cat([values[n] for n in members]) * self.part
        body = body.index_add(0, torch.cat([self.places[n] for n in members]), filled)
        if most is not None:
            body = body.clamp_max(most)
        body = body.reshape(self.shape)
        return project(body, self.rays, self.metric, self.size, integrator="joseph")[0] / THICKNESS_MM

    def group_shadows(self, filled: Sequence[Tensor]) -> Float[Tensor, "V G H W"]:
        """Thickness (in 50 mm) of groups of bones along each film's rays."""
        return torch.stack([self.shadow(filled, group, most=1.0) for group in self.groups], 1)


def grouped(
    thickness: Float[Tensor, "V L H W"], scene: Scene, cameras: Sequence[Camera]
) -> Float[Tensor, "V G h w"]:
    """The network's thickness of the bones that are fitted, as `Canvas.group_shadows` has it.

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
    canvas = Canvas.of(scene, cameras)
    alone, others = [canvas.shadow(dense, [n]) for n in spine], canvas.shadow(dense, rest)
    places = scene.place[spine]
    row = F.normalize(places[-1] - places[0], dim=0)
    part = ((places - places[0]) @ row / (places[-1] - places[0]).norm()).clamp(0, 1)
    ends = torch.cartesian_prod(*[torch.arange(-_AWAY_MM, _AWAY_MM + 1, _STEP_MM)] * 2)
    ends = ends[ends.abs().amax(1).argsort(stable=True)]  # of equals the nearest
    moves = torch.lerp(ends[:, :1], ends[:, 1:], part)
    cost = _CALM * (ends / _AWAY_MM).square().sum(1)
    ways, found = [], []
    for n, (film, camera) in enumerate(zip(films, cameras, strict=True)):
        way = F.normalize(torch.linalg.cross(row, camera.camera_from_world[2, :3].to(row)), dim=0)
        slope = camera.project((places + way).double()) - camera.project(places.double())
        pixels = (moves[..., None] * slope.float()).round().long().tolist()
        own = [images[n] for images in alone]
        matches = torch.tensor([float(edge_match(film, _laid(own, by, others[n]))) for by in pixels])
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
