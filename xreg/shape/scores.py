"""How good a label map is: overlap, surface distances, and whether bones were taken for their neighbours.

Definitions, all with P the prediction and R the reference:

- Dice of a label: 2 |P ∩ R| / (|P| + |R|).  Of a case: the mean over the labels present in R; a label that P
  lacks counts 0, the background and labels that only P has do not count.
- Surface of a label: centres of its voxels with a face neighbour that is not of the label; the outside of the
  grid is not of the label.  A directed distance is from each surface point to the nearest one of the other.
- HD95: the larger of the two 95th percentiles (linear) of the directed distances, mm.
- ASSD: the mean over the directed distances of both directions in one pool, mm.
- Of a case, HD95, ASSD and the centroid error are means over the labels that both have; how many are missing
  is said beside them.
- Shift-tolerant Dice: vertebrae are renumbered in P by the one shift, and ribs (both sides alike) by another,
  that make the mean Dice of their group greatest.
- Foreground Dice: of the union of all labels.
- Identification: a label is identified where P's centroid lies within 20 mm of R's, no label of the same
  group (spine, ribs of a side …) in R lies nearer to P's centroid, and none in P nearer to R's.  Its rates
  count both directions: identified / labels in R, identified / labels in P, and 2 identified / (labels in R +
  labels in P).  After VerSe (A. Sekuboyina et al., Medical Image Analysis 73, 2021), which counts the first
  only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from ..errors import ShapeError
from ..io.voxel_grid import VoxelGrid
from .centroids import centroids
from .schemes import Scheme, scheme

TOLERANCE_MM = 20.0
SHIFTS = 3  # levels up and down


@dataclass(frozen=True)
class LabelScore:
    """One label: voxels of both, Dice, and distances in mm (None where one of the two lacks it)."""

    number: int
    name: str
    reference_voxels: int
    predicted_voxels: int
    dice: float
    hd95_mm: float | None
    assd_mm: float | None
    centroid_mm: float | None
    identified: bool


@dataclass(frozen=True)
class Identification:
    """Labels identified, as rates of those in the reference, of those predicted, and of both together."""

    identified: int
    reference: int
    predicted: int

    @property
    def recall(self) -> float | None:
        return self.identified / self.reference if self.reference else None

    @property
    def precision(self) -> float | None:
        return self.identified / self.predicted if self.predicted else None

    @property
    def rate(self) -> float | None:
        both = self.reference + self.predicted
        return 2 * self.identified / both if both else None

    def to_json(self) -> dict[str, Any]:
        """Counts and rates."""
        return {**asdict(self), "recall": self.recall, "precision": self.precision, "rate": self.rate}


@dataclass(frozen=True)
class Scores:
    """All figures of one prediction; the definitions stand at the top of this module.

    dice, dice_shifted, dice_foreground, hd95_mm, assd_mm, centroid_mm: of the case (distances None where no
    label is in both).  shifts: what was added to numbers of the prediction, by group, None where no shift
    makes any of them right.  missed, invented: names of labels that only the reference or only the
    prediction has.
    """

    scheme: str
    labels: tuple[LabelScore, ...]
    dice: float
    dice_shifted: float
    dice_foreground: float
    shifts: Mapping[str, int | None]
    hd95_mm: float | None
    assd_mm: float | None
    centroid_mm: float | None
    identification: Identification
    identification_spine: Identification
    missed: tuple[str, ...]
    invented: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, with plain types only."""
        plain = asdict(self)
        return {
            **plain,
            "labels": [asdict(label) for label in self.labels],
            "shifts": dict(self.shifts),
            "identification": self.identification.to_json(),
            "identification_spine": self.identification_spine.to_json(),
            "missed": list(self.missed),
            "invented": list(self.invented),
        }


