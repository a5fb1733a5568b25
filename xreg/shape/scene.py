"""Bones of an atlas at where a network found them: how they are moved, and the voxels that they fill."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from xreg.geometry import se3
from xreg.io import VoxelGrid
from xreg.shape.atlas import Atlas, BoneShape
from xreg.shape.centroids import points_of
from xreg.shape.moves import Moves, Pose, products
from xreg.shape.pelvis import PELVIS, PelvicRing
from xreg.shape.predict import ShapePrediction
from xreg.shape.schemes import Scheme

GROUPS = 4  # volumes over which bones are spread, each with a shadow of its own
_FOUND = 0.1  # probability from which a voxel counts for a bone's box
_SMALL = 0.1  # of the atlas' volume: what a bone must have to be fitted
_AROUND = 0.35  # of a bone's size, to which voxels about it count
_CLOSE = 4.0  # log odds against filling a voxel, to which it counts on a finer grid
_STEEPEST = 2.0  # what a moved bone's distances may change by at most, mm a mm
_SEARCHES = 4  # for its middle
_SMALLEST, _LARGEST = 0.7, 1.4  # of the patients' mean size
_USUAL = 0.5  # what the patients' mean size counts for beside that in the films
_SOFT = 0.5  # voxels over which occupancy falls from .73 to .27
_THIN = 0.5  # of the examples' volume: an even mixture that keeps less is none
_LEAD = 4.0  # logit of the example that is then begun with


class Near(NamedTuple):
    """Of each bone: flat indices into a grid of the voxels about it, and their world points.

    wanted: what the network says there.  blocks: flat indices into a coarser grid, of the blocks of voxels.
    """

    voxels: tuple[Int64[Tensor, " n"], ...]
    points: tuple[Float[Tensor, "n 3"], ...]
    wanted: tuple[Float[Tensor, " n"], ...] = ()
    blocks: tuple[Int64[Tensor, " n"], ...] = ()


@dataclass(frozen=True, eq=False)
class Scene:
    """Bones that were found: shapes, where they start, and the voxels about each with what the network says.

    place [B, 3] mm, size [B] mm.  said [D, H, W]: per bone, the network's probabilities on ``grid``.  rows:
    pairs of neighbours along the spine and the sides of the chest.  lines: three vertebrae that follow each
    other.  pelvis: the sacrum, the left and the right hip, () where one is missing.  groups [B]: of `GROUPS`,
    those that cast one shadow together.  about: the voxels, where they are not those about the bones where
    they start.  coarse: the grid of their blocks.  ring: how the sacrum lies between the hips.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    shapes: tuple[BoneShape, ...]
    place: Float[Tensor, "B 3"]
    size: Float[Tensor, " B"]
    said: tuple[Float[Tensor, "D H W"], ...]
    grid: VoxelGrid
    rows: tuple[tuple[int, int], ...]
    lines: tuple[tuple[int, int, int], ...]
    pelvis: tuple[int, int, int] | tuple[()]
    groups: tuple[int, ...]
    about: Near | None = None
    coarse: VoxelGrid | None = None
    ring: PelvicRing | None = None

    @classmethod
    def of(
        cls,
        found: ShapePrediction,
        atlas: Atlas,
        grid: VoxelGrid,
        n: int,
        *,
        volumes: Float[Tensor, " L"] | None = None,
        without: Collection[int] = (),
    ) -> Scene:
        """The bones that were found, on ``grid``: voxels of n³ of the prediction's.

        volumes: what the films say of each bone's, mm³; by default what the probabilities do.  without:
        numbers of bones to leave alone.
        """
        scheme, parts, pooled = found.scheme, [], _pooled(found, grid, n)
        for name, shape in atlas.bones.items():
            number = scheme.index(name)
            if number not in pooled or number in without:
                continue
            dense = pooled[number].reshape(grid.shape)
            least = _SMALL * min(shape.sizes) ** 3 / grid.voxel_mm3
            if float(dense.sum()) < max(4.0, least) or float(dense.max()) < _FOUND:
                continue
            volume = None if volumes is None else float(volumes[number])
            parts.append((name, number, shape, dense, *_start(dense, grid, shape, volume)))
        names, numbers, shapes, said, place, size = zip(*parts, strict=True) if parts else [()] * 6
        rows, lines = _neighbours(numbers, scheme.groups)
        groups = tuple(shadow_groups(scheme)[list(numbers)].tolist())
        place, size = torch.stack(place) if place else torch.zeros(0, 3), torch.tensor(size)
        pelvis = tuple(names.index(name) for name in PELVIS) if set(PELVIS) <= set(names) else ()
        return cls(
            names, numbers, shapes, place, size, said, grid, rows, lines, pelvis, groups, ring=atlas.pelvis
        )

    @property
    def voxels(self) -> tuple[Int64[Tensor, " n"], ...]:
        """Flat indices into ``grid`` of the voxels about each bone where it starts."""
        return self._near.voxels

    @property
    def points(self) -> tuple[Float[Tensor, "n 3"], ...]:
        """World points of those voxels."""
        return self._near.points

    @property
    def wanted(self) -> tuple[Float[Tensor, " n"], ...]:
        """What the network says there."""
        return self._near.wanted

    @property
    def blocks(self) -> tuple[Int64[Tensor, " n"], ...]:
        """Flat indices into ``coarse`` of the blocks that hold those voxels."""
        return self._near.blocks

    @cached_property
    def _near(self) -> Near:
        """Looked for when they are first asked for: starts are moved before."""
        if self.about is not None:
            return self.about
        ones = zip(self.said, self.shapes, self.place, self.size.tolist(), strict=True)
        about = [_about(*one, self.grid) for one in ones]
        return Near(*zip(*about, strict=True)) if about else Near((), ())

    @cached_property
    def products(self) -> tuple[Float[Tensor, "n 10"], ...]:
        """Products of those points, as `at` takes them."""
        return tuple(self.products_of(bone, points) for bone, points in enumerate(self.points))

    def products_of(self, bone: int, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 10"]:
        """World points (mm) as `at` takes them: products of where they are about a bone's place."""
        return products((points - self.place[bone]) / self.size[bone])

    def pose(self, moves: Moves) -> Pose:
        """What moves do to points about these bones."""
        return moves.pose(torch.stack([shape.reach for shape in self.shapes]))

    def places(self, moves: Moves) -> Float[Tensor, "B 3"]:
        """Where moves bring the bones' places, world mm."""
        return self.place + moves.shift * self.size[:, None]

    @property
    def still(self) -> Moves:
        """Bones as they start: even mixtures, or the example that overlaps most where these are too thin."""
        moves = Moves.none(len(self.names), max((len(shape.sizes) for shape in self.shapes), default=0))
        for bone, shape in enumerate(self.shapes):
            if shape.kept < _THIN:
                moves.mix[bone, self._likest(self.pose(moves), bone)] = _LEAD
        return moves

    def _likest(self, pose: Pose, bone: int) -> int:
        """The example of a bone that overlaps most with what the network says."""
        at, wanted = self.products[bone], self.wanted[bone]
        alone = torch.eye(len(self.shapes[bone].sizes))
        logits = [self.at(pose, bone, at, self.grid, weights=one)[0] for one in alone]
        return int(torch.stack([overlap(logit.sigmoid(), wanted) for logit in logits]).argmax())

    def filled(self, moves: Moves) -> tuple[list[Float[Tensor, " n"]], list[Float[Tensor, " n"]]]:
        """How much of each of its voxels each bone fills, and the density that this brings there."""
        pose = self.pose(moves)
        found = [self.at(pose, n, at, self.grid) for n, at in enumerate(self.products)]
        filled = [logit.sigmoid() for logit, _ in found]
        return filled, [part * density for part, (_, density) in zip(filled, found, strict=True)]

    @torch.no_grad()
    def settled(self, moves: Moves) -> tuple[Scene, Moves]:
        """Bones whose only example is what the moves mix, and these moves: they lie the same, and are told
        sooner."""
        weights = [
            mix[: len(shape.sizes)].softmax(0) for mix, shape in zip(moves.mix, self.shapes, strict=True)
        ]
        shapes = tuple(shape.mixed(w) for shape, w in zip(self.shapes, weights, strict=True))
        alone = replace(moves, mix=torch.zeros(len(shapes), 1))
        return replace(self, shapes=shapes, about=self._near), alone

    @torch.no_grad()
    def closer(self, moves: Moves, grid: VoxelGrid) -> Scene:
        """The bones on a finer grid, told at the voxels that they fill as they lie, and close by.

        There is nothing of the network.
        """
        pose, parts = self.pose(moves), []
        for bone in range(len(self.names)):
            flat, points, _ = self.lying(pose, bone, grid, -_CLOSE)
            parts.append((flat, points, _blocks(flat, grid, self.grid, self._times(grid))[0]))
        voxels, points, blocks = zip(*parts, strict=True)
        near = Near(voxels, points, blocks=blocks)
        return replace(self, grid=grid, about=near, coarse=self.grid)

    def lying(
        self, pose: Pose, bone: int, grid: VoxelGrid, least: float
    ) -> tuple[Int64[Tensor, " m"], Float[Tensor, "m 3"], Float[Tensor, " m"]]:
        """Voxels of a finer grid, whose blocks are this one's, that the moved bone fills.

        Where the log odds are above ``least``: flat indices, world points and the log odds.
        """
        n = self._times(grid)
        blocks, middles = box_of(self.grid, self.points[bone])
        margin = 0.5 * math.hypot(*self.grid.spacing) * (1 - 1 / n) * _STEEPEST / softness(grid)
        near = self.at(pose, bone, self.products_of(bone, middles), grid)[0] > least - margin
        flat = _within(blocks[near], self.grid, grid, n)
        points = points_of(grid, flat)
        logit = self.at(pose, bone, self.products_of(bone, points), grid)[0]
        kept = logit > least
        return flat[kept], points[kept], logit[kept]

    def _times(self, grid: VoxelGrid) -> int:
        """How many times as fine a grid is."""
        return round(self.grid.spacing[0] / grid.spacing[0])

    def overlaps(self, filled: list[Tensor]) -> Float[Tensor, " B"]:
        """Soft Dice of what each bone fills with what the network says."""
        return torch.stack([overlap(a, b) for a, b in zip(filled, self.wanted, strict=True)])

    def at(
        self, pose: Pose, bone: int, at: Tensor, grid: VoxelGrid, *, weights: Tensor | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Log odds that the moved bone fills voxels of ``grid`` at points, and its density there.

        at [n, 10]: the points, see `products_of`.  weights [M]: of the examples, by default what the pose
        mixes.
        """
        shape = self.shapes[bone]
        if weights is None:
            weights = pose.mix[bone][: len(shape.sizes)].softmax(0)
        distance, density = shape.at(at @ pose.maps[bone], weights)
        return distance * (-float(self.size[bone]) / softness(grid)), density


def shadow_groups(names: Scheme) -> Int64[Tensor, " L"]:
    """The group of each label's bone.

    Neighbours along a row are in different ones, so that a film tells them apart.  Both sides' bones share
    one: seen from the side they overlap, and a network does not know which is which.
    """
    return torch.minimum(torch.arange(len(names)), names.mirror) % GROUPS


def softness(grid: VoxelGrid) -> float:
    """Over how many mm a bone's occupancy falls from .73 to .5."""
    return _SOFT * sum(grid.spacing) / 3


def _neighbours(
    numbers: tuple[int, ...], groups: dict[str, tuple[int, ...]]
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int, int], ...]]:
    """Places of neighbouring bones among those that are there, by twos, and of vertebrae by threes."""
    at = {number: place for place, number in enumerate(numbers)}
    rows = [(at[a], at[b]) for group in groups.values() for a, b in pairwise(group) if {a, b} <= at.keys()]
    spine = groups.get("spine", ())
    threes = [three for three in zip(spine, spine[1:], spine[2:], strict=False) if set(three) <= at.keys()]
    return tuple(rows), tuple((at[a], at[b], at[c]) for a, b, c in threes)


