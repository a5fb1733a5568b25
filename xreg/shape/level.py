"""At which level the vertebrae stand: a decision with its confidence, and the other numberings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int16
from torch import Tensor

from xreg.io.voxel_grid import VoxelGrid
from xreg.shape.centroids import middles_of
from xreg.shape.schemes import VERTEBRAE, Scheme
from xreg.shape.shares import Shares

SHIFTS = (-2, -1, 0, 1, 2)
SURE = 0.6  # confidence from which a numbering is taken as it is
_FLOOR = 1e-4  # of a probability: a network is never that sure
_LEAST = 20  # voxels of a vertebra that counts
WITNESSES = 0.68  # that a reader of the spine is worth: benchmarks/shape_levels.py


@dataclass(frozen=True)
class LevelDecision:
    """Which numbering of the vertebrae the probabilities speak for.

    found: vertebrae of the label map, the top one first.  shares: for each shift (+1: each is the next one
    down) the part of the belief that it has; they add up to 1.  shift: the likeliest.  The label map itself
    is not renumbered.  notes: names that are out of order or left out.

    A share is made of the vertebrae's mean probabilities of their shifted names, averaged as logarithms, so
    that all vertebrae count as one witness: they err together.  These are not calibrated.  Or of what a
    reader of the spine says along its line, averaged likewise, as so many witnesses as make confidence as
    large as the part that was right of 120 patients drawn of three whom the reader had not seen.
    """

    found: tuple[str, ...]
    shares: dict[int, float]
    notes: tuple[str, ...] = ()

    @property
    def shift(self) -> int | None:
        """The likeliest shift; None without vertebrae."""
        return max(self.shares, key=lambda s: self.shares[s]) if self.shares else None

    @property
    def confidence(self) -> float | None:
        """The share of the numbering as it stands in the label map."""
        return self.shares.get(0)

    @property
    def sure(self) -> bool:
        """Whether the numbering can be taken as it is; also where there is none to take."""
        return not self.shares or (self.shares[0] >= SURE and not self.notes)

    def named(self, shift: int) -> str:
        """The range of vertebrae with a shift: "T10 to L5"."""
        names = [_shifted(name, shift) for name in (self.found[0], self.found[-1])]
        return " to ".join(dict.fromkeys(names))

    @property
    def text(self) -> str:
        """The decision for people."""
        if not self.found:
            return "no vertebra in view"
        others = sorted((s for s in self.shares if s != 0), key=lambda s: -self.shares[s])[:2]
        more = ", ".join(f"{self.named(s)} {100 * self.shares[s]:.0f} %" for s in others)
        return f"{self.named(0)}, confidence {100 * self.shares[0]:.0f} % (else {more})"

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        ways = [{"shift": s, "vertebrae": self.named(s), "share": p} for s, p in self.shares.items()]
        known = {"found": list(self.found), "confidence": self.confidence, "sure": self.sure}
        return {**known, "alternatives": ways, "notes": list(self.notes)}


def decide_level(
    labels: Int16[Tensor, "D H W"],
    said: Shares,
    grid: VoxelGrid,
    scheme: Scheme,
    *,
    numberings: Float[Tensor, " 5"] | None = None,
) -> LevelDecision:
    """The decision from a label map and what the network said.

    numberings: mean logarithms of the shifts of SHIFTS by a reader of the spine, which then decide.
    """
    order = [name for name in VERTEBRAE if name in scheme.names]
    counts = torch.bincount(labels.flatten().long(), minlength=len(scheme))
    found = [name for name in order if counts[scheme.index(name)] >= _LEAST]
    if not found:
        return LevelDecision((), {})
    if numberings is not None:
        shares = dict(zip(SHIFTS, (WITNESSES * numberings.double()).softmax(0).tolist(), strict=True))
        return LevelDecision(tuple(found), shares, _order_notes(found, labels, grid, scheme))
    at = labels.flatten()[said.voxels].long()
    means = {name: _means(said, at == scheme.index(name)) for name in found}
    score = torch.zeros(len(SHIFTS), dtype=torch.float64)
    for column, shift in enumerate(SHIFTS):
        wanted = [(_shifted(name, shift), means[name]) for name in found]
        kept = [mean.get(scheme.index(n), 0.0) if n in scheme.names else 0.0 for n, mean in wanted]
        score[column] = torch.tensor(kept, dtype=torch.float64).clamp_min(_FLOOR).log().mean()
    shares = dict(zip(SHIFTS, score.softmax(0).tolist(), strict=True))
    return LevelDecision(tuple(found), shares, _order_notes(found, labels, grid, scheme))


def _means(said: Shares, there: Bool[Tensor, " n"]) -> dict[int, float]:
    """Mean probabilities over some voxels, by label.

    Zero of nothing: the network says nothing of voxels that an atlas alone filled.
    """
    values = said.values[there]
    means = values.double().sum(0) / max(1, len(values))
    return dict(zip(said.labels.tolist(), means.tolist(), strict=True))


def _shifted(name: str, shift: int) -> str:
    """The vertebra so many further down; a name beyond the last is told as such."""
    place = VERTEBRAE.index(name) + shift
    return VERTEBRAE[place] if 0 <= place < len(VERTEBRAE) else f"{name}{shift:+d}"


def _order_notes(found: list[str], labels: Tensor, grid: VoxelGrid, scheme: Scheme) -> tuple[str, ...]:
    middles = middles_of(labels, grid, len(scheme))
    heights = {name: float(middles[scheme.index(name), 2]) for name in found}
    notes = []
    for upper, lower in pairwise(found):
        between = VERTEBRAE[VERTEBRAE.index(upper) + 1 : VERTEBRAE.index(lower)]
        if between and "L6" not in between:
            notes.append(f"{', '.join(between)} is missing between {upper} and {lower}")
        if heights[lower] >= heights[upper]:
            notes.append(f"{lower} lies above {upper}")
    return tuple(notes)
