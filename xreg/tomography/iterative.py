"""Reconstruction by solving A x = b: SIRT and its ordered subsets, and conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError, VolumeError
from xreg.geometry._numbers import as_tensor
from xreg.tomography.progress import OnIteration, Watch, relative
from xreg.tomography.projector import Projector, check_projections

_SUBSETS = 10
_GRAZING = 1e-3  # of the longest path: rays and voxels that meet less are left alone


def os_sart(
    projector: Projector,
    images: Float[Tensor, "V H W"],
    *,
    subsets: int | None = None,
    iterations: int = 10,
    relaxation: float = 1.0,
    decay: float = 1.0,
    nonnegative: bool = True,
    start: Float[Tensor, "d h w"] | None = None,
    on_iteration: OnIteration | None = None,
    seconds: float | None = None,
    tolerance: float = 0.0,
) -> Float[Tensor, "d h w"]:
    """Simultaneous algebraic reconstruction with ordered subsets of views; attenuation in 1/mm.

    For each subset s: x += λ C_s A_sᵀ R_s (b_s − A_s x), R_s and C_s the inverse sums of rows and columns.
    images: [V, H, W] line integrals, float32 or float64, whose dtype and device the result has.  subsets
    (default: ten, or as many as there are views): views are dealt out so that those of one subset and of the
    next lie far apart.  relaxation λ is multiplied by ``decay`` after each iteration (0 < λ < 2).
    nonnegative: negative voxels become zero.  start: a volume, zero by default.  on_iteration, seconds,
    tolerance: `Watch`.  Deterministic.  Either adjoint of the projector will do.  Raises GeometryError,
    ImageError, VolumeError.

    Source: A. Andersen, A. Kak, Ultrason. Imaging 6 (1984); G. Wang, M. Jiang, J. X-Ray Sci. Technol. 12
    (2004).
    """
    check_projections(images, projector.shape)
    if not 0 < relaxation < 2 or not 0 < decay <= 1:
        raise GeometryError(f"relaxation must lie in (0, 2), decay in (0, 1], got {relaxation} and {decay}")
    x = start_volume(projector, images, start)
    dealt = deal(len(projector), min(_SUBSETS, len(projector)) if subsets is None else subsets)
    parts = [projector.subset(views) for views in dealt]
    sums = [_sums(part, images) for part in parts]
    picks = [images[views] for views in dealt]
    total = float(images.norm()) or 1.0
    watch = Watch(iterations, on_iteration, seconds, tolerance)
    finished = False
    while not finished:
        before, square = x.clone(), 0.0
        for part, (rows, columns), b in zip(parts, sums, picks, strict=True):
            residual = b - part.forward(x)
            square += float(residual.norm()) ** 2
            x = x + part.adjoint(residual * rows) * (columns * relaxation)
            x = x.clamp_min(0) if nonnegative else x
        relaxation *= decay
        finished = watch.done(math.sqrt(square) / total, relative(x - before, x), x)
    return x


def sirt(
    projector: Projector, images: Float[Tensor, "V H W"], *, iterations: int = 100, **options: object
) -> Float[Tensor, "d h w"]:
    """Simultaneous iterative reconstruction: `os_sart` with all views in one subset, and its options.

    Source: P. Gilbert, J. Theor. Biol. 36 (1972); J. Gregor, T. Benson, IEEE TMI 27 (2008).
    """
    return os_sart(projector, images, subsets=1, iterations=iterations, **options)


def cgls(
    projector: Projector,
    images: Float[Tensor, "V H W"],
    *,
    iterations: int = 20,
    damping: float = 0.0,
    start: Float[Tensor, "d h w"] | None = None,
    on_iteration: OnIteration | None = None,
    seconds: float | None = None,
    tolerance: float = 0.0,
) -> Float[Tensor, "d h w"]:
    """Least squares by conjugate gradients: the x of least ‖A x − b‖² + damping² ‖x‖²; attenuation in 1/mm.

    images: as in `os_sart`.  damping: mm (that of ‖A‖, see `Projector.norm`); without it, stopping early is
    what keeps noise out.  It stops also where the gradient has fallen to ``tolerance`` of the first.  Needs
    the exact adjoint.  Nothing keeps voxels from becoming negative.

    Source: M. Hestenes, E. Stiefel (1952); A. Björck, "Numerical methods for least squares problems", §7.4.
    """
    check_projections(images, projector.shape)
    if projector.adjoint_rule != "exact":
        raise GeometryError("cgls needs the transpose itself: make the projector with adjoint='exact'")
    if not (math.isfinite(damping) and damping >= 0):
        raise GeometryError(f"damping must be zero or more (mm), got {damping}")
    x = start_volume(projector, images, start)
    residual = images - projector.forward(x)
    gradient = projector.adjoint(residual) - damping**2 * x
    direction = gradient.clone()
    square = first = _dot(gradient, gradient)
    total = float(images.norm()) or 1.0
    watch = Watch(iterations, on_iteration, seconds, 0.0)
    finished = square == 0.0
    while not finished:
        seen = projector.forward(direction)
        step = square / (_dot(seen, seen) + damping**2 * _dot(direction, direction))
        misfit, moved = float(residual.norm()) / total, step * direction
        x = x + moved
        residual = residual - step * seen
        gradient = projector.adjoint(residual) - damping**2 * x
        last, square = square, _dot(gradient, gradient)
        direction = gradient + (square / last) * direction
        finished = watch.done(misfit, relative(moved, x), x) or square <= tolerance**2 * first
    return x


def deal(views: int, subsets: int) -> list[list[int]]:
    """View numbers of each subset: every n-th view, and the subsets in an order that jumps about.

    The order is that of binary digits read backwards, so that no subset follows its neighbour.  GeometryError
    unless 1 ≤ subsets ≤ views.
    """
    if not isinstance(subsets, int) or not 1 <= subsets <= views:
        raise GeometryError(f"subsets must be a whole number from 1 to the {views} views, got {subsets!r}")
    digits = max(1, (subsets - 1).bit_length())
    order = sorted(range(subsets), key=lambda n: int(f"{n:0{digits}b}"[::-1], 2))
    return [list(range(first, views, subsets)) for first in order]


def start_volume(projector: Projector, images: Tensor, start: Tensor | None) -> Tensor:
    """A copy of ``start`` with the dtype and device of the images, or zeros."""
    if start is None:
        return images.new_zeros(projector.grid.shape)
    start = as_tensor(start)
    if tuple(start.shape) != projector.grid.shape or not bool(torch.isfinite(start).all()):
        raise VolumeError(
            f"start must be finite, of the grid's shape {projector.grid.shape}, got {tuple(start.shape)}"
        )
    return start.detach().to(images, copy=True)


def _sums(part: Projector, like: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """Inverse sums of the rows (rays) and columns (voxels) of A, 0 where next to nothing is met."""
    ones = torch.ones(part.grid.shape, dtype=like.dtype, device=like.device)
    rows = part.forward(ones)
    return _inverse(rows), _inverse(part.adjoint(torch.ones_like(rows)))


def _inverse(sums: Tensor) -> Tensor:
    met = sums > _GRAZING * sums.max()
    return torch.where(met, 1 / torch.where(met, sums, 1), 0)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
