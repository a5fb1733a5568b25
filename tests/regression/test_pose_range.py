"""The box of poses: what its coordinates mean, how poses are drawn, and what is refused."""

import math

import pytest
import torch
from small_training import BOX, body

from xreg.errors import GeometryError
from xreg.geometry import Camera, se3
from xreg.registration.search import Scout, SearchBox, SearchSettings
from xreg.registration.views import View
from xreg.regression import PRESETS, Canonical, PoseRange, parse_range
from xreg.regression.ranges import require_anatomy

CENTER = torch.tensor([12.0, -30.0, 70.0], dtype=torch.float64)


def test_a_pose_is_that_of_a_c_arm_about_the_middle() -> None:
    x = torch.tensor([30.0, -12.0, 7.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    arm = Camera.c_arm(
        sdd=BOX.sdd, sod=BOX.sod, primary=30, secondary=-12, roll=7, size=(8, 8), spacing=1.0,
        isocenter=CENTER,
    )  # fmt: skip
    assert torch.allclose(BOX.pose(x, CENTER), arm.camera_from_world, atol=1e-10)


def test_offsets_are_millimetres_in_the_camera() -> None:
    x = torch.tensor([15.0, 5.0, -4.0, 11.0, -22.0, 33.0], dtype=torch.float64)
    seen = se3.apply(BOX.pose(x, CENTER), CENTER[None])[0]
    assert torch.allclose(seen, torch.tensor([11.0, -22.0, BOX.sod + 33.0], dtype=torch.float64))


@pytest.mark.parametrize("axis", range(6))
def test_each_coordinate_is_the_search_box_s_own(axis: int) -> None:
    """About and along the same axes of the detector as in `SearchBox`, whatever the sign of an angle."""
    volume = body()
    home = torch.zeros(6, dtype=torch.float64)
    camera = Camera.c_arm(sdd=1020, sod=850, size=(8, 8), spacing=40.0, isocenter=volume.center)
    view = View(torch.rand(8, 8), torch.ones(8, 8, dtype=torch.bool), camera)
    search = SearchSettings(grid_mm=32.0)
    scout = Scout(volume, [view], torch.eye(4, dtype=torch.float64), SearchBox(), search)
    mine, theirs = home.clone(), home.clone()
    mine[axis], theirs[axis] = (5.0, math.radians(5.0)) if axis < 3 else (5.0, 5.0)
    nominal = BOX.pose(home, volume.center)
    moved = BOX.pose(mine, volume.center) @ se3.inverse(nominal)  # in the camera
    world = camera.world_from_camera @ moved @ camera.camera_from_world
    found = scout.pose(theirs), scout.pose(-theirs)
    assert any(torch.allclose(world, pose, atol=1e-9) for pose in found)


def test_drawn_poses_fill_the_box_and_nothing_else() -> None:
    for x in (BOX.draw(2000, torch.Generator().manual_seed(1)), BOX.spread(2000)):
        assert bool((x >= BOX.low).all() & (x <= BOX.high).all())
        assert torch.allclose(x.mean(0), BOX.middle, atol=float(0.06 * BOX.half.max()))
        assert torch.allclose(x.std(0), BOX.half / math.sqrt(3), rtol=0.06)


def test_the_same_generator_draws_the_same_poses() -> None:
    first, second = (BOX.draw(5, torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, BOX.draw(5, torch.Generator().manual_seed(10)))


def test_how_far_outside_a_pose_lies() -> None:
    inside = torch.tensor([10.0, 2.0, -3.0, 5.0, 5.0, 5.0], dtype=torch.float64)
    assert BOX.excess(BOX.rotation(inside), BOX.place(inside)) == 0
    outside = torch.tensor([30.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert BOX.excess(BOX.rotation(outside), BOX.place(outside)) == pytest.approx(0.5)


def test_words_change_a_range() -> None:
    found = parse_range(PRESETS["chest"], ["primary=-30:30", "depth=-60:60", "roll=5"])
    assert (found.primary, found.depth, found.roll) == ((-30, 30), (-60, 60), (-5, 5))
    assert found.secondary == PRESETS["chest"].secondary
    assert PoseRange.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("word", ["tilt=1:2", "primary", "primary=a:b", "primary=1:2:3", "roll=9:3", "=1:2"])
def test_words_that_are_no_range(word: str) -> None:
    with pytest.raises(GeometryError):
        parse_range(BOX, [word])


@pytest.mark.parametrize(
    "wrong",
    [
        {"primary": (10, -10)}, {"secondary": (-100, 0)}, {"depth": (-900, 0)}, {"sod": 2000.0},
        {"field": 0.0}, {"lateral": (0, math.nan)},
    ],
)  # fmt: skip
def test_a_range_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(GeometryError):
        PoseRange(**wrong)


def test_a_range_must_see_the_anatomy() -> None:
    volume = body()
    assert require_anatomy(volume, BOX, Canonical.of(BOX, 64).camera) == 1.0
    for offset in ((380.0, 400.0), (5000.0, 5001.0)):  # beside the field, and far from any beam
        away = parse_range(BOX, [f"lateral={offset[0]}:{offset[1]}", f"vertical={offset[0]}:{offset[1]}"])
        with pytest.raises(GeometryError, match="never sees the anatomy"):
            require_anatomy(volume, away, Canonical.of(away, 64).camera)