def _pooled(found: ShapePrediction, grid: VoxelGrid, n: int) -> dict[int, Float[Tensor, " N"]]:
    """Mean probabilities over the blocks of n³ voxels that make up ``grid``, by label."""
    said = found.shares
    block, whole = _blocks(said.voxels, found.grid, grid, n)
    made = said.values.new_zeros(math.prod(grid.shape), len(said.labels))
    made.index_add_(0, block[whole], said.values[whole]).div_(n**3)
    return dict(zip(said.labels.tolist(), made.T.contiguous(), strict=True))


def _blocks(
    flat: Int64[Tensor, " n"], grid: VoxelGrid, coarse: VoxelGrid, n: int
) -> tuple[Int64[Tensor, " n"], Bool[Tensor, " n"]]:
    """Flat indices into ``coarse``, whose voxels are blocks of n³, of those that hold a grid's voxels.

    And whether they do: at the far border voxels may be left over.
    """
    depth, height, width = coarse.shape
    k, j, i = (index.div(n, rounding_mode="floor") for index in torch.unravel_index(flat, grid.shape))
    return (k * height + j) * width + i, (i < width) & (j < height) & (k < depth)


def _within(blocks: Int64[Tensor, " n"], coarse: VoxelGrid, grid: VoxelGrid, n: int) -> Int64[Tensor, " m"]:
    """Flat indices of a grid's voxels in blocks of n³, each a voxel of ``coarse``; ascending."""
    inner = torch.cartesian_prod(*[torch.arange(n)] * 3)
    corners = torch.stack(torch.unravel_index(blocks, coarse.shape), -1) * n
    k, j, i = (corners[:, None] + inner).reshape(-1, 3).T
    return ((k * grid.shape[1] + j) * grid.shape[2] + i).sort().values