def score(
    prediction: Integer[Tensor, "D H W"],
    reference: Integer[Tensor, "D H W"],
    grid: VoxelGrid,
    labels: str | Scheme = "all",
    *,
    tolerance_mm: float = TOLERANCE_MM,
    shifts: int = SHIFTS,
) -> Scores:
    """Compare two label maps [D, H, W] on one grid, in the numbers of one scheme.

    Distances are in the mm of ``grid``: correct a wrong affine first.  Raises ShapeError for other shapes,
    for labels that the scheme does not know, and for a reference without a label.
    """
    known = scheme(labels)
    pair = [
        _checked(v, grid, known, name) for v, name in ((prediction, "prediction"), (reference, "reference"))
    ]
    counts = _confusion(pair[0], pair[1], len(known))
    there = counts.sum(0)  # [L] voxels in the reference
    found = counts.sum(1)
    present = [n for n in known.numbers if there[n]]
    if not present:
        raise ShapeError(
            f"the reference holds no label of the scheme {known.name!r}; there is nothing to score"
        )
    moved, used = _best_shifts(counts, known, shifts)
    points = [surface_points(v, grid) for v in pair]
    middles = [_middles(v, grid, len(known)) for v in pair]
    hits = _identified(middles[0], middles[1], known, tolerance_mm)
    each = tuple(
        _label_score(n, known, counts, points, middles, n in hits)
        for n in known.numbers
        if there[n] or found[n]
    )
    return Scores(
        scheme=known.name,
        labels=each,
        dice=_mean_dice(counts, present),
        dice_shifted=_mean_dice(moved, present),
        dice_foreground=float(2 * counts[1:, 1:].sum() / (counts[1:].sum() + counts[:, 1:].sum())),
        shifts=used,
        hd95_mm=_mean(s.hd95_mm for s in each),
        assd_mm=_mean(s.assd_mm for s in each),
        centroid_mm=_mean(s.centroid_mm for s in each),
        identification=_identification(hits, there, found, known.numbers),
        identification_spine=_identification(hits, there, found, known.groups.get("spine", ())),
        missed=tuple(s.name for s in each if not s.predicted_voxels),
        invented=tuple(s.name for s in each if not s.reference_voxels),
    )


def mean_dice(prediction: Integer[Tensor, "*shape"], reference: Integer[Tensor, "*shape"]) -> float:
    """Dice of a case, see above, for labels of any scheme; 0 for a reference without a label."""
    pair = [v.detach().cpu().numpy().astype(np.int64) for v in (prediction, reference)]
    counts = _confusion(*pair, 1 + max(int(v.max()) for v in pair))
    present = np.flatnonzero(counts.sum(0)[1:]) + 1
    return sum(_dice(counts, n) for n in present) / max(1, len(present))


def surface_distances(
    one: Float64[np.ndarray, "N 3"], other: Float64[np.ndarray, "M 3"]
) -> tuple[Float64[np.ndarray, " N"], Float64[np.ndarray, " M"]]:
    """Distance of each point to the nearest of the other set, both ways; points in mm."""
    from scipy.spatial import cKDTree

    return cKDTree(other).query(one)[0], cKDTree(one).query(other)[0]


def hd95(to_other: Float64[np.ndarray, " N"], to_one: Float64[np.ndarray, " M"]) -> float:
    """The larger 95th percentile of directed distances (`surface_distances`), in their unit."""
    return float(max(np.percentile(to_other, 95), np.percentile(to_one, 95)))


def assd(to_other: Float64[np.ndarray, " N"], to_one: Float64[np.ndarray, " M"]) -> float:
    """The mean over both directions' distances in one pool, in their unit."""
    return float(np.concatenate([to_other, to_one]).mean())


def surface_points(labels: Integer[np.ndarray, "D H W"], grid: VoxelGrid) -> dict[int, np.ndarray]:
    """Surface voxel centres [N, 3] (RAS mm, float64) of each label above zero, by its number."""
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in range(3):
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        differs = labels[tuple(ahead)] != labels[tuple(behind)]
        edge[tuple(ahead)] |= differs
        edge[tuple(behind)] |= differs
        for end in (0, -1):
            face = [slice(None)] * 3
            face[axis] = end
            edge[tuple(face)] = True
    k, j, i = np.nonzero(edge & (labels > 0))
    numbers = labels[k, j, i]
    order = np.argsort(numbers, kind="stable")
    affine = grid.affine.numpy()
    points = np.stack([i, j, k], axis=1)[order].astype(np.float64) @ affine[:3, :3].T + affine[:3, 3]
    found, starts = np.unique(numbers[order], return_index=True)
    return dict(zip(found.tolist(), np.split(points, starts[1:]), strict=True)) if len(found) else {}


def _checked(labels: Any, grid: VoxelGrid, known: Scheme, name: str) -> np.ndarray:
    values = torch.as_tensor(labels).detach().cpu()
    if values.is_floating_point() or values.is_complex() or tuple(values.shape) != grid.shape:
        raise ShapeError(
            f"{name} must be whole numbers of the grid's shape {list(grid.shape)} [D, H, W], got "
            f"{values.dtype} {list(values.shape)}"
        )
    known.require(values, name)
    return values.numpy().astype(np.int64)


