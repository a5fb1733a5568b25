"""Several films of one moment, and calibrations that are a little wrong."""

import numpy as np
import pytest
import torch
from poses_of_body import moved, target_error

import xreg
from xreg import Camera, Rig
from xreg.errors import ImageError, RegistrationError
from xreg.registration import Body, Settings, ViewFreedom, register_bodies
from xreg.registration.settings import Level
from xreg.registration.unknowns import Unknowns
from xreg.registration.views import binning, check_view, in_shadow, look, target_of
from xreg.similarity import Term


@pytest.fixture(scope="module")
def rig(body) -> Rig:
    common = {"sdd": 1000, "sod": 700, "size": (96, 104), "spacing": (3.0, 3.0), "isocenter": body.center}
    return Rig(
        (Camera.c_arm(primary=-40, secondary=5, **common), Camera.c_arm(primary=45, secondary=-8, **common))
    )


@pytest.fixture(scope="module")
def films(body, rig, truth):
    made = []
    for n, camera in enumerate(rig):
        image = xreg.drr(body, camera.resize((192, 208)), truth, integrator="siddon", storage="float")
        image = torch.nn.functional.avg_pool2d(image[None], 2)[0]
        made.append(1.4 * image + 0.01 * torch.randn(image.shape, generator=torch.Generator().manual_seed(n)))
    return made


def test_two_views_find_what_one_finds_less_well(body, rig, films, truth):
    start = moved(body, (8, -7, 6), (15, -12, 14), truth)
    both = xreg.register(body, films, rig, start)
    alone = xreg.register(body, films[0], rig[0], start)
    assert target_error(body, both.world_from_body, truth) < 0.3
    assert both.accepted
    deepest = [np.linalg.eigvalsh(out.covariance[3:, 3:].numpy())[-1] for out in (both, alone)]
    assert deepest[0] < 0.25 * deepest[1]
    assert both.renders % 2 == 0


def test_a_list_of_cameras_is_as_good_as_a_rig(body, rig, films, truth):
    start = moved(body, (2, 2, 2), (5, 5, 5), truth)
    a = xreg.register(body, films, rig, start)
    b = xreg.register(body, films, list(rig), start, mask=[torch.ones(96, 104)] * 2)
    torch.testing.assert_close(a.world_from_body, b.world_from_body)


def test_views_of_different_moments_are_told_from_their_disagreement(body, rig, films, truth):
    good = xreg.register(body, films, rig, truth)
    other = xreg.drr(body, rig[1], moved(body, (6, 5, -4), (9, 8, 12), truth))
    bad = xreg.register(body, [films[0], other], rig, truth)
    assert bad.verdict.evidence["views_apart_mm"] > 3 * good.verdict.evidence["views_apart_mm"]
    assert bad.verdict.probability < good.verdict.probability


@pytest.mark.parametrize("free", [{"focal": 0.02}, {"principal": 15.0}, {"pose": (1.0, 4.0)}])
def test_the_derivative_along_a_freedom_is_that_of_the_image(body, rig, free):
    freedom = ViewFreedom(1, **free)
    unknowns = Unknowns([Body(body)], list(rig), [freedom])
    level = Level(None, (Term("image", 16, kind="ssd"),))
    settings = Settings(robust=1e6)
    targets = [
        target_of(check_view(xreg.drr(body, c, moved(body, (2, 1, 1), (3, 2, 1))), None, c), level)
        for c in rig
    ]
    evidence = look(targets, unknowns, unknowns.start, level, settings)
    for k in range(len(freedom.sigmas)):
        step = torch.zeros(unknowns.count, dtype=torch.float64)
        step[6 + k] = 0.02 * freedom.sigmas[k]
        ends = [
            look(targets, unknowns, unknowns.moved(unknowns.start, s * step), level, settings).cost
            for s in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * float(step[6 + k]))
        scale = float(evidence.gradient[6:].abs().max())
        assert slope == pytest.approx(float(evidence.gradient[6 + k]), rel=0.05, abs=0.03 * scale)


def test_a_wrong_calibration_is_found_where_it_is_free(body, rig, films, truth):
    freedom = ViewFreedom(1, focal=0.02, principal=10.0)
    wrong = freedom.camera(rig[1], torch.tensor([0.015, 5.0, -4.0], dtype=torch.float64))
    start = moved(body, (3, -2, 2), (5, -4, 6), truth)
    errors = []
    for freedoms in ((), (freedom,)):
        out = register_bodies([Body(body, start)], films, [rig[0], wrong], freedoms=freedoms)
        errors.append(target_error(body, out.bodies[0].world_from_body, truth))
    assert errors[1] < 0.5
    assert errors[1] < 0.3 * errors[0]
    torch.testing.assert_close(out.cameras[1].K, rig[1].K, rtol=0, atol=2.0)
    assert out.covariance.shape == (9, 9)


class TestBadViews:
    def test_too_few_cameras(self, body, rig, films):
        with pytest.raises(RegistrationError, match="as many films, cameras and masks, got 2, 1 and 2"):
            xreg.register(body, films, rig[0])

    def test_one_film_of_a_rig(self, body, rig, films):
        with pytest.raises(RegistrationError, match="several films as a list"):
            xreg.register(body, films[0], rig)

    def test_no_camera_at_all(self, body, films):
        with pytest.raises(RegistrationError, match="needs a camera"):
            xreg.register(body, films)

    @pytest.mark.parametrize("freedom", [ViewFreedom(2, focal=0.1), ViewFreedom(0)])
    def test_a_freedom_of_nothing(self, body, rig, films, freedom):
        with pytest.raises(RegistrationError, match="does not name"):
            register_bodies([Body(body)], films, rig, freedoms=[freedom])


