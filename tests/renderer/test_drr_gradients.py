"""Gradients of `drr` to pose, camera, volume and labels, against central differences."""

from typing import Any

import pytest
import torch
from central_differences import by_differences
from small_body import EXACT, SIZE, close, small_pose, view
from torch import Tensor

from xreg import Camera, Volume, drr, se3


def check_gradient(function: Any, at: Tensor, limit: float = 1e-6, step: float = 1e-5) -> None:
    leaf = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    close(gradient, by_differences(function, at, step), limit)


def test_gradient_to_the_pose(volume: Volume, weight: Tensor) -> None:
    camera, pose = view(volume), small_pose(1)
    for mirrored in (camera, camera.flip_columns(), camera.replace(sdd=None), camera.replace(sdd=710.0)):
        check_gradient(
            lambda xi, c=mirrored: (
                drr(volume, c, se3.retract(pose, xi, volume.center), **EXACT) * weight
            ).sum(),
            torch.zeros(6, dtype=torch.float64),
        )


def test_gradient_to_the_camera(volume: Volume, weight: Tensor) -> None:
    camera = view(volume)

    def loss(**changes: Any) -> Tensor:
        return (drr(volume, camera.replace(**changes), **EXACT) * weight).sum()

    free = torch.triu(torch.ones(3, 3, dtype=torch.bool))
    free[2] = False
    check_gradient(lambda k: loss(K=camera.K.masked_scatter(free, k)), camera.K[free])
    check_gradient(
        lambda xi: loss(camera_from_world=se3.retract(camera.camera_from_world, xi)),
        torch.zeros(6, dtype=torch.float64),
        step=1e-7,
    )
    inside = torch.tensor(703.0, dtype=torch.float64)
    check_gradient(lambda sdd: loss(sdd=sdd), inside)
    leaf = camera.sdd.clone().requires_grad_()
    (nothing,) = torch.autograd.grad(loss(sdd=leaf), leaf)
    assert abs(float(nothing)) < 1e-10, "the detector behind the body may lie anywhere"


def test_gradient_to_the_words_of_a_c_arm(volume: Volume, weight: Tensor) -> None:
    start = torch.tensor([25.0, -12.0, 3.0, 1020.0, 700.0, 15.3, 9.8], dtype=torch.float64)

    def loss(words: Tensor) -> Tensor:
        primary, secondary, roll, sdd, sod = words[:5]
        camera = view(
            volume,
            primary=primary,
            secondary=secondary,
            roll=roll,
            sdd=sdd,
            sod=sod,
            principal_point=words[5:],
        )
        return (drr(volume, camera, **EXACT) * weight).sum()

    check_gradient(loss, start)


def test_gradient_in_a_parallel_beam(volume: Volume, weight: Tensor) -> None:
    def loss(angles: Tensor) -> Tensor:
        camera = Camera.parallel_beam(
            size=SIZE, spacing=3.9, sdd=400.0, primary=angles[0], secondary=angles[1], isocenter=volume.center
        )
        return (drr(volume, camera, **EXACT) * weight).sum()

    check_gradient(loss, torch.tensor([33.0, 14.0], dtype=torch.float64))


@pytest.mark.parametrize("storage", ["int16", "float"])
def test_gradient_to_mu(volume: Volume, weight: Tensor, storage: str) -> None:
    """A volume that requires grad is read as it is, whatever the storage."""
    leaf = volume.mu.clone().requires_grad_()
    image = drr(Volume(leaf, volume.affine), view(volume), integrator="exact", storage=storage)
    (gradient,) = torch.autograd.grad((image * weight).sum(), leaf)
    change = torch.rand(volume.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = (drr(Volume(change, volume.affine), view(volume), **EXACT) * weight).sum()
    torch.testing.assert_close((gradient * change).sum(), expected, atol=0, rtol=1e-10)


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_gradient_of_labels(volume: Volume, labels: str) -> None:
    weight = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    change = torch.rand(volume.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaf = volume.mu.clone().requires_grad_()

    def loss(mu: Tensor, xi: Tensor) -> Tensor:
        pose = se3.retract(torch.eye(4, dtype=torch.float64), xi, volume.center)
        body = Volume(mu, volume.affine, labels=volume.labels)
        return (drr(body, view(volume), pose, labels=labels, **EXACT) * weight).sum()

    still = torch.zeros(6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(leaf, still), leaf)
    torch.testing.assert_close((gradient * change).sum(), loss(change, still), atol=0, rtol=1e-10)
    if labels == "soft":
        check_gradient(lambda xi: loss(volume.mu, xi), still)


def test_gradients_reach_every_view_of_a_batch(volume: Volume) -> None:
    cameras = view(volume, primary=torch.tensor([0.0, 45.0, 90.0], dtype=torch.float64))
    poses = torch.stack([small_pose(seed) for seed in range(3)]).requires_grad_()
    images = drr(volume, cameras, poses, **EXACT)
    (together,) = torch.autograd.grad(images.square().sum(), poses)
    for i, camera in enumerate(cameras):
        leaf = poses[i].detach().requires_grad_()
        (alone,) = torch.autograd.grad(drr(volume, camera, leaf, **EXACT).square().sum(), leaf)
        close(together[i], alone, 1e-12)
