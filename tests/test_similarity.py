"""Patch NCC in residual form: values against numpy, derivatives against finite differences."""

import numpy as np
import pytest
import torch

from xreg.errors import RegistrationError
from xreg.similarity import Term, combine, evaluate, scores, shrink, sobel

SIZE = (40, 48)


def smooth(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = [
        rng.normal() * np.sin(rng.uniform(0.05, 0.5) * x + rng.uniform(0.05, 0.5) * y + rng.uniform(0, 6))
        for _ in range(12)
    ]
    return torch.from_numpy(sum(waves)).float()


@pytest.fixture
def scene():
    image, film = smooth(0), smooth(0) + 0.3 * smooth(1)
    jacobian = torch.stack([smooth(10 + k) for k in range(6)])
    return image, jacobian, film, torch.ones(SIZE, dtype=torch.bool)


def test_global_ncc_is_the_correlation_coefficient(scene):
    image, jacobian, film, mask = scene
    found = evaluate(image, jacobian, film, mask, (Term(),))
    assert found.score == pytest.approx(np.corrcoef(image.ravel(), film.ravel())[0, 1], abs=1e-5)


def test_one_patch_is_one_minus_half_its_squared_residual(scene):
    image, jacobian, film, mask = scene
    unit = [(p - p.mean()) / (p - p.mean()).norm() for p in (image, film)]
    found = evaluate(image, jacobian, film, mask, (Term(),), robust=1e6)
    residual = (unit[0] - unit[1]).square().sum()
    assert found.score == pytest.approx(1 - 0.5 * float(residual), abs=1e-5)
    assert found.cost == pytest.approx(0.5 * float(residual), abs=1e-4)


def test_gauss_newton_matrix_of_one_patch_is_that_of_the_residual(scene):
    image, jacobian, film, mask = scene

    def normalised(step):
        moved = image.double() + torch.einsum("k,khw->hw", step, jacobian.double())
        centred = moved - moved.mean()
        return (centred / centred.norm()).ravel()

    j = torch.autograd.functional.jacobian(normalised, torch.zeros(6, dtype=torch.float64))
    target = film.double() - film.double().mean()
    r = normalised(torch.zeros(6, dtype=torch.float64)) - (target / target.norm()).ravel()
    found = evaluate(image, jacobian, film, mask, (Term(),), robust=1e6)
    torch.testing.assert_close(found.hessian, j.T @ j, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.gradient, j.T @ r, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("term", [Term(), Term("image", 10), Term("gradient"), Term("gradient", 12)])
def test_gradient_is_the_derivative_of_the_robust_cost(scene, term):
    image, jacobian, film, mask = scene
    mask = mask.clone()
    mask[5:9, 30:] = False
    found = evaluate(image, jacobian, film, mask, (term,))
    for k in range(6):
        cost = [evaluate(image + h * jacobian[k], jacobian, film, mask, (term,)).cost for h in (2e-2, -2e-2)]
        assert float(found.gradient[k]) == pytest.approx((cost[0] - cost[1]) / 4e-2, rel=2e-2, abs=2e-4)


@pytest.mark.parametrize("term", [Term("image", 10), Term("gradient", 12), Term("gradient")])
def test_gain_and_offset_change_nothing(scene, term):
    image, jacobian, film, mask = scene
    a = evaluate(image, jacobian, film, mask, (term,))
    b = evaluate(image, jacobian, 40 * film + 7, mask, (term,))
    assert a.score == pytest.approx(b.score, abs=1e-4)
    torch.testing.assert_close(a.gradient, b.gradient, rtol=1e-2, atol=1e-4)


def test_masked_pixels_do_not_count(scene):
    image, jacobian, film, mask = scene
    mask = mask.clone()
    mask[:, :12] = False
    spoiled = film.clone()
    spoiled[:, :12] = 1e3
    for term in (Term("image", 10), Term("gradient", 8), Term("gradient")):
        a = evaluate(image, jacobian, film, mask, (term,))
        b = evaluate(image, jacobian, spoiled, mask, (term,))
        assert a.score == pytest.approx(b.score, abs=1e-5)


def test_terms_are_weighted(scene):
    image, jacobian, film, mask = scene
    one, other = Term("image", None, 3.0), Term("gradient", 8, 1.0)
    both = evaluate(image, jacobian, film, mask, (one, other))
    assert both.score == pytest.approx(0.75 * both.terms[0] + 0.25 * both.terms[1], abs=1e-6)


def test_robust_weight_lets_a_bad_patch_pull_less(scene):
    image, jacobian, film, mask = scene
    spoiled = film.clone()
    spoiled[10:20, 10:20] = torch.randn(10, 10, generator=torch.Generator().manual_seed(0)) * 5
    clean = evaluate(image, jacobian, film, mask, (Term("image", 10),)).gradient
    kept = evaluate(image, jacobian, spoiled, mask, (Term("image", 10),), robust=0.1).gradient
    pulled = evaluate(image, jacobian, spoiled, mask, (Term("image", 10),), robust=1e6).gradient
    robust_clean = evaluate(image, jacobian, film, mask, (Term("image", 10),), robust=0.1).gradient
    assert (kept - robust_clean).norm() < (pulled - clean).norm()


def test_sobel_of_a_ramp_is_its_slope():
    v, u = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    du, dv = sobel((2 * u - 3 * v)[None])
    torch.testing.assert_close(du[0, 1:-1, 1:-1], torch.full((6, 7), 2.0))
    torch.testing.assert_close(dv[0, 1:-1, 1:-1], torch.full((6, 7), -3.0))


def test_shrink_takes_the_border_and_the_neighbours_of_a_hole():
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[3, 3] = False
    left = shrink(mask)
    assert not left[0].any()
    assert not left[2:5, 2:5].any()
    assert left[1, 1]


def test_nothing_to_compare_is_an_error(scene):
    image, jacobian, film, _ = scene
    with pytest.raises(RegistrationError, match="no part of the film"):
        evaluate(
            torch.zeros_like(image), jacobian, film, torch.ones(SIZE, dtype=torch.bool), (Term("image", 10),)
        )


@pytest.mark.parametrize("options", [{"filter": "laplace"}, {"window": 2}, {"window": 9}])
def test_terms_are_checked(options):
    with pytest.raises(RegistrationError):
        Term(**options)


def test_squared_differences_have_the_derivatives_of_their_cost(scene):
    image, jacobian, film, mask = scene
    term = (Term(window=10, kind="ssd"),)
    h = 1e-3
    found = evaluate(image, jacobian, film, mask, term, robust=1e6)
    for k in range(6):
        ends = [
            evaluate(image + s * h * jacobian[k], jacobian, film, mask, term, robust=1e6).cost
            for s in (1, -1)
        ]
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(float(found.gradient[k]), rel=2e-2, abs=2e-4)


def test_squared_differences_see_gain_and_offset_and_ncc_does_not(scene):
    image, jacobian, _, mask = scene
    for kind, expected in (("ncc", 1.0), ("ssd", None)):
        same = evaluate(image, jacobian, image, mask, (Term(kind=kind),)).score
        other = evaluate(1.5 * image + 1, jacobian, image, mask, (Term(kind=kind),)).score
        assert same == pytest.approx(1.0, abs=1e-4)
        assert other == pytest.approx(expected, abs=1e-4) if expected else other < 0.9


@pytest.mark.parametrize(
    "terms", [(Term(),), (Term("image", 10), Term("gradient", 12, 2.0)), (Term("image", 8, kind="ssd"),)]
)
def test_scores_of_a_batch_are_those_of_each_image(scene, terms):
    image, jacobian, film, mask = scene
    mask[:9, :11] = False
    images = torch.stack([image, smooth(4), film])
    found = scores(images, film, mask, terms)
    for k, one in enumerate(images):
        assert float(found[k]) == pytest.approx(evaluate(one, jacobian, film, mask, terms).score, abs=1e-4)


def test_a_flat_image_scores_least(scene):
    image, _, film, mask = scene
    found = scores(torch.stack([torch.zeros_like(image), image]), film, mask, (Term("image", 10),))
    assert float(found[0]) == -1.0
    assert bool(torch.isfinite(found).all())


def test_flat_and_masked_patches_give_no_nan(scene):
    image, jacobian, film, mask = scene
    image, film = image.clone(), film.clone()
    image[:20], film[25:] = 3.0, 1.0
    mask[:, 30:] = False
    found = evaluate(image, jacobian, film, mask, (Term("image", 10), Term("gradient", 8)))
    for value in (found.gradient, found.hessian, found.scatter):
        assert bool(torch.isfinite(value).all())
    assert np.isfinite([found.score, found.cost]).all()


def test_evidence_of_two_views_adds_up(scene):
    image, jacobian, film, mask = scene
    one, other = (evaluate(i, jacobian, film, mask, (Term("image", 10),)) for i in (image, smooth(5)))
    both = combine([one, other], [0.25, 0.75])
    torch.testing.assert_close(both.gradient, 0.25 * one.gradient + 0.75 * other.gradient)
    torch.testing.assert_close(both.scatter, 0.0625 * one.scatter + 0.5625 * other.scatter)
    assert both.patches == one.patches + other.patches


def test_an_image_smaller_than_a_patch_is_one_patch(scene):
    image, jacobian, film, _ = scene
    mask = torch.ones(9, 14, dtype=torch.bool)
    small = [t[..., :9, :14] for t in (image, jacobian, film)]
    found = evaluate(*small, mask, (Term("image", 12),))
    assert found.score == pytest.approx(evaluate(*small, mask, (Term(),)).score, abs=1e-6)
