"""First Gaussians: from voxels, without looking at an image."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GaussianError
from xreg.ops.splatting import CUTOFF, voxelize
from xreg.splat.gaussians import Gaussians
from xreg.volume import Volume

SPREAD = (
    0.75  # a Gaussian's sigma over the distance to its neighbours, so that they overlap into a smooth field
)
LEAST = 0.35  # voxels: a smaller sigma falls between the voxel centres


def from_volume(
    volume: Volume,
    count: int,
    *,
    seed: int = 0,
    power: float = 0.5,
    min_mu: float = 0.0,
    neighbours: int = 3,
    refine: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Gaussians:
    """`count` round Gaussians that resemble a volume: a start for a fit, or a coarse body of its own.

    Means are drawn from the voxels above `min_mu` (1/mm) with probability mu^power, without repetition as
    long as voxels last, and shifted within their voxel; the same seed gives the same bits on the CPU.  A
    sigma is SPREAD times the mean distance to the nearest `neighbours`, at least LEAST voxels.  Densities
    begin at one scale for all, and `refine` multiplicative steps (W. Richardson 1972, L. Lucy 1974, in the
    least-squares form of M. Daube-Witherspoon and G. Muehllehner 1986) fit the voxels without a density below
    zero.  No gradient.  Raises GaussianError.
    """
    if not isinstance(count, int) or count < 1:
        raise GaussianError(f"count must be a whole number of Gaussians, at least 1, got {count!r}")
    mu = volume.mu.detach()
    weights = torch.where(mu > min_mu, mu, 0).clamp_min(0).double().cpu().numpy().reshape(-1)
    inside = np.flatnonzero(weights)
    if not len(inside):
        raise GaussianError(
            f"no voxel of the volume is above min_mu = {min_mu} /mm, so there is nowhere to put Gaussians"
        )
    generator = np.random.default_rng(seed)
    chosen = _draw(weights[inside] ** power, count, generator)
    flat = inside[chosen]
    _, rows, cols = volume.shape
    index = np.stack([flat % cols, flat // cols % rows, flat // (cols * rows)], 1)
    index = index + generator.uniform(-0.5, 0.5, index.shape)
    affine = volume.affine.numpy()
    mean = index @ affine[:3, :3].T + affine[:3, 3]
    voxel = abs(float(np.linalg.det(affine[:3, :3]))) ** (1 / 3)
    sigma = np.maximum(SPREAD * _distances(mean, neighbours, voxel), LEAST * voxel)
    make = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(mu.device, dtype)  # noqa: E731
    rotation = make(np.tile([0.0, 0.0, 0.0, 1.0], (count, 1)))
    parts = (make(mean), make(np.log(sigma))[:, None].repeat(1, 3), rotation)
    density = _densities(parts, make(weights[flat]), volume.affine, mu.to(dtype).clamp_min(0), refine)
    return Gaussians(*parts, density, volume.energy_kev, {"from_volume": {"count": count, "seed": seed}})


def _draw(weights: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Numbers of `count` items: each as often as whole rounds need, the rest by weight without repetition.

    P. Efraimidis and P. Spirakis, Weighted random sampling with a reservoir (2006): the largest ln(u) / w.
    """
    rounds, rest = divmod(count, len(weights))
    keys = np.log1p(-generator.random(len(weights))) / weights
    drawn = np.argpartition(-keys, rest - 1)[:rest] if rest else np.empty(0, dtype=np.int64)
    return np.concatenate([np.tile(np.arange(len(weights)), rounds), np.sort(drawn)]).astype(np.int64)


def _distances(points: np.ndarray, neighbours: int, otherwise: float) -> np.ndarray:
    """Root mean square distance of each point to its nearest ones."""
    from scipy.spatial import cKDTree

    k = min(neighbours, len(points) - 1)
    if k < 1:
        return np.full(len(points), otherwise)
    near, _ = cKDTree(points).query(points, k=range(2, k + 2))
    return np.sqrt((near**2).mean(1))


def _densities(
    parts: tuple[Tensor, Tensor, Tensor],
    start: Float[Tensor, " N"],
    affine: Float[Tensor, "4 4"],
    mu: Float[Tensor, "D H W"],
    steps: int,
) -> Float[Tensor, " N"]:
    """Densities of at least zero whose voxels come near mu."""
    mean, log_scale, rotation = parts
    scale, shape = log_scale.exp(), tuple(mu.shape)
    rows = affine[:3].contiguous()

    def spread(density: Tensor) -> Tensor:
        return voxelize(mean, scale, rotation, density, affine, shape)

    def collect(field: Tensor) -> Tensor:  # the transpose
        return torch.ops.xreg.voxelize_backward(field, mean, scale, rotation, start, rows, CUTOFF)[3]

    field = spread(start)
    size = float(field.double().square().sum())
    if not (size > 0 and math.isfinite(size)):
        return start
    factor = float((field.double() * mu.double()).sum()) / size
    density, field, target = start * factor, field * factor, collect(mu)
    for _ in range(steps):
        density = density * (target / collect(field).clamp_min(1e-20))
        field = spread(density)
    return density
