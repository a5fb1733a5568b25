"""The protocol of sparse-view papers: densities, geometry, noise, truth."""

import math

import numpy as np
import pytest
import torch

from xreg import Volume
from xreg.errors import GeometryError, VolumeError
from xreg.io import VoxelGrid
from xreg.phantom import chest_phantom
from xreg.tomography import Projector, Protocol, density_cube, fdk, simulate

SMALL = Protocol(size=24, views=6, detector=(32, 40), noise="none")


@pytest.fixture(scope="module")
def chest():
    return chest_phantom(spacing=8.0)


def test_densities(chest):
    """At the CT's own spacing its voxels stay as they are, where the grids' parities agree."""
    cube = density_cube(chest, 45)
    assert cube.shape == (45, 45, 45)
    assert cube.spacing == pytest.approx((8.0, 8.0, 8.0))
    torch.testing.assert_close(cube.center, chest.center, rtol=0, atol=1e-9)
    expected = ((chest.hu.clamp(-1000, 2000) + 1000) / 3000).double()
    assert float(cube.mu.double().sum()) == pytest.approx(float(expected.sum()), rel=0.01)
    part = density_cube(chest, 9, side_mm=72.0)  # 45 and 9 are both odd along x; y and z fall between voxels
    middle = expected[15:25, 11:21, 18:27]
    blurred = (middle[1:] + middle[:-1])[:, 1:] + (middle[1:] + middle[:-1])[:, :-1]
    torch.testing.assert_close(part.mu.double(), blurred / 4, rtol=0, atol=1e-5)


def test_the_geometry_is_the_papers(chest):
    found = simulate(chest, SMALL)
    unit = 180.0  # mm of a scene unit: half of the cube's edge
    for n, camera in enumerate(found.projections.cameras):
        source = (camera.source - found.projections.grid.center) / unit
        angle = 2 * math.pi * n / 6
        expected = torch.tensor([5 * math.cos(angle), 5 * math.sin(angle), 0.0], dtype=torch.float64)
        torch.testing.assert_close(source, expected, rtol=0, atol=1e-9)
        assert float(camera.sdd) == pytest.approx(7 * unit)
        assert (camera.spacing * torch.tensor([32, 40]) / unit).tolist() == pytest.approx([4.0, 4.0])
    assert found.projections.scale == pytest.approx(2 / 360)


