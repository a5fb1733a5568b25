"""Total variation: its proximal map, and reconstruction with it.

Sources: A. Beck, M. Teboulle, "Fast gradient-based algorithms for constrained total variation image denoising
and deblurring problems", IEEE TIP 18 (2009), for the dual method with a constraint; the same authors, SIAM J.
Imaging Sci. 2 (2009), for FISTA; A. Chambolle, J. Math. Imaging Vis. 20 (2004), for the dual; B. O'Donoghue,
E. Candès, Found. Comput. Math. 15 (2015), for the restart; D. Kim, S. Ramani, J. Fessler, IEEE TMI 34
(2015), for ordered subsets with momentum; E. Candès, M. Wakin, S. Boyd, J. Fourier Anal. Appl. 14 (2008), for
total variation that counts less where an estimate has edges.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError
from xreg.geometry._numbers import as_tensor
from xreg.tomography.backproject import pixels_across
from xreg.tomography.iterative import deal, start_volume
from xreg.tomography.noise import noise_of
from xreg.tomography.progress import OnIteration, Watch, relative
from xreg.tomography.projector import Projector, check_projections

_FINE = 64  # pixels along an image from which its norm is found on one half as fine
_ENOUGH = 1.3  # pixels along a voxel's edge, for that: half as many leave no voxel out
_BY_NOISE, _BY_VIEWS = 0.6, 1e-3
USUAL_PASSES = 20  # over `usual_subsets`; full circles at 64³ need ten, finer grids and short arcs more
_MOST_SUBSETS, _LEAST_VIEWS = 8, 3  # of as many views: fewer or smaller ones disagree too much
_RUNAWAY = 1.01  # growth of the objective in a pass beyond which the momentum is forgotten
_SAFETY = 1.02  # on the Lipschitz constant: power iteration ends a little below it
Steps = tuple[float, float, float]


def fista_tv(
    projector: Projector,
    images: Float[Tensor, "V H W"],
    *,
    weight: float | None = None,
    subsets: int = 1,
    iterations: int = 50,
    inner: int = 2,
    nonnegative: bool = True,
    rays: Float[Tensor, "V H W"] | None = None,
    start: Float[Tensor, "d h w"] | None = None,
    edges: Float[Tensor, "d h w"] | None = None,
    on_iteration: OnIteration | None = None,
    seconds: float | None = None,
    tolerance: float = 1e-4,
) -> Float[Tensor, "d h w"]:
    """The x of least ½‖A x − b‖² + λ TV(x), x ≥ 0, by FISTA; attenuation in 1/mm.

    images: [V, H, W] line integrals, float32 or float64, whose dtype and device the result has.  TV:
    isotropic, in three dimensions, differences over the voxel's edges (`tv_value`).

    weight: λ in units of max|Aᵀb|, so that the unit of length and how dense the object is need no other; None
    for that of `tv_weight`, by the noise and the number of views.  rays: what each ray's square counts, as
    `ray_weights` tells; None for all alike.  subsets: 1 descends to the minimum; more take a step after every
    subset of views, several times faster to a good volume (`usual_subsets`).  Momentum over many subsets can
    be unstable: where a pass does not lower the objective, half as many subsets go on, so the last passes
    have few or one; the momentum so far is forgotten where a pass raises it by more than one per cent.  The
    step is 1/‖A‖², by power iteration.  inner: steps of the proximal map, which goes on from the dual of the
    last.  edges: a volume of the same object where TV is to count less at its edges (`edge_weights`).
    on_iteration, seconds: as in `os_sart`; it stops where an iteration changes the volume by
    ``tolerance`` of its norm or less.
    Deterministic.  Raises GeometryError, ImageError, VolumeError.
    """
    check_projections(images, projector.shape)
    weight = tv_weight(images) if weight is None else weight
    if not (math.isfinite(weight) and weight >= 0):
        raise GeometryError(f"weight must be zero or more, got {weight}")
    x = start_volume(projector, images, start)
    steps = tv_steps(projector.grid.spacing)
    rays = torch.ones_like(images[:1, :1, :1]) if rays is None else _checked(rays, images)
    parts, picks, counts = _split(projector, images, rays, subsets)
    lipschitz = _SAFETY * _quick_norm(projector, images) ** 2 * float(rays.max())
    absolute = weight * float(projector.adjoint(images).abs().max())
    total = math.sqrt(float((rays * images.square()).sum())) or 1.0
    most = None if edges is None else edge_weights(start_volume(projector, images, edges), steps)
    watch = Watch(iterations, on_iteration, seconds, tolerance)
    ahead, momentum, dual, last, finished = x, 1.0, None, math.inf, False
    while not finished:
        before, square = x, 0.0
        for part, b, count in zip(parts, picks, counts, strict=True):
            residual = part.forward(ahead) - b
            pull = count * residual
            square += float((pull * residual).sum())
            downhill = ahead - part.adjoint(pull) * (len(projector) / len(part) / lipschitz)
            new, dual = _prox(downhill, absolute / lipschitz, steps, inner, dual, nonnegative, most)
            if float(((ahead - new) * (new - x)).sum()) > 0:
                momentum = 1.0  # it overshoots: start the momentum anew
            after = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + ((momentum - 1) / after) * (new - x)
            x, momentum = new, after
        now = 0.5 * square + absolute * _tv(x, steps, most)
        if now > last and len(parts) > 1:  # they circle the minimum, or run away from it
            parts, picks, counts = _split(projector, images, rays, len(parts) // 2)
            if now > _RUNAWAY * last:
                ahead, momentum = x, 1.0
        last = now
        finished = watch.done(math.sqrt(square) / total, relative(x - before, x), x)
    return x


def usual_subsets(views: int) -> int:
    """Into how many subsets so many views are dealt by those who do not say."""
    return max(1, min(_MOST_SUBSETS, views // _LEAST_VIEWS))


def tv_weight(images: Float[Tensor, "V H W"]) -> float:
    """The weight of `fista_tv` for these line integrals: √((0.6 ν)² + 0.001²) / √V, ν their relative noise.

    ν is `noise_of` over the largest line integral; 0.008 for the 1e4 photons of R²-Gaussian's protocol.  The
    two numbers are a fit to a chest and a pelvis (64³, 25 to 75 views, 1e4 and 1e5 photons, and no noise);
    the second is what few views need without any.  They are for rays that count by their noise.
    """
    relative_noise = noise_of(images) / max(float(images.max()), 1e-30)
    return math.hypot(_BY_NOISE * relative_noise, _BY_VIEWS) / math.sqrt(len(images))


def _quick_norm(projector: Projector, images: Tensor) -> float:
    """‖A‖₂ to about two per cent: its singular vector is smooth, so half as fine a detector shows it.

    It does while its pixels still are about as fine as the voxels; coarser ones sample voxels unevenly, and
    the norm then does not double with the number of pixels along an edge.
    """
    if min(projector.size) < _FINE:
        return projector.norm(images)
    if pixels_across(projector.cameras[0], projector.grid) < _ENOUGH:
        return projector.norm(images, tolerance=1e-3)
    cameras = [camera.bin(2) for camera in projector.cameras]
    coarse = Projector(
        cameras, projector.grid, integrator=projector.integrator, adjoint=projector.adjoint_rule
    )
    return 2 * coarse.norm(images[:, ::2, ::2], tolerance=1e-3)


def _split(
    projector: Projector, images: Tensor, rays: Tensor, subsets: int
) -> tuple[list[Projector], list[Tensor], list[Tensor]]:
    groups, rays = deal(len(projector), subsets), rays.expand(len(images), -1, -1)
    parts = [projector.subset(views) for views in groups]
    return parts, [images[views] for views in groups], [rays[views] for views in groups]


def _checked(rays: Tensor, images: Tensor) -> Tensor:
    rays = as_tensor(rays)
    good = rays.shape == images.shape and bool(torch.isfinite(rays).all()) and float(rays.min()) >= 0
    if not (good and float(rays.max()) > 0):
        raise GeometryError(
            f"rays, what each counts, must be finite, zero or more and not all zero, and have the shape of "
            f"the images {tuple(images.shape)}, got {tuple(rays.shape)}"
        )
    return rays.to(images)


def tv_prox(
    noisy: Float[Tensor, "D H W"],
    weight: float,
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    iterations: int = 100,
    nonnegative: bool = False,
) -> tuple[Float[Tensor, "D H W"], float]:
    """The x of least ½‖x − noisy‖² + weight · TV(x), with x ≥ 0 if wanted; and how far it can be from least.

    weight: in units of the voxels.  spacing: mm along i, j, k; TV counts a difference over the longest edge
    as it is, and over shorter ones more.  Returns (x, gap): the duality gap bounds the objective's excess
    over its minimum, so ‖x − x*‖² ≤ 2 gap.  dtype and device kept; no gradient.
    """
    if noisy.ndim != 3 or not noisy.is_floating_point() or not weight >= 0:
        raise GeometryError(
            f"tv_prox needs a floating volume [D, H, W] and a weight of zero or more, got {noisy.dtype} "
            f"{tuple(noisy.shape)} and {weight}"
        )
    steps = tv_steps(spacing)
    x, dual = _prox(noisy.detach(), weight, steps, iterations, None, nonnegative)
    back = noisy - weight * _transposed(dual, steps)
    primal = 0.5 * _square(x - noisy) + weight * tv_value(x, spacing)
    least = 0.5 * (_square(noisy) - _square(back.clamp_min(0) if nonnegative else back))
    return x, max(primal - least, 0.0)


def tv_value(volume: Float[Tensor, "D H W"], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> float:
    """Isotropic total variation: Σ |∇x| of forward differences, zero across the far faces.

    Differences along i, j, k are multiplied by (longest spacing / own spacing), so cubes count plainly.
    """
    return _tv(volume, tv_steps(spacing))


def edge_weights(volume: Float[Tensor, "D H W"], steps: Steps) -> Float[Tensor, "D H W"]:
    """What TV counts at each voxel beside an estimate: ∝ 1/(1 + |∇v|/ε), so that v's own TV stays as it is.

    ε is half the mean of |∇v| where each voxel counts by |∇v|: a fit to a chest and a pelvis of 64³ and 128³.
    steps: as `tv_steps` gives them.  One everywhere for a volume without edges.
    """
    size = _slopes(volume, steps)
    total = float(size.double().sum())
    if not total > 0:
        return torch.ones_like(size)
    soft = 0.5 * _square(size) / total
    weights = soft / (soft + size)
    return weights * (total / float((weights * size).double().sum()))


def tv_steps(spacing: tuple[float, float, float]) -> Steps:
    """What differences along the array's axes (k, j, i) are multiplied with; spacing is (i, j, k)."""
    longest = max(spacing)
    return tuple(longest / s for s in reversed(spacing))


