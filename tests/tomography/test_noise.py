"""Noise told from line integrals, and what it makes each ray count."""

import math

import pytest
import torch
from tomography_scene import GRID, body, circle, noise

from xreg.errors import GeometryError
from xreg.tomography import Projector, fista_tv, noise_growth, noise_of, ray_weights


def dome(side=160, top=3.0):
    """Two views of a body whose line integrals fall smoothly to zero, with air around."""
    x = torch.linspace(-1.2, 1.2, side, dtype=torch.float64)
    height = top * (1 - x[:, None] ** 2 - x[None] ** 2).clamp_min(0)
    return torch.stack([height, 0.8 * height])


def noisy(lines, growth, sigma=0.02, seed=0):
    return lines + sigma * torch.exp(growth * lines / 2) * noise(*lines.shape, seed=seed)


@pytest.mark.parametrize("growth", [0.0, 0.5, 1.0, 1.5])
def test_the_growth_of_noise_is_told_from_the_images(growth):
    assert noise_growth(noisy(dome(), growth)) == pytest.approx(growth, abs=0.12)


def test_photons_of_one_energy_make_noise_grow_as_the_exponential():
    lines = dome()
    counts = torch.poisson(2e4 * torch.exp(-lines), generator=torch.Generator().manual_seed(1))
    seen = -torch.log(counts.clamp_min(1) / 2e4)
    assert noise_growth(seen) == pytest.approx(1.0, abs=0.12)
    assert noise_growth(seen.clamp_min(0)) == pytest.approx(1.0, abs=0.12)  # air cut off at zero


def test_a_ray_counts_one_over_its_variance():
    lines = dome()
    found = ray_weights(noisy(lines, 0.5, sigma=0.04))
    assert float(found.mean()) == pytest.approx(1)
    deep, shallow = lines > 2.7, (lines > 0.9) & (lines < 1.1)
    expected = math.exp(-0.5 * float(lines[deep].mean() - lines[shallow].mean()))
    assert float(found[deep].mean() / found[shallow].mean()) == pytest.approx(expected, rel=0.15)
    steep = ray_weights(noisy(lines, 2.5))
    assert float(steep.min() / steep.max()) == pytest.approx(0.2, rel=1e-3)


def test_without_noise_all_rays_count_alike():
    torch.testing.assert_close(ray_weights(dome()), torch.ones_like(dome()), rtol=0, atol=0.05)
    flat = torch.full((2, 9, 9), 0.3)
    torch.testing.assert_close(ray_weights(flat), torch.ones_like(flat))
    assert noise_growth(flat) == 0 == noise_growth(torch.zeros(1, 2, 2))


def test_certain_rays_that_count_more_bring_a_better_volume():
    projector = Projector(circle(15), GRID, adjoint="voxel")
    clean = projector.forward(body())
    top = float(clean.max())
    images = noisy(clean, 3 / top, sigma=0.012 * top).float()

    def far(rays):
        x = fista_tv(projector, images, rays=rays, subsets=5, iterations=10)
        return float((x - body()).norm() / body().norm())

    alike = torch.ones_like(images)
    torch.testing.assert_close(far(alike), far(None), rtol=1e-5, atol=0)
    assert far(ray_weights(images)) < 0.95 * far(None)
    assert noise_of(images) > 0


def test_weights_that_cannot_be_are_refused():
    projector, images = Projector(circle(3), GRID), torch.zeros(3, 44, 60)
    for wrong in (torch.ones(3, 44, 59), -torch.ones(3, 44, 60), torch.zeros(3, 44, 60)):
        with pytest.raises(GeometryError, match="rays"):
            fista_tv(projector, images, rays=wrong)
