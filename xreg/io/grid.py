"""What the volume and its readers share about voxel grids: checks, nearest axes, resampling weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int16, Integer
from torch import Tensor

from ..errors import VolumeError
from ..geometry._numbers import as_tensor

_INT16_MAX, _INT32_MAX = 32767, 2**31 - 1
_ORDERED = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # torch finds extremes of these


def check_finite(values: Tensor, name: str) -> tuple[float, float]:
    """Return the least and greatest value; raises VolumeError, with counts, where one is NaN or infinite."""
    low, high = (float(v) for v in values.detach().aminmax())
    if low - low != 0.0 or high - high != 0.0:
        nan = int(values.detach().isnan().sum())
        infinite = int(values.detach().isinf().sum())
        raise VolumeError(
            f"{name} must be finite everywhere, got {nan} NaN and {infinite} infinite "
            f"of {values.numel()} voxels; replace them (air is 0 /mm, −1000 HU) before making a volume"
        )
    return low, high


def check_mu(mu: Float[Tensor, "D H W"]) -> tuple[float, float]:
    """Check attenuations and return their least and greatest value in 1/mm.  Raises VolumeError."""
    if not isinstance(mu, Tensor):
        raise VolumeError(f"mu must be a torch tensor [D, H, W] in 1/mm, got {type(mu).__name__}")
    if mu.dtype not in (torch.float32, torch.float64):
        hint = (
            "an integer µ cannot be in 1/mm: CT numbers go through Volume.from_hu"
            if not mu.is_floating_point()
            else "convert it first"
        )
        raise VolumeError(f"mu must be float32 or float64 in 1/mm, got {mu.dtype}; {hint}")
    if mu.ndim != 3 or mu.numel() == 0:
        raise VolumeError(f"mu must be [D, H, W] with at least one voxel, got shape {tuple(mu.shape)}")
    low, high = check_finite(mu, "mu")
    if not high > 0.0:
        raise VolumeError(
            f"an all-air volume: no voxel of mu is above zero (largest {high:.4g} /mm); CT numbers go "
            "through Volume.from_hu, and a threshold or a crop may have left nothing"
        )
    return low, high


def check_affine(affine: Float64[Tensor, "4 4"], source: str = "affine") -> Float64[Tensor, "4 4"]:
    """Return an affine as float64 on the CPU.  Raises VolumeError where it is singular or not finite."""
    matrix = as_tensor(affine, dtype=torch.float64).detach().to("cpu").clone()
    if tuple(matrix.shape) != (4, 4):
        raise VolumeError(
            f"{source} must be [4, 4], index (i, j, k) to RAS mm, got shape {tuple(matrix.shape)}"
        )
    if not bool(matrix.isfinite().all()):
        raise VolumeError(f"{source} must be finite, got {matrix.tolist()}")
    if matrix[3].tolist() != [0.0, 0.0, 0.0, 1.0]:
        raise VolumeError(f"the last row of {source} must be 0 0 0 1, got {matrix[3].tolist()}")
    lengths = torch.linalg.vector_norm(matrix[:3, :3], dim=0)
    if not bool((lengths > 0).all()) or abs(float(torch.linalg.det(matrix[:3, :3] / lengths))) < 1e-6:
        raise VolumeError(
            f"{source} must be invertible (three independent axes), got the singular matrix "
            f"{matrix[:3, :3].tolist()}; repair the header of the file it came from"
        )
    return matrix


def check_labels(labels: Integer[Tensor, "D H W"] | None, mu: Tensor) -> Integer[Tensor, "D H W"] | None:
    """Return labels beside mu: contiguous, on its device, uint8 where they fit, otherwise int32."""
    if labels is None:
        return None
    values = as_tensor(labels)
    if values.is_floating_point() or values.is_complex():
        raise VolumeError(f"labels must be integers, got {values.dtype}; convert with .to(torch.int32)")
    if values.shape != mu.shape:
        raise VolumeError(
            f"labels must have the shape of mu, {tuple(mu.shape)} [D, H, W], got {tuple(values.shape)}; "
            "resample the label map to the grid of the CT"
        )
    low, high = (int(v) for v in (values if values.dtype in _ORDERED else values.long()).aminmax())
    if low < 0:
        raise VolumeError(f"labels must be zero (background) or more, got {low}")
    if high > _INT32_MAX:
        raise VolumeError(f"labels must be at most {_INT32_MAX}, got {high}; number them anew, from 1")
    return values.to(device=mu.device, dtype=torch.uint8 if high <= 255 else torch.int32).contiguous()


def channels_of(labels: Integer[Tensor, "D H W"]) -> tuple[Int16[Tensor, "D H W"], int]:
    """Labels as int16, and how many channels they fill.  Raises VolumeError where one does not fit."""
    largest = int(labels.max())
    if largest > _INT16_MAX:
        raise VolumeError(
            f"the largest label is {largest}, and one channel a label holds labels to {_INT16_MAX}; number "
            "the structures anew, from 1"
        )
    return labels.to(torch.int16), largest + 1


def labelled(labels: Integer[Tensor, "D H W"], numbers: Iterable[int]) -> Bool[Tensor, "D H W"]:
    """True where a voxel has one of these labels; by a table where it can be, in a tenth of isin's time."""
    if labels.dtype != torch.uint8 or labels.device.type != "cpu":
        return torch.isin(labels, torch.tensor(list(numbers), dtype=torch.int64, device=labels.device))
    table = np.zeros(256, dtype=bool)
    table[[n for n in numbers if 0 <= n < len(table)]] = True
    return torch.from_numpy(table[labels.numpy()])


