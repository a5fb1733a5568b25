"""`drr`: what comes out for one view, batches, lists and numpy, and what is integrated."""

from typing import Any

import numpy as np
import pytest
import torch
from small_body import EXACT, INTEGRATORS, SIZE, close, make_volume, small_pose, view
from torch import Tensor

from xreg import Beam, Camera, Rig, Volume, drr, drr_with_jacobian, renderer
from xreg.errors import VolumeError


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
            if integrator != "trilinear":  # whose step is one for views alike in depth
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


def test_rays_are_set_up_once_a_view(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, set_up = [], renderer._into_volume
    monkeypatch.setattr(renderer, "_into_volume", lambda *words: calls.append(words) or set_up(*words))
    drr(volume, view(volume), small_pose())
    assert len(calls) == 1
    drr(volume, [view(volume), view(volume, primary=90.0)], labels="soft")
    assert len(calls) == 3


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


def test_a_view_is_as_good_in_a_batch_as_alone() -> None:
    """Across a plate the beam has far to go, along it little: neither costs the other samples."""
    mu = 0.04 * torch.rand(10, 60, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plate = Volume(mu, torch.diag(torch.tensor([5.0, 5.0, 1.0, 1.0], dtype=torch.float64)), labels=mu > 0.02)
    words = {"sdd": 1200, "sod": 700, "size": (16, 16), "spacing": 8, "isocenter": plate.center}
    cameras = [Camera.c_arm(**words, primary=45), Camera.c_arm(**words, secondary=88)]
    together, known = Camera.stack(cameras), {"samples": 100, "storage": "float"}
    for labels in (None, "soft"):
        images = drr(plate, together, labels=labels, **known)
        for image, camera in zip(images, cameras, strict=True):
            assert torch.equal(image, drr(plate, camera, labels=labels, **known))
    pose, beam = torch.eye(4, dtype=torch.float64), Beam(**known)
    both = drr_with_jacobian(plate, together, pose, beam=beam)
    for n, camera in enumerate(cameras):
        alone = drr_with_jacobian(plate, camera, pose, beam=beam)
        assert all(torch.equal(x[n], y) for x, y in zip(both, alone, strict=True))
    leaf = plate.mu.clone().requires_grad_()
    weights = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (drr(Volume(leaf, plate.affine), together, **known) * weights).sum().backward()
    inner = sum((drr(plate, c, **known) * w).sum() for c, w in zip(cameras, weights, strict=True))
    torch.testing.assert_close((leaf.grad * plate.mu).sum(), inner, rtol=1e-10, atol=0)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_labels_at_the_edge_of_the_grid_add_up(labels: str, integrator: str) -> None:
    """The field reaches half a voxel and more beyond the outermost centres: that part has a label too."""
    numbers = torch.randint(0, 3, (4, 5, 6), generator=torch.Generator().manual_seed(0))
    mu = torch.full((4, 5, 6), 0.02, dtype=torch.float64)
    full = Volume(mu, torch.diag(torch.tensor([10.0, 9.0, 8.0, 1.0], dtype=torch.float64)), labels=numbers)
    camera = view(full, spacing=5.0)
    words = {"integrator": integrator, "storage": "float"}
    close(drr(full, camera, labels=labels, **words).sum(0), drr(full, camera, **words), 1e-12)


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
