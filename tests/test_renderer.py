"""What a user holds: `drr` and `drr_with_jacobian` on a small body in air."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xreg import Beam, Camera, Rig, Volume, drr, drr_with_jacobian, se3
from xreg.errors import GeometryError, VolumeError
from xreg.ops.project import metric_of, project
from xreg.renderer import rays_in_volume

EXACT = {"integrator": "exact", "storage": "float"}
INTEGRATORS = ["trilinear", "joseph", "siddon", "exact"]
SIZE = (22, 30)


def make_volume(dtype: torch.dtype = torch.float64, **words: Any) -> Volume:
    """Two ellipsoids with a slope in them, three voxels of air around; an oblique LAS grid; two labels."""
    size = np.array([24, 28, 32])
    z, y, x = (2 * np.indices(size).reshape(3, -1) / (size - 1)[:, None] - 1).reshape(3, *size)
    body = (x / 0.78) ** 2 + (y / 0.7) ** 2 + (z / 0.72) ** 2 < 1
    bone = ((x - 0.25) / 0.3) ** 2 + ((y + 0.2) / 0.25) ** 2 + ((z - 0.1) / 0.5) ** 2 < 1
    mu = np.where(body, 0.019 + 0.003 * x - 0.002 * y + 0.001 * z, 0.0) + np.where(bone, 0.024, 0.0)
    affine = se3.from_euler((9.0, -6.0, 4.0), "ZXY", degrees=True)
    affine[:3, :3] = affine[:3, :3] @ torch.diag(torch.tensor([-2.2, 2.0, 3.1], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([40.0, -30.0, -25.0])
    labels = torch.from_numpy(body.astype(np.int16) + bone.astype(np.int16))
    return Volume(torch.from_numpy(mu).to(dtype), affine, **({"labels": labels, "energy_kev": 70.0} | words))


@pytest.fixture
def volume() -> Volume:
    return make_volume()


def view(volume: Volume, **words: Any) -> Camera:
    """A C-arm about the volume with nothing special about it."""
    known = {
        "sdd": 1020.0,
        "sod": 700.0,
        "size": SIZE,
        "spacing": (4.1, 3.7),
        "primary": 25.0,
        "secondary": -12.0,
    }
    return Camera.c_arm(**(known | {"isocenter": volume.center, "principal_point": (15.3, 9.8)} | words))


def small_pose(seed: int = 0) -> Tensor:
    """A motion of the body by a few degrees and millimetres."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.05] * 3 + [4.0] * 3, dtype=torch.float64)
    return se3.exp(torch.randn(6, generator=generator, dtype=torch.float64) * scale)


def close(found: Tensor, expected: Tensor, limit: float) -> None:
    """Relative L2."""
    assert found.shape == expected.shape
    assert float(expected.norm()) > 0
    assert float((found.double() - expected.double()).norm() / expected.double().norm()) <= limit


# ---- shapes and kinds ----


def test_one_view(volume: Volume) -> None:
    image = drr(volume, view(volume))
    assert image.shape == SIZE
    assert image.dtype == torch.float32
    assert 0.5 < float(image.max()) < 4.0
    assert float(image.min()) == 0.0
    assert drr(volume, view(volume), storage="float").dtype == torch.float64
    assert drr(make_volume(torch.float32), view(volume), storage="float").dtype == torch.float32


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_batch_of_cameras_is_the_single_views(volume: Volume, integrator: str) -> None:
    angles = torch.tensor([[0.0, 45.0, 90.0], [10.0, 130.0, 200.0]], dtype=torch.float64)
    cameras = view(volume, primary=angles)
    images = drr(volume, cameras, integrator=integrator)
    assert images.shape == (2, 3, *SIZE)
    for i in range(2):
        for j in range(3):
            close(images[i, j], drr(volume, view(volume, primary=angles[i, j]), integrator=integrator), 2e-3)
            if integrator != "trilinear":  # whose step is one for all views of a batch
                assert torch.equal(images[i, j], drr(volume, cameras[i, j], integrator=integrator))


