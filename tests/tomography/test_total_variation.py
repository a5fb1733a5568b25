"""Total variation: the proximal map by its duality gap and a closed form, FISTA by its optimality."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_projector_matrix import SMALL, views
from tomography_scene import GRID, body, circle, noise

from xreg.errors import GeometryError, VolumeError
from xreg.tomography import (
    Projector,
    fista_tv,
    noise_of,
    os_sart,
    tv_prox,
    tv_value,
    tv_weight,
    usual_subsets,
)
from xreg.tomography.tv import _differences, _prox, _quick_norm, _transposed, edge_weights, tv_steps


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5)])
def test_the_duality_gap_closes(nonnegative, spacing):
    x = noise(6, 7, 8)
    gaps = [
        tv_prox(x, 0.3, spacing=spacing, iterations=n, nonnegative=nonnegative)[1] for n in (10, 100, 5000)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-3 * float(x.square().sum())


def test_a_step_is_shrunk_as_the_formula_says():
    """Two halves: each is moved towards the other by weight × area / volume, which is exact for a step."""
    n, weight = 8, 0.1
    step = torch.zeros(n, 5, 6, dtype=torch.float64)
    step[n // 2 :] = 1.0
    found, gap = tv_prox(step, weight, iterations=4000)
    expected = torch.where(step > 0.5, 1 - weight / (n / 2), weight / (n / 2)).double()
    assert gap < 1e-6
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_the_value_of_a_step():
    volume = torch.zeros(4, 5, 6, dtype=torch.float64)
    volume[:, :, 3:] = 2.0
    assert tv_value(volume) == pytest.approx(2.0 * 20)
    assert tv_value(volume, (0.5, 1.0, 1.0)) == pytest.approx(4.0 * 20)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(1, 5)] * 3), st.integers(0, 100))
def test_differences_have_their_transpose(shape, seed):
    steps = tv_steps((1.0, 2.0, 0.5))
    x, p = noise(*shape, seed=seed), noise(3, *shape, seed=seed + 1)
    for axis, n in enumerate(shape):
        p[axis].narrow(axis, n - 1, 1).zero_()
    assert float((_differences(x, steps) * p).sum()) == pytest.approx(
        float((x * _transposed(p, steps)).sum()), abs=1e-9
    )


def test_nothing_is_done_without_a_weight():
    x = noise(3, 4, 5)
    torch.testing.assert_close(tv_prox(x, 0.0)[0], x, rtol=0, atol=0)
    torch.testing.assert_close(tv_prox(x, 0.0, nonnegative=True)[0], x.clamp_min(0), rtol=0, atol=0)


@pytest.mark.parametrize(("weighed", "spared"), [(False, False), (True, False), (False, True)])
def test_fista_ends_where_a_step_changes_nothing(weighed, spared):
    """x is optimal if and only if x = prox(x − Aᵀ R (Ax − b) / L), R what each ray counts.

    Where edges are spared, the map's last steps are those of the weighed variation.
    """
    projector = Projector(views(6), SMALL)
    truth = torch.zeros(SMALL.shape, dtype=torch.float64)
    truth[1:4, 2:5, 2:6] = 0.02
    images = projector.forward(truth) + 0.02 * noise(*projector.shape)
    rays = torch.ones_like(images)
    if weighed:
        rays = torch.rand(images.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1
    weight, given = 3e-3, rays if weighed else None
    guide, steps = truth if spared else None, tv_steps(SMALL.spacing)
    x = fista_tv(
        projector, images, weight=weight, rays=given, edges=guide, iterations=250, inner=30, tolerance=1e-10
    )
    size = 1.02 * projector.norm(images) ** 2 * float(rays.max())
    shrink = weight * float(projector.adjoint(images).abs().max()) / size
    step = x - projector.adjoint(rays * (projector.forward(x) - images)) / size
    most = edge_weights(truth, steps) if spared else None
    again, _ = _prox(step, shrink, steps, 2000, None, True, most)
    assert float((again - x).norm() / x.norm()) < 1e-4


def test_it_beats_what_knows_nothing_of_edges():
    projector = Projector(circle(15), GRID, adjoint="voxel")
    images = projector.forward(body())
    images = images + 0.02 * float(images.max()) * noise(*images.shape).float()

    def far(x):
        return float((x - body()).norm() / body().norm())

    plain = min(far(os_sart(projector, images, subsets=5, iterations=n)) for n in (1, 2, 4))
    found = fista_tv(projector, images, weight=1e-3, subsets=5, iterations=8)
    assert far(found) < 0.7 * plain
    torch.testing.assert_close(
        found, fista_tv(projector, images, weight=1e-3, subsets=5, iterations=8), rtol=0, atol=0
    )


def test_its_weight_has_no_unit():
    """Twice the attenuation, or another number of the same views, needs no other weight."""
    camera = circle(10)
    images = Projector(camera, GRID, adjoint="voxel").forward(body())

    def run(projector, b):
        return fista_tv(projector, b, weight=1e-3, iterations=5)

    one = run(Projector(camera, GRID, adjoint="voxel"), images)
    denser = run(Projector(camera, GRID, adjoint="voxel"), 2 * images)
    twice = Projector([*camera, *camera], GRID, adjoint="voxel")
    repeated = run(twice, torch.cat([images, images]))
    torch.testing.assert_close(denser, 2 * one, rtol=0, atol=1e-5)
    torch.testing.assert_close(repeated, one, rtol=0, atol=1e-5)


def test_what_cannot_be_is_refused():
    with pytest.raises(GeometryError, match="weight"):
        tv_prox(noise(2, 2, 2), -1.0)
    with pytest.raises(GeometryError, match="weight"):
        fista_tv(Projector(circle(3), GRID), torch.zeros(3, 44, 60), weight=float("nan"))


@pytest.fixture(scope="module")
def films():
    return Projector(circle(12, size=(88, 120), spacing=(2.5, 2.25)), GRID).forward(body())


@pytest.mark.parametrize("sigma", [0.01, 0.04, 0.2])
def test_noise_is_told_from_the_films(films, sigma):
    assert noise_of(films + sigma * noise(*films.shape).float()) == pytest.approx(sigma, rel=0.1)


def test_the_rule_of_the_weight_grows_with_noise_and_falls_with_views(films):
    noisy = films + 0.02 * float(films.max()) * noise(*films.shape).float()
    assert tv_weight(noisy) > 3 * tv_weight(films) > 0
    assert tv_weight(noisy.repeat(4, 1, 1)) == pytest.approx(tv_weight(noisy) / 2, rel=1e-3)
    projector = Projector(circle(12, size=(88, 120), spacing=(2.5, 2.25)), GRID, adjoint="voxel")
    by_rule = fista_tv(projector, noisy, iterations=2)
    torch.testing.assert_close(by_rule, fista_tv(projector, noisy, weight=tv_weight(noisy), iterations=2))


def test_the_step_size_of_a_fine_detector_is_found_on_a_coarse_one(films):
    projector = Projector(circle(12, size=(88, 120), spacing=(2.5, 2.25)), GRID)
    assert _quick_norm(projector, films) == pytest.approx(projector.norm(films), rel=0.01)


def test_pixels_as_coarse_as_voxels_are_not_halved_for_the_step_size():
    projector = Projector(circle(8, size=(64, 64), spacing=(9.0, 9.0)), GRID)
    images = projector.forward(body())
    norm = projector.norm(images)
    assert _quick_norm(projector, images) == pytest.approx(norm, rel=0.01)
    halved = Projector([camera.bin(2) for camera in projector.cameras], GRID)
    assert 2 * halved.norm(images[:, ::2, ::2]) > 1.2 * norm  # steps would be that much too short, squared


def test_subsets_that_nobody_names_hold_three_views_or_more():
    assert [usual_subsets(n) for n in (1, 2, 3, 8, 9, 25, 75, 500)] == [1, 1, 1, 2, 3, 8, 8, 8]


def test_subsets_that_run_away_are_fewer_in_the_end():
    """As many subsets as views: the end is near what one subset tells."""
    projector = Projector(circle(8), GRID, adjoint="voxel")
    images = projector.forward(body())
    images = images + 0.02 * float(images.max()) * noise(*images.shape).float()
    single = fista_tv(projector, images, iterations=40)
    found = fista_tv(projector, images, iterations=12, subsets=8)
    assert float((found - single).norm() / single.norm()) < 0.08


def test_edges_of_a_guide_are_spared():
    """The guide's own TV stays, flat parts count more than its edges, and what is found is nearer."""
    guide, steps = body(), tv_steps(GRID.spacing)
    weights, size = edge_weights(guide, steps), _differences(guide, steps).square().sum(0).sqrt()
    assert float((weights * size).sum()) == pytest.approx(float(size.sum()), rel=1e-5)
    assert float(weights[size == 0].min()) > 2 * float(weights[size > 0.5 * size.max()].max())
    assert torch.equal(edge_weights(torch.ones(3, 4, 5), steps), torch.ones(3, 4, 5))
    torch.testing.assert_close(edge_weights(7 * guide, steps), weights)

    projector = Projector(circle(9), GRID, adjoint="voxel")
    images = projector.forward(guide)
    images = images + 0.02 * float(images.max()) * noise(*images.shape).float()

    def far(**known):
        return float((fista_tv(projector, images, iterations=20, **known) - guide).norm() / guide.norm())

    assert far(edges=guide) < 0.8 * far()
    assert far(edges=torch.zeros_like(guide)) == pytest.approx(far(), abs=1e-6)
    with pytest.raises(VolumeError):
        fista_tv(projector, images, edges=guide[1:])