def test_only_the_shadow_of_the_body_is_looked_at(body, camera, film, truth):
    """What lies beside the body in the film neither counts nor costs."""
    wide = camera.pad(100, 100, 100, 100)
    spoiled = torch.nn.functional.pad(film, (100, 100, 100, 100), value=0.3)
    spoiled[:90] = torch.rand(spoiled[:90].shape, generator=torch.Generator().manual_seed(0)) * 9
    start = moved(body, (2, -2, 2), (4, 3, -5), truth)
    settings = Settings(levels=(Level(128, iterations=12), Level(None)), shadow=10.0)
    out = xreg.register(body, spoiled, wide, start, settings=settings)
    assert target_error(body, out.world_from_body, truth) < 1.0
    unknowns = Unknowns([Body(body, start)], [wide])
    target = target_of(check_view(spoiled, None, wide), settings.levels[0])
    small = in_shadow(target, unknowns, unknowns.start, 0, 10.0, settings)
    assert small.film.numel() < 0.5 * target.film.numel()
    assert small.fine(wide).size == tuple(small.pool * s for s in small.film.shape)


def test_scattered_bad_pixels_are_masked_out(body, camera, film, truth):
    """One pixel in fifty is not a number: nearly every coarse pixel holds one."""
    bad = torch.rand(film.shape, generator=torch.Generator().manual_seed(1)) < 0.02
    spoiled = torch.where(bad, torch.nan, film)
    start = moved(body, (4, -4, 5), (8, 6, -9), truth)
    whole = xreg.register(body, film, camera, start)
    out = xreg.register(body, spoiled, camera, start, mask=~bad)
    assert target_error(body, out.world_from_body, truth) < 1.0
    assert target_error(body, out.world_from_body, whole.world_from_body) < 0.3
    assert out.accepted


def test_a_coarse_pixel_is_the_mean_of_its_valid_pixels(camera, film):
    mask = torch.ones_like(film) > 0
    mask[8:10, 4:8] = False  # half of a block of four, as a thin line
    mask[40:48, 40:50] = False  # a hole: its blocks, also the one that it covers by half
    level = Level(26, (Term(),))
    target = target_of(check_view(film, mask, camera), level)
    full = target_of(check_view(film, None, camera), level)
    shift = film.double().mean() - film[mask].double().mean()
    expected = film[10:12, 4:8].double().mean() - film[mask].double().mean()
    assert target.n == 4
    assert float(target.film[2, 1]) == pytest.approx(float(expected), abs=1e-5)
    assert target.mask.logical_not().nonzero().tolist() == [[10, c] for c in (10, 11, 12)] + [
        [11, c] for c in (10, 11, 12)
    ]
    far = (slice(14, None), slice(0, 26))
    torch.testing.assert_close(target.film[far], full.film[far] + float(shift), atol=1e-5, rtol=0)


@pytest.mark.parametrize("offset", [1e3, 1e4, -1e5])
def test_an_offset_of_the_film_does_not_cost_precision(body, camera, film, truth, offset):
    start = moved(body, (3, -4, 5), (8, 6, -7), truth)
    a = xreg.register(body, film, camera, start)
    b = xreg.register(body, film.double() + offset, camera, start)
    assert b.score == pytest.approx(a.score, abs=1e-4)
    assert target_error(body, a.world_from_body, b.world_from_body) < 0.01


def test_values_are_compared_where_the_term_asks_for_them(camera, film):
    view = check_view(film + 3.0, None, camera)
    values, contrast = (target_of(view, Level(52, (Term(kind=kind),))).film for kind in ("ssd", "ncc"))
    blocks = torch.nn.functional.avg_pool2d((film + 3.0)[None], 2)[0]
    torch.testing.assert_close(values, blocks, atol=1e-5, rtol=0)
    assert abs(float(contrast.mean())) < 1e-4


def test_a_film_may_be_any_numpy_array(body, camera, film, truth):
    start = moved(body, (2, 2, 2), (4, 4, 4), truth)
    plain = xreg.register(body, film, camera, start)
    foreign = film.numpy().astype(">f4")
    backwards = np.fliplr(np.fliplr(film.numpy()).copy())
    mask = np.flipud(np.ones(film.shape, bool))
    for other in (foreign, backwards):
        out = xreg.register(body, other, camera, start, mask=mask)
        assert torch.equal(out.world_from_body, plain.world_from_body)


def test_a_long_and_narrow_film_is_registered(body, truth):
    camera = Camera.c_arm(
        sdd=1000, sod=700, size=(16, 1024), spacing=(9.0, 0.3), isocenter=body.center, primary=25
    )
    film = xreg.drr(body, camera, truth, integrator="siddon")
    assert binning(check_view(film, None, camera), Level(32)) == 2
    start = moved(body, (3, -3, 3), (9, -9, 9), truth)
    out = xreg.register(body, film, camera, start)
    assert target_error(body, out.world_from_body, truth) < 0.3 * target_error(body, start, truth)


def test_what_is_no_film_or_mask_is_refused(camera, film):
    mask = torch.ones(film.shape)
    mask[0, 0] = torch.nan
    for words, message in (
        (("film.tif", None), "film must be an image of numbers"),
        ((film.to(torch.complex64), None), "film must hold real numbers"),
        ((film, mask), "mask holds NaN"),
    ):
        with pytest.raises(ImageError, match=message):
            check_view(*words, camera)
