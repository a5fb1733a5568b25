"""OS-SART, SIRT and CGLS against dense linear algebra, and how they stop."""

import pytest
import torch
from test_projector_matrix import SMALL, dense, views
from tomography_scene import GRID, body, circle

from xreg.errors import GeometryError, InputWarning, VolumeError
from xreg.tomography import Projector, cgls, os_sart, sirt
from xreg.tomography.iterative import deal


def problem(count=4):
    projector = Projector(views(count), SMALL)
    truth = torch.rand(SMALL.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 0.02
    noise = torch.randn(projector.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return projector, truth, projector.forward(truth) + 0.01 * noise


def test_cgls_is_least_squares():
    projector, _, images = problem(12)
    found = cgls(projector, images, iterations=1500, tolerance=1e-13)
    a = dense(projector)
    expected = torch.linalg.lstsq(a, images.flatten()[:, None], driver="gelsd").solution.reshape(SMALL.shape)

    def fit(x):
        return float((projector.forward(x) - images).norm())

    assert fit(found) == pytest.approx(fit(expected), rel=1e-9)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_cgls_with_damping_is_tikhonov():
    projector, _, images = problem()
    damping = 0.2 * projector.norm(images)
    found = cgls(projector, images, iterations=200, damping=damping, tolerance=1e-14)
    a = dense(projector)
    normal = a.T @ a + damping**2 * torch.eye(a.shape[1], dtype=a.dtype)
    expected = torch.linalg.solve(normal, a.T @ images.flatten()).reshape(SMALL.shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_cgls_goes_on_from_a_start():
    projector, truth, _ = problem()
    images = projector.forward(truth)
    found = cgls(projector, images, iterations=3, start=truth)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


def test_sirt_is_its_formula():
    projector, _, images = problem()
    a = dense(projector)
    rows, columns = a.sum(1), a.sum(0)
    rows, columns = (torch.where(s > 1e-3 * s.max(), 1 / s, 0) for s in (rows, columns))
    x = torch.zeros(a.shape[1], dtype=a.dtype)
    for _ in range(5):
        x = (x + 0.7 * columns * (a.T @ (rows * (images.flatten() - a @ x)))).clamp_min(0)
    found = sirt(projector, images, iterations=5, relaxation=0.7)
    torch.testing.assert_close(found.flatten(), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("adjoint", ["exact", "voxel"])
def test_os_sart_finds_the_object(adjoint):
    projector = Projector(circle(20), GRID, adjoint=adjoint)
    images = projector.forward(body())
    found = os_sart(projector, images, subsets=10, iterations=4)
    assert float((found - body()).norm() / body().norm()) < 0.2
    assert float(found.min()) >= 0
    torch.testing.assert_close(found, os_sart(projector, images, subsets=10, iterations=4), rtol=0, atol=0)


def test_few_views_are_their_own_subsets():
    projector = Projector(circle(3), GRID)
    images = projector.forward(body())
    found = os_sart(projector, images, iterations=2)
    torch.testing.assert_close(found, os_sart(projector, images, subsets=3, iterations=2), rtol=0, atol=0)


def test_subsets_hold_every_view_once_and_jump():
    groups = deal(50, 8)
    assert sorted(view for group in groups for view in group) == list(range(50))
    assert [group[0] for group in groups] == [0, 4, 2, 6, 1, 5, 3, 7]
    with pytest.raises(GeometryError, match="subsets"):
        deal(4, 5)


@pytest.mark.parametrize("method", [os_sart, cgls])
def test_the_caller_is_told_and_can_stop(method):
    projector, _, images = problem(10)
    seen = []
    method(projector, images, iterations=6, on_iteration=seen.append)
    assert [step.number for step in seen] == [1, 2, 3, 4, 5, 6]
    assert 0.1 < seen[0].residual < 1.5
    assert seen[-1].residual < seen[0].residual
    seen.clear()
    method(projector, images, iterations=6, on_iteration=lambda step: seen.append(step) or step.number == 2)
    assert len(seen) == 2
    seen.clear()
    method(projector, images, iterations=10**6, seconds=0.05, on_iteration=seen.append)
    assert 1 <= len(seen) < 10**5
    with pytest.raises(GeometryError, match="seconds"):
        method(projector, images, seconds=0.0)


def test_what_cannot_be_is_refused():
    projector, _, images = problem()
    with pytest.raises(VolumeError, match="start"):
        os_sart(projector, images, subsets=2, start=torch.zeros(2, 2, 2))
    with pytest.raises(GeometryError, match="relaxation"):
        os_sart(projector, images, subsets=2, relaxation=2.0)
    with pytest.raises(GeometryError, match="transpose"):
        cgls(Projector(views(), SMALL, adjoint="voxel"), images)
    with pytest.raises(GeometryError, match="damping"):
        cgls(projector, images, damping=-1.0)


def test_one_view_is_not_enough_and_still_explained():
    projector = Projector(views(1), SMALL)
    images = projector.forward(torch.ones(SMALL.shape, dtype=torch.float64))
    with pytest.warns(InputWarning, match="one view"):
        found = cgls(projector, images, iterations=60)
    torch.testing.assert_close(projector.forward(found), images, rtol=0, atol=0.05 * float(images.max()))
