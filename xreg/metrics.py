"""How far a pose is from the truth, and how well a method knows it: the figures that papers report, defined.

Poses are world_from_body [4, 4] (RAS mm); points are body points [N, 3] (RAS mm), as they lie in the CT.
Volumes are compared by PSNR and SSIM with a stated range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xreg.errors import GeometryError, VolumeError
from xreg.geometry import Camera, se3
from xreg.geometry._numbers import as_tensor, tensor64

GROSS_MM = 10.0  # mTRE from which a registration has found another place
CAPTURE_SHARE = 0.95


def target_errors(estimate: Any, truth: Any, points: Any) -> Float[Tensor, " N"]:
    """Target registration error of each point, mm: |T_estimate p − T_truth p|."""
    estimate, truth, points = _pose(estimate, "estimate"), _pose(truth, "truth"), _points(points)
    return (se3.apply(estimate, points) - se3.apply(truth, points)).norm(dim=-1)


def mtre(estimate: Any, truth: Any, points: Any) -> float:
    """Mean target registration error, mm: the mean over points of |T_estimate p − T_truth p|."""
    return float(target_errors(estimate, truth, points).mean())


def rotation_error(estimate: Any, truth: Any) -> float:
    """Angle of the rotation from the true to the estimated pose, degrees, 0 to 180."""
    turn, _ = se3.geodesic_distance(_pose(truth, "truth"), _pose(estimate, "estimate"))
    return float(torch.rad2deg(turn))


def translation_error(estimate: Any, truth: Any, center: Any = (0.0, 0.0, 0.0)) -> float:
    """How far the estimate puts one body point (mm) from where it is: |T_estimate c − T_truth c|, mm.

    center: in the body, RAS mm.  The middle of the anatomy gives a figure that does not depend on where the
    CT's origin lies; with the origin it is the difference of the matrices' last columns.
    """
    return float(target_errors(estimate, truth, _float64(center, "center")[None])[0])


def projection_errors(
    camera: Camera, estimate: Any, truth: Any, points: Any, *, unit: str = "mm"
) -> Float[Tensor, " N"]:
    """Distance of each point's projections under both poses: on the detector in "mm", or in "px".

    Infinite for a point that one of the poses puts at or behind the source.
    """
    if unit not in ("mm", "px"):
        raise GeometryError(f'unit must be "mm" (on the detector) or "px", got {unit!r}')
    estimate, truth, points = _pose(estimate, "estimate"), _pose(truth, "truth"), _points(points)
    camera = camera.to("cpu")
    apart = camera.project(se3.apply(estimate, points)) - camera.project(se3.apply(truth, points))
    if unit == "mm":
        apart = apart * camera.spacing.flip(-1)
    return torch.where(torch.isfinite(apart).all(-1), apart.norm(dim=-1), torch.inf)


def mpe(camera: Camera, estimate: Any, truth: Any, points: Any, *, unit: str = "mm") -> float:
    """Mean projection error: the mean over points of the distance of their projections under both poses.

    unit: "mm" on the detector (needs the camera's sdd), or "px".
    """
    return float(projection_errors(camera, estimate, truth, points, unit=unit).mean())


def reprojection_distances(camera: Camera, estimate: Any, truth: Any, points: Any) -> Float[Tensor, " N"]:
    """Least distance (mm) of each point's true place from the ray through its estimated projection.

    The ray runs from the source through T_estimate p, or along a parallel beam; errors along the ray, which
    an image hardly shows, do not count.
    """
    estimate, truth, points = _pose(estimate, "estimate"), _pose(truth, "truth"), _points(points)
    seen, true, camera = se3.apply(estimate, points), se3.apply(truth, points), camera.to("cpu")
    if camera.parallel:
        ray = camera.world_from_camera[..., :3, 2].expand_as(seen)
    else:
        ray = seen - camera.source
        ray = ray / ray.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    away = true - seen
    return (away - (away * ray).sum(-1, keepdim=True) * ray).norm(dim=-1)


def mrpe(camera: Camera, estimate: Any, truth: Any, points: Any) -> float:
    """Mean reprojection distance, mm: the mean over points of `reprojection_distances`.

    Source: E. van de Kraats et al., "Standardized evaluation methodology for 2-D–3-D registration", IEEE
    TMI 24 (2005), where it is called mRPD.
    """
    return float(reprojection_distances(camera, estimate, truth, points).mean())


def success_rate(errors: Any, threshold: float) -> float:
    """Share of errors at or below a threshold; an error that is not finite is none.  NaN for no errors."""
    errors = np.asarray(errors, dtype=np.float64)
    return float((errors <= threshold).mean()) if errors.size else float("nan")


def gross_failure_rate(errors: Any, threshold: float = GROSS_MM) -> float:
    """Share of registrations with an mTRE above the threshold (mm), or with no finite one (no answer)."""
    errors = np.asarray(errors, dtype=np.float64)
    return float((~(errors <= threshold)).mean()) if errors.size else float("nan")


# ---- capture range ----


@dataclass(frozen=True)
class CaptureRange:
    """Success as a function of how far away a search starts.

    edges [B + 1]: mm of start mTRE; counts, rates [B]: starts and their successes in a bin (NaN where it is
    empty).  range_mm: upper edge of the last bin before success first falls below `share`, 0 if the first
    bin with starts already does.
    """

    edges: Float[np.ndarray, " B1"]
    counts: Float[np.ndarray, " B"]
    rates: Float[np.ndarray, " B"]
    share: float
    range_mm: float


def capture_range(
    start_errors: Any,
    errors: Any,
    *,
    threshold: float,
    bin_mm: float = 2.0,
    share: float = CAPTURE_SHARE,
) -> CaptureRange:
    """Bin registrations by the mTRE of their start, and find up to where they succeed.

    start_errors, errors: mTRE (mm) before and after, [N]; success is an end at or below `threshold`, and an
    end that is not finite is none.  The capture range is the upper edge of the largest bin up to which every
    bin has a success rate of at least `share`.  Empty bins prove nothing: they are passed over, and never
    end the range.
    """
    before, after = np.asarray(start_errors, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1 or not np.isfinite(before).all():
        raise GeometryError(
            f"start_errors must be finite (mm) and of the shape of errors [N], got {before.shape} and "
            f"{after.shape}"
        )
    if not bin_mm > 0 or not 0 < share <= 1:
        raise GeometryError(f"bin_mm must be positive and share in (0, 1], got {bin_mm} and {share}")
    number = np.floor(before / bin_mm).astype(int)
    bins = int(number.max()) + 1 if len(number) else 1
    edges = bin_mm * np.arange(bins + 1)
    counts = np.bincount(number, minlength=bins).astype(float)
    hits = np.bincount(number, weights=(after <= threshold).astype(float), minlength=bins)
    rates = np.divide(hits, counts, out=np.full(bins, np.nan), where=counts > 0)
    end = 0.0
    for upper, rate in zip(edges[1:], rates, strict=True):
        if rate < share:
            break
        if not np.isnan(rate):
            end = float(upper)
    return CaptureRange(edges, counts, rates, share, end)


# ---- is the covariance right? ----


def tangent_error(estimate: Any, truth: Any, center: Any) -> Float[Tensor, " 6"]:
    """The ξ (rad, mm) with truth = se3.retract(estimate, ξ, center): what a covariance speaks of.

    center: world RAS mm, as in `RegistrationResult.center`.
    """
    estimate, truth = _pose(estimate, "estimate"), _pose(truth, "truth")
    center = _float64(center, "center")
    return se3.log(se3.about(truth @ se3.inverse(estimate), -center))


def nees(xi: Any, covariance: Any) -> float:
    """Normalised estimation error squared: ξᵀ C⁻¹ ξ, which is χ² with six degrees where C is right.

    xi [6] (rad, mm), covariance [6, 6].  Infinite where the covariance is not positive definite, since it
    then claims certainty in some direction.
    """
    xi, covariance = _float64(xi, "xi"), _float64(covariance, "covariance")
    if tuple(covariance.shape) != (len(xi), len(xi)):
        raise GeometryError(
            f"covariance must have shape {(len(xi),) * 2} for ξ of {len(xi)}, got {tuple(covariance.shape)}"
        )
    scale = covariance.diagonal().clamp_min(0).sqrt()
    if not bool((scale > 0).all()) or not bool(torch.isfinite(covariance).all()):
        return float("inf")
    # In units of each standard deviation, so that radians and millimetres do not spoil the factor.
    factor, failed = torch.linalg.cholesky_ex(covariance / scale[:, None] / scale)
    if int(failed):
        return float("inf")
    white = torch.linalg.solve_triangular(factor, (xi / scale)[:, None], upper=False)
    return float((white * white).sum())


def ellipsoid_bound(level: float, degrees: int = 6) -> float:
    """The quantile of χ²: `nees` at or below it lies within the ellipsoid that holds the share `level`."""
    from scipy.special import gammaincinv

    if not 0 <= level < 1:
        raise GeometryError(f"level must lie in [0, 1), got {level}")
    return float(2 * gammaincinv(degrees / 2, level))


def coverage(nees_values: Any, level: float = 0.95, *, degrees: int = 6) -> float:
    """Share of truths inside the `level` ellipsoid of their covariance; right is `level`.  NaN for none.

    nees_values [N]: from `nees`.  Below the level the covariance is too small, above it too large.
    """
    values = np.asarray(nees_values, dtype=np.float64)
    return float((values <= ellipsoid_bound(level, degrees)).mean()) if values.size else float("nan")


def calibration_curve(
    nees_values: Any, levels: Sequence[float] | None = None, *, degrees: int = 6
) -> tuple[Float[np.ndarray, " L"], Float[np.ndarray, " L"]]:
    """Expected and observed coverage at several levels (default: 0.05, 0.10 … 0.95, 0.99)."""
    expected = np.array([*np.arange(1, 20) / 20, 0.99] if levels is None else levels, dtype=np.float64)
    return expected, np.array([coverage(nees_values, float(p), degrees=degrees) for p in expected])


# ---- does the verdict know? ----


@dataclass(frozen=True)
class Roc:
    """How well a probability tells right from wrong.

    false_positive, true_positive [K]: from (0, 0) to (1, 1), share of wrong and of right answers at or above
    each of thresholds [K] (the first is +inf).  auc: area below, 1 perfect, 0.5 by chance; NaN where all
    answers are right or all wrong.
    """

    false_positive: Float[np.ndarray, " K"]
    true_positive: Float[np.ndarray, " K"]
    thresholds: Float[np.ndarray, " K"]
    auc: float


def roc(probability: Any, correct: Bool[np.ndarray, " N"] | Sequence[bool]) -> Roc:
    """Receiver operating characteristic of a probability [N] for what is correct [N].

    Equal probabilities are one step of the curve, so that the area counts a tie as a half.
    """
    score, right = np.asarray(probability, dtype=np.float64), np.asarray(correct, dtype=bool)
    if score.shape != right.shape or score.ndim != 1 or not np.isfinite(score).all():
        raise GeometryError(
            f"probability must be finite and of the shape of correct [N], got {score.shape} and {right.shape}"
        )
    order = np.argsort(-score, kind="stable")
    score, right = score[order], right[order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1) if len(score) else np.zeros(0, int)
    hits, misses = np.cumsum(right)[last], np.cumsum(~right)[last]
    positives, negatives = int(right.sum()), int((~right).sum())
    tpr = np.concatenate([[0.0], hits / max(positives, 1)])
    fpr = np.concatenate([[0.0], misses / max(negatives, 1)])
    area = float((np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2).sum()) if positives and negatives else float("nan")
    return Roc(fpr, tpr, np.concatenate([[np.inf], score[last]]), area)


# ---- volumes and images ----


def psnr(estimate: Any, truth: Any, *, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio, dB: 10 log10(data_range² / mean squared difference), any shape.

    data_range is stated, and not taken from the data: 1 for densities from 0 to 1 is the PSNR 3D of
    R²-Gaussian's papers.  Infinite for equal arrays.
    """
    difference = _values(estimate, truth, "psnr")
    square = float((difference[0] - difference[1]).square().mean())
    return float("inf") if square == 0 else float(10 * np.log10(data_range**2 / square))


def ssim_volume(estimate: Any, truth: Any, *, data_range: float = 1.0) -> float:
    """Structural similarity of volumes [D, H, W] as papers on sparse-view CT give it.

    The mean over the three axes of the mean over slices; slices in which the truth has nothing above zero are
    left out.  A slice's is the mean of its map with a Gaussian window of 11 pixels and σ 1.5, zeros beyond
    the border, K = (0.01, 0.03) and variances without Bessel's correction.  Values are taken in units of
    ``data_range``.
    Source: Z. Wang et al., IEEE TIP 13 (2004); the slices: R. Zha et al., R²-Gaussian, NeurIPS 2024, code.
    """
    volumes = _values(estimate, truth, "ssim_volume")
    if volumes.ndim != 4:
        raise VolumeError(f"ssim_volume takes volumes [D, H, W], got shape {list(volumes.shape[1:])}")
    volumes = volumes / data_range
    means = []
    for axis in (1, 2, 3):
        slices = volumes.movedim(axis, 1)
        kept = slices[1].flatten(1).amax(1) > 0
        if bool(kept.any()):
            means.append(float(_ssim_maps(slices[:, kept]).mean()))
    return float(np.mean(means)) if means else float("nan")


def _ssim_maps(pair: Float[Tensor, "2 N h w"]) -> Float[Tensor, "N h w"]:
    x, y = pair
    stack = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 1)[:, None]
    away = torch.arange(-5, 6, dtype=pair.dtype)
    window = torch.exp(-(away**2) / (2 * 1.5**2))
    window = window / window.sum()
    stack = torch.nn.functional.conv2d(stack, window.view(1, 1, -1, 1), padding=(5, 0))
    stack = torch.nn.functional.conv2d(stack, window.view(1, 1, 1, -1), padding=(0, 5))
    a, b, aa, bb, ab = stack[:, 0].unflatten(0, (5, -1))
    light = (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2)
    return light * (2 * (ab - a * b) + 0.03**2) / (aa - a * a + bb - b * b + 0.03**2)


