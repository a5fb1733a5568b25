"""Where a fit begins: Gaussians from a first reconstruction, from a prior CT, or evenly in the box."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GaussianError
from xreg.io.voxel_grid import VoxelGrid
from xreg.splat.gaussians import Gaussians
from xreg.splat.initialise import SPREAD
from xreg.splat.settings import FitSettings
from xreg.splat.views import Views
from xreg.splat.voxel_fit import fit_to_volume
from xreg.tomography import USUAL_PASSES, Filter, Projector, fdk, fista_tv, usual_subsets
from xreg.volume import Volume

VOXELS_EACH, RAYS_EACH = 10, 16  # one Gaussian to as many voxels of the grid, or rays, by default
FEWEST = 2000
EMPTY = 0.02  # of the largest voxel: below it is air, where no Gaussian begins


def default_count(grid: VoxelGrid, rays: int) -> int:
    """Most Gaussians where nothing is said: no more than the voxels can show, nor than the rays can tell.

    But 2000 at least.
    """
    return max(FEWEST, min(math.prod(grid.shape) // VOXELS_EACH, rays // RAYS_EACH))


def first_volume(
    views: Views,
    grid: VoxelGrid,
    init: str,
    *,
    seconds: float | None = None,
    on_pass: Callable[[int], bool | None] | None = None,
) -> Float[Tensor, "D H W"]:
    """Attenuation in 1/mm by FISTA-TV ('tv') or by FDK ('fdk'), from rays that are used; zero or more.

    on_pass: told the number of each pass of FISTA-TV; True ends it.
    """
    if init == "fdk":
        return fdk(views.filled(), views.cameras, grid, filter=Filter("hann")).clamp_min(0)
    return tv_volume(views, grid, USUAL_PASSES, seconds=seconds, on_pass=on_pass)


def tv_volume(
    views: Views,
    grid: VoxelGrid,
    passes: int,
    *,
    guide: Float[Tensor, "D H W"] | None = None,
    seconds: float | None = None,
    on_pass: Callable[[int], bool | None] | None = None,
) -> Float[Tensor, "D H W"]:
    """Attenuation in 1/mm after so many passes of FISTA-TV over the rays that are used, or with a guide all.

    guide: a volume to begin with, whose edges are spared; the rays that are kept out have judged it by then.
    on_pass: told the number of each; True ends it.
    """
    films = views.filled() if guide is None else views.films
    return fista_tv(
        Projector(views.cameras, grid), films, rays=views.counts, subsets=usual_subsets(len(films)),
        iterations=passes, start=guide, edges=guide, seconds=seconds,
        on_iteration=None if on_pass is None else lambda step: on_pass(step.number),
    )  # fmt: skip


def first_gaussians(
    volume: Volume, settings: FitSettings, count: int, *, finished: Callable[[int], bool] | None = None
) -> Gaussians:
    """Gaussians near a volume's voxels: drawn where there is matter, and fitted for ``voxel_steps``."""
    drawn = Gaussians.from_volume(volume, count, seed=settings.seed, min_mu=EMPTY * float(volume.mu.max()))
    return fit_to_volume(drawn, volume, steps=settings.voxel_steps, finished=finished)


def uniform_gaussians(views: Views, grid: VoxelGrid, count: int) -> Gaussians:
    """Round Gaussians on a lattice in the box, all of one density, at which all images have the right mean.

    After the uniform cuboids of X-Gaussian (Y. Cai et al., ECCV 2024).  Raises GaussianError below one
    Gaussian, or where no view sees any.
    """
    edges = torch.tensor(grid.extent, dtype=torch.float64)
    pitch = float((edges.prod() / count) ** (1 / 3))
    numbers = (edges / pitch).round().long().clamp_min(1)
    while int(numbers.prod()) > count:
        numbers[int(numbers.argmax())] -= 1
    if int(numbers.prod()) < 1:
        raise GaussianError(f"a lattice needs at least one Gaussian, got count={count}")
    cells = [(torch.arange(int(n), dtype=torch.float64) + 0.5) / float(n) - 0.5 for n in numbers]
    offsets = torch.cartesian_prod(*cells) * edges
    axes = grid.affine[:3, :3] / torch.tensor(grid.spacing, dtype=torch.float64)
    mean = (offsets @ axes.T + grid.center).to(views.films)
    n = len(mean)
    log_scale = torch.log(SPREAD * edges / numbers).to(mean).expand(n, 3).clone()
    turn = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).to(mean).repeat(n, 1)
    made = Gaussians(mean, log_scale, turn, torch.ones_like(mean[:, 0]))
    with torch.no_grad():
        seen = sum(float(made.render(camera).double().sum()) for camera in views.cameras)
    if not seen > 0:
        raise GaussianError("no view sees any Gaussian of the lattice; check the cameras and the grid")
    share = float(views.films.double().sum()) / seen
    return Gaussians(mean, log_scale, turn, torch.full_like(mean[:, 0], share))
