"""A small scene that is rendered in this process and, without the compiled library, in another."""

import numpy as np
import torch

import xreg


def scene() -> tuple[xreg.Volume, xreg.Camera]:
    """A ball with a gradient in it, in float64, halved into two labels; and a C-arm view."""
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (9, 11, 13)), indexing="ij"))
    mu = torch.from_numpy(np.where((at**2).sum(0) < 0.8, 0.02 + 0.005 * at[1], 0.0))
    affine = torch.diag(torch.tensor([-3.0, 3.5, 5.0, 1.0], dtype=torch.float64))
    volume = xreg.Volume(mu, affine, labels=torch.from_numpy((at[2] > 0).astype(np.int16)))
    camera = xreg.Camera.c_arm(
        sdd=1000.0, sod=700.0, size=(6, 7), spacing=9.0, primary=20.0, isocenter=volume.center
    )
    return volume, camera


def render() -> dict[str, list]:
    """Everything that the renderer makes of it, as lists."""
    volume, camera = scene()
    images = {
        name: xreg.drr(volume, camera, integrator=name, samples=50, storage="float")
        for name in ("trilinear", "joseph", "siddon", "exact")
    }
    images["labels"] = xreg.drr(volume, camera, labels="soft", samples=50, storage="float")
    pose = torch.eye(4, dtype=torch.float64)
    images["jacobian"] = xreg.drr_with_jacobian(
        volume, camera, pose, beam=xreg.Beam("exact", storage="float")
    )[1]
    return {name: image.tolist() for name, image in images.items()}


def quantised_and_differentiated() -> dict:
    """16-bit voxels, and gradients to pose and mu."""
    volume, camera = scene()
    fine = xreg.drr(volume, camera, storage="float", samples=60)
    coarse = xreg.drr(volume, camera, samples=60)
    pose = torch.eye(4, dtype=torch.float64, requires_grad=True)
    leaf = volume.mu.clone().requires_grad_()
    image = xreg.drr(xreg.Volume(leaf, volume.affine), camera, pose, integrator="exact")
    to_pose, to_mu = torch.autograd.grad(image.sum(), (pose, leaf))
    return {
        "dtype": str(coarse.dtype),
        "error": float((coarse - fine).norm() / fine.norm()),
        "pose": float(to_pose.norm()),
        "adjoint": float((to_mu * volume.mu).sum() / image.detach().sum()),
    }
