"""Random looks: what is drawn, how often, and what a film depends on."""

import dataclasses
import math

import pytest
import torch

from xreg.errors import ImageError
from xreg.xray import Augment, AugmentSettings, styles
from xreg.xray.augment import STEPS

ALWAYS = AugmentSettings(**dict.fromkeys(STEPS, 1.0))


def only(step: str, **changes) -> AugmentSettings:
    return dataclasses.replace(AugmentSettings.none(), **{step: 1.0}, **changes)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bodies(count: int = 12, size: int = 48) -> torch.Tensor:
    """A thick ball in air, with a denser rib; no two alike."""
    v, u = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    radius = torch.linspace(0.6, 0.95, count)[:, None, None]
    return 4.0 * (1 - (u**2 + v**2) / radius**2).clamp_min(0).sqrt() + ((u - v).abs() < 0.1) * 1.0


# ---- how often ----


def test_no_step_leaves_the_line_integrals() -> None:
    p = bodies()
    kept = p.clone()
    films = Augment(AugmentSettings.none())(p, seeded())
    assert torch.equal(films, p)
    assert films.data_ptr() != p.data_ptr()
    Augment(ALWAYS)(p, seeded())
    assert torch.equal(p, kept), "the input is left as it is"


@pytest.mark.parametrize("step", list(STEPS))
def test_a_step_with_probability_one_meets_every_film(step: str) -> None:
    p = bodies()
    films = Augment(only(step))(p, seeded())
    assert films.shape == p.shape
    assert films.dtype == p.dtype
    assert torch.isfinite(films).all()
    assert bool((films != p).flatten(1).any(1).all())


@pytest.mark.parametrize("step", ["tone", "clahe", "noise"])
def test_a_step_meets_as_many_films_as_its_probability_says(step: str) -> None:
    p = bodies(400, 12)
    settings = dataclasses.replace(only(step, clahe_tiles=2), **{step: 1 / 3})
    share = float((Augment(settings)(p, seeded()) != p).flatten(1).any(1).float().mean())
    assert abs(share - 1 / 3) < 4 * math.sqrt(2 / 9 / 400)


def test_inversion_is_off_by_default() -> None:
    assert AugmentSettings().invert == 0.0
    assert {getattr(AugmentSettings(), name) for name in STEPS} == {0.0, 1 / 3}


# ---- what a film depends on ----


