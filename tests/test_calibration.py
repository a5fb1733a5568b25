"""The trust model's fit: what goes in with a known spread comes out with it."""

import json
import math
import pathlib
import sys

import numpy as np
import pytest
import torch
from scipy.stats import chi2

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def tools():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import calibrate
        import hard_cases
    finally:
        sys.path.remove(str(BENCHMARKS))
    return calibrate, hard_cases


def trials(hard_cases, count: int = 400):
    """Right answers with nine times the variance of the equations, times voxel and views; and wrong ones."""
    rng, made = np.random.default_rng(0), []
    for n in range(count):
        a = rng.normal(size=(6, 6))
        raw = 1e-4 * (a @ a.T + np.eye(6))
        voxel = 1.0 + n % 3
        views = 1 + n % 2
        xi = 3 * math.sqrt(views * voxel) * np.linalg.cholesky(raw) @ rng.normal(size=6)
        right = n % 4 > 0
        evidence = {
            "score": rng.uniform(0.5, 0.9) if right else rng.uniform(0, 0.4),
            "least_term": rng.uniform(0.4, 0.9) if right else rng.uniform(0, 0.4),
            "restarts_apart_mm": rng.uniform(0.1, 1) if right else rng.uniform(1, 20),
            "step_left_mm": rng.uniform(0.01, 0.1) if right else rng.uniform(0.05, 1),
        }
        made.append(
            hard_cases.Trial("near", "chest", n, 20.0, float(np.linalg.norm(xi)) if right else 50.0, 1.0,
                             evidence=evidence, tangent=xi.tolist() if right else [],
                             raw=raw.tolist() if right else [],
                             voxel=voxel, views=views)
        )  # fmt: skip
    return made


def test_the_ellipsoid_holds_as_many_truths_as_it_says(tools):
    calibrate, hard_cases = tools
    made = trials(hard_cases)
    fitted = calibrate.fit_covariance(made)
    assert fitted["scale"] == pytest.approx(9, rel=0.3)
    assert fitted["voxel_power"] == pytest.approx(1, abs=0.2)
    inside = []
    for t in made:
        if t.raw:
            c = fitted["scale"] * t.views * np.array(t.raw) * t.voxel ** fitted["voxel_power"]
            inside.append(np.array(t.tangent) @ np.linalg.solve(c, np.array(t.tangent)) < chi2.ppf(0.95, 6))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)


def test_the_verdict_tells_right_from_wrong_and_is_monotone(tools):
    calibrate, hard_cases = tools
    fitted = calibrate.fit_verdict(trials(hard_cases))
    assert all(weight * calibrate.SIGNS[name] >= 0 for name, weight in fitted["weights"].items())
    assert fitted["weights"]["score"] > 0
    assert 0.5 <= fitted["threshold"] <= 0.95


def test_scaling_can_be_undone():
    from xreg.registration.trust import scaled, unscaled

    a = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    voxels = torch.tensor([1.0, 1, 1, 3, 3, 3], dtype=torch.float64)
    torch.testing.assert_close(unscaled(scaled(a @ a.T, voxels, 2), voxels, 2), a @ a.T)


def test_the_fitted_model_is_in_the_package():
    from xreg.registration.trust import MODEL

    fitted = json.loads(MODEL.read_text())
    assert fitted["fitted_on"]["cases"] >= 200
    assert fitted["verdict"]["weights"]["score"] > 0
