"""Films changed together with the bones on them, and cases on other grids: geometry stays true."""

import math
from dataclasses import replace

import pytest
import shape_case
import torch

from xreg.errors import ShapeError
from xreg.shape.film_cases import BoneFilm, FilmBatch, FilmDraws, FilmVariation, exposed_anew
from xreg.shape.films import label_thickness
from xreg.shape.networks import Views
from xreg.shape.networks.backproject import look_up
from xreg.shape.networks.views import TOWARDS
from xreg.shape.sources import AsTheyAre
from xreg.shape.targets import Cases
from xreg.shape.train_settings import ShapeTrainSettings

STILL = shape_case.STILL


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def middle(thickness: torch.Tensor) -> torch.Tensor:
    """Pixel (u, v) of the middle of a map."""
    v, u = (torch.arange(n, dtype=torch.float32) for n in thickness.shape)
    return torch.stack([(thickness.sum(0) * u).sum(), (thickness.sum(1) * v).sum()]) / thickness.sum()


def test_a_film_carries_the_thickness_of_its_bones() -> None:
    case = shape_case.sample(cameras=shape_case.c_arms())
    films = BoneFilm.of(case)
    views = Views.of(case.films, case.cameras, case.grid)
    for number, film in enumerate(films):
        assert film.numbers.tolist() == [20, 21, 22, 23]
        maps = label_thickness(case.labels, case.grid, case.cameras[number], len(shape_case.SPINE))
        turned = views.turned(torch.stack([maps, maps])[None])[0, number]
        torch.testing.assert_close(film.thickness.float() * 50, turned[20:24], atol=0.05, rtol=1e-3)
    batch = FilmBatch.of(films)
    torch.testing.assert_close(batch.inputs, views.inputs())
    assert batch.thickness.shape == (2, len(shape_case.SPINE) - 1, 48, 40)
    assert float(batch.thickness[:, :19].abs().max()) == 0


def test_a_mirrored_film_is_that_of_the_mirrored_body() -> None:
    case = shape_case.sample(cameras=shape_case.c_arms())
    mirrored = Views.of(case.films, case.cameras, case.grid, mirror=True)
    for number, film in enumerate(BoneFilm.of(case)):
        other = film.mirrored()
        torch.testing.assert_close(other.film, mirrored.films[0, number])
        torch.testing.assert_close(other.rays, mirrored.rays[0, number], atol=1e-5, rtol=1e-5)
        assert float(other.rays[3:6] @ torch.tensor(TOWARDS)) >= 0
        back = other.mirrored()
        assert torch.equal(back.film, film.film)
        assert torch.equal(back.numbers, film.numbers)


def test_bones_follow_the_film() -> None:
    """What is bright in the film is where the bones are, whatever was done to both."""
    how = FilmVariation(pixel_mm=(3.0, 5.0), gamma=1, shade=0, veil=0, noise=0)
    for seed in range(6):
        film = BoneFilm.of(shape_case.sample(seed=seed))[seed % 2]
        film = replace(film, film=(film.thickness.float().sum(0) / film.thickness.float().sum(0).max()))
        made = film.varied(how, seeded(seed), (40, 36))
        assert made.film.shape == (40, 36)
        bones = made.thickness.float().sum(0)
        torch.testing.assert_close(middle(made.film.clamp_min(0)), middle(bones), atol=0.5, rtol=0)


def test_a_zoom_is_told_by_the_size_of_a_pixel() -> None:
    film = BoneFilm.of(shape_case.sample())[0]
    for zoom in (0.6, 1.0, 1.5):
        how = replace(STILL, pixel_mm=(4.0 / zoom, 4.0 / zoom), zoom=(0.5, 2.0))
        made = film.varied(how, seeded(3), (80, 64))
        assert float(made.rays[9] - film.rays[9]) == pytest.approx(-math.log(zoom), abs=1e-5)
        bone, before = (float(x.thickness.float().sum()) for x in (made, film))
        assert bone == pytest.approx(before * zoom**2, rel=0.05)
    larger = film.varied(replace(STILL, body=0.2), seeded(5))
    factor = math.exp(float(larger.rays[9] - film.rays[9]))
    assert factor != pytest.approx(1, abs=0.01)
    assert float(larger.thickness.max()) == pytest.approx(factor * float(film.thickness.max()), rel=0.05)