def _prox(
    noisy: Tensor, weight: float, steps: Steps, iterations: int, dual: Tensor | None, nonnegative: bool,
    most: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x and the dual field [3, D, H, W] that it comes from; fast projected gradient on the dual.

    most: what TV counts at each voxel, by which the dual's length is bounded; None for one everywhere.
    """
    if dual is None:
        dual = noisy.new_zeros(3, *noisy.shape)
    if weight == 0:
        return (noisy.clamp_min(0) if nonnegative else noisy), dual
    rate = 1 / (4 * sum(s * s for s in steps) * weight)
    ahead, momentum = dual, 1.0
    for _ in range(iterations):
        x = noisy.sub(_transposed(ahead, steps), alpha=weight)
        if nonnegative:
            x.clamp_(min=0)
        new = _differences(x, steps).mul_(rate).add_(ahead)
        length = new.square().sum(0).sqrt_()
        new /= (length if most is None else length.div_(most)).clamp_(min=1)
        after = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = torch.lerp(dual, new, 1 + (momentum - 1) / after)
        dual, momentum = new, after
    x = noisy.sub(_transposed(dual, steps), alpha=weight)
    return (x.clamp_(min=0) if nonnegative else x), dual


def _differences(x: Tensor, steps: Steps) -> Tensor:
    """Forward differences along each axis, [3, D, H, W]; zero at the far face."""
    out = x.new_zeros(3, *x.shape)
    for axis, step in enumerate(steps):
        n = x.shape[axis] - 1
        torch.sub(x.narrow(axis, 1, n), x.narrow(axis, 0, n), out=out[axis].narrow(axis, 0, n))
        if step != 1.0:
            out[axis] *= step
    return out


def _transposed(field: Tensor, steps: Steps) -> Tensor:
    """The transpose of `_differences`; the field's far faces do not count."""
    out = torch.zeros_like(field[0])
    for axis, step in enumerate(steps):
        n = out.shape[axis] - 1
        part = field[axis].narrow(axis, 0, n)
        out.narrow(axis, 0, n).sub_(part, alpha=step)
        out.narrow(axis, 1, n).add_(part, alpha=step)
    return out


def _tv(x: Tensor, steps: Steps, most: Tensor | None = None) -> float:
    size = _slopes(x, steps)
    return float((size if most is None else size * most).double().sum())


def _slopes(x: Tensor, steps: Steps) -> Tensor:
    """|∇x| at each voxel."""
    return _differences(x, steps).square().sum(0).sqrt()


def _square(x: Tensor) -> float:
    return float(x.double().square().sum())
