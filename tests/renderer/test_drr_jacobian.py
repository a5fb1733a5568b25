"""`drr_with_jacobian`: six derivatives of the image from one march, and the rays that they follow."""

from typing import Any

import pytest
import torch
from small_body import EXACT, INTEGRATORS, SIZE, close, make_volume, small_pose, view
from torch import Tensor

from xreg import Beam, Camera, Volume, drr, drr_with_jacobian, se3
from xreg.renderer import rays_in_volume


def jacobian_by_differences(
    volume: Volume, camera: Camera, pose: Tensor, center: Tensor, step: float, **beam: Any
) -> Tensor:
    images = []
    for direction in step * torch.eye(6, dtype=torch.float64):
        ahead, behind = (
            drr(volume, camera, se3.retract(pose, sign * direction, center), **beam) for sign in (1, -1)
        )
        images.append((ahead - behind) / (2 * step))
    return torch.stack(images, -3)


VIEWS = {
    "c-arm": lambda volume: view(volume),
    "mirrored": lambda volume: view(volume).flip_columns(),
    "no distance": lambda volume: view(volume).replace(sdd=None),
    "cut": lambda volume: view(volume).replace(sdd=703.0),
    "parallel": lambda volume: Camera.parallel_beam(
        size=SIZE, spacing=3.9, sdd=400.0, primary=33.0, secondary=14.0, isocenter=volume.center
    ),
}


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("name", VIEWS)
def test_jacobian_is_the_derivative_of_the_image(volume: Volume, name: str, integrator: str) -> None:
    """A quotient may see a sample on both sides of a face between cells, so a few pixels may be off."""
    if (name, integrator) == ("no distance", "trilinear"):
        pytest.skip("here the samples follow the body's depth, and the derivative holds them still")
    camera, pose = VIEWS[name](volume), small_pose(2)
    center = torch.tensor([12.0, -20.0, 9.0], dtype=torch.float64)
    beam = {"integrator": integrator, "storage": "float"}
    image, jacobian = drr_with_jacobian(volume, camera, pose, center=center, beam=Beam(**beam))
    assert jacobian.shape == (6, *SIZE)
    assert torch.equal(image, drr(volume, camera, pose, **beam))
    expected = jacobian_by_differences(volume, camera, pose, center, 1e-6, **beam)
    error = (jacobian - expected).flatten(1).abs() / expected.flatten(1).norm(dim=1, keepdim=True)
    assert float(error.quantile(0.98, dim=1).max()) <= 1e-7
    if integrator == "exact":
        for found, one in zip(jacobian, expected, strict=True):
            close(found, one, 1e-5)


def test_jacobian_is_the_gradient_of_autograd(volume: Volume, weight: Tensor) -> None:
    camera, pose = view(volume), small_pose(3)
    _, jacobian = drr_with_jacobian(volume, camera, pose, center=volume.center, beam=Beam(**EXACT))
    xi = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    image = drr(volume, camera, se3.retract(pose, xi, volume.center), **EXACT)
    (gradient,) = torch.autograd.grad((image * weight).sum(), xi)
    close((jacobian * weight).sum((-2, -1)), gradient, 1e-12)


def test_jacobian_of_the_fast_kernels(volume: Volume) -> None:
    """float32 and 16-bit voxels against float64, with the same samples."""
    camera, pose = view(volume), small_pose(3)
    for integrator in INTEGRATORS:
        expected = drr_with_jacobian(volume, camera, pose, beam=Beam(integrator, storage="float"))
        for dtype, storage, limits in (
            (torch.float32, "float", (1e-6, 1e-4)),
            (torch.float32, "int16", (1e-5, 1e-3)),
        ):
            found = drr_with_jacobian(
                make_volume(dtype), camera, pose, beam=Beam(integrator, storage=storage)
            )
            assert found[0].dtype == found[1].dtype == torch.float32
            close(found[0], expected[0], limits[0])
            close(found[1], expected[1], limits[1])


def test_jacobian_turns_about_the_moved_middle(volume: Volume) -> None:
    camera, pose = view(volume), small_pose(3)
    middle = se3.apply(pose, volume.center[None])[0]
    _, by_default = drr_with_jacobian(volume, camera, pose, beam=Beam(**EXACT))
    _, named = drr_with_jacobian(volume, camera, pose, center=middle, beam=Beam(**EXACT))
    close(by_default, named, 1e-12)


def test_jacobian_of_a_batch(volume: Volume) -> None:
    cameras = Camera.stack([view(volume, primary=angle) for angle in (0.0, 45.0, 90.0)])
    poses = torch.stack([small_pose(seed) for seed in range(2)])
    images, jacobians = drr_with_jacobian(volume, cameras, poses[:, None], beam=Beam(**EXACT))
    assert images.shape == (2, 3, *SIZE)
    assert jacobians.shape == (2, 3, 6, *SIZE)
    assert not images.requires_grad
    for i, pose in enumerate(poses):
        for j, camera in enumerate(cameras):
            image, jacobian = drr_with_jacobian(volume, camera, pose, beam=Beam(**EXACT))
            close(images[i, j], image, 1e-12)
            close(jacobians[i, j], jacobian, 1e-12)


def test_rays_run_from_the_source_to_the_detector(volume: Volume) -> None:
    camera, pose = view(volume), small_pose(7)
    rays = rays_in_volume(volume, camera, pose)
    u, v = 7.0, 13.0
    index_from_world = volume.index_from_world @ se3.inverse(pose)
    start, end = camera.source, camera.unproject(torch.tensor([[u, v]], dtype=torch.float64))[0]
    s = rays[0] + u * rays[1] + v * rays[2]
    d = rays[3] + u * rays[4] + v * rays[5]
    for found, world in ((s, start), (s + d, end)):
        expected = (index_from_world @ torch.cat([world, torch.ones(1, dtype=torch.float64)]))[:3]
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
