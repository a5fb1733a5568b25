"""`drr` puts things where poses, affines and cameras say that they are."""

import pytest
import torch
from small_body import EXACT, SIZE, close, small_pose, view

from xreg import Camera, Volume, drr, se3


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


def test_a_ray_without_an_end_leaves_the_whole_field() -> None:
    """The field of a plate falls to zero a voxel behind its last centres; the ray must not end before."""
    mu = torch.full((3, 8, 8), 0.02, dtype=torch.float64)
    plate = Volume(mu, torch.diag(torch.tensor([10.0, 10.0, 10.0, 1.0], dtype=torch.float64)))
    words = {"sdd": 1000, "sod": 600, "size": (3, 3), "spacing": 5, "isocenter": plate.center}
    camera = Camera.c_arm(**words, secondary=90).replace(sdd=None)
    pose = torch.eye(4, dtype=torch.float64, requires_grad=True)
    for integrator in ("trilinear", "joseph", "siddon", "exact"):
        image = drr(plate, camera, pose, integrator=integrator, storage="float")
        assert float(image[1, 1].detach()) == pytest.approx(0.6, abs=1e-7)
        (slope,) = torch.autograd.grad(image[1, 1], pose)
        assert float(slope[:3, 3].abs().max()) < 1e-6  # moving the plate changes nothing


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