def test_same_seed_same_bits_and_the_global_generator_stays() -> None:
    p, before = bodies(), torch.get_rng_state()
    first, again, other = (Augment(ALWAYS)(p, seeded(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("settings", [ALWAYS, AugmentSettings()], ids=["always", "default"])
def test_a_film_does_not_depend_on_the_others(settings: AugmentSettings) -> None:
    p = bodies()
    films = Augment(settings)(p, seeded(2))
    changed = p.flip(-1) * 2.0 + 0.5
    changed[4] = p[4]
    again = Augment(settings)(changed, seeded(2))
    torch.testing.assert_close(films[4], again[4], atol=0, rtol=1e-6)


def test_a_step_draws_the_same_whatever_else_is_on() -> None:
    p, generator, idle = bodies(), seeded(3), seeded(3)
    alone = only("collimate", edge=(0.0, 0.0))
    covered = Augment(alone)(p, seeded(3)) != p
    toned = Augment(only("tone"))(p, seeded(3))
    both = Augment(dataclasses.replace(alone, tone=1.0))(p, generator)
    assert torch.equal(both != toned, covered)
    assert covered.any()
    Augment(AugmentSettings.none())(p, idle)
    assert torch.equal(generator.get_state(), idle.get_state())


def test_double_precision_is_kept() -> None:
    assert Augment(ALWAYS)(bodies().double(), seeded()).dtype == torch.float64


# ---- what the steps do ----


def test_noise_is_that_of_the_detected_photons() -> None:
    p = torch.full((2, 128, 128), 7.0)
    films = Augment(only("noise", detected=(400.0, 400.0)))(p, seeded())
    torch.testing.assert_close(films.std((-1, -2)), torch.full((2,), 1 / 20), rtol=0.03, atol=0.0)


def test_scatter_is_a_share_of_the_primary_beam() -> None:
    p = torch.full((2, 32, 32), 5.0)
    films = Augment(only("scatter", scatter_ratio=(0.5, 0.5)))(p, seeded())
    torch.testing.assert_close(films, torch.full_like(p, 5.0 - math.log(1.5)))


def test_tools_only_add() -> None:
    p = bodies(32, 64)
    added = Augment(only("tools"))(p, seeded()) - p
    assert float(added.min()) >= 0.0
    share = (added > 0.05).float().mean((-1, -2))
    assert float(share.max()) < 0.3
    assert bool((share > 0).float().mean() > 0.9)


def test_tone_is_the_curve_that_is_asked_for() -> None:
    p = bodies()
    films = Augment(only("tone", gamma=(0.8, 0.8), gain=(1.5, 1.5), offset=(0.2, 0.2)))(p, seeded())
    torch.testing.assert_close(films, 1.5 * p**0.8 + 0.2)


def test_draws_fill_their_range() -> None:
    p = torch.ones(600, 2, 2)
    settings = only("tone", gamma=(1.0, 1.0), gain=(1.0, 1.0), offset=(-1.0, 3.0))
    offset = Augment(settings)(p, seeded())[:, 0, 0] - 1.0
    assert -1.0 <= float(offset.min()) < -0.95
    assert 2.95 < float(offset.max()) <= 3.0
    assert float(offset.mean()) == pytest.approx(1.0, abs=4 * 4 / math.sqrt(12 * 600))
    gain = Augment(only("tone", gamma=(1.0, 1.0), gain=(0.5, 2.0), offset=(0.0, 0.0)))(p, seeded())[:, 0, 0]
    assert float(gain.log().mean()) == pytest.approx(0.0, abs=4 * math.log(4) / math.sqrt(12 * 600))


def test_the_widest_blur_is_not_cut_off() -> None:
    p = torch.zeros(40, 41, 41, dtype=torch.float64)
    p[:, 20, 20] = 1.0
    films = Augment(only("blur", blur_px=(0.2, 3.0)))(p, seeded())
    lost = 1.0 - torch.exp(-films[:, 20, :])
    place = torch.arange(41.0, dtype=torch.float64) - 20
    sigma = ((lost * place**2).sum(-1) / lost.sum(-1)).sqrt()
    assert 2.7 < float(sigma.max()) < 3.01


def test_a_collimated_field_is_covered_in_one_grey() -> None:
    p = bodies(16, 64) + 1.0 + 0.01 * torch.arange(64.0)
    settings = only("collimate", blade=(0.125, 0.125), blade_degrees=0.0, edge=(0.0, 0.0), round_share=0.0)
    films = Augment(settings)(p, seeded())
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[8:56, 8:56] = True
    assert torch.equal(films[:, inside], p[:, inside])
    shades = films[:, ~inside]
    assert torch.equal(shades.amin(-1), shades.amax(-1))
    lowest, highest = (shades[:, 0] == edge for edge in (p.amin((-1, -2)), p.amax((-1, -2))))
    assert bool((lowest | highest).all())
    assert lowest.any()
    assert highest.any()


def test_an_erased_box_has_its_size() -> None:
    p = bodies(8, 50) + 0.01 * torch.arange(50.0)
    films = Augment(only("erase", erase_size=(0.2, 0.2)))(p, seeded())
    changed = (films != p).sum((-1, -2))
    assert bool(((changed >= 81) & (changed <= 121)).all())


def test_contrast_curve_in_closed_form() -> None:
    p = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    torch.testing.assert_close(styles.contrast_curve(p), p)
    torch.testing.assert_close(styles.contrast_curve(p, 1.5), 2.0 * (p / 2.0) ** 1.5)
    torch.testing.assert_close(styles.contrast_curve(p, 1.0, 0.1), torch.log(1 + 0.1 * p) / 0.1)


@pytest.mark.parametrize("power", [0.8, 1.0, 1.5])
def test_gradients_of_the_contrast_curve_are_those_of_its_values(power: float) -> None:
    """Also in a film with air, against differences of the closed form."""
    p = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]], dtype=torch.float64)
    weight = torch.tensor([[[1.0, -2.0], [3.0, 0.5]]], dtype=torch.float64)

    def total(q: torch.Tensor) -> torch.Tensor:
        return (weight * styles.contrast_curve(q, power, 0.3)).sum()

    mean = p.mean()
    bent = mean * (p / mean) ** power
    torch.testing.assert_close(styles.contrast_curve(p, power, 0.3), torch.log1p(0.3 * bent) / 0.3)
    moving = p.clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(moving), moving)
    assert bool(torch.isfinite(slope).all())
    for at in ((0, 0, 1), (0, 1, 0), (0, 1, 1)):
        step = torch.zeros_like(p)
        step[at] = 1e-6
        assert float(slope[at]) == pytest.approx(float(total(p + step) - total(p - step)) / 2e-6, rel=1e-6)


