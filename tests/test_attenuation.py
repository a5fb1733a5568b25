import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.attenuation import check_energy, hu_to_mu, linear_attenuation, materials, mu_at_energy, mu_to_hu
from xreg.errors import VolumeError

energies = st.floats(20.0, 150.0)


@pytest.mark.parametrize(
    ("material", "kev", "mass", "density"),
    [
        ("water", 20, 0.8096, 1.0),
        ("water", 60, 0.2059, 1.0),
        ("water", 100, 0.1707, 1.0),
        ("water", 150, 0.1505, 1.0),
        ("soft_tissue", 40, 0.2685, 1.05),
        ("soft_tissue", 80, 0.1823, 1.05),
        ("bone", 30, 1.331, 1.92),
        ("bone", 60, 0.3148, 1.92),
        ("bone", 100, 0.1855, 1.92),
    ],
)
def test_table_values(material, kev, mass, density):
    assert linear_attenuation(material, kev) == pytest.approx(0.1 * mass * density, rel=1e-12)


def test_interpolation_is_log_log():
    middle = math.sqrt(60.0 * 80.0)
    expected = 0.1 * math.sqrt(0.2059 * 0.1837)
    assert linear_attenuation("water", middle) == pytest.approx(expected, rel=1e-12)


def test_attenuation_falls_with_energy():
    for material in materials():
        values = [linear_attenuation(material, kev) for kev in range(20, 151)]
        assert all(a > b for a, b in itertools.pairwise(values))


def test_bone_contrast_falls_with_energy():
    ratio = [linear_attenuation("bone", k) / linear_attenuation("soft_tissue", k) for k in range(20, 151)]
    assert all(a > b for a, b in itertools.pairwise(ratio))
    hu = torch.tensor([50.0, 1000.0])
    contrast = []
    for kev in range(20, 151, 5):
        soft, bone = hu_to_mu(hu, kev).tolist()
        contrast.append(bone / soft)
    assert all(a > b for a, b in itertools.pairwise(contrast))


@settings(deadline=None, max_examples=25)
@given(energies)
def test_identity_at_the_ct_energy(kev):
    hu = torch.linspace(-1000, 4000, 501, dtype=torch.float64)
    expected = linear_attenuation("water", kev) * (1 + hu / 1000)
    torch.testing.assert_close(hu_to_mu(hu, kev, ct_energy_kev=kev), expected, rtol=1e-12, atol=1e-15)


@settings(deadline=None, max_examples=25)
@given(energies, energies)
def test_anchors_hold_at_every_energy(kev, ct_kev):
    ct_water = linear_attenuation("water", ct_kev)
    bone_hu = 1000 * (linear_attenuation("bone", ct_kev) / ct_water - 1)
    hu = torch.tensor([-3024.0, -1000.0, 0.0, bone_hu], dtype=torch.float64)
    expected = [0.0, 0.0, linear_attenuation("water", kev), linear_attenuation("bone", kev)]
    assert hu_to_mu(hu, kev, ct_energy_kev=ct_kev).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(energies, energies)
def test_monotonic_and_smooth(kev, ct_kev):
    hu = torch.linspace(-990, 4000, 4991, dtype=torch.float64, requires_grad=True)
    mu = hu_to_mu(hu, kev, ct_energy_kev=ct_kev)
    (slope,) = torch.autograd.grad(mu.sum(), hu)
    assert (mu[1:] > mu[:-1]).all()
    assert (slope > 0).all()
    # the derivative is continuous: it changes by no more than a hundredth of its range per HU
    assert float(slope.detach().diff().abs().max()) <= 0.0101 * float(slope.max() - slope.min()) + 1e-15


@settings(deadline=None, max_examples=25)
@given(energies, energies)
def test_inverse(kev, ct_kev):
    hu = torch.linspace(-1000, 4000, 777, dtype=torch.float64)
    back = mu_to_hu(hu_to_mu(hu, kev, ct_energy_kev=ct_kev), kev, ct_energy_kev=ct_kev)
    torch.testing.assert_close(back, hu, rtol=0, atol=1e-8)


def test_soft_tissue_comes_out_near_its_table_value():
    ct_hu = 1000 * (linear_attenuation("soft_tissue", 70) / linear_attenuation("water", 70) - 1)
    for kev in (40, 60, 90, 120):
        got = float(hu_to_mu(torch.tensor(ct_hu, dtype=torch.float64), kev))
        assert got == pytest.approx(linear_attenuation("soft_tissue", kev), rel=0.02)


def test_gradients_match_finite_differences():
    hu = torch.tensor([-700.0, -3.0, 5.0, 55.0, 99.0, 130.0, 900.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: hu_to_mu(h, 45, ct_energy_kev=75), (hu,), atol=1e-9)
    mu = hu_to_mu(hu.detach(), 45, ct_energy_kev=75).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: mu_to_hu(m, 45, ct_energy_kev=75), (mu,), eps=1e-7, rtol=1e-4)


def test_another_energy_is_there_and_back():
    hu = torch.linspace(-1100, 4000, 777, dtype=torch.float64)
    for old, new in ((70.0, 45.0), (55.0, 90.0)):
        mu = hu_to_mu(hu, old)
        torch.testing.assert_close(mu_at_energy(mu, old, new), hu_to_mu(mu_to_hu(mu, old), new))
        torch.testing.assert_close(mu_at_energy(mu, old, new), hu_to_mu(hu, new), rtol=1e-9, atol=1e-12)
    with pytest.raises(VolumeError, match="keV"):
        mu_at_energy(hu, 70.0, 700.0)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
def test_a_large_tensor_is_its_parts(dtype):
    """What is done block by block has the bits of the whole."""
    hu = torch.linspace(-1100, 4000, 100_003, dtype=torch.float64).to(dtype)
    whole = hu.float() if dtype == torch.int16 else hu
    mu = hu_to_mu(hu, 45.0)
    assert mu.dtype == whole.dtype
    leaf = whole.clone().requires_grad_()
    assert torch.equal(hu_to_mu(leaf, 45.0), mu)
    assert torch.equal(hu_to_mu(whole[::2], 45.0), mu[::2])
    assert torch.equal(mu_to_hu(mu, 45.0), mu_to_hu(mu.clone().requires_grad_(), 45.0))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([torch.int16, torch.float32, torch.float64]))
def test_dtype(dtype):
    out = hu_to_mu(torch.tensor([-1000, 0, 500]).to(dtype), 60)
    assert out.dtype == (torch.float32 if dtype == torch.int16 else dtype)


def test_refusals():
    for values in ("water", [[1], [2, 3]], np.arange(4)[::-1], np.arange(4, dtype=">i2")):
        with pytest.raises(VolumeError, match="hu must be numbers that torch can hold"):
            hu_to_mu(values)
    with pytest.raises(VolumeError, match="between 20 and 150 keV"):
        check_energy(120_000)
    with pytest.raises(VolumeError, match="number in keV"):
        check_energy("high")
    with pytest.raises(VolumeError, match="ct_energy_kev"):
        hu_to_mu(torch.zeros(1), ct_energy_kev=float("nan"))
    with pytest.raises(VolumeError, match="one of water"):
        linear_attenuation("lead", 60)
    with pytest.raises(VolumeError, match="real"):
        mu_to_hu(torch.zeros(1, dtype=torch.complex64))
