"""The views that Gaussians are fitted to: rays, films, which rays count, and what is wrong with the
cameras."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xreg.errors import GaussianError, GeometryError
from xreg.geometry import Camera, se3
from xreg.io.projections import ProjectionSet
from xreg.io.voxel_grid import VoxelGrid
from xreg.splat.gaussians import Gaussians
from xreg.tomography.noise import ray_weights
from xreg.tomography.projector import check_projections, list_of, require_in_view


@dataclass(frozen=True, eq=False)
class Views:
    """films: [V, H, W] line integrals.  used: rays of the fit; the others are held out.  cameras as
    corrected.  counts: what a ray's square counts by its noise, about one."""

    films: Float[Tensor, "V H W"]
    cameras: tuple[Camera, ...]
    used: Bool[Tensor, "V H W"]
    counts: Float[Tensor, "V H W"]

    @property
    def kind(self) -> str:
        """'exact' or 'parallel', as `splat` names them."""
        return "parallel" if self.cameras[0].parallel else "exact"

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return tuple(self.films.shape[1:])

    @property
    def weights(self) -> Float[Tensor, "V H W"]:
        """What a ray counts, 0 where it is held out."""
        return self.used * self.counts

    @property
    def judges(self) -> Float[Tensor, "V H W"]:
        """What a ray that is held out counts; where none is, those of the fit."""
        return self.weights if bool(self.used.all()) else ~self.used * self.counts

    def filled(self) -> Float[Tensor, "V H W"]:
        """Films whose held-out rays are the mean of used ones around, for methods that need whole images."""
        if bool(self.used.all()):
            return self.films
        known, box = self.used[:, None].to(self.films), torch.ones(1, 1, 5, 5).to(self.films)
        around = torch.nn.functional.conv2d(self.films[:, None] * known, box, padding=2)
        count = torch.nn.functional.conv2d(known, box, padding=2).clamp_min(1)
        return torch.where(self.used, self.films, (around / count)[:, 0])

    def rays(self, like: Gaussians) -> Float[Tensor, "V 6 3"]:
        """Rays in the world's mm, float64."""
        with torch.no_grad():
            return torch.cat([like.rays(camera)[None] for camera in self.cameras]).to(self.films.device)


def views_of(
    scan: ProjectionSet, grid: VoxelGrid, held_out: float, seed: int, *, by_noise: bool = True
) -> Views:
    """Check a set of projections as the projector does, and keep a random part of its rays out.

    by_noise: rays count by their noise (`ray_weights`), else all alike.

    Raises GeometryError (sources in the volume: a wrong unit), ImageError and GaussianError; warns of one
    view.
    """
    cameras = list_of(scan.cameras)
    if len({camera.parallel for camera in cameras}) > 1:
        raise GeometryError("the views of a fit must all be pinholes or all parallel beams, got both")
    require_in_view(cameras, grid)
    check_projections(scan.images, (len(cameras), *cameras[0].size))
    if not float(scan.images.max()) > 0:
        raise GaussianError("no ray of the projections is above zero: there is nothing to fit")
    generator = torch.Generator().manual_seed(seed)
    used = torch.rand(scan.images.shape, generator=generator) >= held_out
    films = scan.images.detach().float()
    counts = ray_weights(films) if by_noise else torch.ones_like(films)
    return Views(films, tuple(cameras), used.to(films.device), counts)


def corrected(
    camera: Camera, change: Float[Tensor, " 6"], common: Float[Tensor, " 3"], center: Tensor
) -> Camera:
    """A camera whose object is moved by the tangent `change` (rad, mm) about `center`, with common errors.

    common: detector offset (u, v) px of the image, and the logarithm of what the focal length is multiplied
    with, which is the distance of the detector over its nominal one.
    """
    k = camera.K.clone()
    k[:2, :2] = k[:2, :2] * torch.exp(common[2])
    k[:2, 2] = k[:2, 2] + common[:2].to(k)
    pose = camera.camera_from_world @ se3.about(se3.exp(change.to(k)), center.to(k))
    sdd = None if camera.sdd is None else camera.sdd * torch.exp(common[2])
    return camera.replace(K=k, camera_from_world=pose, sdd=sdd)
