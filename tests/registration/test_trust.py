"""What an answer says of itself."""

import math

import pytest
import torch
from poses_of_body import moved

import xreg
from xreg.registration import Settings
from xreg.registration.trust import counted, model, probability_of


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
