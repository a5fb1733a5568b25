import math

import numpy as np
import pytest
import torch
from evaluation_files import pose_of

from xreg import Camera, metrics, se3
from xreg.errors import GeometryError

EYE = torch.eye(4, dtype=torch.float64)
CAMERA = Camera.c_arm(
    sdd=1000, sod=500, size=(101, 121), spacing=(0.5, 0.25)
)  # looks along +y from (0, -500, 0)
POINTS = torch.tensor([[0.0, 0, 0], [30.0, 0, 20.0], [-10.0, 0, 5.0]], dtype=torch.float64)


def beam() -> torch.Tensor:
    return CAMERA.world_from_camera[:3, 2]


def across() -> torch.Tensor:
    return CAMERA.world_from_camera[:3, 0]


# ---- target errors ----


def test_a_shift_moves_every_target_by_its_length():
    moved = se3.from_translation(torch.tensor([2.0, -3.0, 6.0], dtype=torch.float64))
    assert metrics.mtre(moved, EYE, POINTS) == pytest.approx(7.0)
    assert metrics.translation_error(moved, EYE) == pytest.approx(7.0)
    assert metrics.rotation_error(moved, EYE) == 0.0


@pytest.mark.parametrize("form", ["reversed", "big endian", "rows", "single"])
def test_numbers_of_any_layout_are_read(form):
    """With the figures of the tensors, in full precision (but for single precision itself)."""
    pose, xi = pose_of((1.0, -2.0, 3.0), (0.1, 5.0, -7.3)), torch.linspace(-1, 1, 6).double()
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
    spread = root @ root.T

    def made(tensor):
        array = tensor.numpy()
        flipped = array[::-1].copy()[::-1]
        forms = {"reversed": flipped, "big endian": array.astype(">f8"), "rows": array.tolist()}
        return {**forms, "single": array.astype(">f4")}[form]

    near = {"rel": 1e-5 if form == "single" else 1e-14}
    found = metrics.mtre(made(pose), made(EYE), made(POINTS))
    assert found == pytest.approx(metrics.mtre(pose, EYE, POINTS), **near)
    center = POINTS[1]
    found = metrics.translation_error(made(pose), made(EYE), made(center))
    assert found == pytest.approx(metrics.translation_error(pose, EYE, center), **near)
    assert metrics.nees(made(xi), made(spread)) == pytest.approx(metrics.nees(xi, spread), **near)
    near = 1e-5 if form == "single" else 1e-14
    found, wanted = (
        metrics.tangent_error(*args) for args in ((made(pose), EYE, made(center)), (pose, EYE, center))
    )
    torch.testing.assert_close(found, wanted, rtol=near, atol=near)
    values = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(1)).double()
    if form != "rows":
        found = metrics.psnr(made(values), made(0.5 * values))
        assert found == pytest.approx(metrics.psnr(values, 0.5 * values), rel=1e-5)


def test_what_is_no_number_is_named():
    with pytest.raises(GeometryError, match="estimate must be numbers in a regular array, got 'here'"):
        metrics.mtre("here", EYE, POINTS)
    with pytest.raises(GeometryError, match="points must be numbers"):
        metrics.mtre(EYE, EYE, [[1.0, 2.0], [3.0]])


def test_a_turn_moves_a_target_by_its_chord():
    turned = pose_of((0, 0, 40.0), (0, 0, 0))
    points = torch.tensor([[50.0, 0, 7.0], [0.0, 0, 9.0]], dtype=torch.float64)
    chord = 2 * 50 * math.sin(math.radians(20))
    np.testing.assert_allclose(metrics.target_errors(turned, EYE, points), [chord, 0], atol=1e-12)
    assert metrics.mtre(turned, EYE, points) == pytest.approx(chord / 2)
    assert metrics.rotation_error(turned, EYE) == pytest.approx(40.0)
    assert metrics.translation_error(turned, EYE, (50.0, 0, 0)) == pytest.approx(chord)
    assert metrics.translation_error(turned, EYE) == 0.0


def test_errors_do_not_depend_on_the_world():
    a, b, world = (
        pose_of((3, 4, 5), (1, 2, 3)),
        pose_of((1, -4, 2), (5, 0, 1)),
        pose_of((50, 20, 9), (90, 8, 1)),
    )
    for error in (metrics.rotation_error, metrics.translation_error):
        assert error(world @ a, world @ b) == pytest.approx(error(a, b))
        assert error(b, a) == pytest.approx(error(a, b))


# ---- projections ----


