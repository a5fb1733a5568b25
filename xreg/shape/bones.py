"""How bones move against each other in a drawn patient: one smooth velocity from a similarity a bone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from xreg.shape.deform import blurred

_EDGE = 1  # voxels: a bone this near to the border is cut off, and its centre and size say nothing
_BACKGROUND = 0.01  # share of what stays, against shares of bones: so the velocity dies away from them
_MOST = 65  # labels for which numbers are drawn: presence of some changes no other's draw


@dataclass(frozen=True)
class BoneMotion:
    """Standard deviations of a bone's similarity (scale: its log), and the way to another (0..1)."""

    degrees: float
    mm: float
    scale: float
    between: float


def polyaffine_velocity(
    labels: Int16[Tensor, "D H W"],
    aim: Middles | None,
    spacing: tuple[float, float, float],
    motion: BoneMotion,
    generator: torch.Generator,
) -> Float[Tensor, "3 D H W"]:
    """The velocity (mm along the lattice) of labelled bones on a lattice, each bone by a drawn similarity.

    Blended by how near the bones are; it dies away from them.  aim: where another patient's bones lie in this
    lattice; a drawn part of the way there is gone.  Points of the new patient move to those of the old one.
    """
    highest = int(labels.max())
    draw = torch.randn(max(highest + 1, _MOST), 7, generator=generator)  # by number: presence changes no draw
    part = motion.between * float(torch.rand((), generator=generator))
    present = [b for b in labels.unique().tolist() if b > 0]
    if not present:
        return torch.zeros(3, *labels.shape, device=labels.device)
    where = torch.stack([labels == b for b in present]).float()
    own = middles(labels, torch.eye(4, dtype=torch.float64), spacing)
    place = own.place[present]
    draw = draw[present].to(labels.device)
    turn = draw[:, :3] * math.radians(motion.degrees)
    shift = draw[:, 3:6] * motion.mm
    grow = draw[:, 6] * motion.scale
    if aim is not None:
        more_shift, more_grow = _way(present, own, aim)
        shift, grow = shift + part * more_shift, grow + part * more_grow
    cross = torch.zeros(len(present), 3, 3, device=labels.device)
    x, y, z = turn.unbind(1)
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -z, y, -x
    linear = cross - cross.transpose(1, 2) + grow[:, None, None] * torch.eye(3, device=labels.device)
    constant = shift - (linear @ place[:, :, None])[:, :, 0]
    weights = blurred(where, 3)
    total = weights.sum(0) + _BACKGROUND
    flat = weights.flatten(1)
    matrix = (torch.cat([linear.flatten(1), constant], 1).T @ flat).reshape(12, *labels.shape) / total
    points = _points(labels.shape, spacing, labels.device)
    rows = [(matrix[3 * r : 3 * r + 3] * points).sum(0) + matrix[9 + r] for r in range(3)]
    return torch.stack(rows)


@dataclass(frozen=True)
class Middles:
    """By label: centroid (mm along a lattice's axes), cube root of the volume (mm), and whether it is whole.

    A bone is whole where it lies off the border of its field.
    """

    place: Float[Tensor, "L 3"]
    size: Float[Tensor, " L"]
    whole: Tensor


def middles(
    labels: Tensor, lattice_from_index: Float[Tensor, "4 4"], spacing: tuple[float, float, float]
) -> Middles:
    """lattice_from_index: voxels of ``labels`` to those of the lattice, whose ``spacing`` gives mm."""
    flat = labels.flatten().long()
    length = max(_MOST, int(flat.max()) + 1)
    count = torch.bincount(flat, minlength=length).float()
    lines = [torch.arange(n, dtype=torch.float32, device=labels.device) for n in labels.shape]
    axes = reversed(torch.meshgrid(*lines, indexing="ij"))
    sums = [torch.bincount(flat, weights=axis.flatten(), minlength=length).float() for axis in axes]
    index = torch.stack(sums, 1) / count.clamp_min(1.0)[:, None]
    scale = torch.tensor(spacing, dtype=torch.float64)[:, None]
    matrix = (scale * lattice_from_index[:3]).float().to(labels.device)
    size = (count * matrix[:, :3].det().abs()) ** (1 / 3)
    inner = labels[_EDGE:-_EDGE, _EDGE:-_EDGE, _EDGE:-_EDGE].flatten().long()
    whole = (count > 3) & (torch.bincount(inner, minlength=length) == count)
    return Middles(index @ matrix[:, :3].T + matrix[:, 3], size, whole)


def _way(present: list[int], own: Middles, aim: Middles) -> tuple[Float[Tensor, "B 3"], Float[Tensor, " B"]]:
    """Shift (mm) and log scale of each bone that lead back from the other patient's place and size.

    The two are laid over each other by middle and size of the bones that both have whole; others get none.
    """
    place, size = own.place[present], own.size[present]
    there, other_size = aim.place[present], aim.size[present]
    both = own.whole[present] & aim.whole[present]
    none = torch.zeros_like(place), torch.zeros_like(size)
    if int(both.sum()) < 3:
        return none
    middle, far = place[both].mean(0), there[both].mean(0)
    scale = (place[both] - middle).norm() / (there[both] - far).norm().clamp_min(1e-3)
    aligned = middle + scale * (there - far)
    grow = torch.log(size.clamp_min(1e-3) / (scale * other_size).clamp_min(1e-3)).clamp(-0.3, 0.3)
    return torch.where(both[:, None], place - aligned, none[0]), torch.where(both, grow, none[1])


def _points(shape: tuple[int, ...], spacing: tuple[float, float, float], device: torch.device) -> Tensor:
    """Index times spacing, (3, D, H, W), in mm along i, j and k."""
    lines = [
        torch.arange(n, dtype=torch.float32, device=device) * s
        for n, s in zip(shape, spacing[::-1], strict=True)
    ]
    k, j, i = torch.meshgrid(*lines, indexing="ij")
    return torch.stack([i, j, k])
