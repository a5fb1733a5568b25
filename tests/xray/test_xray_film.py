"""The physics of a film against closed forms."""

import math
import sys

import pytest
import torch

from xreg.errors import BackendError, ImageError
from xreg.xray import FilmSettings, expose, film

CLEAN = FilmSettings(photons=math.inf, scatter=0.0, blur=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def waves(count: int = 2, size: tuple[int, int] = (48, 40)) -> torch.Tensor:
    v, u = torch.meshgrid(*(torch.linspace(0, 3, n, dtype=torch.float64) for n in size), indexing="ij")
    phase = torch.arange(count, dtype=torch.float64)[:, None, None]
    return 2.0 + torch.sin(u + phase) + torch.cos(2 * v)


# ---- the whole chain ----


def test_a_clean_film_shows_the_line_integrals() -> None:
    p = waves()
    torch.testing.assert_close(expose(p, CLEAN), p)
    assert expose(p[0], CLEAN).shape == p[0].shape
    assert expose(p[None, None], CLEAN).shape == (1, 1, *p.shape)


def test_the_curve_of_a_clean_film() -> None:
    p = waves()
    shown = expose(p, FilmSettings(math.inf, 0.0, blur=0.0, gamma=0.8, gain=1.3, offset=-0.2))
    torch.testing.assert_close(shown, 1.3 * p**0.8 - 0.2)


def test_a_uniform_film_with_scatter_in_closed_form() -> None:
    p = torch.full((2, 40, 30), 2.0, dtype=torch.float64)
    shown = expose(p, FilmSettings(math.inf, 0.05, blur=1.0))
    torch.testing.assert_close(shown, torch.full_like(p, -math.log(math.exp(-2.0) + 0.05)))


def test_gradients_flow_through_a_film_without_noise() -> None:
    p = waves(1, (9, 8)).requires_grad_()
    settings = FilmSettings(math.inf, 0.05, 0.2, 0.7, gamma=0.9)
    assert torch.autograd.gradcheck(lambda x: expose(x, settings), p)


@pytest.mark.parametrize("gamma", [0.5, 0.85, 1.0, 1.7])
def test_gradients_at_air_are_finite_and_the_film_is_the_same(gamma: float) -> None:
    """Pixels of air (p = 0, or a little below after blur), beside others whose gradient is known."""
    p = torch.tensor([[[-0.1, 0.0, 0.5], [2.0, 0.0, 3.0]]], dtype=torch.float64, requires_grad=True)
    shown = expose(p, FilmSettings(photons=math.inf, blur=0, scatter=0, gamma=gamma))
    torch.testing.assert_close(shown, p.detach().clamp_min(0) ** gamma, rtol=0, atol=1e-15)
    (slope,) = torch.autograd.grad(shown.sum(), p)
    assert bool(torch.isfinite(slope).all())
    dense = p.detach() > 0
    wanted = gamma * p.detach()[dense] ** (gamma - 1)
    torch.testing.assert_close(slope[dense], wanted, rtol=1e-9, atol=0)
    assert slope[0, 0, 1] == (1.0 if gamma == 1 else 0.0)


def test_gradients_of_blurred_films_with_air_are_finite() -> None:
    pytest.importorskip("kornia", reason="kornia is not installed: pip install 'xreg[train]'")
    p = torch.zeros(1, 24, 24, dtype=torch.float64)
    p[:, 8:16, 8:16] = 2.0
    p.requires_grad_()
    (slope,) = torch.autograd.grad(expose(p, FilmSettings(photons=math.inf, gamma=0.7)).sum(), p)
    assert bool(torch.isfinite(slope).all())
    assert float(slope.abs().max()) > 0
    beam = torch.tensor([[[0.0, 0.5], [0.8, 1.0]]], dtype=torch.float64, requires_grad=True)
    spread = film.scatter(beam, 0.1)
    assert float((spread - beam).detach().mean()) == pytest.approx(0.1, rel=1e-6)
    (slope,) = torch.autograd.grad((spread * torch.arange(4.0).reshape(1, 2, 2)).sum(), beam)
    assert bool(torch.isfinite(slope).all())


def test_one_seed_gives_one_film_and_the_global_generator_stays() -> None:
    p, before = waves().float(), torch.get_rng_state()
    first, again, other = (expose(p, FilmSettings(), seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    assert first.dtype == torch.float32


# ---- photons ----


@pytest.mark.parametrize("p", [0.0, 1.5, 4.0])
def test_noise_has_the_mean_and_variance_of_counted_photons(p: float) -> None:
    beam, photons = torch.full((4, 128, 128), math.exp(-p), dtype=torch.float64), 900.0
    counted = film.count(beam, photons, seeded())
    mean, pixels = photons * math.exp(-p), beam.numel()
    numbers = counted * photons
    torch.testing.assert_close(numbers, numbers.round())
    assert abs(numbers.mean().item() - mean) < 4 * math.sqrt(mean / pixels)
    assert numbers.var().item() == pytest.approx(
        mean, rel=4 * math.sqrt(2 / pixels) + 4 / math.sqrt(mean * pixels)
    )


def test_noise_of_the_film_grows_as_the_beam_is_weakened() -> None:
    p = torch.tensor([1.0, 3.0])[:, None, None].expand(2, 128, 128)
    spread = expose(p, FilmSettings(1e5, 0.0, blur=0.0), seeded()).std((-1, -2))
    torch.testing.assert_close(spread, (p[:, 0, 0].exp() / 1e5).sqrt(), rtol=0.03, atol=0.0)


def test_each_film_has_its_own_photons() -> None:
    beam = torch.full((2, 96, 96), 0.5)
    counted = film.count(beam, torch.tensor([100.0, 10000.0]), seeded())
    few, many = counted.var((-1, -2))
    assert float(few / many) == pytest.approx(100.0, rel=0.1)


def test_a_pixel_without_a_photon_reads_as_half_a_one() -> None:
    shown = film.log_signal(torch.tensor([[[0.0, 0.25]]]), 50.0)
    torch.testing.assert_close(shown, torch.tensor([[[math.log(100.0), math.log(4.0)]]]))
    opaque = expose(torch.full((1, 8, 8), 500.0), FilmSettings(50.0, 0.0, blur=0.0), seeded())
    torch.testing.assert_close(opaque, torch.full_like(opaque, math.log(100.0)))


def test_beams_too_bright_to_count_have_no_noise() -> None:
    beam = torch.full((1, 4, 4), 1.0)
    assert torch.equal(film.count(beam, 1e20, seeded()), beam)


# ---- blur and scatter ----


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.5])
def test_blur_has_the_mtf_of_a_gaussian(sigma: float) -> None:
    point = torch.zeros(1, 65, 65, dtype=torch.float64)
    point[0, 32, 32] = 1.0
    spread = film.blur(point, sigma, reach=20)[0]
    frequency = torch.fft.fftfreq(65, dtype=torch.float64)
    transfer = torch.fft.fft(spread.sum(0)).abs()
    low = frequency.abs() < 0.25  # where a kernel of whole pixels has not yet folded over
    ideal = torch.exp(-2 * math.pi**2 * sigma**2 * frequency**2)
    torch.testing.assert_close(transfer[low], ideal[low], atol=0.03 if sigma < 1 else 1e-3, rtol=0.0)


def test_each_film_has_its_own_blur_and_zero_is_none() -> None:
    beam = film.transmission(waves(3))
    both = film.blur(beam, torch.tensor([0.0, 0.8, 2.0]), reach=8)
    torch.testing.assert_close(both[0], beam[0])
    torch.testing.assert_close(both[1:2], film.blur(beam[1:2], 0.8, reach=8))
    torch.testing.assert_close(both[2:], film.blur(beam[2:], 2.0))


def test_scatter_has_the_mean_that_is_asked_for() -> None:
    beam = film.transmission(waves(2, (96, 72)))
    added = film.scatter(beam, torch.tensor([0.03, 0.2]), 0.1) - beam
    torch.testing.assert_close(added.mean((-1, -2)), torch.tensor([0.03, 0.2], dtype=torch.float64))
    assert float(added.min()) > 0.0


def test_scatter_is_smooth_and_comes_from_where_matter_is() -> None:
    p = torch.zeros(1, 128, 128)
    p[:, 40:88, 20:50] = 1.0
    p[:, 60, 30:40] = 5.0
    added = film.scatter(film.transmission(p), 0.02, 0.1) - film.transmission(p)
    assert float(added[0, 64, 35]) > 5 * float(added[0, 64, 110])
    steps = torch.maximum(added.diff(dim=-1).abs().max(), added.diff(dim=-2).abs().max())
    assert float(steps) < 0.06 * float(added.max())


def test_air_scatters_nothing() -> None:
    air = torch.ones(1, 16, 16)
    assert torch.equal(film.scatter(air, 0.1), air)


# ---- storage ----


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_quantised_films_lie_on_the_steps_of_their_window(bits: int) -> None:
    shown, step = waves(), 5.0 / (2**bits - 1)
    stored = film.quantise(shown, bits, (0.5, 5.5))
    steps = (stored - 0.5) / step
    torch.testing.assert_close(steps, steps.round(), atol=1e-6, rtol=0.0)
    inside = shown.clamp(0.5, 5.5)
    assert float((stored - inside).abs().max()) <= 0.5 * step * (1 + 1e-9)


def test_the_own_range_of_a_film_is_kept() -> None:
    shown = waves()
    stored = film.quantise(shown, 8)
    for whole, part in zip(film.own_range(shown), film.own_range(stored), strict=True):
        torch.testing.assert_close(whole, part)
    assert max(len(one.unique()) for one in stored) <= 256
    assert torch.equal(film.quantise(torch.ones(1, 3, 3), 8), torch.ones(1, 3, 3))
    by_chain = expose(shown, FilmSettings(math.inf, 0.0, blur=0.0, bits=8))
    torch.testing.assert_close(by_chain, stored, atol=1e-9, rtol=0.0)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"photons": 0.0}, "photons"),
        ({"photons": float("nan")}, "photons"),
        ({"scatter": -0.1}, "scatter"),
        ({"blur": -1.0}, "blur"),
        ({"gamma": 0.0}, "gamma"),
        ({"bits": 10}, "bits"),
        ({"window": (0.0, float("inf"))}, "window"),
        ({"window": 5.0}, "window"),
        ({"window": (2.0, 1.0)}, "window"),
    ],
)
def test_settings_that_cannot_be_are_named(change: dict, name: str) -> None:
    with pytest.raises(ImageError, match=name):
        FilmSettings(**change)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.ones(1, 4, 4, dtype=torch.int16), "float32"),
        (torch.ones(1, 4, 4, dtype=torch.float16), "float16"),
        ([[1.0]], "list"),
        (torch.ones(4), r"\[B, H, W\]"),
        (torch.ones(0, 4, 4), r"\[B, H, W\]"),
        (torch.full((1, 4, 4), float("nan")), "NaN"),
    ],
)
def test_images_that_cannot_be_are_named(images: object, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        expose(images, CLEAN)


def test_parameters_of_the_wrong_shape_or_size_are_named() -> None:
    beam = torch.ones(2, 8, 8)
    with pytest.raises(ImageError, match=r"blur must be a number for all films, or \[2\]"):
        film.blur(beam, torch.ones(3))
    with pytest.raises(ImageError, match="photons"):
        film.count(beam, torch.tensor([1.0, -1.0]), seeded())
    with pytest.raises(ImageError, match="gamma"):
        film.tone(beam, gamma=0.0)
    with pytest.raises(ImageError, match="offset must be numbers"):
        film.tone(beam, offset="dark")
    with pytest.raises(ImageError, match="bits"):
        film.quantise(beam, 9)


def test_noise_without_a_generator_is_refused() -> None:
    with pytest.raises(ImageError, match=r"torch\.Generator"):
        expose(torch.ones(1, 8, 8))
    with pytest.raises(ImageError, match="device"):
        film.check_generator(seeded(), torch.device("cuda"), "noise")


def test_without_kornia_the_extra_is_named_and_plain_films_still_work(monkeypatch) -> None:
    for name in ("kornia", "kornia.enhance", "kornia.filters"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=r"pip install 'xreg\[train\]'"):
        expose(waves(), FilmSettings(math.inf))
    torch.testing.assert_close(expose(waves(), CLEAN), waves())
