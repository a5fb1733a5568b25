"""A CT that a fit begins with: brought to the unit of the films, and to the voxels of the fit."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from xreg.errors import GaussianError, GeometryError, InputWarning
from xreg.io.voxel_grid import VoxelGrid
from xreg.splat.views import Views
from xreg.tomography import Projector
from xreg.volume import Volume

LEAST, MOST = 0.8, 1.25  # of the factor that a prior in the films' own 1/mm may need, by its energy
ALIKE = 0.7  # least correlation of a prior's projections and the films of the same place


def matched_prior(prior: Volume, views: Views, grid: VoxelGrid) -> Volume:
    """The prior times the one number by which its projections come nearest to the films; on their device.

    prior: 1/mm of any unit of attenuation, as simulated scans have their own.  grid: of the fit; what the
    prior has beyond it counts too, unless that reaches behind a source.  Least squares over the rays
    that are used, as they count.  Warns (InputWarning) where the number is far from 1, or the projections
    resemble the films little.  GaussianError where they have nothing in common; GeometryError where no ray
    meets the prior.
    """
    prior = prior if prior.mu.device == views.films.device else prior.to(views.films.device)
    drawn = _drawn(prior, views, grid)
    factor, likeness = _least_squares(drawn, views.films, views.weights)
    if not (factor > 0 and likeness > 0):
        raise GaussianError(
            f"the prior's projections have nothing in common with the films (factor {factor:.3g}, "
            f"correlation {likeness:.2f}); check that it is of the same place and in the same frame, or fit "
            "without a prior"
        )
    if likeness < ALIKE:
        warnings.warn(
            f"the prior's projections correlate with the films by {likeness:.2f} only; check that it is of "
            "the same place, and in the frame of the cameras",
            InputWarning,
            stacklevel=2,
        )
    if not LEAST <= factor <= MOST:
        warnings.warn(
            f"the prior was multiplied by {factor:.3g}, since its projections had another unit than the "
            "films; the result has the films' unit, and is not in 1/mm of the prior",
            InputWarning,
            stacklevel=2,
        )
    return replace(prior, mu=prior.mu * factor)


def _drawn(prior: Volume, views: Views, grid: VoxelGrid) -> Float[Tensor, "V h w"]:
    own, values = VoxelGrid.of(prior), prior.mu.detach()
    sources = torch.stack([camera.source.detach().cpu() for camera in views.cameras])
    if not views.cameras[0].parallel and bool(own.contains(sources).any()):  # its air is that wide
        own, values = grid, on_grid(prior, grid)
    try:
        with torch.no_grad():
            return Projector(views.cameras, own).forward(values.to(views.films))
    except GeometryError as error:
        raise GeometryError(f"the prior lies elsewhere than the cameras look: {error}") from error


def _least_squares(drawn: Tensor, films: Tensor, weights: Tensor) -> tuple[float, float]:
    """The factor of least Σ w (films − factor · drawn)², and the weighted correlation of the two."""
    x, y, w = (t.double() for t in (drawn, films, weights))
    square = float((w * x * x).sum())
    if not square > 0:
        return 0.0, 0.0
    factor = float((w * x * y).sum()) / square
    x, y = (t - (w * t).sum() / w.sum() for t in (x, y))
    spread = float((w * x * x).sum() * (w * y * y).sum()) ** 0.5
    return factor, float((w * x * y).sum()) / spread if spread > 0 else 0.0


def on_grid(volume: Volume, grid: VoxelGrid) -> Float[Tensor, "D H W"]:
    """A volume's values (1/mm) at a grid's voxels, trilinear, zero outside; means where voxels grow."""
    if volume.shape == grid.shape and torch.equal(volume.affine.cpu(), grid.affine):
        return volume.mu.detach().clone()
    wanted = [max(old, min(grid.spacing)) for old in volume.spacing]
    if any(new > 1.01 * old for new, old in zip(wanted, volume.spacing, strict=True)):
        volume = volume.resample(wanted)
    index = torch.linalg.inv(volume.affine.cpu()) @ grid.affine
    theta = torch.linalg.inv(_index_of_unit(volume.size)) @ index @ _index_of_unit(grid.size)
    values = volume.mu.detach()[None, None]
    at = torch.nn.functional.affine_grid(theta[None, :3].to(values), [1, 1, *grid.shape], align_corners=False)
    return torch.nn.functional.grid_sample(values, at, align_corners=False)[0, 0]


def _index_of_unit(size: tuple[int, int, int]) -> Float64[Tensor, "4 4"]:
    """Voxel index of torch's coordinates, which run from -1 to 1 between a grid's outer faces."""
    n = torch.tensor(size, dtype=torch.float64)
    matrix = torch.diag(torch.cat([n / 2, torch.ones(1, dtype=torch.float64)]))
    matrix[:3, 3] = (n - 1) / 2
    return matrix
