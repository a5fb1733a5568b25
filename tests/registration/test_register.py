"""Registration from a given start: accuracy, honesty about failure, and bad input."""

import numpy as np
import pytest
import torch
from poses_of_body import moved, target_error

import xreg
from xreg import Camera, se3
from xreg.errors import GeometryError, ImageError, RegistrationError
from xreg.io import Radiograph
from xreg.registration import Level, Settings
from xreg.similarity import Term


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_pose_from_twenty_millimetres_and_ten_degrees(body, camera, film, truth, seed):
    rng = np.random.default_rng(seed)
    start = moved(body, rng.uniform(-10, 10, 3), rng.uniform(-20, 20, 3), truth)
    out = xreg.register(body, film, camera, start)
    assert target_error(body, start, truth) > 5
    assert target_error(body, out.world_from_body, truth) < 1.0
    assert out.accepted
    assert out.renders < 60


def test_result_is_a_rigid_pose_with_a_usable_covariance(body, camera, film, truth):
    seen = []
    out = xreg.register(body, film, camera, truth, on_step=seen.append)
    se3.require_rigid(out.world_from_body, "world_from_body")
    assert out.covariance.shape == (6, 6)
    torch.testing.assert_close(out.covariance, out.covariance.T, rtol=1e-6, atol=0)
    assert float(torch.linalg.eigvalsh(out.covariance)[0]) > 0
    torch.testing.assert_close(out.center, se3.apply(out.world_from_body, body.center[None])[0])
    assert tuple(seen) == out.trajectory
    assert out.renders >= len(out.trajectory)
    assert {"prepare", "level 0", "total"} <= set(out.seconds)


def test_depth_is_the_least_certain_direction(body, camera, film, truth):
    out = xreg.register(body, film, camera, truth)
    axes = camera.world_from_camera[:3, :3]
    spread = (axes.T @ out.covariance[3:, 3:] @ axes).diagonal().sqrt()
    assert spread[2] > 3 * spread[0]
    assert spread[2] > 3 * spread[1]


def test_same_input_gives_the_same_bits(body, camera, film, truth):
    start = moved(body, (3, -4, 5), (8, 6, -7), truth)
    a, b = (xreg.register(body, film, camera, start) for _ in range(2))
    assert torch.equal(a.world_from_body, b.world_from_body)
    assert a.score == b.score


def test_gain_and_offset_of_the_film_do_not_matter(body, camera, film, truth):
    start = moved(body, (3, -4, 5), (8, 6, -7), truth)
    a = xreg.register(body, film, camera, start)
    b = xreg.register(body, 250 * film + 1000, camera, start)
    assert target_error(body, a.world_from_body, b.world_from_body) < 0.1


def test_numpy_film_and_mask(body, camera, film, truth):
    mask = np.ones(film.shape, bool)
    mask[:10] = False
    spoiled = film.numpy().copy()
    spoiled[:10] = 99.0
    out = xreg.register(body, spoiled, camera, moved(body, (2, 2, 2), (5, 5, 5), truth), mask=mask)
    assert target_error(body, out.world_from_body, truth) < 1.0


def test_radiograph_brings_camera_and_mask(body, camera, film, truth):
    start = moved(body, (2, 2, 2), (5, 5, 5), truth)
    radiograph = Radiograph(
        image=4000 * torch.exp(-film), mask=torch.ones_like(film) > 0, camera=camera, sign=1
    )
    out = xreg.register(body, radiograph, init=start)
    assert target_error(body, out.world_from_body, truth) < 1.0


def test_mirrored_film_needs_only_a_mirrored_camera(body, camera, film, truth):
    start = moved(body, (2, 2, 2), (5, 5, 5), truth)
    out = xreg.register(body, film.flip(1), camera.flip_columns(), start)
    assert target_error(body, out.world_from_body, truth) < 1.0


def test_parallel_beam_leaves_depth_open_and_says_so(body, truth):
    camera = Camera.parallel_beam(size=(80, 80), spacing=2.5, sdd=600, isocenter=body.center, primary=10)
    film = xreg.drr(body, camera, truth, integrator="exact")
    out = xreg.register(body, film, camera, moved(body, (1, 1, 1), (3, 0, 3), truth))
    assert not out.accepted
    assert "condition" in out.reason
    assert torch.isfinite(out.world_from_body).all()


def test_film_of_something_else_is_not_accepted(body, camera, truth):
    noise = torch.randn(camera.size, generator=torch.Generator().manual_seed(1))
    out = xreg.register(body, noise, camera, truth)
    assert not out.accepted
    assert "score" in out.reason
    assert torch.isfinite(out.world_from_body).all()


def test_one_coarse_level_is_enough_for_a_rough_answer(body, camera, film, truth):
    settings = Settings(levels=(Level(52, (Term("gradient"),), 30),))
    start = moved(body, (3, 2, -2), (6, 5, 5), truth)
    out = xreg.register(body, film, camera, start, settings=settings)
    assert {s.bin for s in out.trajectory} == {2}
    assert target_error(body, out.world_from_body, truth) < target_error(body, start, truth) / 3


class TestBadInput:
    def test_film_of_the_wrong_size(self, body, camera, film):
        with pytest.raises(ImageError, match=r"\(96, 104\).*got \(95, 104\)"):
            xreg.register(body, film[1:], camera)

    def test_film_with_nan(self, body, camera, film):
        spoiled = film.clone()
        spoiled[3, 4] = torch.nan
        with pytest.raises(ImageError, match="NaN"):
            xreg.register(body, spoiled, camera)

    def test_film_without_contrast(self, body, camera):
        with pytest.raises(ImageError, match="no contrast"):
            xreg.register(body, torch.ones(camera.size), camera)

    def test_mask_of_another_shape(self, body, camera, film):
        with pytest.raises(ImageError, match="mask"):
            xreg.register(body, film, camera, mask=torch.ones(3, 3))

    def test_mask_that_leaves_nothing(self, body, camera, film):
        with pytest.raises(ImageError, match="mask"):
            xreg.register(body, film, camera, mask=torch.zeros(camera.size))

    def test_start_with_a_reflection(self, body, camera, film):
        with pytest.raises(GeometryError, match="reflection"):
            xreg.register(body, film, camera, np.diag([-1.0, 1, 1, 1]))

    def test_volume_out_of_the_beam(self, body, camera, film):
        with pytest.raises(GeometryError, match="outside the beam"):
            xreg.register(body, film, camera, moved(body, (0, 0, 0), (0, 0, 900)))

    def test_no_camera(self, body, film):
        with pytest.raises(RegistrationError, match="camera"):
            xreg.register(body, film)

    def test_batch_of_cameras(self, body, camera, film):
        with pytest.raises(RegistrationError, match="one camera"):
            xreg.register(body, film, Camera.stack([camera, camera]))