def test_a_turned_film_says_how_it_lies() -> None:
    """Rows and columns, told in the world, point to the same voxels as before."""
    film = BoneFilm.of(shape_case.sample())[0]
    for seed in range(4):
        made = film.varied(replace(STILL, degrees=10), seeded(seed), (64, 64))
        step = middle(made.thickness[3].float()) - middle(made.thickness[0].float())
        before = middle(film.thickness[3].float()) - middle(film.thickness[0].float())
        now = step[0] * made.rays[3:6] + step[1] * made.rays[6:9]
        then = before[0] * film.rays[3:6] + before[1] * film.rays[6:9]
        torch.testing.assert_close(now, then, atol=0.6, rtol=0)


def test_films_exposed_anew_stay_films() -> None:
    films = torch.rand(2, 30, 30, generator=seeded())
    other = exposed_anew(films, FilmVariation(), seeded(1))
    assert 0 <= float(other.min()) < float(other.max()) <= 1
    assert not torch.allclose(other, films)
    assert torch.equal(other, exposed_anew(films, FilmVariation(), seeded(1)))
    dark = exposed_anew(torch.zeros(1, 30, 30), FilmVariation(), seeded(2))
    assert bool(dark.isfinite().all())


def test_draws_come_from_seed_and_step() -> None:
    settings = ShapeTrainSettings(steps=4, film_batch=3)
    source = AsTheyAre([shape_case.sample(p, n) for n, p in enumerate("ab")])
    one, same = (FilmDraws(source, settings).batch(2) for _ in range(2))
    assert one.inputs.shape == (3, 13, 32, 24)
    assert torch.equal(one.inputs, same.inputs)
    assert torch.equal(one.thickness, same.thickness)
    assert not torch.equal(one.inputs, FilmDraws(source, settings).batch(3).inputs)


def test_coarser_grids_have_larger_pixels() -> None:
    usual = FilmVariation()
    assert usual.on_grids_of(160) == usual
    assert usual.on_grids_of(80).pixel_mm == pytest.approx([2 * edge for edge in usual.pixel_mm])


@pytest.mark.parametrize("zoom", [0.7, 1.4])
def test_a_reframed_case_shows_the_same_world(zoom: float) -> None:
    case = Cases.of(shape_case.sample(cameras=shape_case.c_arms((60, 50))))
    size = torch.tensor(case.views.shape[::-1])
    shift = torch.tensor([0.1, -0.05, 0.08])
    start = (size - 1) / 2 * (1 - zoom) + shift * size
    made = case.reframed(zoom, shift)
    index = torch.rand(1, 400, 3, generator=seeded()) * (size - 1)
    old = start + zoom * index
    before, seen = look_up(case.views.films[0][:, None], case.views, old)
    after, still = look_up(made.views.films[0][:, None], made.views, index)
    both = seen & still
    off = (before - after)[:, :, 0].abs()[both]
    assert int(both.sum()) > 200
    assert float(off.mean()) < 0.03  # films are interpolated twice
    there = torch.cat([old, torch.ones(1, 400, 1)], -1) @ case.views.place.transpose(1, 2)
    here = torch.cat([index, torch.ones(1, 400, 1)], -1) @ made.views.place.transpose(1, 2)
    assert float((there - here).std(1).max()) < 1e-4  # the same way about another middle
    volume = zoom**3 * float((made.labels > 0).sum())
    if zoom > 1:  # all of it is in view
        assert volume == pytest.approx(float((case.labels > 0).sum()), rel=0.1)
    for label in (21, 22):
        found = (made.labels[0] == label).nonzero().float().mean(0).flip(0) * zoom + start
        was = (case.labels[0] == label).nonzero().float().mean(0).flip(0)
        torch.testing.assert_close(found, was, atol=1.0, rtol=0)


def test_variations_are_checked() -> None:
    for wrong in ({"pixel_mm": (3.0, 2.0)}, {"zoom": (0.0, 1.0)}, {"gamma": 0.9}, {"noise": -1.0}):
        with pytest.raises(ShapeError):
            FilmVariation(**wrong)
