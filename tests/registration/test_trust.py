"""What an answer says of itself."""

import math

import pytest
import torch
from poses_of_body import moved

import xreg
from xreg import Camera
from xreg.errors import RegistrationError
from xreg.registration import Body, Settings, ViewFreedom, register_bodies, trust
from xreg.registration.track import tracking_settings
from xreg.registration.trust import (
    condition_of,
    counted,
    inverse_of,
    model,
    needed_probability,
    probability_of,
)


def test_the_model_is_complete():
    fitted = model()
    assert fitted["covariance"]["scale"] > 0
    assert 0 < fitted["covariance"]["voxel_power"] < 3
    verdict = fitted["verdict"]
    assert set(verdict["weights"]) <= set(verdict["typical"])
    assert 0 < verdict["threshold"] < 1
    assert verdict["tolerance_mm"] > 0


def test_better_evidence_is_more_probable():
    good = dict(model()["verdict"]["typical"])
    base = probability_of(good)
    assert probability_of({**good, "score": 0.5 * good["score"]}) < base
    assert probability_of({**good, "restarts_apart_mm": 30 * good["restarts_apart_mm"]}) < base


def test_a_sharp_optimum_earns_nothing():
    """Searches about a wrong optimum can end closer together than about a right one."""
    usual = dict(model()["verdict"]["typical"])
    for name in ("restarts_apart_mm", "step_left_mm", "views_apart_mm"):
        assert probability_of({**usual, name: 1e-3 * usual[name]}) == probability_of(usual)


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0, 1e9])
def test_extreme_evidence_stays_finite(value):
    for name in ("score", "condition"):
        assert math.isfinite(counted(name, value, 0.5))
    assert 0 <= probability_of({"score": value, "condition": value}) <= 1


def test_a_right_answer_is_confirmed_from_beside_it(body, camera, film, truth):
    out = xreg.register(body, film, camera, moved(body, (2, -3, 2), (5, 4, -6), truth))
    assert out.accepted
    assert out.checks > 0
    assert out.verdict.evidence["restarts_apart_mm"] < 6.0
    assert f"{out.score:.3f}" in out.reason


def test_a_mirrored_film_is_refused_with_a_reason(body, camera, film, truth):
    out = xreg.register(body, film.flip(1), camera, truth)
    assert not out.accepted
    assert len(out.reason) > 30


def test_restarts_may_be_left_out(body, camera, film, truth):
    out = xreg.register(body, film, camera, truth, settings=Settings(restarts=0))
    assert out.checks == 0
    assert "restarts_apart_mm" not in out.verdict.evidence
    assert "restarts" not in out.seconds


def test_covariance_grows_with_noise(body, camera, film, truth):
    noise = torch.randn(film.shape, generator=torch.Generator().manual_seed(3))
    clear, noisy = (xreg.register(body, film + s * noise, camera, truth) for s in (0.0, 0.3))
    assert float(noisy.covariance.trace()) > 2 * float(clear.covariance.trace())


def test_a_restart_that_sees_nothing_does_not_confirm(body, camera, film, truth):
    out = xreg.register(body, film, camera, truth, settings=Settings(restart_mm=5000.0))
    assert out.verdict.evidence["restarts_apart_mm"] > 100
    assert out.verdict.probability < xreg.register(body, film, camera, truth).verdict.probability


def test_without_restarts_an_answer_must_be_surer_by_itself():
    threshold = model()["verdict"]["threshold"]
    assert needed_probability(Settings(), confirmed=True) == threshold
    assert needed_probability(Settings(restarts=0), confirmed=False) == 0.9 > threshold
    assert needed_probability(Settings(shadow=9.0), confirmed=True) == 0.9
    assert needed_probability(Settings(), confirmed=True, vague=True) == 0.97
    assert needed_probability(Settings(restarts=0, accept_probability=0.7), confirmed=False) == 0.7
    with pytest.raises(RegistrationError, match="accept_probability must lie within 0 and 1"):
        Settings(accept_probability=90)


def test_what_no_restarts_confirm_is_not_accepted_for_a_fair_chance(body, camera, film, truth, monkeypatch):
    monkeypatch.setattr(trust, "probability_of", lambda found: 0.75)
    alone = xreg.register(body, film, camera, truth, settings=Settings(restarts=0))
    assert not alone.accepted
    assert "75 % only (needs 90 %)" in alone.reason
    assert xreg.register(body, film, camera, truth).accepted
    easy = Settings(restarts=0, accept_probability=0.7)
    assert xreg.register(body, film, camera, truth, settings=easy).accepted