def test_poses_broadcast_with_cameras(volume: Volume) -> None:
    cameras = Camera.stack([view(volume, primary=angle) for angle in (0.0, 45.0, 90.0)])
    poses = torch.stack([small_pose(seed) for seed in range(2)])
    images = drr(volume, cameras, poses[:, None], **EXACT)
    assert images.shape == (2, 3, *SIZE)
    for i, pose in enumerate(poses):
        for j, camera in enumerate(cameras):
            close(images[i, j], drr(volume, camera, pose, **EXACT), 1e-12)
    assert drr(volume, view(volume), poses).shape == (2, *SIZE)
    assert drr(volume, view(volume), poses[0]).shape == SIZE
    assert drr(volume, cameras, labels="soft").shape == (3, 3, *SIZE)


@pytest.mark.parametrize("kind", [list, tuple, Rig], ids=["list", "tuple", "rig"])
def test_cameras_of_several_sizes_give_a_list(volume: Volume, kind: Any) -> None:
    cameras = (view(volume), view(volume, size=(17, 9), spacing=9.0, primary=90.0, principal_point=None))
    pose = small_pose()
    images = drr(volume, kind(cameras), pose)
    assert isinstance(images, list)
    assert [i.shape for i in images] == [SIZE, (17, 9)]
    for image, camera in zip(images, cameras, strict=True):
        assert torch.equal(image, drr(volume, camera, pose))


def test_numpy_in_is_numpy_out(volume: Volume) -> None:
    camera, affine, mu = view(volume), volume.affine.numpy(), volume.mu.numpy().astype(np.float32)
    expected = drr(volume, camera).numpy()
    image = drr((mu, affine), camera)
    assert isinstance(image, np.ndarray)
    np.testing.assert_allclose(image, expected, atol=1e-5)
    assert isinstance(drr(volume, camera, np.eye(4)), np.ndarray)
    assert isinstance(drr((torch.from_numpy(mu), volume.affine), camera), Tensor)
    both = drr((mu, affine), Rig((camera, camera)), np.eye(4))
    assert [type(i) for i in both] == [np.ndarray, np.ndarray]
    leaf = camera.replace(K=camera.K.clone().requires_grad_())
    assert isinstance(drr((mu, affine), leaf), np.ndarray)


def test_same_bits_twice(volume: Volume) -> None:
    cameras = view(volume, primary=torch.tensor([0.0, 45.0, 90.0]))
    for integrator in INTEGRATORS:
        assert torch.equal(*(drr(volume, cameras, integrator=integrator) for _ in range(2)))


# ---- what is integrated ----


def test_integrators_agree(volume: Volume) -> None:
    cameras = view(volume, primary=torch.tensor([0.0, 45.0, 90.0]))
    expected = drr(volume, cameras, **EXACT)
    close(drr(volume, cameras, integrator="exact"), expected, 1e-5)
    close(drr(volume, cameras, integrator="trilinear"), expected, 2e-3)
    close(drr(volume, cameras, integrator="joseph"), expected, 2e-2)
    close(drr(volume, cameras, integrator="siddon"), expected, 8e-2)


def test_samples_are_counted_over_the_volume(volume: Volume) -> None:
    """The same number gives the same step in the body, however far away source and detector are."""
    expected = drr(volume, view(volume), **EXACT)
    errors = []
    for samples in (20, 80, 320):
        image = drr(volume, view(volume), samples=samples, storage="float")
        errors.append(float((image - expected).norm() / expected.norm()))
    assert errors[0] > errors[1] > errors[2]
    far = view(volume, sdd=9000.0, spacing=32.0)
    image, expected = drr(volume, far, samples=320, storage="float"), drr(volume, far, **EXACT)
    assert float((image - expected).norm() / expected.norm()) < 3 * errors[2]