def _start(
    dense: Float[Tensor, "D H W"], grid: VoxelGrid, shape: BoneShape, volume: float | None = None
) -> tuple[Float[Tensor, " 3"], float]:
    """Where a bone starts, and how large: halfway from what is seen to the patients' mean.

    Its middle is that of what lies within its own reach: a network in doubt leaves crumbs elsewhere.
    volume: its own, mm³; by default that of the probabilities near it.
    """
    middle = sum(shape.sizes) / len(shape.sizes)
    flat = (dense.reshape(-1) > _FOUND).nonzero()[:, 0]
    points, weight = points_of(grid, flat), dense.reshape(-1)[flat]
    place = points[weight.argmax()]
    near = torch.ones_like(weight)
    for _ in range(_SEARCHES):
        near = ((points - place).abs() < shape.reach * middle).all(-1) * weight
        place = (near[:, None] * points).sum(0) / near.sum()
    size = (float(near.sum()) * grid.voxel_mm3 if volume is None else volume) ** (1 / 3)
    size = min(max(size, _SMALLEST * middle), _LARGEST * middle)
    return place, size ** (1 - _USUAL) * middle**_USUAL


def _about(
    dense: Float[Tensor, "D H W"], shape: BoneShape, place: Tensor, size: float, grid: VoxelGrid
) -> tuple[Int64[Tensor, " n"], Float[Tensor, "n 3"], Float[Tensor, " n"]]:
    """The voxels about a bone, their points, and the probabilities there."""
    reach = shape.reach * size * (1 + _AROUND)
    corners = torch.cartesian_prod(
        *[torch.tensor([-1.0, 1.0])] * 3
    )  # of a box that a grid may stand askew to
    flat, points = box_of(grid, place + corners * reach)
    wanted = dense.reshape(-1)[flat]
    alike = torch.ones(len(shape.sizes)) / len(shape.sizes)
    kept = (shape.at((points - place) / size, alike)[0] < _AROUND) | (wanted > _FOUND / 2)
    return flat[kept], points[kept], wanted[kept]


def overlap(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """Soft Dice, with squares."""
    return 2 * (a * b).sum() / (a.square().sum() + b.square().sum()).clamp_min(1e-6)


def box_of(grid: VoxelGrid, points: Float[Tensor, "n 3"]) -> tuple[Int64[Tensor, " m"], Float[Tensor, "m 3"]]:
    """Flat indices of a grid's voxels in the box (along its axes) about world points, and their points."""
    index = se3.apply(grid.index_from_world, points.double())
    size = torch.tensor(grid.size)
    low = torch.minimum(index.amin(0).ceil().clamp_min(0).long(), size - 1)
    high = torch.minimum(index.amax(0).floor().long() + 1, size)
    axes = [torch.arange(a, max(a + 1, b)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    i, j, k = axes
    flat = (k[:, None, None] * grid.shape[1] + j[:, None]) * grid.shape[2] + i
    change = grid.affine.float()
    along = [n[:, None] * change[:3, axis] for axis, n in enumerate(axes)]
    places = along[0] + along[1][:, None] + along[2][:, None, None] + change[:3, 3]
    return flat.reshape(-1), places.reshape(-1, 3)
