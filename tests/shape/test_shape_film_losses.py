"""Losses of single films: against the same written out with PyTorch's own operations, whole maps at once."""

from dataclasses import replace

import pytest
import shape_case
import torch
import torch.nn.functional as F
from torch import Tensor

from xreg.shape import film_losses as module
from xreg.shape.film_cases import BoneFilm, FilmBatch
from xreg.shape.film_losses import film_losses
from xreg.shape.networks.heads import FilmMaps, centroids

SPINE = list(shape_case.SPINE.groups["spine"])
MAPS = ("masks", "thickness", "level", "presence")


def plain(maps: FilmMaps, films: FilmBatch, balance: float) -> dict[str, Tensor]:
    """Masks, thickness and centroids as their definitions read."""
    true, known = films.thickness, films.known[:, 1:]
    covered = (true > 0.02).to(true)
    present = covered.amax((-1, -2)) > 0
    there = present & known
    share = covered.mean((-1, -2), keepdim=True)
    rarity = torch.where(covered > 0, share, 1 - share).clamp_min(1e-4).pow(-balance)
    weight = rarity / rarity.mean((-1, -2), keepdim=True)
    inside = maps.masks.sigmoid()
    dice = (2 * (inside * covered).sum((-1, -2)) + 1) / ((inside.square() + covered).sum((-1, -2)) + 1)
    entropy = F.binary_cross_entropy_with_logits(maps.masks, covered, weight, reduction="none")
    off = weight * F.smooth_l1_loss(maps.thickness, true, reduction="none", beta=0.1)
    whole = (maps.thickness + true).sum((-1, -2)) + 1
    apart = (maps.thickness - true).abs().sum((-1, -2)) / whole
    middles = (centroids(maps.thickness) - centroids(true)).abs().sum(-1)
    return {
        "mask": 5 * entropy[known].mean() + (1 - dice)[there].mean(),
        "thickness": 8 * off[known].mean() + apart[there].mean(),
        "centroid": middles[there].mean(),
    }


def told(films: FilmBatch, dtype: torch.dtype = torch.float64) -> tuple[FilmMaps, FilmBatch]:
    """Maps that are wrong everywhere, to be followed; and the films in their type."""
    generator = torch.Generator().manual_seed(0)
    shape = films.thickness.shape
    made = [
        torch.randn(n, generator=generator).to(dtype)
        for n in (shape, shape, shape[::2] + shape[3:], shape[:2])
    ]
    made[1] = 0.2 * F.softplus(made[1] - 1)
    maps = FilmMaps(*(one.requires_grad_() for one in made))
    return maps, replace(films, thickness=films.thickness.to(dtype))


def films() -> FilmBatch:
    """Two views; in one of them the annotation does not know a vertebra."""
    made = FilmBatch.of(BoneFilm.of(shape_case.sample()))
    made.known[1, SPINE[1]] = False
    return made


@pytest.mark.parametrize("balance", [0.0, 0.4])
@pytest.mark.parametrize("piece", [1, 1 << 17])
def test_values_and_gradients_are_those_of_whole_maps(monkeypatch, balance: float, piece: int) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    maps, seen = told(films())
    found, wanted = film_losses(maps, seen, SPINE, balance), plain(maps, seen, balance)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=0)
        of = [maps.masks if name == "mask" else maps.thickness]
        slopes = [torch.autograd.grad(3 * x, of, retain_graph=True)[0] for x in (found[name], value)]
        assert float(slopes[1].abs().max()) > 0
        torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-14)


def test_gradients_are_finite_differences() -> None:
    maps, seen = told(films())
    generator = torch.Generator().manual_seed(1)
    parts = {name: getattr(maps, name) for name in MAPS}
    sum(film_losses(maps, seen, SPINE, 0.3).values()).backward()
    for name, part in parts.items():
        way = torch.randn(part.shape, generator=generator, dtype=part.dtype)
        with torch.no_grad():
            ends = [FilmMaps(**{**parts, name: part + step * way}) for step in (1e-6, -1e-6)]
            high, low = (float(sum(film_losses(end, seen, SPINE, 0.3).values())) for end in ends)
        assert float((part.grad * way).sum()) == pytest.approx((high - low) / 2e-6, rel=1e-5)


def test_what_an_annotation_does_not_know_has_no_gradient() -> None:
    maps, seen = told(films(), torch.float32)
    sum(film_losses(maps, seen, SPINE).values()).backward()
    known = seen.known[:, 1:]
    for part in (maps.masks, maps.thickness, maps.presence):
        flowing = part.grad.flatten(2).any(-1) if part.ndim > 2 else part.grad != 0
        assert torch.equal(flowing, known)


def test_film_losses_vanish_for_the_truth_and_only_there() -> None:
    cases = FilmBatch.of(BoneFilm.of(shape_case.sample()))
    thick = cases.thickness
    steps = torch.linspace(0, 1, len(SPINE))
    covered = thick > 0.02
    level = torch.einsum("nkhw,k->nhw", thick, steps) / thick.sum(1).clamp_min(1e-6)
    masks = torch.where(covered, 20.0, -20.0)
    presence = torch.where(covered.any(-1).any(-1), 20.0, -20.0)
    right = film_losses(FilmMaps(masks, thick, level, presence), cases, SPINE)
    assert all(float(v) < 2e-2 for v in right.values())
    away = FilmMaps(masks.roll(9, -1), thick.roll(9, -1), level + 0.2, presence.roll(9, -1))
    wrong = film_losses(away, cases, SPINE)
    assert all(float(wrong[n]) > 10 * float(right[n]) + 1e-3 for n in right)
    nothing = replace(cases, known=torch.zeros_like(cases.known))
    free = film_losses(away, nothing, SPINE)
    assert all(float(free[n]) == 0 for n in free if n != "level")