def test_a_shift_across_the_beam_is_magnified_on_the_detector():
    moved = se3.from_translation(3.0 * across())
    # magnification 1000 / 500; a column is 0.25 mm
    assert metrics.mpe(CAMERA, moved, EYE, POINTS) == pytest.approx(6.0)
    assert metrics.mpe(CAMERA, moved, EYE, POINTS, unit="px") == pytest.approx(24.0)


def test_mm_on_the_detector_know_rows_from_columns():
    moved = se3.from_translation(3.0 * CAMERA.world_from_camera[:3, 1])
    assert metrics.mpe(CAMERA, moved, EYE, POINTS) == pytest.approx(6.0)
    assert metrics.mpe(CAMERA, moved, EYE, POINTS, unit="px") == pytest.approx(12.0)  # of 0.5 mm


def test_a_mirrored_image_has_the_same_errors():
    pose = pose_of((3, 4, 5), (1, 2, 3))
    other = CAMERA.flip_columns()
    for error in (metrics.mpe, metrics.mrpe):
        assert error(other, pose, EYE, POINTS) == pytest.approx(error(CAMERA, pose, EYE, POINTS))


def test_a_shift_along_a_ray_costs_no_reprojection_distance():
    origin = torch.zeros(1, 3, dtype=torch.float64)
    along = se3.from_translation(40.0 * beam())
    assert metrics.mrpe(CAMERA, along, EYE, origin) == pytest.approx(0.0, abs=1e-9)
    assert metrics.mtre(along, EYE, origin) == pytest.approx(40.0)
    assert metrics.mpe(CAMERA, along, EYE, origin) == pytest.approx(0.0, abs=1e-9)


def test_reprojection_distance_is_the_height_over_the_ray():
    # true at the isocentre, estimated 3 mm across: the ray to it is tilted by atan(3 / 500)
    origin = torch.zeros(1, 3, dtype=torch.float64)
    moved = se3.from_translation(3.0 * across())
    expected = 500 * math.sin(math.atan(3 / 500))
    assert metrics.mrpe(CAMERA, moved, EYE, origin) == pytest.approx(expected, rel=1e-12)
    flat = Camera.parallel_beam(size=(8, 8), spacing=1.0, sdd=1000)
    moved = se3.from_translation(3.0 * flat.world_from_camera[:3, 0] + 9.0 * flat.world_from_camera[:3, 2])
    assert metrics.mrpe(flat, moved, EYE, POINTS) == pytest.approx(3.0)


def test_a_point_behind_the_source_is_infinitely_wrong():
    behind = se3.from_translation(-600.0 * beam())
    assert metrics.mpe(CAMERA, behind, EYE, POINTS) == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.mtre(EYE, EYE, torch.zeros(0, 3)),
        lambda: metrics.mtre(EYE, EYE, torch.full((2, 3), math.nan)),
        lambda: metrics.mtre(EYE[:3], EYE, POINTS),
        lambda: metrics.mtre(2 * EYE, EYE, POINTS),
        lambda: metrics.mpe(CAMERA, EYE, EYE, POINTS, unit="cm"),
        lambda: metrics.nees(torch.zeros(6), torch.eye(5)),
        lambda: metrics.ellipsoid_bound(1.0),
        lambda: metrics.capture_range([1.0, math.nan], [1.0, 1.0], threshold=1),
        lambda: metrics.capture_range([1.0], [1.0], threshold=1, bin_mm=0),
        lambda: metrics.roc([0.5, math.nan], [True, False]),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(GeometryError):
        call()


# ---- rates and the capture range ----


def test_rates_count_what_gave_no_answer_as_failed():
    errors = [0.5, 2.0, 11.0, math.inf, math.nan]
    assert metrics.success_rate(errors, 2.0) == pytest.approx(0.4)
    assert metrics.gross_failure_rate(errors) == pytest.approx(0.6)
    assert metrics.gross_failure_rate([0.1] * 7 + [20.0] * 3) == 0.3  # to the bit: gates compare it
    assert math.isnan(metrics.success_rate([], 1.0))


def test_the_capture_range_ends_where_success_falls():
    starts = np.concatenate([np.full(20, 1.0), np.full(20, 3.0), np.full(20, 7.0), np.full(20, 9.0)])
    ends = np.where(starts < 8, 0.5, 50.0)
    ends[20] = 50.0  # 19 of 20 still hold
    found = metrics.capture_range(starts, ends, threshold=1.0, bin_mm=2.0)
    np.testing.assert_array_equal(found.edges, [0, 2, 4, 6, 8, 10])
    np.testing.assert_array_equal(found.counts, [20, 20, 0, 20, 20])
    np.testing.assert_array_equal(found.rates, [1.0, 0.95, np.nan, 1.0, 0.0])
    assert found.range_mm == 8.0
    ends[21] = math.inf
    assert metrics.capture_range(starts, ends, threshold=1.0, bin_mm=2.0).range_mm == 2.0
    ends[0:2] = 3.0
    assert metrics.capture_range(starts, ends, threshold=1.0, bin_mm=2.0).range_mm == 0.0