def test_attenuation_adds_up_in_a_parallel_beam(volume: Volume) -> None:
    """Summed over the detector, line integrals are the integral of mu over space."""
    camera = Camera.parallel_beam(
        size=(90, 110), spacing=1.1, sdd=400.0, primary=33.0, secondary=20.0, isocenter=volume.center
    )
    expected = float(volume.mu.sum() * torch.linalg.det(volume.affine[:3, :3]).abs())
    for integrator, limit in (("exact", 1e-5), ("trilinear", 1e-4), ("siddon", 1e-3)):
        total = float(drr(volume, camera, integrator=integrator, storage="float").sum()) * 1.1**2
        assert total == pytest.approx(expected, rel=limit)


def test_a_parallel_beam_is_a_far_source(volume: Volume) -> None:
    words = {"size": SIZE, "spacing": 3.9, "primary": 33.0, "isocenter": volume.center}
    parallel = drr(volume, Camera.parallel_beam(sdd=400.0, **words), **EXACT)
    far = drr(volume, Camera.c_arm(sdd=1.0002e6, sod=1e6, **words), **EXACT)
    close(far, parallel, 1e-3)


def test_energy(volume: Volume) -> None:
    camera = view(volume)
    soft = drr(volume, camera, energy_kev=40.0, **EXACT)
    close(soft, drr(volume.at_energy(40.0), camera, **EXACT), 1e-12)
    assert float(soft.max()) > 1.2 * float(drr(volume, camera, **EXACT).max())
    assert torch.equal(drr(volume, camera, energy_kev=70.0), drr(volume, camera))
    with pytest.raises(VolumeError, match="energy"):
        drr(make_volume(energy_kev=None), camera, energy_kev=40.0)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_labels(volume: Volume, labels: str, integrator: str) -> None:
    camera = view(volume)
    channels = drr(volume, camera, labels=labels, integrator=integrator)
    image = drr(volume, camera, integrator=integrator)
    assert channels.shape == (3, *SIZE)
    close(channels.sum(0), image, 1e-5)
    bone = drr(
        Volume(torch.where(volume.labels == 2, volume.mu, 0.0), volume.affine), camera, integrator=integrator
    )
    close(channels[2], bone, 1e-4 if labels == "soft" else 0.15)
    assert float(channels[2].max()) > 0.3


def test_labels_that_cannot_be(volume: Volume) -> None:
    with pytest.raises(VolumeError, match="'hard' or 'soft', got 'fuzzy'"):
        drr(volume, view(volume), labels="fuzzy")
    with pytest.raises(VolumeError, match=r"needs a volume with labels; load it with mask="):
        drr(make_volume(labels=None), view(volume), labels="hard")


# ---- where things are ----


def test_moving_camera_and_body_together_changes_nothing(volume: Volume) -> None:
    camera, pose = view(volume), small_pose(4)
    world = se3.from_euler((70.0, -40.0, 110.0), "ZXY", torch.tensor([300.0, -900.0, 40.0]), degrees=True)
    moved = camera.moved(se3.inverse(world))
    close(drr(volume, moved, world @ pose, **EXACT), drr(volume, camera, pose, **EXACT), 1e-10)


def test_a_pose_moves_the_affine(volume: Volume) -> None:
    camera, pose = view(volume), small_pose(5)
    placed = Volume(volume.mu, pose @ volume.affine)
    close(drr(volume, camera, pose, **EXACT), drr(placed, camera, **EXACT), 1e-10)
    close(drr(volume, camera, pose, **EXACT), drr(volume, camera.moved(pose), **EXACT), 1e-10)


def test_the_grid_does_not_matter(volume: Volume) -> None:
    """Other axes, and less air around, are the same body."""
    camera = view(volume)
    expected = drr(volume, camera, **EXACT)
    close(drr(volume.reoriented(), camera, **EXACT), expected, 1e-10)
    close(drr(volume.crop([(2, 30), (3, 25), (3, 21)]), camera, **EXACT), expected, 1e-10)


