"""Starts from nowhere, from several guesses, and from frame to frame."""

import builtins
from dataclasses import replace

import numpy as np
import pytest
import torch
from poses_of_body import moved, target_error

import xreg
from xreg import se3
from xreg.errors import BackendError, GeometryError, InputWarning, RegistrationError
from xreg.io import Radiograph
from xreg.registration import SearchBox, SearchSettings, Tracker, locate, register_anywhere, register_best
from xreg.registration.anatomy import Voxels
from xreg.registration.search import Scout
from xreg.registration.views import check_views
from xreg.renderer import Beam

SMALL = SearchSettings(samples=768, heat=8, finalists=2, grid_mm=6.0, evolution=0)


def test_search_finds_a_pose_forty_degrees_and_sixty_millimetres_away(body, camera, film, truth):
    start = moved(body, (-25, 18, 22), (-35, 30, 40), truth)
    out = register_anywhere(body, film, camera, start, search=SMALL)
    assert target_error(body, start, truth) > 50
    assert target_error(body, out.world_from_body, truth) < 1.0
    assert out.accepted


def test_search_repeats_itself(body, camera, film):
    few = SearchSettings(samples=64, heat=3, finalists=1, grid_mm=8.0, evolution=0)
    a, b = (locate(body, film, camera, search=few) for _ in range(2))
    assert torch.equal(a[0][0], b[0][0])


def test_the_box_is_what_it_says(body, camera, film):
    box = SearchBox((30.0, 20.0, 10.0), (25.0, 35.0, 45.0))
    scout = Scout(body, check_views(film, None, camera), torch.eye(4, dtype=torch.float64), box, SMALL)
    axes = camera.world_from_camera[:3, :3].T
    for k, expected in enumerate(box.mm):
        x = torch.zeros(6, dtype=torch.float64)
        x[3 + k] = box.reach[3 + k]
        shift = se3.apply(scout.pose(x), body.center[None])[0] - body.center
        torch.testing.assert_close(
            axes @ shift, expected * torch.eye(3, dtype=torch.float64)[k], atol=1e-9, rtol=0
        )
    x = torch.tensor([box.reach[0], 0, 0, 0, 0, 0], dtype=torch.float64)
    turn = se3.log(scout.pose(x))[:3]
    torch.testing.assert_close(
        axes @ turn, torch.tensor([0, np.deg2rad(30), 0], dtype=torch.float64), atol=1e-9, rtol=0
    )
    poses = scout.sobol()
    middles = se3.apply(poses, body.center[None])[:, 0] - body.center
    assert bool(((middles @ axes.T).abs() <= torch.tensor(box.mm) + 1e-9).all())


def test_the_view_from_behind_is_tried(body, camera, film, truth):
    scout = Scout(body, check_views(film, None, camera), truth, SearchBox(), SMALL)
    for behind in scout.antipodes(truth):
        turn, _ = se3.geodesic_distance(behind, truth)
        assert float(turn) == pytest.approx(np.pi, abs=1e-6)
        torch.testing.assert_close(se3.apply(behind, body.center[None]), se3.apply(truth, body.center[None]))


def test_evolution_improves_on_its_start(body, camera, film, truth):
    pytest.importorskip("cmaes", reason="the package cmaes is not installed (extra: search)")
    search = SearchSettings(grid_mm=6.0, evolution=15, population=16)
    start = moved(body, (-10, 8, 9), (-15, 12, 20), truth)
    scout = Scout(body, check_views(film, None, camera), start, SearchBox((30, 30, 30), (30, 30, 40)), search)
    before, after = scout.score(torch.stack([start, scout.evolve(start)]))
    assert after > before


def test_evolution_without_its_package_is_explained(body, camera, film, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name == "cmaes":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    scout = Scout(body, check_views(film, None, camera), torch.eye(4).double(), SearchBox(), SMALL)
    with pytest.raises(BackendError, match=r"xreg\[search\]"):
        scout.evolve(torch.eye(4).double())
    few = SearchSettings(samples=64, heat=3, finalists=1, grid_mm=8.0, evolution=0)
    without = locate(body, film, camera, search=few)
    with pytest.warns(InputWarning, match="package cmaes") as told:
        found = locate(body, film, camera, search=replace(few, evolution=40, convincing=2.0))
    assert len(told) == 1
    assert torch.equal(found[0][0], without[0][0])


def test_of_several_starts_the_best_answer_is_kept(body, camera, film, truth):
    starts = [
        moved(body, (0, 0, 0), (0, 0, 900)),
        moved(body, (60, 50, 40), (0, 0, 0)),
        moved(body, (4, 3, 2), (5, 4, 6), truth),
    ]
    out = register_best(body, film, camera, starts)
    assert target_error(body, out.world_from_body, truth) < 1.0
    with pytest.raises(RegistrationError, match="at least one start"):
        register_best(body, film, camera, [])
    with pytest.raises(xreg.errors.GeometryError, match="outside the beam"):
        register_best(body, film, camera, starts[:1])


@pytest.mark.parametrize("words", [{"degrees": (1.0, 2.0)}, {"mm": (1.0, -2.0, 3.0)}])
def test_a_box_has_three_sizes_each(words):
    with pytest.raises(RegistrationError, match="three angles and three distances"):
        SearchBox(**words)


@pytest.fixture(scope="module")
def sequence(body, camera):
    """A body that moves steadily, then turns back; the fifth film shows nothing."""
    poses, films, pose = [], [], moved(body, (1, -1, 2), (2, 3, -2))
    for number in range(9):
        pose = moved(body, (0.8, -0.5, 0.6), (1.5, -1.0, 0.8), pose)
        poses.append(pose)
        image = xreg.drr(body, camera, pose, integrator="siddon", storage="float")
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(number))
        films.append(noise if number == 5 else image + 0.01 * noise)
    return poses, films