def _values(estimate: Any, truth: Any, name: str) -> Tensor:
    one, other = (as_tensor(v).detach().cpu().double() for v in (estimate, truth))
    if one.shape != other.shape or not one.numel():
        raise VolumeError(
            f"{name} compares arrays of one shape, got {list(one.shape)} and {list(other.shape)}"
        )
    if not bool(torch.isfinite(one).all()) or not bool(torch.isfinite(other).all()):
        raise VolumeError(f"{name} needs finite values; one of the arrays holds NaN or infinity")
    return torch.stack([one, other])


def _float64(value: Any, name: str) -> Tensor:
    """Numbers of any form on the CPU: tensors, arrays of any layout and byte order, lists."""
    return tensor64(value, name, rows=True).detach().cpu()


def _pose(value: Any, name: str) -> Float[Tensor, "4 4"]:
    pose = _float64(value, name)
    if pose.shape != (4, 4):
        raise GeometryError(f"{name} must be one pose [4, 4], got shape {tuple(pose.shape)}")
    return se3.require_rigid(pose, name)


def _points(value: Any) -> Float[Tensor, "N 3"]:
    points = _float64(value, "points")
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not bool(torch.isfinite(points).all()):
        raise GeometryError(
            f"points must be finite body points [N, 3] (RAS mm), one or more, got shape {tuple(points.shape)}"
        )
    return points
