"""Measures without a residual form: closed forms, invariances, and that they peak where images agree."""

import math

import numpy as np
import pytest
import torch

from xreg.errors import RegistrationError
from xreg.measures import gradient_difference, mutual_information

EVERY = torch.ones(40, 48, dtype=torch.bool)


def waves(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :48]
    parts = [
        np.sin(rng.uniform(0.1, 0.6) * x + rng.uniform(0.1, 0.6) * y + rng.uniform(0, 6)) for _ in range(6)
    ]
    return torch.from_numpy(sum(parts)).float()


def test_an_image_and_itself_share_all_their_information():
    steps = torch.arange(40 * 48).reshape(40, 48).remainder(8).float()
    assert float(mutual_information(steps, steps, EVERY, bins=8)) == pytest.approx(2.0, abs=1e-6)
    assert float(mutual_information(steps, steps, EVERY, bins=8, normalised=False)) == pytest.approx(
        math.log(8), abs=1e-6
    )


def test_independent_images_share_none():
    y, x = torch.meshgrid(
        torch.arange(40).remainder(4).float(), torch.arange(48).remainder(4).float(), indexing="ij"
    )
    assert float(mutual_information(x, y, EVERY, bins=4, normalised=False)) == pytest.approx(0.0, abs=1e-6)


def test_mutual_information_is_blind_to_a_falling_curve():
    film, other = waves(0), waves(1)
    same = mutual_information(torch.stack([-film, other]), film, EVERY)
    assert same[0] > same[1] + 0.2
    assert float(mutual_information(-3 * film + 2, film, EVERY)) == pytest.approx(float(same[0]), abs=1e-4)


def test_gradient_difference_is_one_for_the_same_image_at_any_gain():
    film = waves(0)
    found = gradient_difference(torch.stack([2.5 * film + 1, waves(1)]), film, EVERY)
    assert float(found[0]) == pytest.approx(1.0, abs=1e-5)
    assert found[1] < 0.9


@pytest.mark.parametrize("measure", [mutual_information, gradient_difference])
def test_it_falls_with_the_shift_and_ignores_masked_pixels(measure):
    film = waves(0)
    shifted = torch.stack([film.roll(k, 1) for k in (0, 1, 2, 4)])
    mask = EVERY.clone()
    mask[:, :8] = False
    found = measure(shifted, film, mask)
    assert (found.diff() < 0).all()
    spoiled = shifted.clone()
    spoiled[:, :, :5] = 100.0
    torch.testing.assert_close(measure(spoiled, film, mask), found)


@pytest.mark.parametrize("measure", [mutual_information, gradient_difference])
def test_a_film_without_contrast_is_an_error(measure):
    with pytest.raises(RegistrationError, match="contrast"):
        measure(waves(0), torch.ones(40, 48), EVERY)