def test_a_line_integral_in_scene_units(chest):
    """A cube of density ½ is 2 scene units thick: the central ray measures 1."""
    volume = Volume(torch.full((10, 10, 10), 0.5), torch.diag(torch.tensor([30.0, 30.0, 30.0, 1.0])).double())
    found = simulate(volume, Protocol(size=10, views=1, detector=(33, 33), noise="none", integrator="siddon"))
    assert float(found.clean[0, 16, 16]) == pytest.approx(1.0, rel=1e-5)
    assert found.projections.truth.mu.unique().tolist() == pytest.approx([0.5 * 2 / 300])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"detector": (0, 8)}, "detector must be two positive integers"),
        ({"detector": (8, 8.5)}, "detector must be"),
        ({"detector_side": (4.0, 0.0)}, "detector_side must be two positive"),
        ({"offset": (math.inf, 0.0)}, "offset must be two finite"),
        ({"angles": (0.0, math.nan)}, "angles must be finite"),
        ({"angles": ()}, "angles must be finite"),
        ({"size": 0}, r"^size must be at least 1, got 0$"),
        ({"views": -3}, r"^views must be at least 1, got -3$"),
        ({"finer": 0}, r"^finer must be at least 1, got 0$"),
        ({"held_out": -1}, r"^held_out must be at least 0, got -1$"),
        ({"photons": 0.0}, r"^photons, of a pixel in air, must be positive, got 0\.0$"),
        ({"photons": math.nan}, r"^photons, of a pixel in air, must be positive, got nan$"),
        ({"electronic": -2.0}, r"^electronic, counts, must be zero or more, got -2\.0$"),
        ({"arc": 400.0}, r"^arc must lie in \(0, 360\] degrees, got 400\.0$"),
        ({"start": math.nan}, r"^start must be finite degrees, got nan$"),
        ({"sdd": 4.0}, r"^sod must lie between √3 .* got sod 5\.0 and sdd 4\.0$"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(wrong, said):
    with pytest.raises(GeometryError, match=said):
        Protocol(**wrong)


def test_a_detector_that_misses_the_cube_is_refused_before_the_march(chest):
    with pytest.raises(GeometryError, match="no ray of any view meets the grid"):
        simulate(chest, Protocol(size=8, views=3, detector=(8, 8), offset=(40.0, 0.0)))


def test_a_detector_that_sees_only_air_is_refused():
    mu = torch.zeros(9, 9, 9)
    mu[4, 4, 4] = 0.5
    volume = Volume(mu, torch.diag(torch.tensor([10.0, 10.0, 10.0, 1.0])).double())
    side = Protocol(size=9, views=3, detector=(8, 8), detector_side=(0.2, 0.2), offset=(0.0, 0.8))
    with pytest.raises(GeometryError, match="anything but air"):
        simulate(volume, side)


def test_noise_is_that_of_the_counts():
    volume = Volume(torch.full((6, 6, 6), 0.5), torch.diag(torch.tensor([30.0, 30.0, 30.0, 1.0])).double())
    protocol = Protocol(size=6, views=40, detector=(48, 48), photons=2e4, electronic=10.0, noise="tigre")
    found = simulate(volume, protocol)
    top = float(found.clean.max())
    thick = found.clean > 0.9 * top
    counts = 2e4 * torch.exp(-found.clean[thick].double() / top)
    spread = top * (counts + 100.0).sqrt() / counts  # of −ln(N / I0), to first order
    z = (found.projections.images - found.clean)[thick] / spread
    assert float(z.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(z.std()) == pytest.approx(1.0, abs=0.03)
    assert float(found.projections.images.min()) >= 0
    plain = simulate(volume, Protocol(**{**vars(protocol), "noise": "physical"}))
    z = (plain.projections.images - plain.clean)[thick]
    counts = 2e4 * torch.exp(-plain.clean[thick].double())
    assert float((z / ((counts + 100).sqrt() / counts)).std()) == pytest.approx(1.0, abs=0.03)


def test_a_seed_gives_the_same_bits_and_leaves_the_global_one(chest):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    runs = [
        simulate(chest, Protocol(**{**vars(SMALL), "noise": "tigre", "seed": s, "held_out": 2}))
        for s in (1, 1, 2)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(runs[0].projections.images, runs[1].projections.images)
    assert torch.equal(runs[0].projections.held_out.images, runs[1].projections.held_out.images)
    assert not torch.equal(runs[0].projections.images, runs[2].projections.images)


def test_the_truth_explains_the_projections(chest):
    found = simulate(chest, SMALL)
    again = Projector(found.projections.cameras, found.projections.grid, integrator="exact").forward(
        found.projections.truth.mu
    )
    torch.testing.assert_close(again, found.clean, rtol=0, atol=1e-6)


def test_a_finer_march_agrees_with_its_mean(chest):
    fine = simulate(chest, Protocol(**{**vars(SMALL), "finer": 2}))
    plain = simulate(chest, SMALL)
    assert fine.projections.grid.shape == (24, 24, 24)
    torch.testing.assert_close(fine.projections.grid.center, fine.projections.truth.center)
    away = float((fine.clean - plain.clean).norm() / plain.clean.norm())
    assert 1e-4 < away < 0.06


def test_limited_angle_list_and_offset(chest):
    limited = simulate(chest, Protocol(**{**vars(SMALL), "arc": 120.0}))
    angles = [
        math.degrees(math.atan2(*(c.source - limited.projections.grid.center)[[1, 0]].tolist()))
        for c in limited.projections.cameras
    ]
    assert angles == pytest.approx([0, 20, 40, 60, 80, 100], abs=1e-6)
    chosen = simulate(chest, Protocol(**{**vars(SMALL), "angles": (3.0, 50.0), "offset": (1.0, 0.5)}))
    assert len(chosen.projections) == 2
    assert chosen.projections.cameras[0].principal_point.tolist() == pytest.approx([19.5 - 10.0, 15.5 - 4.0])


def test_fdk_of_it_is_the_chest(chest):
    found = simulate(chest, Protocol(size=32, views=90, detector=(64, 64), noise="none"))
    volume = fdk(found.projections.images, found.projections.cameras, found.projections.grid)
    density = (volume - found.projections.truth.mu) / found.projections.scale
    assert -10 * math.log10(float(density.square().mean())) > 25


def test_what_cannot_be_is_refused(chest):
    with pytest.raises(VolumeError, match="densities"):
        simulate(Volume(torch.full((3, 3, 3), 5.0), torch.eye(4).double()), SMALL)
    with pytest.raises(GeometryError, match="noise"):
        Protocol(noise="gaussian")
    with pytest.raises(GeometryError, match="sod"):
        Protocol(sod=1.0)
    with pytest.raises(VolumeError, match="side_mm"):
        simulate(chest, SMALL, side_mm=-1.0)
    assert isinstance(simulate(chest, SMALL).projections.grid, VoxelGrid)
    assert np.isfinite(simulate(chest, SMALL).clean.numpy()).all()
