"""What registration needs of a body: where its middle is, how it looks, and how that changes with its
pose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import RegistrationError
from xreg.geometry import Camera
from xreg.renderer import Beam, drr, drr_with_jacobian, rays_in_volume, require_in_beam
from xreg.volume import Volume


class Anatomy(Protocol):
    """Anything that casts a radiograph.  `xreg.splat.Gaussians` is one; a `Volume` becomes one here.

    center: body point (RAS mm) about which it turns.  detail_mm: the size of what it resolves, a voxel's for
    voxels.  device: where its images are made.  rays: the camera's six ray vectors [6, 3] in any frame fixed
    to the body.  render: line integrals [H, W].  render_with_jacobian: the image and its derivatives
    [6 + K, H, W] along a step of the pose about the world point `center`, and along K changes of the rays.
    require_in_beam: GeometryError unless a view sees it.
    """

    @property
    def center(self) -> Float[Tensor, " 3"]: ...
    @property
    def detail_mm(self) -> float: ...
    @property
    def device(self) -> torch.device: ...
    def rays(self, camera: Camera, pose: Float[Tensor, "4 4"]) -> Float[Tensor, "6 3"]: ...
    def render(self, camera: Camera, pose: Float[Tensor, "4 4"]) -> Float[Tensor, "H W"]: ...
    def render_with_jacobian(
        self, camera: Camera, pose: Float[Tensor, "4 4"], *, center: Tensor, more: Tensor | None
    ) -> tuple[Float[Tensor, "H W"], Float[Tensor, "K H W"]]: ...
    def require_in_beam(self, cameras: Sequence[Camera], pose: Float[Tensor, "4 4"]) -> None: ...


@dataclass(frozen=True, eq=False)
class Voxels:
    """A volume as an anatomy: it is marched as the beam says."""

    volume: Volume
    beam: Beam

    @property
    def center(self) -> Float[Tensor, " 3"]:
        """The middle of the grid."""
        return self.volume.center

    @property
    def detail_mm(self) -> float:
        """The cube root of a voxel's content."""
        return math.prod(self.volume.spacing) ** (1 / 3)

    @property
    def device(self) -> torch.device:
        """That of the voxels."""
        return self.volume.mu.device

    def rays(self, camera: Camera, pose: Float[Tensor, "4 4"]) -> Float[Tensor, "6 3"]:
        """Rays in voxel coordinates."""
        return rays_in_volume(self.volume, camera, pose)

    def render(self, camera: Camera, pose: Float[Tensor, "4 4"]) -> Float[Tensor, "H W"]:
        """`xreg.drr`."""
        beam = self.beam
        return drr(
            self.volume, camera, pose, integrator=beam.integrator, samples=beam.samples, storage=beam.storage
        )

    def render_with_jacobian(
        self, camera: Camera, pose: Float[Tensor, "4 4"], *, center: Tensor, more: Tensor | None
    ) -> tuple[Float[Tensor, "H W"], Float[Tensor, "K H W"]]:
        """`xreg.renderer.drr_with_jacobian`."""
        return drr_with_jacobian(self.volume, camera, pose, center=center, beam=self.beam, more=more)

    def require_in_beam(self, cameras: Sequence[Camera], pose: Float[Tensor, "4 4"]) -> None:
        """Also makes the quantised voxels, once, so that the first level's time does not hold them."""
        require_in_beam(self.volume, cameras, pose)
        if self.beam.storage == "int16":
            self.volume.quantised()


def anatomy_of(body: Volume | Anatomy, beam: Beam) -> Anatomy:
    """A volume with a beam, or what casts radiographs by itself.  RegistrationError for anything else."""
    if isinstance(body, Volume):
        return Voxels(body, beam)
    missing = [
        n for n in ("center", "detail_mm", "device", "rays", "render_with_jacobian") if not hasattr(body, n)
    ]
    if missing:
        raise RegistrationError(
            f"register takes a Volume, or X-ray Gaussians (xreg.splat.Gaussians), got {type(body).__name__} "
            f"without {', '.join(missing)}"
        )
    return body