def test_tracker_follows_loses_and_finds_again(body, camera, sequence):
    poses, films = sequence
    tracker = Tracker(body, camera, moved(body, (2, 2, -2), (4, -3, 5), poses[0]), search=SMALL)
    frames = tracker.run(films)
    assert [f.lost for f in frames] == [n == 5 for n in range(9)]
    assert frames[6].recovered
    assert frames[5].result is None
    for number in (0, 1, 2, 3, 4, 6, 7, 8):
        assert target_error(body, frames[number].world_from_body, poses[number]) < 1.0
    assert target_error(body, frames[4].expected, poses[4]) < 0.5 * target_error(body, poses[3], poses[4])
    assert [f.number for f in tracker.frames] == list(range(9))


def test_a_lost_frame_holds_where_the_body_was_last_seen(body, camera, sequence):
    _, films = sequence
    quick = SearchSettings(samples=64, heat=2, finalists=1, grid_mm=8.0, antipode=False, evolution=0)
    tracker = Tracker(body, camera, sequence[0][0], search=quick)
    *_, seen, lost = tracker.run([films[0], films[1], films[5]])
    assert lost.lost
    assert torch.equal(lost.world_from_body, seen.world_from_body)
    assert target_error(body, lost.expected, seen.world_from_body) > 1.0
    start = torch.as_tensor(moved(body, (1, 1, 1), (1, 2, 3)))
    assert torch.equal(Tracker(body, camera, start, search=quick).update(films[5]).world_from_body, start)


@pytest.mark.parametrize("reach", [(float("nan"), 1.0, 1.0), (float("inf"), 1.0, 1.0), (-1.0, 1.0, 1.0)])
def test_a_box_is_finite(reach):
    with pytest.raises(RegistrationError, match="finite and not negative"):
        SearchBox(mm=reach)
    with pytest.raises(RegistrationError, match="finite and not negative"):
        SearchBox(degrees=reach)


def test_a_mistake_of_the_caller_is_not_a_lost_body(body, camera, sequence):
    films = sequence[1]
    with pytest.raises(GeometryError, match=r"init .*reflection"):
        Tracker(body, camera, np.diag([-1.0, 1, 1, 1]))
    with pytest.raises(RegistrationError, match=r"one Camera.*Got str"):
        Tracker(body, "camera.json")
    with pytest.raises(RegistrationError, match=r"batch of shape \(2,\)"):
        Tracker(body, xreg.Camera.stack([camera, camera]))
    with pytest.raises(RegistrationError, match="takes a Volume"):
        Tracker(films[0], camera)
    with pytest.raises(RegistrationError, match="needs a camera"):
        Tracker(body, None).update(films[0])
    with pytest.raises(RegistrationError, match="as many films, cameras and masks"):
        Tracker(body, [camera, camera]).update(films[:1])


def test_a_tracker_takes_radiographs_that_bring_their_camera(body, camera, sequence):
    poses, films = sequence
    radiograph = Radiograph(
        image=4000 * torch.exp(-films[0]), mask=torch.ones_like(films[0]) > 0, camera=camera, sign=1
    )
    frame = Tracker(body, None, poses[0]).update(radiograph)
    assert not frame.lost
    views = Tracker(body, [None, None], poses[0]).update([radiograph, radiograph])
    assert not views.lost
    assert target_error(body, frame.world_from_body, poses[0]) < 1.0


def test_what_cannot_be_searched_is_found_again_where_it_was_last_seen(body, camera, sequence):
    """X-ray Gaussians and other anatomies: a search needs voxels, a registration does not."""
    poses, films = sequence
    tracker = Tracker(Voxels(body, Beam("joseph")), camera, poses[4])
    frames = tracker.run([films[4], films[5], films[6]])
    assert [(f.lost, f.recovered) for f in frames] == [(False, False), (True, False), (False, True)]
    assert target_error(body, frames[2].world_from_body, poses[6]) < 1.0


def test_tracker_distrusts_a_jump(body, camera, sequence):
    poses, films = sequence
    tracker = Tracker(body, camera, poses[0], jump=(0.1, 0.1), search=SMALL)
    assert tracker.update(films[2]).recovered


@pytest.mark.parametrize(
    "words", [{"samples": 0}, {"heat": 0}, {"finalists": 1.5}, {"evolution": -1}, {"grid_mm": 0.0}]
)
def test_settings_of_a_search_are_counts(words):
    with pytest.raises(RegistrationError, match=f"{next(iter(words))} of a search must be"):
        SearchSettings(**words)
