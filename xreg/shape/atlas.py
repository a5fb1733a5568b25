"""Shapes of single bones from patients: signed distances about each bone's middle, on lattices of 3 mm.

A bone is told by where it lies (its centroid), how large it is (the cube root of its volume), a signed
distance in units of that size, and how its density varies.  The examples of several patients are kept, laid
onto each other (`xreg.shape.alignment`), and mixed when they are fitted.  Left and right bones are mirrored
into each other, so that two patients give four ribs of a level, and where a vertebra has few examples, those
above and below it are taken too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.errors import FileError, ShapeError
from xreg.io import VoxelGrid
from xreg.io.tensors import load_tensors, save_tensors
from xreg.shape.alignment import laid_together
from xreg.shape.cage import FEWEST, RibCage, build_cages
from xreg.shape.centroids import whole_boxes
from xreg.shape.deform import base_points
from xreg.shape.moves import products
from xreg.shape.patients import SOFT
from xreg.shape.pelvis import PELVIS, PelvicRing
from xreg.shape.schemes import VERTEBRAE, Scheme
from xreg.shape.schemes import scheme as scheme_of

if TYPE_CHECKING:
    from xreg.shape.sources import Member

SCHEMA = "xreg.shape-atlas/3"
FILE = "atlas.safetensors"
_EXAMPLES = 12  # of a bone, spread over the patients
_ALIKE = VERTEBRAE[2:]  # those that are shaped as their neighbours are
_PART = 0.75  # of the largest example's size: a smaller one is a bone that the scan cut off
_MARGIN = 0.15  # of a bone's size, about the box of all patients' bones
_STEP_MM = 3.0  # of a lattice
_MOST, _LEAST = 110, 12  # points of a lattice along an edge
_DENSEST = 900.0  # HU above soft tissue: more is metal, or counts as much
_MOST_PATIENTS = 40


@dataclass(frozen=True, eq=False)
class BoneShape:
    """Examples of one bone: signed distances, negative inside, in units of each bone's size.

    fields [M, 2, d, h, w] about the centroid, RAS: distances, and how dense the bone is there, with 1 in its
    mean (everywhere, where a patient has no CT; beyond the bone as at its surface).  reach [3]: half the
    edges (x, y, z) of the lattice, in units of the size.  sizes: mm, of the patients' bones.
    """

    fields: Float[Tensor, "M 2 d h w"]
    reach: Float[Tensor, " 3"]
    sizes: tuple[float, ...]

    @property
    def slack(self) -> float:
        """What is taken off the distances of an even mixture, so that it is as large as the examples.

        The mean of distances has less inside than they have, in thin bones none at all.
        """
        return self._even[0]

    @property
    def kept(self) -> float:
        """The part of the examples' volume that an even mixture has without its slack."""
        return self._even[1]

    @cached_property
    def _even(self) -> tuple[float, float]:
        """Slack and kept, when they are first asked for: most bones of an atlas are not in a film."""
        distances = self.fields[:, 0].flatten(1)
        wanted = max(1, round(float((distances < 0).float().sum(1).mean())))
        ordered = distances.mean(0).sort().values
        slack = max(0.0, float(ordered[wanted - 1 : wanted + 1].mean()))
        return slack, float((ordered < 0).sum()) / wanted

    def at(
        self, points: Float[Tensor, "n 3"], weights: Float[Tensor, " M"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Signed distance, in units of the size, and density at points about the centroid.

        Both are weighted means of the examples', the distance less its slack.  Beyond the lattice it goes on
        to grow with the way there.  Gradients flow to points and weights.
        """
        reach = self.reach.to(points)
        at = points / reach
        inside = at.clamp(-1.0, 1.0)
        fields = self._weighted(weights).to(points)[None]
        found = F.grid_sample(fields, inside[None, None, None], padding_mode="border", align_corners=True)
        distance, density = found.view(2, -1)
        return distance - self._slack_of(weights) + ((at - inside) * reach).abs().sum(-1), density

    def _weighted(self, weights: Float[Tensor, " M"]) -> Float[Tensor, "2 d h w"]:
        """Weighted means of the examples' fields; of a single one, itself: it is told at every step."""
        if len(self.fields) == 1:
            return self.fields[0]
        return (weights @ self.fields.flatten(1)).view(self.fields.shape[1:])

    def _slack_of(self, weights: Float[Tensor, " M"]) -> Float[Tensor, ""]:
        """Nothing of one example, and all of it of an even mixture."""
        count = len(weights)
        if count == 1:
            return weights.new_zeros(())
        return self.slack * (1 - weights.square().sum()) * count / (count - 1)

    def mixed(self, weights: Float[Tensor, " M"]) -> BoneShape:
        """The mixture as the only example."""
        distance, density = self._weighted(weights)
        fields = torch.stack([distance - self._slack_of(weights), density])
        size = sum(float(w) * size for w, size in zip(weights, self.sizes, strict=True))
        return BoneShape(fields[None], self.reach, (size,))

    def mirrored(self) -> BoneShape:
        """The other side's bone."""
        return BoneShape(self.fields.flip(-1), self.reach, self.sizes)


@dataclass(frozen=True, eq=False)
class Atlas:
    """Bones' shapes by name, whole rib cages, how a sacrum lies between hips, and whose they are."""

    bones: Mapping[str, BoneShape]
    patients: tuple[str, ...]
    scheme: str
    cages: tuple[RibCage, ...] = ()
    pelvis: PelvicRing | None = None

    def joined(self, other: Atlas) -> Atlas:
        """With another's bones and cages: of a bone that both have, what more examples tell.

        Raises ShapeError for an atlas of another scheme.
        """
        if self.scheme != other.scheme:
            raise ShapeError(f"atlases of the schemes {self.scheme!r} and {other.scheme!r} cannot be joined")
        of, own = dict.fromkeys(self.bones, self), {cage.patient for cage in self.cages}
        for name, bone in other.bones.items():
            if name not in of or len(bone.sizes) > len(self.bones[name].sizes):
                of[name] = other
        whose = {id(atlas): atlas for atlas in (of.get(name) for name in PELVIS)}
        ring = next(iter(whose.values())) if len(whose) == 1 else None  # it holds for its own bones alone
        return Atlas(
            {name: of[name].bones[name] for name in scheme_of(self.scheme).names if name in of},
            tuple(dict.fromkeys((*self.patients, *other.patients))),
            self.scheme,
            (*self.cages, *(cage for cage in other.cages if cage.patient not in own)),
            None if ring is None else ring.pelvis,
        )

    def save(self, folder: str | PathLike) -> None:
        """Write ``atlas.safetensors`` into a folder that exists, atomically; one side's bones alone."""
        tensors, sizes, names = {}, {}, scheme_of(self.scheme)
        for name, bone in self.bones.items():
            number = names.index(name)
            if number <= int(names.mirror[number]):
                tensors[f"{name}.fields"] = bone.fields.half()
                tensors[f"{name}.reach"] = bone.reach
                sizes[name] = list(bone.sizes)
        for n, cage in enumerate(self.cages):
            tensors |= cage.tensors(f"cage.{n}")
        cages = [{"patient": cage.patient, "gap": cage.gap} for cage in self.cages]
        facts = {"patients": list(self.patients), "scheme": self.scheme, "sizes": sizes, "cages": cages}
        facts["pelvis"] = None if self.pelvis is None else self.pelvis.to_json()
        save_tensors(Path(folder) / FILE, tensors, facts, schema=SCHEMA)

    @classmethod
    def beside(cls, model: str | PathLike) -> Atlas | None:
        """The atlas in the folder of a network (or of its file), or None.  FileError where it is damaged."""
        folder = Path(model) if Path(model).is_dir() else Path(model).parent
        return cls.load(folder) if (folder / FILE).is_file() else None

    @classmethod
    def load(cls, folder: str | PathLike) -> Atlas:
        """Read what `save` wrote.  Raises FileError where it is missing or damaged."""
        file = Path(folder) / FILE
        remedy = "make it anew with xreg shape atlas, or reconstruct without it (--no-refine)"
        tensors, facts = load_tensors(file, schema=SCHEMA, what="an atlas of bones", remedy=remedy)
        try:
            names = scheme_of(facts["scheme"])
            shapes = {
                names.index(name): BoneShape(
                    tensors[f"{name}.fields"].float(), tensors[f"{name}.reach"], tuple(sizes)
                )
                for name, sizes in facts["sizes"].items()
            }
            cages = tuple(
                RibCage.of_tensors(tensors, f"cage.{n}", of) for n, of in enumerate(facts.get("cages", ()))
            )  # those of an atlas that was made before there were any lie nowhere
            ring = PelvicRing.from_json(facts.get("pelvis"))
            return cls(_both_sides(shapes, names), tuple(facts["patients"]), facts["scheme"], cages, ring)
        except (KeyError, TypeError) as error:
            raise FileError(f"{file}: lacks an entry or holds a wrong one ({error}); {remedy}") from error


def build_atlas(patients: Iterable[Member]) -> Atlas:
    """The atlas of patients' whole bones; a bone at the border of its grid is not taken.

    Of more than 40 patients every n-th is taken.  ShapeError for patients of several schemes, or none with a
    whole bone.
    """
    chosen = [member for member in patients if member.labels is not None]
    chosen = chosen[:: max(1, math.ceil(len(chosen) / _MOST_PATIENTS))]
    if len({p.scheme for p in chosen}) != 1:
        schemes = ", ".join(sorted({p.scheme for p in chosen})) or "no patient"
        raise ShapeError(f"an atlas needs patients of one label scheme, got {schemes}")
    names = scheme_of(chosen[0].scheme)
    shapes = {number: _shape(ones) for number, ones in _examples(chosen, names).items()}
    if not shapes:
        raise ShapeError("no patient shows a whole bone; an atlas needs bones off the border of their grid")
    patients = tuple(dict.fromkeys(member.patient for member in chosen))
    ring = PelvicRing.of(chosen, names)
    return Atlas(_both_sides(shapes, names), patients, names.name, build_cages(chosen), ring)


def keep_atlas(
    patients: Iterable[Member], folder: str | PathLike, *, before: str | PathLike | None = None
) -> int:
    """Write the atlas of patients into a network's folder; how many bones it has.

    before: folder of a network that it goes on with, whose atlas is joined to it.  0, and no file, where
    there is none to make: a network does without.
    """
    known = None if before is None else Atlas.beside(before)
    try:
        atlas = build_atlas(patients)
        atlas = atlas if known is None else atlas.joined(known)
    except ShapeError:  # what is wrong with samples the training tells
        (Path(folder) / FILE).unlink(missing_ok=True)  # of other patients
        return 0
    Path(folder).mkdir(parents=True, exist_ok=True)
    atlas.save(folder)
    return len(atlas.bones)


def _both_sides(shapes: Mapping[int, BoneShape], names: Scheme) -> dict[str, BoneShape]:
    """Bones by name; of two sides the one of the higher number is the mirror image of the other."""
    both = {int(names.mirror[number]): shape.mirrored() for number, shape in shapes.items()} | dict(shapes)
    return {names.names[number]: both[number] for number in sorted(both)}


def _examples(patients: Iterable[Member], names: Scheme) -> dict[int, list[_Found]]:
    """Patients' bones by number; of two sides, both as the one of the lower number.

    Vertebrae that are fewer than they may be are filled up with their neighbours.
    """
    own: dict[int, list[_Found]] = {}
    for patient in patients:
        for number, bone in _whole_bones(patient):
            other = int(names.mirror[number])
            own.setdefault(min(number, other), []).append(bone if number <= other else bone.mirrored())
    found = {number: _spread(_whole(ones), _EXAMPLES) for number, ones in own.items()}
    for number, beside in _neighbours(names):
        if number in own:
            near = _whole([bone for other in beside for bone in own.get(other, ())])
            found[number] += _spread(near, _EXAMPLES - len(found[number]))
    return found


@dataclass(frozen=True, eq=False)
class _Found:
    """A bone cut out: signed distances in mm and densities on voxels, and their place about the centroid."""

    distance: np.ndarray
    density: np.ndarray
    index_from_local: np.ndarray  # [3, 4], mm about the centroid (RAS) to (k, j, i)
    corners: tuple[np.ndarray, np.ndarray]  # of the bone's box, mm about the centroid
    size: float

    def at(self, points: np.ndarray) -> np.ndarray:
        """Signed distance and density [2, ...] at points [..., 3] about the centroid.

        Points and distance are in units of the size.
        """
        from scipy import ndimage

        index = points * self.size @ self.index_from_local[:, :3].T + self.index_from_local[:, 3]
        held = index.clip(0, np.array(self.distance.shape) - 1)
        beyond = np.linalg.norm((index - held) @ np.linalg.inv(self.index_from_local[:, :3]).T, axis=-1)
        place = np.moveaxis(held, -1, 0)
        distance, density = (
            ndimage.map_coordinates(x, place, order=1) for x in (self.distance, self.density)
        )
        return np.stack([(distance + beyond) / self.size, density])

    def mirrored(self) -> _Found:
        flip = np.diag([-1.0, 1.0, 1.0])
        low, high = self.corners
        swapped = np.array([-high[0], *low[1:]]), np.array([-low[0], *high[1:]])
        change = np.concatenate([self.index_from_local[:, :3] @ flip, self.index_from_local[:, 3:]], 1)
        return _Found(self.distance, self.density, change, swapped, self.size)


def _whole_bones(patient: Member) -> Iterable[tuple[int, _Found]]:
    labels = patient.labels.cpu().numpy()
    spacing = patient.grid.spacing
    for number, box in whole_boxes(labels, FEWEST):
        size = (int((labels[box] == number).sum()) * patient.grid.voxel_mm3) ** (1 / 3)
        pads = [math.ceil(_MARGIN * size / s) + 1 for s in spacing[::-1]]
        start = [max(0, s.start - p) for s, p in zip(box, pads, strict=True)]
        stop = [min(n, s.stop + p) for s, p, n in zip(box, pads, labels.shape, strict=True)]
        part = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        hu = None if patient.hu is None else patient.hu[part].cpu().numpy()
        yield number, _cut_out(labels[part] == number, hu, start, patient.grid, size)


def _cut_out(
    inside: np.ndarray, hu: np.ndarray | None, start: list[int], grid: VoxelGrid, size: float
) -> _Found:
    from scipy import ndimage

    steps = grid.spacing[::-1]
    outer, nearest = ndimage.distance_transform_edt(~inside, sampling=steps, return_indices=True)
    inner = ndimage.distance_transform_edt(inside, sampling=steps)
    density = np.ones(inside.shape) if hu is None else _density(hu, inside)[tuple(nearest)]
    signed = np.where(inside, -inner, outer)
    signed -= np.sign(signed) * np.mean(steps) / 2  # the surface lies half-way to the next voxel's middle
    index = np.argwhere(inside) + start  # (k, j, i)
    affine = grid.affine.numpy()
    world = index[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    middle = world.mean(0)
    half = np.abs(affine[:3, :3]).sum(1) / 2
    corners = world.min(0) - middle - half, world.max(0) - middle + half
    back = grid.index_from_world.numpy()[:3][::-1]  # rows (k, j, i)
    offset = back[:, :3] @ middle + back[:, 3] - start
    return _Found(signed, density, np.concatenate([back[:, :3], offset[:, None]], 1), corners, size)


def _density(hu: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Half-way from even density to that of a CT, with 1 in the bone's mean.

    CT numbers say less of another patient's bone than shapes do, and metal says nothing.
    """
    above = (hu - SOFT).clip(0, _DENSEST)
    return (1 + above / max(float(above[inside].mean()), 1.0)) / 2


def _whole(found: list[_Found]) -> list[_Found]:
    """Those that are not parts of a bone."""
    largest = max((one.size for one in found), default=0.0)
    return [one for one in found if one.size >= _PART * largest]


def _spread(found: list[_Found], most: int) -> list[_Found]:
    return found[:: math.ceil(len(found) / most)] if found and most else []


def _neighbours(names: Scheme) -> Iterable[tuple[int, list[int]]]:
    """Vertebrae that are shaped as those above and below, and these."""
    row = [names.index(name) for name in _ALIKE if name in names.names]
    return [(one, row[max(0, n - 1) : n] + row[n + 1 : n + 2]) for n, one in enumerate(row)]


def _shape(found: list[_Found]) -> BoneShape:
    """Examples on one lattice, laid onto each other."""
    reach = torch.from_numpy(
        np.max([np.maximum(-one.corners[0], one.corners[1]) / one.size for one in found], 0) + _MARGIN
    ).float()
    edges = 2 * reach * max(one.size for one in found) / _STEP_MM
    shape = [int(n) for n in (edges.ceil() + 1).clamp(_LEAST, _MOST).flip(0)]
    points = base_points(shape, reach) * reach
    fields = _fields(found, [points] * len(found))
    if len(found) > 1:
        at, pose = products(points.flatten(0, 2)), laid_together(fields[:, 0], reach)
        fields = _fields(found, [(at @ one).view_as(points) for one in pose.maps])
    return BoneShape(fields, reach, tuple(one.size for one in found))


def _fields(found: list[_Found], places: Iterable[Float[Tensor, "d h w 3"]]) -> Float[Tensor, "M 2 d h w"]:
    """Signed distances and densities of bones, each at its places about the centroid."""
    told = [one.at(at.double().numpy()) for one, at in zip(found, places, strict=True)]
    return torch.from_numpy(np.stack(told)).float()