def check_box(box: Iterable[tuple[int, int]], size: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Return a box of three half-open index ranges along i, j, k.  Raises VolumeError outside the grid."""
    ranges = [tuple(int(end) for end in part) for part in box]
    if len(ranges) != 3 or any(len(part) != 2 for part in ranges):
        raise VolumeError(f"box must be three (start, stop) ranges along i, j and k, got {ranges}")
    for axis, (start, stop), n in zip("ijk", ranges, size, strict=True):
        if not 0 <= start < stop <= n:
            raise VolumeError(
                f"box along {axis} must satisfy 0 ≤ start < stop ≤ {n} (half open), got ({start}, {stop})"
            )
    return ranges


def closest_axes(affine: Float64[Tensor, "4 4"]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """For each index axis: the world axis (0 R, 1 A, 2 S) nearest to it, and whether it runs against it."""
    matrix = affine[:3, :3]
    cosines = (matrix / torch.linalg.vector_norm(matrix, dim=0)).tolist()
    axes = max(
        itertools.permutations(range(3)),
        key=lambda p: sum(abs(cosines[p[column]][column]) for column in range(3)),
    )
    return axes, tuple(cosines[axes[column]][column] < 0 for column in range(3))


def axis_weights(n: int, m: int, ratio: float, start: float, antialias: bool) -> Float64[Tensor, "m n"]:
    """Weights that take n samples to m: sample c lies at index start + ratio · c of the old grid.

    Linear interpolation, clamped at the ends; with ``antialias`` and ratio > 1 it is averaged over the
    width of the new sample.
    """
    parts = 2 * int(-(-ratio // 1)) if antialias and ratio > 1.0 else 1
    within = (torch.arange(parts, dtype=torch.float64) + 0.5) / parts - 0.5
    position = start + ratio * (torch.arange(m, dtype=torch.float64)[:, None] + within)
    position = position.clamp(0.0, float(n - 1))
    left = position.floor().clamp(max=max(n - 2, 0)).long()
    share = (position - left) / parts
    weights = torch.zeros(m, n, dtype=torch.float64)
    weights.scatter_add_(1, left, 1.0 / parts - share)
    weights.scatter_add_(1, (left + 1).clamp(max=n - 1), share)
    return weights


def quantise(mu: Float[Tensor, "D H W"]) -> tuple[Int16[Tensor, "D H W"], float]:
    """int16 voxels with one scale: mu ≈ q · scale, scale = max|mu| / 32767, off by half a scale at most."""
    low, high = (float(v) for v in mu.aminmax())
    scale = max(-low, high) / _INT16_MAX
    return (mu / scale).round_().clamp_(-_INT16_MAX, _INT16_MAX).to(torch.int16), scale
