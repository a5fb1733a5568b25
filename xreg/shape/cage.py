"""Rib cages of patients: points of every rib, told from where the spine is at the rib's level.

Single ribs look alike, and a network of few patients names them badly.  As one cage that hangs on counted
vertebrae they have few ways to lie (`xreg.shape.cage_fit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from xreg.geometry import se3
from xreg.shape.centroids import middles_of, whole_boxes
from xreg.shape.schemes import VERTEBRAE, Scheme
from xreg.shape.schemes import scheme as scheme_of

if TYPE_CHECKING:
    from xreg.shape.sources import Member

LEVELS = 12  # of ribs: left 1 to 12 are numbers 0 to 11, right 1 to 12 are 12 to 23
_FIRST, _LAST = VERTEBRAE.index("C7"), VERTEBRAE.index("L2")  # vertebrae that tell where the spine runs
_TOP = VERTEBRAE.index("T1")
_LEAST_SPINE = 5  # vertebrae among them, below which nothing is said
_BEYOND = 1  # levels past the last vertebra that the spine's line is trusted
_LEAST_RIBS = 6  # of a patient whose cage is kept
FEWEST = 24  # voxels of a bone, below which its shape says little
_MOST = 2  # cages
_MIDDLE, _HALF = 12.5, 7.0  # of the levels, for the line's powers


@dataclass(frozen=True, eq=False)
class RibCage:
    """points [N, 3]: mm (RAS) from `spine_at` the rib's level.  ribs [N]: 0 to 23.  edges [N]: mm of the cube
    that a point stands for.  gap: mm from one level to the next."""

    patient: str
    points: Float[Tensor, "N 3"]
    ribs: Int64[Tensor, " N"]
    edges: Float[Tensor, " N"]
    gap: float

    def tensors(self, name: str) -> dict[str, Tensor]:
        """To be kept in a file, see `of_tensors`."""
        parts = {"points": self.points.half(), "ribs": self.ribs.to(torch.uint8), "edges": self.edges.half()}
        return {f"{name}.{part}": value for part, value in parts.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], name: str, facts: Mapping[str, Any]) -> RibCage:
        """What `tensors` gave, with its patient and gap."""
        points, edges = (tensors[f"{name}.{part}"].float() for part in ("points", "edges"))
        return cls(facts["patient"], points, tensors[f"{name}.ribs"].long(), edges, float(facts["gap"]))

    def only(self, chosen: Tensor) -> RibCage:
        """With these of its points."""
        return replace(self, points=self.points[chosen], ribs=self.ribs[chosen], edges=self.edges[chosen])


def rib_numbers(names: Scheme) -> tuple[int, ...]:
    """The scheme's numbers of left ribs 1 to 12 and right ribs 1 to 12; () where it lacks one."""
    both = (*names.groups.get("ribs_left", ()), *names.groups.get("ribs_right", ()))
    return both if len(both) == 2 * LEVELS else ()


def spine_at(middles: Float64[Tensor, "L 3"], names: Scheme) -> Float[Tensor, "12 3"]:
    """Where the spine is at T1 to T12, world mm: a cubic through the middles of vertebrae C7 to L2.

    middles: of each label, world mm, NaN where it is not.  NaN more than a level beyond those that are there,
    and everywhere with fewer than five of them.
    """
    nothing = torch.full((LEVELS, 3), torch.nan)
    if not set(VERTEBRAE) <= set(names.names):
        return nothing
    numbers = [names.index(name) for name in VERTEBRAE[_FIRST : _LAST + 1]]
    middles = middles[numbers]
    there = middles[:, 0].isfinite()
    if int(there.sum()) < _LEAST_SPINE:
        return nothing
    levels = torch.arange(_FIRST, _LAST + 1)[there]
    line = torch.linalg.lstsq(_powers(levels), middles[there]).solution
    wanted = torch.arange(_TOP, _TOP + LEVELS)
    near = (wanted >= levels.min() - _BEYOND) & (wanted <= levels.max() + _BEYOND)
    return torch.where(near[:, None], (_powers(wanted) @ line).float(), nothing)


def level_gap(spine: Float[Tensor, "12 3"]) -> float:
    """Mean distance (mm) from one level to the next; NaN where no two are known."""
    steps = (spine[1:] - spine[:-1]).norm(dim=1)
    return float(steps[steps.isfinite()].mean())


def build_cages(members: Iterable[Member]) -> tuple[RibCage, ...]:
    """Cages of the patients that show most whole ribs; what one lacks is its other side's, or another's."""
    found = [cage for member in members if (cage := _cage_of(member)) is not None]
    found.sort(key=lambda cage: (-len(cage.ribs.unique()), cage.patient))
    return tuple(_completed(cage, found) for cage in found[:_MOST])


def _powers(levels: Tensor) -> Tensor:
    return ((levels.double() - _MIDDLE) / _HALF)[:, None] ** torch.arange(4)


def _cage_of(member: Member) -> RibCage | None:
    """Ribs of a patient that its grid does not cut off, where the spine is known."""
    names = scheme_of(member.scheme)
    numbers, labels = rib_numbers(names), member.labels.cpu()
    spine = spine_at(middles_of(labels, member.grid, len(names)), names)
    whole, points, ribs = dict(whole_boxes(labels.numpy(), FEWEST)), [], []
    for rib, number in enumerate(numbers):
        start = spine[rib % LEVELS]
        if number in whole and bool(start.isfinite().all()):
            box = whole[number]
            at = (labels[box] == number).nonzero() + torch.tensor([edge.start for edge in box])
            points.append(se3.apply(member.grid.affine.cpu(), at.flip(1).double()).float() - start)
            ribs.append(torch.full((len(at),), rib))
    if len(points) < _LEAST_RIBS:
        return None
    edges = torch.full((sum(map(len, points)),), member.grid.voxel_mm3 ** (1 / 3))
    return RibCage(member.patient, torch.cat(points), torch.cat(ribs), edges, level_gap(spine))


def _completed(cage: RibCage, others: list[RibCage]) -> RibCage:
    """With ribs that it lacks, as large as its own."""
    flip = torch.tensor([-1.0, 1.0, 1.0])
    parts, there = [cage], set(cage.ribs.tolist())
    for other in [cage, *(o for o in others if o is not cage)]:
        size = cage.gap / other.gap
        for mirrored in (False, True):
            ribs = (other.ribs + LEVELS * mirrored) % (2 * LEVELS)
            missing = torch.tensor([rib not in there for rib in range(2 * LEVELS)])[ribs]
            more = other.only(missing)
            points = size * (more.points * flip if mirrored else more.points)
            parts.append(RibCage(cage.patient, points, ribs[missing], size * more.edges, cage.gap))
            there |= set(ribs[missing].tolist())
    joined = (torch.cat([getattr(p, name) for p in parts]) for name in ("points", "ribs", "edges"))
    return RibCage(cage.patient, *joined, cage.gap)