def test_a_lone_success_beyond_a_failure_extends_nothing():
    found = metrics.capture_range([1.0, 5.0, 9.0], [0.1, 9.0, 0.1], threshold=1.0)
    assert found.range_mm == 2.0


# ---- covariance ----


def test_the_tangent_error_is_the_step_to_the_truth():
    pose, center = pose_of((20, -30, 10), (5, 6, 7)), torch.tensor([30.0, -20.0, 100.0], dtype=torch.float64)
    xi = torch.tensor([0.3, -0.2, 0.1, 4.0, -5.0, 6.0], dtype=torch.float64)
    truth = se3.retract(pose, xi, center)
    torch.testing.assert_close(metrics.tangent_error(pose, truth, center), xi, atol=1e-10, rtol=0)


def test_nees_of_a_diagonal_is_the_sum_of_squares():
    sigma = torch.tensor([0.01, 0.02, 0.03, 1.0, 2.0, 3.0], dtype=torch.float64)
    xi = sigma * torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0])
    assert metrics.nees(xi, torch.diag(sigma**2)) == pytest.approx(1 + 4 + 0.25 + 9 + 1)
    turned = torch.linalg.qr(
        torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0]
    full = turned @ torch.diag(sigma**2) @ turned.T
    assert metrics.nees(turned @ xi, full) == pytest.approx(15.25, rel=1e-8)


def test_a_covariance_that_claims_certainty_holds_nothing():
    flat = torch.diag(torch.tensor([1.0, 1, 1, 1, 1, 0.0]))
    assert metrics.nees(torch.zeros(6), flat) == math.inf
    crossed = torch.ones(6, 6)
    assert metrics.nees(torch.zeros(6), crossed) == math.inf


def test_the_ellipsoid_is_the_quantile_of_chi_square():
    assert metrics.ellipsoid_bound(0.95) == pytest.approx(12.591587, abs=1e-5)
    assert metrics.ellipsoid_bound(0.95, 2) == pytest.approx(-2 * math.log(0.05))
    x = metrics.ellipsoid_bound(0.3)  # for six degrees the distribution is elementary
    assert 1 - math.exp(-x / 2) * (1 + x / 2 + x * x / 8) == pytest.approx(0.3)


def test_coverage_of_true_errors_is_the_level():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    covariance = torch.from_numpy(root @ root.T)
    values = [metrics.nees(torch.from_numpy(root @ rng.normal(size=6)), covariance) for _ in range(2000)]
    assert metrics.coverage(values) == pytest.approx(0.95, abs=0.015)
    expected, observed = metrics.calibration_curve(values)
    np.testing.assert_allclose(observed, expected, atol=0.04)
    assert metrics.coverage(np.array(values) * 4) < 0.6  # deviations stated half as large as they are


# ---- ROC ----


def test_roc_of_a_perfect_a_blind_and_a_reversed_verdict():
    right = [True, True, False, False]
    assert metrics.roc([0.9, 0.8, 0.2, 0.1], right).auc == 1.0
    assert metrics.roc([0.5] * 4, right).auc == 0.5
    assert metrics.roc([0.1, 0.2, 0.8, 0.9], right).auc == 0.0


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(1)
    score, right = rng.integers(0, 12, 200) / 12, rng.random(200) < 0.4
    pairs = score[right][:, None] - score[~right][None]
    found = metrics.roc(score, right)
    assert found.auc == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert (found.false_positive[0], found.true_positive[0]) == (0, 0)
    assert (found.false_positive[-1], found.true_positive[-1]) == (1, 1)
    at = found.thresholds.tolist().index(0.5)
    assert found.true_positive[at] == pytest.approx((score[right] >= 0.5).mean())
    assert found.false_positive[at] == pytest.approx((score[~right] >= 0.5).mean())


def test_auc_of_one_kind_is_not_known():
    assert math.isnan(metrics.roc([0.2, 0.9], [True, True]).auc)
    assert math.isnan(metrics.roc([], []).auc)


def test_lists_of_tensors_are_rows():
    pose = torch.eye(4, dtype=torch.float64)
    turned = pose.clone()
    turned[:3, :3] = torch.tensor([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    points = torch.tensor([[100.0, 0.0, 0.0], [200.0, 10.0, 0.0], [300.0, 0.0, 20.0]])
    assert metrics.mtre(turned, pose, list(points)) == metrics.mtre(turned, pose, points)
    assert metrics.rotation_error(list(turned), turned) == 0
