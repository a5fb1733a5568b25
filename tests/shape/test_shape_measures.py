"""Measures of bones whose shape is known, at several orientations, voxels and grids; and of real patients."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from shape_phantoms import ANTERIOR, RIGHT, UP, body, femur, grid_about, paint, rib, sacrum, turned

from xreg.errors import ShapeError
from xreg.io import VoxelGrid
from xreg.shape import load_shipped
from xreg.shape.measures import draw_labels, measure, measure_probabilities
from xreg.shape.measures.femur import Sphere, fit_sphere
from xreg.shape.measures.field import Bones, angle
from xreg.shape.measures.pelvis import pelvic_angles, sacral_plate
from xreg.shape.measures.spine import fit_bodies
from xreg.shape.measures.vertebra import Plane, fit_body, fit_plane
from xreg.shape.schemes import SCHEMES
from xreg.shape.shares import Shares

AWAY = np.array([40.0, -70.0, 200.0])


# ---- one vertebra ----


@pytest.mark.parametrize(
    ("voxel", "codes", "axis", "degrees", "wedge"),
    [(1.0, "RAS", RIGHT, 0, 0), (1.0, "LPS", (1, 0.5, 0.2), 18, 6), (1.5, "LAS", (0, 1, 0), -15, 0),
     (2.0, "RAS", (1, 0, 0.3), 25, 9), (2.0, "LPS", (0.2, 1, 0), 12, 4), (2.5, "RAS", (1, 1, 1), 14, 0)],
)  # fmt: skip
def test_a_body_is_found_with_its_plates_and_heights(voxel, codes, axis, degrees, wedge):
    turn = turned(axis, degrees)
    grid = grid_about(AWAY - 75, AWAY + 75, voxel, codes=codes)
    bones = Bones(paint(grid, {"L3": body(AWAY, turn, height=26, wedge=wedge)}), grid)
    found = fit_body(bones["L3"])
    right, ahead, up = turn.T
    tilt = np.degrees(np.arctan2(0.5 * wedge, 34))  # of each plate
    for plate, sign in ((found.superior, 1), (found.inferior, -1)):
        assert angle(plate.normal, turned(right, -sign * tilt) @ up) < 1.0 + voxel
        assert abs((plate.point - AWAY) @ up - sign * 13) < 0.4 * voxel
    assert angle(found.up, up) < 1.0 + 0.5 * voxel
    assert angle(found.anterior, ahead) < 4.0
    assert np.linalg.norm(found.center - AWAY) < 1.0 * voxel
    true = [26 - wedge * (t - 0.5) for t in (0.9, 0.5, 0.1)]
    assert found.heights == pytest.approx(true, abs=0.5 * voxel + 0.2)
    assert (found.depth, found.width) == pytest.approx(
        (34, 44), abs=1.5 * voxel + 1
    )  # width is a mean over depths


def test_height_loss_has_genant_s_grades():
    bones = {f"L{n}": body(np.array([0, 0, -38.0 * n]), np.eye(3), height=28) for n in (1, 2, 4, 5)}
    bones["L3"] = body(np.array([0, 0, -114.0]), np.eye(3), height=24, wedge=12)
    grid = grid_about((-30, -70, -230), (30, 25, 0), 1.0)
    found = measure(paint(grid, bones), grid)
    front, back = 24 - 12 * 0.4, 24 + 12 * 0.4
    assert found["height_anterior_L3"].value == pytest.approx(front, abs=0.5)
    assert found["height_posterior_L3"].value == pytest.approx(back, abs=0.5)
    loss = found["height_loss_L3"]
    assert loss.value == pytest.approx(100 * (1 - front / back), abs=2.0)
    assert dict(loss.detail) == {"grade": 2, "kind": "wedge"}
    assert all(found[f"height_loss_L{n}"].detail["grade"] == 0 for n in (1, 2, 4, 5))
    assert found["height_loss_T12"].reason == "not in view: T12 is missing"


def test_a_coarse_picture_is_not_graded_and_a_cut_one_not_measured():
    bones = {"L3": body(np.zeros(3), np.eye(3)), "L4": body(np.array([0, 0, -36.0]), np.eye(3))}
    grid = grid_about((-30, -70, -44), (30, 25, 30), 3.0)
    found = measure(paint(grid, bones), grid)
    assert found["height_loss_L3"].detail["grade"] is None
    assert "3.0 mm is too coarse" in found["height_loss_L3"].detail["kind"]
    assert found["height_middle_L4"].value is None
    assert found["height_middle_L4"].reason == "not in view: L4 touches the edge of the volume"
    assert found["cobb_coronal"].reason.startswith("not in view: 1 of the 3")


# ---- curves ----


def test_cobb_kyphosis_and_lordosis_of_a_stack():
    sideways = {"T4": -12, "T8": 4, "T12": 16, "L1": 10, "L3": -8, "L5": -4}  # normals lean to the right
    forward = {"T4": 22, "T8": 5, "T12": -14, "L1": -16, "L3": 0, "L5": 24}
    bones = {}
    for n, name in enumerate(sideways):
        turn = turned(ANTERIOR, sideways[name]) @ turned(RIGHT, -forward[name])
        bones[name] = body(np.array([0.0, 0.0, -48.0 * n]), turn, height=24)
    grid = grid_about((-40, -75, -275), (40, 35, 35), 1.5, codes="LAS")
    found = measure(paint(grid, bones), grid)
    lean = {name: turned(ANTERIOR, sideways[name]) @ turned(RIGHT, -forward[name]) @ UP for name in sideways}
    seen = {name: np.degrees(np.arctan2(n[0], n[2])) for name, n in lean.items()}
    cobb = found["cobb_coronal"]
    assert (cobb.detail["upper"], cobb.detail["lower"]) == ("T4", "T12")
    assert cobb.detail["convex"] == "right"
    assert cobb.value == pytest.approx(abs(seen["T4"] - seen["T12"]), abs=2.5)
    assert found["cobb_3d"].value == pytest.approx(angle(lean["T4"], lean["T12"]), abs=2.5)
    side = {name: np.degrees(np.arctan2(n[1], n[2])) for name, n in lean.items()}
    assert found["kyphosis_T4_T12"].value == pytest.approx(side["T4"] - side["T12"], abs=2.5)
    assert found["lordosis_L1_L5"].value == pytest.approx(side["L5"] - side["L1"], abs=2.5)
    assert found["lordosis_L1_S1"].reason == "not in view: sacrum is missing"


# ---- hips and sacrum ----


@pytest.mark.parametrize(
    ("slope", "back", "voxel", "lumbar"), [(40, 12, 2.0, True), (28, 25, 3.0, False), (52, 0, 2.5, True)]
)
def test_pelvic_angles_of_a_built_pelvis(slope, back, voxel, lumbar):
    plate = np.array([0.0, 0.0, 0.0])
    hips = plate + 105 * np.array([0, np.sin(np.radians(back)), -np.cos(np.radians(back))])
    bones = {"sacrum": sacrum(plate, slope)}
    for side, sign in (("left", -1), ("right", 1)):
        bones[f"femur_{side}"] = femur(hips + 88 * sign * RIGHT, side)
    if lumbar:
        turn = turned(RIGHT, -slope)
        bones["L5"] = body(plate + turn @ np.array([0, 0, 22.0]), turn, height=26)
    grid = grid_about((-130, -70, -150), (130, 80, 45), voxel, codes="LAS")
    found = measure(paint(grid, bones), grid)
    incidence, slant, tilt = (found[n].value for n in ("pelvic_incidence", "sacral_slope", "pelvic_tilt"))
    assert incidence == pytest.approx(slant + tilt, abs=1e-6)
    assert slant == pytest.approx(slope, abs=1.0 + 0.5 * voxel)
    assert tilt == pytest.approx(back, abs=1.5)
    assert incidence == pytest.approx(slope + back, abs=1.5 + 0.5 * voxel)
    for side in ("left", "right"):
        assert found[f"femoral_head_radius_{side}"].value == pytest.approx(24, abs=0.4 * voxel)


@pytest.mark.parametrize("turned_round", [False, True], ids=["k to the head", "k to the side"])
def test_a_sacrum_that_is_cut_at_the_top_has_no_plate(turned_round):
    grid = grid_about((-60, -70, -110), (60, 60, 0), 2.0)
    labels = paint(grid, {"sacrum": sacrum(np.zeros(3), 40)})
    labels[-1, 20:40, 20:40] = SCHEMES["all"].index("sacrum")
    if turned_round:
        affine = grid.affine[:, [2, 1, 0, 3]]
        labels = labels.permute(2, 1, 0).contiguous()
        grid = VoxelGrid(tuple(labels.shape), affine)
    found = measure(labels, grid)
    assert found["sacral_slope"].reason == "not in view: sacrum touches the upper edge of the volume"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_incidence_is_tilt_plus_slope_for_any_pelvis(seed):
    rng = np.random.default_rng(seed)
    turn = turned(rng.normal(size=3), rng.uniform(-30, 30))
    heads = [Sphere(turn @ np.array([s * 90, 0, -100]) + rng.normal(0, 5, 3), 24.0) for s in (-1, 1)]
    plate = Plane(rng.normal(0, 8, 3), turn @ turned(RIGHT, -rng.uniform(10, 70)) @ UP)
    incidence, slope, tilt = pelvic_angles(plate, *heads)
    assert (incidence - slope - tilt + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)
    moved = turned(rng.normal(size=3), 20)  # posture: the incidence stays
    other = pelvic_angles(
        Plane(moved @ plate.point, moved @ plate.normal), *(Sphere(moved @ h.center, 24.0) for h in heads)
    )
    assert abs(other[0]) == pytest.approx(abs(incidence), abs=1e-6)


@pytest.mark.parametrize(
    ("side", "slant", "voxel"), [("left", 128, 2.0), ("right", 115, 2.0), ("left", 142, 2.5)]
)
def test_neck_and_shaft_of_a_built_femur(side, slant, voxel):
    head = np.array([20.0, 15.0, 40.0])
    grid = grid_about(head - (110, 50, 190), head + np.array([110.0, 50, 50]), voxel, codes="LPS")
    labels = paint(grid, {f"femur_{side}": femur(head, side, angle=slant, neck=50)})
    found = measure(labels, grid)
    assert found[f"neck_shaft_angle_{side}"].value == pytest.approx(slant, abs=3.0)
    assert found[f"femoral_offset_{side}"].value == pytest.approx(
        50 * np.sin(np.radians(slant)), abs=0.5 * voxel + 1
    )
    assert found[f"femoral_head_radius_{side}"].value == pytest.approx(24, abs=0.5 * voxel)
    other = "right" if side == "left" else "left"
    assert found[f"femoral_offset_{other}"].reason == f"not in view: femur_{other} is missing"


def test_a_femur_without_enough_shaft_or_with_a_cut_head():
    head = np.array([-90.0, 0.0, 0.0])
    bone = {"femur_left": femur(head, "left")}
    short = grid_about(head - (80, 50, 90), head + np.array([60.0, 50, 50]), 2.0)
    found = measure(paint(short, bone), short)
    assert found["femoral_head_radius_left"].value == pytest.approx(24, abs=1)
    assert "of shaft" in found["neck_shaft_angle_left"].reason
    cut = grid_about(head - (80, 50, 190), head + np.array([60.0, 50, 12]), 2.0)
    found = measure(paint(cut, bone), cut)
    assert "femur_left" in found["femoral_head_radius_left"].reason
    assert found["pelvic_incidence"].value is None


def test_a_crumb_below_a_short_femur_is_no_shaft():
    head = np.array([-90.0, 0.0, 0.0])
    grid = grid_about(head - (80, 50, 190), head + np.array([60.0, 50, 50]), 2.0)
    labels = paint(grid, {"femur_left": femur(head, "left")})
    upper = grid.affine.numpy()[2, 3] + grid.affine.numpy()[2, 2] * np.arange(grid.shape[0]) > head[2] - 90
    labels[~torch.from_numpy(upper)] = 0
    labels[2, 40, 60] = SCHEMES["all"].index("femur_left")
    found = measure(labels, grid)
    assert found["femoral_head_radius_left"].value == pytest.approx(24, abs=1)
    assert "mm of shaft of the 40 mm" in found["neck_shaft_angle_left"].reason


# ---- the cage ----


def cage(missing: str = "") -> dict:
    return {
        f"rib_{side}_{n}": rib(side, -16.0 * n, (120, 90))
        for side in ("left", "right")
        for n in range(1, 11)
        if f"rib_{side}_{n}" != missing
    }


@pytest.mark.parametrize("voxel", [2.0, 4.0])
def test_the_volume_of_a_cage_of_rings(voxel):
    # Slabs between two rings hold none, so rings must overlap in height: a cylinder of 12 mm every 12 mm.
    bones = {
        f"rib_{side}_{n}": rib(side, -12.0 * n, (120, 90)) for side in ("left", "right") for n in range(1, 11)
    }
    grid = grid_about((-130, -100, -140), (130, 100, 10), voxel, codes="LAS")
    found = measure(paint(grid, bones), grid)["ribcage_volume"]
    assert found.value == pytest.approx(np.pi * 120 * 90 * 120 / 1000, rel=0.03)
    assert found.unit == "cm³"


def test_a_cage_without_one_rib_is_not_in_view():
    grid = grid_about((-130, -100, -180), (130, 100, 10), 5.0)
    found = measure(paint(grid, cage("rib_left_4")), grid)["ribcage_volume"]
    assert found.reason == "not in view: rib_left_4 is missing"


# ---- fits ----


def test_plane_and_sphere_do_not_mind_a_spur():
    x, y = np.linspace(-15, 15, 21), np.linspace(-12, 12, 17)
    z = 3 + 0.1 * x[:, None] - 0.2 * y[None]
    z[:3, :3] += 6
    assert fit_plane(x, y, z, np.ones_like(z, bool)) == pytest.approx([3, 0.1, -0.2], abs=0.01)
    rng = np.random.default_rng(1)
    points = rng.normal(size=(300, 3))
    points = 24 * points / np.linalg.norm(points, axis=1, keepdims=True) + AWAY
    points[:20] += 15
    center, radius = fit_sphere(points)
    assert center == pytest.approx(AWAY, abs=0.01)
    assert radius == pytest.approx(24, abs=0.01)


# ---- doubt ----


def test_drawn_labels_follow_the_probabilities_and_the_seed():
    grid = VoxelGrid((6, 8, 10), torch.diag(torch.tensor([4.0, 4, 4, 1], dtype=torch.float64)))
    raw = torch.rand(3, *grid.shape, generator=torch.Generator().manual_seed(0))
    raw[2, :3] = 0
    p = raw / raw.sum(0)
    drawn = torch.stack(list(draw_labels(p, grid, count=400, correlation_mm=8.0, seed=3)))
    share = torch.stack([(drawn == n).float().mean(0) for n in range(3)])
    assert float((share - p).abs().max()) < 0.13  # five standard errors of 400
    assert float((share - p).mean().abs()) < 0.004
    assert not (drawn[:, :3] == 2).any()
    again = torch.stack(list(draw_labels(p, grid, count=2, correlation_mm=8.0, seed=3)))
    assert torch.equal(again, drawn[:2])
    assert not torch.equal(next(draw_labels(p, grid, seed=4)), drawn[0])
    flat = p.flatten(1).T
    some = torch.arange(0, len(flat), 3)
    shares = Shares(some, torch.tensor([0, 4, 9]), flat[some])
    own = draw_labels(shares, grid, count=2, correlation_mm=8.0, seed=3)
    whole = torch.zeros(3, len(flat))
    whole[0], whole[:, some] = 1.0, flat[some].T
    for mine, other in zip(
        own, draw_labels(whole.reshape(p.shape), grid, count=2, correlation_mm=8.0, seed=3), strict=True
    ):
        assert torch.equal(mine.long(), torch.tensor([0, 4, 9])[other.long()])
    together = (drawn[:, :, :, 1:] == drawn[:, :, :, :-1]).float().mean()
    alone = (p[:, :, :, 1:] * p[:, :, :, :-1]).sum(0).mean()
    assert float(together) > float(alone) + 0.1, "neighbours move together"


def test_a_blurred_bone_has_a_doubt_that_grows_with_the_blur():
    grid = grid_about((-30, -70, -30), (30, 25, 30), 2.0)
    sharp = paint(grid, {"L3": body(np.zeros(3), np.eye(3))})
    spread = []
    for blur in (0.6, 1.2):
        inside = torch.from_numpy(gaussian_filter((sharp == 22).numpy().astype(np.float32), blur)).clamp(0, 1)
        p = torch.zeros(55, *grid.shape)
        p[0], p[22] = 1 - inside, inside
        found = measure_probabilities(p, grid, count=6, seed=1)["height_middle_L3"]
        assert found.value == pytest.approx(26, abs=1.5)
        assert found.detail == {"samples": 6, "samples_in_view": found.detail["samples_in_view"]}
        spread.append(found.sd)
    assert 0 < spread[0] < spread[1] < 6
    assert "±" in found.text


def test_samples_give_their_standard_deviation():
    grid = grid_about((-30, -70, -30), (30, 25, 30), 2.0)
    maps = [paint(grid, {"L3": body(np.zeros(3), np.eye(3), height=h)}) for h in (26, 22, 30)]
    alone = [measure(m, grid)["height_middle_L3"].value for m in maps]
    found = measure(maps[0], grid, samples=maps)["height_middle_L3"]
    assert found.value == alone[0]
    assert found.sd == pytest.approx(np.std(alone, ddof=1))
    assert measure(maps[0], grid)["height_middle_L3"].sd is None


def test_bad_input_is_refused():
    grid = grid_about((0, 0, 0), (10, 10, 10), 2.0)
    labels = torch.zeros(grid.shape, dtype=torch.int16)
    with pytest.raises(ShapeError, match="does not know the labels 77"):
        measure(labels + 77, grid)
    with pytest.raises(ShapeError, match=r"shape \[5, 5, 5\].*\[4, 5, 5\]"):
        measure(labels[1:], grid)
    with pytest.raises(ShapeError, match="add up to 1"):
        next(draw_labels(torch.ones(2, *grid.shape), grid))
    with pytest.raises(ShapeError, match="probabilities must be floating"):
        next(draw_labels(torch.ones(2, 3, 3, 3), grid))
    empty = measure(labels, grid)
    assert all(item.value is None and item.reason.startswith("not in view") for item in empty)
    with pytest.raises(ShapeError, match="no measure 'height'"):
        empty["height"]
    assert json.loads(json.dumps(empty.to_json()))[0]["unit"] == "mm"


# ---- real patients ----


@pytest.fixture
def patients(shared_data):
    folder = shared_data / "swinx2s"
    if not folder.is_dir():
        pytest.skip("the patients of Swin-X2S are not among the shared data")
    return folder


def test_a_real_patient_has_ordinary_measures(patients):
    case = load_shipped(patients / "s0561")
    found = measure(case.labels(), case.grid)
    ranges = {
        "pelvic_incidence": (30, 85), "sacral_slope": (15, 65), "pelvic_tilt": (-5, 35),
        "cobb_coronal": (0, 20), "kyphosis_T4_T12": (15, 60), "lordosis_L1_S1": (30, 85),
        "femoral_head_radius_left": (19, 29), "femoral_head_radius_right": (19, 29),
        "ribcage_volume": (4000, 14000), "height_middle_L3": (20, 34),
        "height_middle_T8": (14, 26),
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        assert low < found[name].value < high, found[name]
    assert found["pelvic_incidence"].value == pytest.approx(
        found["sacral_slope"].value + found["pelvic_tilt"].value, abs=1e-6
    )
    bodies = fit_bodies(Bones(case.labels(), case.grid))
    heights = [bodies[n].center[2] for n in ("T5", "T8", "T12", "L2", "L5")]
    assert heights == sorted(heights, reverse=True)


def test_what_a_spine_file_does_not_show(patients):
    case = load_shipped(patients / "0532")
    found = measure(case.labels(), case.grid, "spine")
    assert found["height_middle_T10"].reason == "not in view: T10 touches the edge of the volume"
    assert found["pelvic_incidence"].reason == "not in view: sacrum is missing"
    assert 10 < found["lordosis_L1_L5"].value < 60


# ---- what a network in doubt may leave ----


@pytest.mark.parametrize("seed", range(3))
def test_crumbs_are_measured_or_refused_with_a_reason(seed):
    generator = torch.Generator().manual_seed(seed)
    shape, extents = (40, 32, 32), ((1, 1, 1), (7, 1, 1), (1, 6, 6), (5, 5, 5), (2, 7, 3))
    labels = torch.zeros(shape, dtype=torch.int16)
    for number in range(1, 55):
        at = [int(torch.randint(1, n - 8, (1,), generator=generator)) for n in shape]
        extent = extents[int(torch.randint(len(extents), (1,), generator=generator))]
        labels[tuple(slice(a, a + e) for a, e in zip(at, extent, strict=True))] = number
    for found in measure(labels, VoxelGrid.box(shape, [n * 6.0 for n in reversed(shape)]), "all"):
        assert found.value is None or np.isfinite(found.value)
        assert found.value is not None or found.reason


def test_a_femur_of_one_column_is_no_femur():
    labels = torch.zeros((40, 32, 32), dtype=torch.int16)
    labels[5:30, 16, 16] = 53
    found = measure(labels, VoxelGrid.box((40, 32, 32), [192.0, 192.0, 240.0]), "all")
    mine = [m for m in found if "left" in m.name and ("femoral" in m.name or "neck" in m.name)]
    assert len(mine) == 3
    assert all(m.value is None for m in mine)


def test_a_sacrum_of_two_halves_has_no_plate():
    labels = torch.zeros((40, 32, 32), dtype=torch.int16)
    for side in (slice(4, 9), slice(23, 28)):
        labels[10:22, 12:20, side] = 50
    grid = VoxelGrid.box((40, 32, 32), [192.0, 192.0, 240.0])
    assert sacral_plate(Bones(labels, grid), {}) == "the sacrum has no bone in its midline"
    assert measure(labels, grid, "all")["lordosis_L1_S1"].value is None