def test_a_point_is_seen_where_the_camera_says(volume: Volume) -> None:
    mu = torch.zeros_like(volume.mu)
    mu[7, 19, 11] = 1.0
    camera = view(volume, size=(120, 150), spacing=0.8, principal_point=None)
    image = drr(Volume(mu, volume.affine), camera, **EXACT)
    point = (volume.affine @ torch.tensor([11.0, 19.0, 7.0, 1.0], dtype=torch.float64))[None, :3]
    rows, columns = torch.meshgrid(torch.arange(120.0), torch.arange(150.0), indexing="ij")
    found = torch.stack([(image * columns).sum(), (image * rows).sum()]) / image.sum()
    torch.testing.assert_close(found, camera.project(point)[0], atol=0.02, rtol=0)


def test_a_camera_without_a_distance_sees_everything(volume: Volume) -> None:
    camera = view(volume)
    unknown = camera.replace(sdd=None)
    for words in ({"integrator": "exact"}, {"integrator": "siddon"}, {"integrator": "joseph"}):
        close(
            drr(volume, unknown, storage="float", **words),
            drr(volume, camera, storage="float", **words),
            1e-10,
        )
    close(drr(volume, unknown), drr(volume, camera), 2e-3)
    batch = unknown.replace(camera_from_world=unknown.camera_from_world.expand(2, 4, 4))
    assert drr(volume, batch).shape == (2, *SIZE)


def test_the_detector_cuts_the_volume(volume: Volume) -> None:
    """What lies behind the detector is not seen."""
    camera = view(volume)
    cut = drr(volume, camera.replace(sdd=700.0), **EXACT)
    whole = drr(volume, camera, **EXACT)
    assert bool((cut <= whole + 1e-12).all())
    assert 0.2 < float(cut.sum() / whole.sum()) < 0.8


def test_mirrored_and_turned_images(volume: Volume) -> None:
    camera = view(volume)
    image = drr(volume, camera, **EXACT)
    mirrored = camera.flip_columns()
    assert mirrored.mirrored
    close(drr(volume, mirrored, **EXACT), image.flip(-1), 1e-12)
    close(drr(volume, camera.flip_rows(), **EXACT), image.flip(-2), 1e-10)
    for turns in (1, 2, 3):
        close(drr(volume, camera.rotate90(turns), **EXACT), torch.rot90(image, turns, (-2, -1)), 1e-10)


def test_crop_and_pad_are_exact(volume: Volume) -> None:
    camera = view(volume)
    image = drr(volume, camera, **EXACT)
    close(drr(volume, camera.crop(3, 5, 11, 14), **EXACT), image[3:14, 5:19], 1e-12)
    padded = drr(volume, camera.pad(2, 3, 4, 5), **EXACT)
    close(padded[2:-3, 4:-5], image, 1e-12)


def test_bin_and_resize_are_block_means(volume: Volume) -> None:
    camera = view(volume, size=(60, 72), spacing=1.5, principal_point=None)
    image = drr(volume, camera, **EXACT)
    means = image.reshape(20, 3, 24, 3).mean((1, 3))
    binned = drr(volume, camera.bin(3), **EXACT)
    close(binned, means, 0.02)
    close(drr(volume, camera.resize((20, 24)), **EXACT), binned, 1e-10)
    shifted = drr(volume, camera.crop(1, 1, 57, 69).bin(3), **EXACT)
    assert float((shifted - means[:19, :23]).norm()) > 2 * float((binned - means).norm())