def _confusion(prediction: np.ndarray, reference: np.ndarray, count: int) -> Int64[np.ndarray, "L L"]:
    """Voxels by predicted (row) and reference (column) label."""
    flat = np.bincount((prediction * count + reference).ravel(), minlength=count * count)
    return flat.reshape(count, count)


def _mean_dice(counts: np.ndarray, present: list[int]) -> float:
    return float(np.mean([_dice(counts, n) for n in present]))


def _dice(counts: np.ndarray, number: int) -> float:
    both = int(counts[number].sum() + counts[:, number].sum())
    return float(2 * counts[number, number] / both) if both else 0.0


def _best_shifts(counts: np.ndarray, known: Scheme, most: int) -> tuple[np.ndarray, dict[str, int | None]]:
    """The confusion after the renumbering that suits each group best, and what was added to its numbers.

    None where no shift makes any of it overlap.
    """
    groups = known.groups
    together = {"spine": ["spine"], "ribs": ["ribs_left", "ribs_right"]}
    best, used = counts, {}
    for name, parts in together.items():
        members = [groups[part] for part in parts if part in groups]
        numbers = [n for part in members for n in part if counts[:, n].sum()]
        if not numbers:
            continue
        options = sorted(range(-most, most + 1), key=abs)  # the least shift where they are equal
        tried = {s: _shifted(best, members, s) for s in options}
        likest = max(options, key=lambda s: _mean_dice(tried[s], numbers))
        used[name] = likest if _mean_dice(tried[likest], numbers) > 0 else None
        best = tried[likest]
    return best, used


def _shifted(counts: np.ndarray, groups: list[tuple[int, ...]], shift: int) -> np.ndarray:
    """Rows of each group moved by ``shift`` places; what leaves the group becomes background."""
    moved = counts.copy()
    for group in groups:
        moved[list(group)] = 0
    for group in groups:
        for place, number in enumerate(group):
            goal = place + shift
            moved[group[goal] if 0 <= goal < len(group) else 0] += counts[number]
    return moved


def _middles(labels: np.ndarray, grid: VoxelGrid, count: int) -> dict[int, np.ndarray]:
    """Centroid (RAS mm) of each label present."""
    index, affine = centroids(torch.from_numpy(labels), count).numpy(), grid.affine.numpy()
    present = np.flatnonzero(np.isfinite(index[:, 0]))
    return {int(n): affine[:3, :3] @ index[n] + affine[:3, 3] for n in present}


def _identified(
    predicted: dict[int, np.ndarray], true: dict[int, np.ndarray], known: Scheme, tolerance_mm: float
) -> set[int]:
    groups = list(known.groups.values())
    grouped = {n for group in groups for n in group}
    hits = set()
    for group in [*groups, *((n,) for n in known.numbers if n not in grouped)]:
        mine = [n for n in group if n in predicted]
        theirs = [n for n in group if n in true]
        for n in set(mine) & set(theirs):
            apart = np.linalg.norm(predicted[n] - true[n])
            from_mine = min(np.linalg.norm(predicted[n] - true[m]) for m in theirs)
            from_theirs = min(np.linalg.norm(predicted[m] - true[n]) for m in mine)
            if apart <= tolerance_mm and apart <= min(from_mine, from_theirs):
                hits.add(n)
    return hits


def _identification(hits: set[int], there: np.ndarray, found: np.ndarray, numbers: Any) -> Identification:
    return Identification(
        sum(n in hits for n in numbers),
        sum(bool(there[n]) for n in numbers),
        sum(bool(found[n]) for n in numbers),
    )


def _label_score(
    number: int,
    known: Scheme,
    counts: np.ndarray,
    points: list[dict[int, np.ndarray]],
    middles: list[dict[int, np.ndarray]],
    identified: bool,
) -> LabelScore:
    far = close = apart = None
    if all(number in p for p in points):
        both = surface_distances(points[0][number], points[1][number])
        far, close = hd95(*both), assd(*both)
        apart = float(np.linalg.norm(middles[0][number] - middles[1][number]))
    return LabelScore(
        number=number,
        name=known.names[number],
        reference_voxels=int(counts[:, number].sum()),
        predicted_voxels=int(counts[number].sum()),
        dice=_dice(counts, number),
        hd95_mm=far,
        assd_mm=close,
        centroid_mm=apart,
        identified=identified,
    )


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
