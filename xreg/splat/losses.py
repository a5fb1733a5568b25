"""What a fit is judged by: rays, the structure of views, and how rough the volume is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GaussianError

_WINDOW, _SIGMA = 11, 1.5
_SMALL = 1e-5  # added under the root of TV, so that it has a gradient where nothing changes


def data_term(
    images: Float[Tensor, "V H W"], films: Float[Tensor, "V H W"], weights: Float[Tensor, "V H W"], loss: str
) -> Float[Tensor, ""]:
    """Weighted mean of squared ('l2') or absolute ('l1') differences.  Gradient to the images."""
    if loss not in ("l1", "l2"):
        raise GaussianError(f"loss must be 'l1' or 'l2', got {loss!r}")
    away = images - films
    away = away.abs() if loss == "l1" else away.square()
    return (away * weights).sum() / weights.sum()


def ssim_views(
    images: Float[Tensor, "V H W"], films: Float[Tensor, "V H W"], data_range: float
) -> Float[Tensor, ""]:
    """Mean structural similarity of views, gradient to both; a Gaussian window of 11 pixels, σ 1.5.

    Z. Wang et al., IEEE TIP 13 (2004); K = (0.01, 0.03).
    """
    away = torch.arange(_WINDOW, dtype=images.dtype, device=images.device) - _WINDOW // 2
    window = torch.exp(-(away**2) / (2 * _SIGMA**2))
    window = window / window.sum()
    x, y = images / data_range, films / data_range
    stack = torch.cat([x, y, x * x, y * y, x * y])[:, None]
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        stack = torch.nn.functional.conv2d(stack, window.view(shape), padding="same")
    a, b, aa, bb, ab = stack[:, 0].unflatten(0, (5, -1))
    light = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    return (light * (2 * (ab - a * b) + 9e-4) / (aa - a * a + bb - b * b + 9e-4)).mean()


def roughness(block: Float[Tensor, "D H W"], steps: tuple[float, float, float]) -> Float[Tensor, ""]:
    """Mean isotropic total variation of a block of voxels, smoothed at zero; with gradient.

    steps: what differences along k, j, i are multiplied with (`xreg.tomography.tv.tv_steps`).
    """
    inner = block[:-1, :-1, :-1]
    along = (block[1:, :-1, :-1], block[:-1, 1:, :-1], block[:-1, :-1, 1:])
    square = sum(((b - inner) * s).square() for b, s in zip(along, steps, strict=True))
    return (square + _SMALL**2).sqrt().mean()


def random_block(
    affine: Float[Tensor, "4 4"], shape: tuple[int, int, int], edge: int, generator: torch.Generator
) -> tuple[Float[Tensor, "4 4"], tuple[int, int, int]]:
    """Affine and shape of a block of at most edge³ voxels of a grid, at random."""
    size = tuple(min(edge, n) for n in shape)
    first = [
        int(torch.randint(n - m + 1, (1,), generator=generator)) for n, m in zip(shape, size, strict=True)
    ]
    moved = affine.clone()
    moved[:3, 3] += affine[:3, :3] @ torch.tensor(first[::-1], dtype=affine.dtype)
    return moved, size