def test_what_a_narrow_film_says_vaguely_is_not_accepted_for_a_fair_chance(
    body, camera, film, truth, monkeypatch
):
    mask = torch.zeros(film.shape, dtype=torch.bool)
    v, u = (n // 2 for n in film.shape)
    mask[v - 26 : v + 26, u - 26 : u + 26] = True
    film = film + 0.1 * torch.randn(film.shape, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(trust, "probability_of", lambda found: 0.95)
    out = xreg.register(body, film, camera, truth, mask=mask)
    deviation = out.verdict.evidence["deviation_mm"]
    assert deviation > out.verdict.tolerance_mm
    assert not out.accepted
    assert f"needs 97 % where one standard deviation is {deviation:.3g} mm" in out.reason
    monkeypatch.setattr(trust, "probability_of", lambda found: 0.985)
    assert xreg.register(body, film, camera, truth, mask=mask).accepted


def test_the_same_is_asked_in_a_sequence(body, camera, film, truth):
    """A jump of the body confirms as restarts do, so nothing more is asked of a frame, and nothing less."""
    known = tracking_settings()
    assert known.restarts == 0
    threshold = model()["verdict"]["threshold"]
    assert needed_probability(known, confirmed=known.confirmed) == threshold
    assert needed_probability(known, confirmed=known.confirmed, vague=True) == 0.97


def test_a_reason_does_not_contradict_itself(body, camera, film, truth, monkeypatch):
    for probability, needed, told in ((0.969, 0.97, "96.9 % only (needs 97.0 %)"), (0.6, 0.7, "60 % only")):
        monkeypatch.setattr(trust, "probability_of", lambda found, p=probability: p)
        out = xreg.register(body, film, camera, truth, settings=Settings(accept_probability=needed))
        assert told in out.reason
        assert "no better than usual" in out.reason or "usually" in out.reason


@pytest.mark.parametrize("width", [(1e-6, 50.0), (5.0, 1e-6), (1e-7, 50.0)])
def test_a_narrow_prior_leaves_the_rest_as_well_known_as_before(body, camera, film, truth, width):
    answers = [
        register_bodies([Body(body, truth, prior=prior)], film, camera).bodies[0]
        for prior in (width, tuple(max(w, 1e-3) for w in width))
    ]
    narrow, wide = (answer.covariance.diagonal().sqrt() for answer in answers)
    free = slice(3, 6) if width[0] < 1e-3 else slice(0, 3)
    assert torch.allclose(narrow[free], wide[free], rtol=0.05)
    assert all(answer.accepted for answer in answers)


def test_an_inverse_counts_each_unknown_in_its_own_width():
    matrix = torch.diag(torch.tensor([1e-9, 1.0, 1e14, 0.0], dtype=torch.float64))
    inverse, unknown = inverse_of(matrix)
    expected = torch.tensor([1e9, 1.0, 1e-14, 0.0], dtype=torch.float64)
    assert torch.allclose(inverse.diagonal(), expected, rtol=1e-9)
    assert unknown.abs().T.tolist() == [[0.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("freedoms", [(), (ViewFreedom(0, principal=0.5),)], ids=["plain", "principal free"])
@pytest.mark.parametrize("primary", [0, 10])
def test_what_nothing_determines_has_a_large_deviation(body, truth, primary, freedoms):
    """A parallel beam says nothing of depth, and a free principal point does not help."""
    camera = Camera.parallel_beam(size=(80, 80), spacing=2.5, sdd=600, isocenter=body.center, primary=primary)
    film = xreg.drr(body, camera, truth, integrator="exact")
    start = moved(body, (1, 1, 1), (3, 4, 3), truth)
    answer = register_bodies([Body(body, start)], film, camera, freedoms=freedoms)
    out, beam = answer.bodies[0], camera.world_from_camera[:3, 2]
    across = camera.world_from_camera[:3, 0]
    assert float((beam @ out.covariance[3:, 3:] @ beam).sqrt()) > 50
    assert float((across @ out.covariance[3:, 3:] @ across).sqrt()) < 2
    assert out.verdict.evidence["condition"] > 1e6
    assert not out.accepted
    assert "condition number" in out.reason


def test_the_condition_is_a_number_even_of_nothing():
    assert condition_of(torch.zeros(6, 6, dtype=torch.float64), 1) == 1e18
    matrix = torch.diag(torch.tensor([1.0, 1, 1, 1, 1, 4, 1e9], dtype=torch.float64))
    assert condition_of(matrix, 1) == pytest.approx(4.0)  # of the pose, whatever the views' is


def test_freedoms_of_one_view_do_not_hide_a_pose_that_is_determined(body, camera, film, truth):
    """Two views, one of them with a loose calibration: the pose is as well determined as before."""
    other = Camera.c_arm(
        sdd=1000, sod=700, primary=-50, size=(96, 104), spacing=(3.0, 3.0), isocenter=body.center
    )
    films = [film, xreg.drr(body, other, truth)]
    free = [ViewFreedom(1, focal=0.02, principal=10.0, pose=(0.3, 1.0))]
    out = register_bodies([Body(body, truth)], films, [camera, other], freedoms=free)
    assert out.verdict.evidence["condition"] < 2e3
    assert out.verdict.accepted
