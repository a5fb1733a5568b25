"""The renderers under test that live in this process, each behind the same few methods.

`image(camera)` is one forward projection, `pose(camera, weights)` a forward projection and the gradient of
sum(weights · image) with respect to the pose, `volume(camera, weights)` the same with respect to every voxel,
and `jacobian(camera)` the image with its derivative along all six directions of the pose.  A mode that a
renderer does not have is absent from its `modes`.  Cameras and volumes are xreg's; what a peer needs is
prepared outside the timed calls, once a camera.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import xreg
from xreg.geometry import Camera
from xreg.renderer import Beam, drr_with_jacobian
from xreg.volume import Volume

SAMPLES = 500


@dataclass(eq=False)
class Xreg:
    """xreg through its public functions."""

    base: Volume
    beam: Beam
    clips_at_detector = True

    def __post_init__(self) -> None:
        self.name = f"xreg {self.beam.integrator}"
        if self.beam.integrator == "trilinear":
            self.name += f" {self.beam.samples}"
        self.name += f" {self.beam.storage}"
        self.modes = ["forward", "pose", "jacobian"]
        if self.beam.storage == "float":
            self.modes.append("volume")
        else:
            self.base.quantised()
        self.options = {
            "integrator": self.beam.integrator,
            "samples": self.beam.samples,
            "storage": self.beam.storage,
        }

    def image(self, camera: Camera) -> Tensor:
        """One forward projection."""
        with torch.no_grad():
            return xreg.drr(self.base, camera, **self.options)

    def pose(self, camera: Camera, weights: Tensor) -> Tensor:
        """Gradient [4, 4] to the pose."""
        pose = torch.eye(4, dtype=torch.float64, requires_grad=True)
        (xreg.drr(self.base, camera, pose, **self.options) * weights).sum().backward()
        return pose.grad

    def jacobian(self, camera: Camera) -> Tensor:
        """Image and six derivative images."""
        pose = torch.eye(4, dtype=torch.float64, device=camera.device)
        return drr_with_jacobian(self.base, camera, pose, beam=self.beam)[1]

    def volume(self, camera: Camera, weights: Tensor) -> Tensor:
        """Gradient [D, H, W] to the voxels."""
        volume = replace(self.base, mu=self.base.mu.detach().requires_grad_())
        (xreg.drr(volume, camera, **self.options) * weights).sum().backward()
        return volume.mu.grad


class NanoDRR:
    """nanodrr's `render` (torch backend on the CPU), on the same attenuation values."""

    clips_at_detector = True

    def __init__(self, volume: Volume, samples: int = SAMPLES) -> None:
        from nanodrr.data import Subject

        self.name = f"nanodrr torch f32 {samples}"
        self.modes = ["forward", "pose", "volume"]
        self.samples = samples
        mu = volume.mu.detach().float()[None, None]
        self.subject = Subject(
            mu,
            torch.zeros_like(mu),
            volume.affine.float(),
            volume.index_from_world.float(),
            Subject._make_voxel_to_grid(mu.shape),
            volume.center.float(),
            0,
            convert_to_mu=False,
        ).to(mu.device)

    @functools.cache  # noqa: B019 - lives as long as the benchmark
    def _geometry(self, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
        from nanodrr.camera.intrinsics import make_k_inv

        from xreg.geometry.conventions import nanodrr

        p = nanodrr.from_camera(camera)
        device = self.subject.label.device
        k_inv = make_k_inv(p.sdd, p.delx, p.dely, p.x0, p.y0, p.height, p.width, dtype=torch.float32)
        rt_inv = torch.linalg.inv(camera.camera_from_world).float()[None]
        return k_inv.to(device), rt_inv.to(device), torch.tensor([p.sdd], dtype=torch.float32, device=device)

    def _render(self, camera: Camera, rt_inv: Tensor) -> Tensor:
        from nanodrr.drr import render

        k_inv, _, sdd = self._geometry(camera)
        return render(self.subject, k_inv, rt_inv, sdd, *camera.size, n_samples=self.samples)[0, 0]

    def images(self, camera: Camera, poses: Tensor, mu: Tensor) -> Tensor:
        """Images [B, H, W] of a body at poses [B, 4, 4], its voxels mu; gradients flow to the poses."""
        from nanodrr.drr import render

        self.subject._image_hu = mu[None, None]
        k_inv, _, sdd = self._geometry(camera)
        rt_inv = torch.linalg.inv(camera.camera_from_world @ poses).to(k_inv)
        k_inv, sdd = k_inv.expand(len(poses), -1, -1), sdd.expand(len(poses))
        return render(self.subject, k_inv, rt_inv, sdd, *camera.size, n_samples=self.samples)[:, 0]

    def image(self, camera: Camera) -> Tensor:
        """One forward projection."""
        with torch.no_grad():
            return self._render(camera, self._geometry(camera)[1])

    def pose(self, camera: Camera, weights: Tensor) -> Tensor:
        """Gradient to the camera's pose."""
        rt_inv = self._geometry(camera)[1].clone().requires_grad_()
        (self._render(camera, rt_inv) * weights).sum().backward()
        return rt_inv.grad

    def volume(self, camera: Camera, weights: Tensor) -> Tensor:
        """Gradient to the voxels."""
        voxels = self.subject._image_hu.requires_grad_()
        try:
            (self._render(camera, self._geometry(camera)[1]) * weights).sum().backward()
            return voxels.grad[0, 0]
        finally:
            voxels.grad = None
            voxels.requires_grad_(False)


class DiffDRR:
    """DiffDRR's trilinear renderer, on the same attenuation values."""

    clips_at_detector = True

    def __init__(self, volume: Volume, samples: int = SAMPLES) -> None:
        from diffdrr.data import read
        from torchio import ScalarImage

        self.name = f"diffdrr trilinear {samples}"
        self.modes = ["forward", "pose", "volume"]
        self.samples = samples
        self.isocenter = tuple(volume.center.tolist())
        image = ScalarImage(tensor=volume.mu.detach().permute(2, 1, 0)[None], affine=volume.affine.numpy())
        self.subject = read(image)
        self.subject.density.set_data(image.data)

    @functools.cache  # noqa: B019 - lives as long as the benchmark
    def _module(self, camera: Camera) -> tuple[torch.nn.Module, Tensor, Tensor]:
        from diffdrr.drr import DRR

        from xreg.geometry.conventions import diffdrr

        p = diffdrr.from_camera(camera, isocenter=self.isocenter)
        module = DRR(
            self.subject, sdd=p.sdd, height=p.height, delx=p.delx, width=p.width, dely=p.dely, x0=p.x0,
            y0=p.y0, renderer="trilinear", reverse_x_axis=p.reverse_x_axis, persistent=False,
        )  # fmt: skip
        return module, torch.tensor([p.rotation]).float(), torch.tensor([p.translation]).float()

    def _render(self, camera: Camera, *pose: Tensor) -> Tensor:
        module = self._module(camera)[0]
        return module(*pose, parameterization="euler_angles", convention="ZXY", n_points=self.samples)[0, 0]

    def image(self, camera: Camera) -> Tensor:
        """One forward projection."""
        with torch.no_grad():
            return self._render(camera, *self._module(camera)[1:])

    def pose(self, camera: Camera, weights: Tensor) -> Tensor:
        """Gradient to the six pose parameters."""
        pose = [p.clone().requires_grad_() for p in self._module(camera)[1:]]
        (self._render(camera, *pose) * weights).sum().backward()
        return torch.cat([p.grad for p in pose], -1)

    def volume(self, camera: Camera, weights: Tensor) -> Tensor:
        """Gradient to the voxels."""
        density = self._module(camera)[0].density.requires_grad_()
        try:
            (self._render(camera, *self._module(camera)[1:]) * weights).sum().backward()
            return density.grad
        finally:
            density.grad = None
            density.requires_grad_(False)


def xreg_beams(samples: int = SAMPLES) -> list[Beam]:
    """Every way of xreg to integrate."""
    return [
        Beam("trilinear", samples, "int16"),
        Beam("trilinear", samples, "float"),
        *(
            Beam(name, SAMPLES, store)
            for name in ("joseph", "siddon", "exact")
            for store in ("int16", "float")
        ),
    ]