def test_hardening_is_a_beam_of_gamma_distributed_attenuation() -> None:
    variance, p = 0.2, 4.0
    shape = torch.full((400_000,), 1 / variance, dtype=torch.float64)
    attenuation = torch._standard_gamma(shape, generator=seeded()) * variance
    seen = -torch.log(torch.exp(-attenuation * p).mean())
    curve = styles.contrast_curve(torch.full((1, 1, 1), p, dtype=torch.float64), 1.0, variance)
    assert float(curve) == pytest.approx(float(seen), rel=0.01)


def test_clahe_keeps_range_and_evens_the_histogram() -> None:
    p = bodies(3, 64).square()
    films = styles.clahe(p, 4.0, 4)
    assert float((films.amax() - p.amax()).abs()) < 0.05 * float(p.amax())
    assert bool((films >= p.amin((-1, -2), keepdim=True) - 1e-5).all())
    torch.testing.assert_close(styles.clahe(3.0 * p - 1.0, 4.0, 4), 3.0 * films - 1.0, atol=0.1, rtol=0.0)
    flat = torch.full((1, 16, 16), 2.0)
    assert torch.isfinite(styles.clahe(flat)).all()


def test_inversion_exchanges_bright_and_dark() -> None:
    p = bodies(2)
    turned = styles.invert(p)
    torch.testing.assert_close(styles.invert(turned), p)
    assert torch.equal(turned.flatten(1).argmin(1), p.flatten(1).argmax(1))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"noise": 1.5}, "noise is a probability"),
        ({"tools": -0.1}, "tools is a probability"),
        ({"round_share": 2.0}, "round_share"),
        ({"gamma": (1.2, 0.8)}, "gamma"),
        ({"gamma": (0.0, 1.0)}, "gamma"),
        ({"detected": (0.0, 10.0)}, "detected"),
        ({"tool_count": (1, 9)}, "tool_count"),
        ({"blade": (0.0, float("nan"))}, "blade"),
        ({"clahe_clips": ()}, "clahe_clips"),
        ({"clahe_tiles": 0}, "clahe_tiles"),
        ({"tool_bend": -1.0}, "tool_bend"),
        ({"clahe_clips": (float("inf"),)}, "clahe_clips"),
        ({"blade_degrees": 360.0}, "blade_degrees"),
    ],
)
def test_settings_that_cannot_be_are_named(change: dict, name: str) -> None:
    with pytest.raises(ImageError, match=name):
        AugmentSettings(**change)


def test_inputs_that_cannot_be_are_named() -> None:
    with pytest.raises(ImageError, match=r"line_integrals must have the shape \[B, H, W\]"):
        Augment()(torch.ones(4, 4), seeded())
    with pytest.raises(ImageError, match="line_integrals holds NaN"):
        Augment()(torch.full((1, 8, 8), math.inf), seeded())
    with pytest.raises(ImageError, match=r"generator must be a torch\.Generator"):
        Augment()(torch.ones(1, 8, 8), 7)
    with pytest.raises(ImageError, match="more pixels"):
        Augment(only("clahe"))(torch.ones(1, 4, 4), seeded())
