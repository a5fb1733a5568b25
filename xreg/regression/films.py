"""Films to train on, rendered as they are needed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from xreg.attenuation import hu_to_mu, linear_attenuation
from xreg.errors import VolumeError
from xreg.geometry import Camera
from xreg.regression.canonical import Canonical, normalise
from xreg.regression.network import Prediction
from xreg.regression.ranges import PoseRange, pose_of, require_anatomy
from xreg.regression.settings import TrainSettings
from xreg.renderer import drr
from xreg.volume import Volume
from xreg.xray import Augment

_ENERGY = 70.0  # keV, where a volume does not say
_WHOLE = 0.25  # HU from a whole number up to which rounding gives the same at every energy
_BLOCKS = 8  # along each axis, whose means tell CTs without whole numbers apart
_SAME_HU = 0.1  # between means of one CT; at two energies they differ by less than a hundredth


@dataclass(frozen=True)
class Batch:
    """Films with their poses.

    images [B, S, S]: normalised, as the network sees them.  rotation [B, 3, 3], place [B, 3] (mm): of
    camera_from_body and of the body's middle, float64.  volumes: for each run of films, which anatomy in
    which contrast they show, and how many.
    """

    images: Float[Tensor, "B S S"]
    rotation: Float[Tensor, "B 3 3"]
    place: Float[Tensor, "B 3"]
    volumes: tuple[tuple[Volume, int], ...]


class FilmSource:
    """Renders films of one anatomy at random poses, each with a look of its own."""

    def __init__(self, volume: Volume, box: PoseRange, canonical: Canonical, settings: TrainSettings) -> None:
        self.box, self.settings, self.center = box, settings, volume.center
        self.camera = canonical.camera
        coarse = volume.resample(tuple(max(settings.grid_mm, s) for s in volume.spacing))
        if settings.labels:
            coarse = grouped(volume, coarse, settings.labels)
        self.bare = replace(coarse, labels=None)
        self.labels = coarse.labels
        limit = torch.tensor(settings.bone_hu, dtype=torch.float64)
        bone = float(hu_to_mu(limit, volume.energy_kev or _ENERGY, ct_energy_kev=volume.ct_energy_kev))
        self.extra = (coarse.mu - bone).clamp_min(0.0)
        self.augment = Augment(settings.augment)
        self.seen = require_anatomy(self.bare, box, self.camera)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Random films; everything about them comes from the generator."""
        return self.take(self.box.draw(count, generator), generator)

    def take(self, x: Float[Tensor, "B 6"], generator: torch.Generator) -> Batch:
        """Films at points of the range, with looks from the generator."""
        volumes = self._contrasts(len(x), generator)
        poses = self.box.pose(x, self.center)
        images, at = [], 0
        for volume, count in volumes:
            images.append(self.render(volume, self.camera, poses[at : at + count]))
            at += count
        looks = self.augment(torch.cat(images), generator)
        known = field_cut(len(x), self.camera.size[0], self.settings.cut, generator)
        shown = normalise(looks, known.to(looks.device))
        return Batch(shown, self.box.rotation(x), self.box.place(x), volumes)

    def render(
        self, volume: Volume, camera: Camera, poses: Float[Tensor, "n 4 4"], **how: str
    ) -> Float[Tensor, "n *c H W"]:
        """Images of an anatomy of a batch; how: options of `drr`.  Gradients flow to the poses."""
        return drr(volume, camera, poses, integrator="joseph", **how)

    def _contrasts(self, count: int, generator: torch.Generator) -> tuple[tuple[Volume, int], ...]:
        """Anatomies whose bone attenuates more or less, each for some films of a batch."""
        groups = min(self.settings.groups, count)
        low, high = (math.log(c) for c in self.settings.contrast)
        drawn = torch.rand(groups, generator=generator, device=generator.device).cpu()
        sizes = [count // groups + (g < count % groups) for g in range(groups)]
        return tuple(
            (self.with_contrast(math.exp(low + (high - low) * float(d))), n)
            for d, n in zip(drawn, sizes, strict=True)
        )

    def with_contrast(self, factor: float) -> Volume:
        """The coarse anatomy with what bone attenuates beyond soft tissue multiplied."""
        return replace(self.bare, mu=self.bare.mu + (factor - 1.0) * self.extra)

    def shown(self, volume: Volume) -> Volume:
        """An anatomy of a batch with its structures."""
        if self.labels is None:
            raise VolumeError("the Dice term needs a label map: give the volume with mask=")
        return replace(volume, labels=self.labels)

    def pose(self, prediction: Prediction, count: int) -> Float[Tensor, "n 4 4"]:
        """camera_from_body of the first predictions, float64; carries gradients."""
        rotation, place = (part[:count].double() for part in (prediction.rotation, prediction.place))
        return pose_of(rotation.cpu(), place.cpu(), self.center)


def grouped(volume: Volume, coarse: Volume, labels: Sequence[int | str]) -> Volume:
    """The coarse volume with these structures numbered from 1, and no others.

    VolumeError where there is no label map, or it holds no voxel of a structure asked for.
    """
    if volume.labels is None:
        raise VolumeError(f"labels {list(labels)} were asked for, but the CT has no label map: give --mask")
    numbers = volume.label_numbers(labels)
    present = set(volume.labels.unique().tolist())
    missing = [n for n in numbers if n not in present]
    if missing:
        names = ", ".join(f"{n} ({volume.label_names.get(n, 'without a name')})" for n in missing)
        raise VolumeError(f"the label map has no voxel of label {names}, which was asked for")
    chosen = torch.zeros_like(coarse.labels)
    for new, number in enumerate(numbers, 1):
        chosen[coarse.labels == number] = new
    return replace(coarse, labels=chosen, label_names={n: str(name) for n, name in enumerate(labels, 1)})


def field_cut(count: int, size: int, share: float, generator: torch.Generator) -> Bool[Tensor, "B S S"]:
    """Which pixels are known: for a share of films only those of a smaller, turned or round field."""
    x = torch.rand(count, 8, generator=generator, device=generator.device).cpu()
    at = torch.linspace(-1, 1, size)
    v, u = torch.meshgrid(at, at, indexing="ij")
    turn = (0.5 * (x[:, 0] - 0.5))[:, None, None]  # rad: up to about 14 degrees either way
    along = turn.cos() * u + turn.sin() * v
    across = -turn.sin() * u + turn.cos() * v
    low, high = (0.55 + 0.7 * x[:, k : k + 2, None, None] for k in (1, 3))
    inside = (along > -low[:, 0]) & (along < high[:, 0]) & (across > -low[:, 1]) & (across < high[:, 1])
    middle = 0.3 * (x[:, 5:7, None, None] - 0.5)
    radius = (0.8 + 0.4 * x[:, 1])[:, None, None]
    around = (u - middle[:, 0]).square() + (v - middle[:, 1]).square() < radius.square()
    field = torch.where((x[:, 7] < 0.25 * share)[:, None, None], around, inside)
    return field | (x[:, 7] > share)[:, None, None]


def identity(volume: Volume) -> dict[str, Any]:
    """What tells a CT from another: shape, affine, and a hash of its CT numbers, rounded to whole HU.

    So the energy at which a CT is loaded, and the last bit of a machine's arithmetic, do not matter.  Where
    CT numbers are not whole, as after resampling, the rounding itself turns on that bit: then there are
    `means` too, of blocks (HU), which `same_ct` compares with a tolerance.
    """
    water = linear_attenuation("water", _ENERGY)
    values = 1e3 * volume.mu / water if volume.energy_kev is None else volume.hu
    values = values.detach().cpu().clamp(-32768, 32767)
    rounded = values.round()
    digest = hashlib.sha256(rounded.to(torch.int16).contiguous().numpy().tobytes()).hexdigest()
    found = {"shape": list(volume.shape), "affine": volume.affine.tolist(), "sha256": digest}
    if bool((rounded.sub_(values).abs_() > _WHOLE).any()):
        found["means"] = [round(float(mean), 4) for mean in _block_means(values)]
    return found


def _block_means(values: Float[Tensor, "D H W"]) -> Float[Tensor, " N"]:
    """Means of blocks, eight along each axis, in float64; a slab at a time, for memory."""
    count = [min(_BLOCKS, n) for n in values.shape]
    edges = [n * values.shape[0] // count[0] for n in range(count[0] + 1)]
    slabs = (values[low:high].double().mean(0) for low, high in pairwise(edges))
    return torch.stack([F.adaptive_avg_pool2d(slab[None], count[1:])[0] for slab in slabs]).flatten()


def require_same_ct(known: Sequence[dict[str, Any]], volume: Volume, source: str) -> None:
    """VolumeError unless a volume is one of those that a network was trained on."""
    mine = identity(volume)
    if any(same_ct(mine, other) for other in known):
        return
    shapes = "; ".join(f"{'×'.join(map(str, one['shape']))}, hash {one['sha256'][:12]}" for one in known)
    raise VolumeError(
        f"{source}: was trained on another CT ({shapes}) than this one ({'×'.join(map(str, mine['shape']))}, "
        f"hash {mine['sha256'][:12]}); load the CT as it was for training, or train for it (xreg train CT "
        f"--from {source} adapts a network within minutes)"
    )


def same_ct(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two identities are of one CT; by their hashes where one of them has no means of blocks."""
    near = torch.allclose(*(torch.tensor(x["affine"], dtype=torch.float64) for x in (a, b)), atol=1e-4)
    if a["shape"] != b["shape"] or not near:
        return False
    if a["sha256"] == b["sha256"]:
        return True
    means = [torch.tensor(x.get("means", ()), dtype=torch.float64) for x in (a, b)]
    alike = len(means[0]) == len(means[1]) > 0
    return alike and float((means[0] - means[1]).abs().max()) <= _SAME_HU


def films_of(
    volumes: Sequence[Volume], box: PoseRange, canonical: Canonical, settings: TrainSettings
) -> list[FilmSource]:
    """A source a volume; VolumeError or GeometryError where one cannot be trained on."""
    if not volumes:
        raise VolumeError("a training needs at least one CT, got none")
    return [FilmSource(volume, box, canonical, settings) for volume in volumes]