# ---- what is refused ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"integrator": "simpson"}, "one of trilinear, joseph, siddon, exact, got 'simpson'"),
        ({"samples": 1}, "samples must be a whole number of at least 2, got 1"),
        ({"samples": 250.0}, "whole number"),
        ({"storage": "float16"}, "'int16' or 'float', got 'float16'"),
    ],
)
def test_beams_that_cannot_be(volume: Volume, words: dict, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        Beam(**words)
    with pytest.raises(GeometryError, match=message):
        drr(volume, view(volume), **words)


def test_poses_that_cannot_be(volume: Volume) -> None:
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    for pose in (
        mirror,
        2 * torch.eye(4),
        torch.eye(3),
        torch.full((4, 4), math.nan),
        np.diag([1.0, 1, -1, 1]),
    ):
        with pytest.raises(GeometryError, match="world_from_body"):
            drr(volume, view(volume), pose)
        with pytest.raises(GeometryError, match="world_from_body"):
            drr_with_jacobian(volume, view(volume), pose)


@pytest.mark.parametrize("offset", [(900.0, 0.0, 0.0), (0.0, 0.0, -900.0)], ids=["beside", "below"])
def test_a_volume_outside_the_beam(volume: Volume, offset: tuple[float, ...]) -> None:
    away = se3.from_translation(torch.tensor(offset, dtype=torch.float64))
    with pytest.raises(GeometryError, match="outside the beam of every view"):
        drr(volume, view(volume), away)


def test_a_volume_behind_the_source_or_the_detector(volume: Volume) -> None:
    camera = view(volume, primary=0.0, secondary=0.0)
    for millimetres in (-1500.0, 1500.0):
        away = se3.from_translation(torch.tensor([0.0, millimetres, 0.0], dtype=torch.float64))
        with pytest.raises(GeometryError, match="outside the beam of every view"):
            drr(volume, camera, away)


@settings(max_examples=80, deadline=None)
@given(
    sdd=st.floats(30.0, 400.0),
    share=st.floats(0.02, 1.0),
    angles=st.tuples(st.floats(0.0, 360.0), st.floats(-80.0, 80.0)),
    offset=st.tuples(*[st.floats(-80.0, 80.0)] * 3),
    spacing=st.floats(0.3, 8.0),
)
def test_nothing_visible_is_refused(
    sdd: float, share: float, angles: tuple, offset: tuple, spacing: float
) -> None:
    """Source and detector anywhere, in the volume too: an image that is not empty comes out."""
    volume = make_volume()
    camera = view(
        volume,
        sdd=sdd,
        sod=share * sdd,
        primary=angles[0],
        secondary=angles[1],
        isocenter=volume.center + torch.tensor(offset, dtype=torch.float64),
        size=(5, 6),
        spacing=spacing,
        principal_point=None,
    )
    metric = metric_of(volume.affine[:3, :3])
    expected, _ = project(volume.mu, rays_in_volume(volume, camera)[None], metric, (5, 6), integrator="exact")
    try:
        image = drr(volume, camera, **EXACT)
    except GeometryError:
        image = torch.zeros(5, 6, dtype=torch.float64)
    torch.testing.assert_close(image, expected[0], atol=1e-12, rtol=0)


def test_one_view_of_several_may_miss(volume: Volume) -> None:
    away = se3.from_translation(torch.tensor([900.0, 0.0, 0.0], dtype=torch.float64))
    images = drr(volume, view(volume), torch.stack([torch.eye(4, dtype=torch.float64), away]))
    assert float(images[0].max()) > 0.5
    assert not images[1].any()


# ---- derivatives ----


def differences(function: Any, at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a scalar function in every number of `at`."""
    gradient = torch.empty_like(at)
    for i in range(at.numel()):
        change = torch.zeros_like(at).reshape(-1)
        change[i] = step
        change = change.reshape(at.shape)
        gradient.reshape(-1)[i] = (function(at + change) - function(at - change)) / (2 * step)
    return gradient


def check_gradient(function: Any, at: Tensor, limit: float = 1e-6, step: float = 1e-5) -> None:
    leaf = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    close(gradient, differences(function, at, step), limit)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


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

    upper = torch.triu(torch.ones(3, 3, dtype=torch.float64))
    upper[2] = 0.0
    leaf = camera.K.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(K=leaf), leaf)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for i, j in upper.nonzero().tolist():
        change = torch.zeros(3, 3, dtype=torch.float64)
        change[i, j] = 1e-5
        expected[i, j] = (loss(K=camera.K + change) - loss(K=camera.K - change)) / 2e-5
    close(gradient * upper, expected, 1e-6)
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


# ---- the Jacobian ----


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
