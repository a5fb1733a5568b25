"""A pose from landmarks: against the truth, with wrong points, in several views, and refusals."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from xreg import Camera, Rig, se3
from xreg.errors import BackendError, RegistrationError
from xreg.metrics import mtre
from xreg.registration import landmarks as module
from xreg.registration.landmarks import pose_from_landmarks
from xreg.registration.reprojection import even_rotations, minimise, sights_of

MIDDLE = torch.tensor([-50.0, 20.0, -300.0], dtype=torch.float64)
IDENTITY = torch.eye(4, dtype=torch.float64)
BACKENDS = ["own", *(["opencv"] if find_spec("cv2") else [])]


def points(count, seed=0, flat=False):
    rng = np.random.default_rng(seed)
    size = (120, 80, 0 if flat else 120)
    return torch.from_numpy(rng.uniform(-1, 1, (count, 3)) * size) + MIDDLE


def c_arm(primary=20.0, **changes):
    words = {"sdd": 1020, "sod": 750, "secondary": -5, "size": (900, 1024), "spacing": (0.3, 0.35)}
    return Camera.c_arm(primary=primary, isocenter=MIDDLE, **{**words, **changes})


def parallel(primary=0.0):
    return Camera.parallel_beam(
        size=(900, 1024), spacing=(0.3, 0.35), sdd=800, primary=primary, isocenter=MIDDLE
    )


def turned(seed, most=math.pi, shift=50.0):
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    xi = [*(axis / np.linalg.norm(axis) * rng.uniform(0, most)), *rng.uniform(-shift, shift, 3)]
    return se3.retract(IDENTITY, torch.tensor(xi, dtype=torch.float64), MIDDLE)


def shown(camera, body, truth, noise=0.0, wrong=0, seed=0):
    """Pixels with noise (px), some of them wrong by 30 to 200 px; and which."""
    rng = np.random.default_rng([seed, 7])
    pixels = camera.project(se3.apply(truth, body)) + noise * torch.from_numpy(
        rng.normal(size=(len(body), 2))
    )
    which = rng.choice(len(body), wrong, replace=False)
    away = rng.uniform(30, 200, (wrong, 2)) * rng.choice([-1, 1], (wrong, 2))
    pixels[which] += torch.from_numpy(away)
    return pixels, which


def skewed(camera):
    k = camera.K.clone()
    k[0, 1] = 40.0
    return camera.replace(K=k)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "camera",
    [c_arm(), c_arm(mirrored=True), c_arm(principal_point=(100.0, 950.0)), skewed(c_arm(mirrored=True)),
     c_arm().replace(sdd=None)],
    ids=["plain", "mirrored", "shifted", "skewed and mirrored", "no sdd"],
)  # fmt: skip
@pytest.mark.parametrize("count", [4, 6, 12])
def test_exact_pixels_give_the_exact_pose(backend, camera, count):
    body, truth = points(count, count), turned(count)
    pixels, _ = shown(camera, body, truth)
    found = pose_from_landmarks(body, pixels, camera, backend=backend)
    assert bool(found.inliers.all())
    assert found.rms_px < 1e-6
    poses = [found.world_from_body, *found.others]  # four points may allow two poses
    assert min(mtre(pose, truth, body) for pose in poses) < 1e-4
    if count > 4:
        assert mtre(found.world_from_body, truth, body) < 1e-4
    se3.require_rigid(found.world_from_body, "world_from_body", tolerance=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(6))
def test_thirty_percent_of_wrong_points_do_not_matter(backend, seed):
    count = 8 + seed
    body, truth, camera = points(count, seed), turned(seed), c_arm(mirrored=seed % 2 == 0)
    pixels, wrong = shown(camera, body, truth, noise=1.5, wrong=int(0.3 * count), seed=seed)
    found = pose_from_landmarks(body, pixels, camera, backend=backend)
    assert sorted((~found.inliers).nonzero()[:, 0].tolist()) == sorted(wrong.tolist())
    assert found.rms_px < 4.0
    assert bool((found.residuals_px[wrong] > 10).all())
    assert mtre(found.world_from_body, truth, body) < 5.0
    across = camera.project(se3.apply(found.world_from_body, body)) - camera.project(se3.apply(truth, body))
    assert float(across.norm(dim=-1).mean()) < 3.0  # px: the depth is what noise moves


def test_both_backends_end_in_the_same_place():
    if len(BACKENDS) < 2:
        pytest.skip("OpenCV is not installed")
    body, truth, camera = points(12, 3), turned(3), c_arm()
    pixels, _ = shown(camera, body, truth, noise=1.0, wrong=3)
    a, b = (pose_from_landmarks(body, pixels, camera, backend=name) for name in BACKENDS)
    assert mtre(a.world_from_body, b.world_from_body, body) < 1e-3
    assert torch.equal(a.inliers, b.inliers)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_input_gives_the_same_bits(backend):
    body, camera = points(14, 1), c_arm()
    pixels, _ = shown(camera, body, turned(1), noise=1.0, wrong=4)
    a, b = (pose_from_landmarks(body, pixels, camera, backend=backend) for _ in range(2))
    assert torch.equal(a.world_from_body, b.world_from_body)


def test_two_views_fix_the_depth_together():
    body, truth, rig = points(10, 5), turned(5), Rig((c_arm(0), c_arm(90, mirrored=True)))
    pixels = [shown(c, body, truth, noise=1.0, wrong=2, seed=n)[0] for n, c in enumerate(rig)]
    seen = torch.ones(2, 10, dtype=torch.bool)
    seen[0, 3] = seen[1, 6] = False
    pixels[0][3] = torch.nan
    pixels[1][6] = torch.nan
    found = pose_from_landmarks(body, pixels, rig, seen=seen)
    assert found.inliers.shape == found.residuals_px.shape == (2, 10)
    assert bool(torch.isnan(found.residuals_px[~seen]).all())
    assert not bool(found.inliers[~seen].any())
    assert int((seen & ~found.inliers).sum()) in (3, 4)  # a wrong point may be one that is not seen
    one = pose_from_landmarks(body[seen[0]], pixels[0][seen[0]], rig[0])
    assert mtre(found.world_from_body, truth, body) < 0.6
    assert found.covariance[3:, 3:].trace() < 0.2 * one.covariance[3:, 3:].trace()


def test_three_points_in_two_views_are_enough():
    body, truth, cameras = points(3, 2), turned(2), [c_arm(0), c_arm(80)]
    pixels = torch.stack([shown(c, body, truth)[0] for c in cameras])
    found = pose_from_landmarks(body, pixels, cameras, min_points=3)
    assert mtre(found.world_from_body, truth, body) < 1e-4
    with pytest.raises(RegistrationError, match="3 landmarks are seen, and 4 are needed"):
        pose_from_landmarks(body, pixels, cameras)


def test_parallel_beams():
    body, truth = points(12, 8), turned(8)
    cameras = [parallel(0), parallel(70)]
    pixels = [shown(c, body, truth, noise=0.5, wrong=3, seed=n)[0] for n, c in enumerate(cameras)]
    found = pose_from_landmarks(body, pixels, cameras)
    assert mtre(found.world_from_body, truth, body) < 0.5
    assert found.covariance is not None
    mixed = pose_from_landmarks(
        body, [shown(c_arm(), body, truth)[0], pixels[1]], [c_arm(), cameras[1]], ransac_px=5.0
    )
    assert mtre(mixed.world_from_body, truth, body) < 0.5


def test_one_parallel_view_leaves_the_depth_where_the_body_frame_has_it():
    camera, body, truth = parallel(30), points(10, 9), turned(9)
    found = pose_from_landmarks(body, shown(camera, body, truth)[0], camera)
    beam = camera.world_from_camera[:3, 2]
    off = se3.apply(found.world_from_body, body) - se3.apply(truth, body)
    torch.testing.assert_close(off - (off @ beam)[:, None] * beam, torch.zeros_like(off), atol=1e-5, rtol=0)
    home = (se3.apply(found.world_from_body, body) - body).mean(0) @ beam
    assert abs(float(home)) < 1e-3
    assert found.covariance is None


def test_points_in_a_plane_that_allow_two_poses_say_so():
    body, camera = points(8, 4, flat=True), c_arm(0, sdd=3000, sod=2500, spacing=(0.5, 0.5))
    truth = se3.retract(IDENTITY, torch.tensor([1.1, 0.3, 0, 0, 0, 0]).double(), MIDDLE)
    found = pose_from_landmarks(body, shown(camera, body, truth, noise=0.5)[0], camera)
    poses = [found.world_from_body, *found.others]
    assert len(poses) == 2
    assert min(mtre(pose, truth, body) for pose in poses) < 6
    assert pose_from_landmarks(points(8, 4), shown(camera, points(8, 4), truth)[0], camera).others == ()


def test_the_covariance_is_that_of_repeated_picks():
    body, truth, camera = points(16, 6), turned(6), c_arm()
    errors, said = [], []
    for seed in range(30):
        pixels, _ = shown(camera, body, truth, noise=2.0, seed=seed)
        found = pose_from_landmarks(body, pixels, camera, ransac_px=12.0, backend=BACKENDS[-1])
        motion = found.world_from_body @ se3.inverse(truth)
        errors.append(se3.log(se3.about(motion, -found.center)))
        said.append(found.covariance)
    errors, said = torch.stack(errors), torch.stack(said).mean(0)
    ratio = errors.square().mean(0).sqrt() / said.diagonal().sqrt()
    assert bool(((ratio > 0.6) & (ratio < 1.5)).all()), ratio


@pytest.mark.parametrize("camera", [c_arm(mirrored=True), parallel(30), skewed(c_arm())])
def test_the_jacobian_is_that_of_finite_differences(camera):
    body = points(7)
    sights = sights_of(body, [torch.zeros(7, 2).double()], [camera], [torch.ones(7, dtype=torch.bool)], [3.0])
    pose, center, h = turned(4, 0.4, 20.0), MIDDLE + 5.0, 1e-5
    exact = sights.jacobian(pose, center)
    for k in range(6):
        step = h * torch.eye(6, dtype=torch.float64)[k]
        ends = [sights.residuals(se3.retract(pose, way * step, center)) for way in (1, -1)]
        torch.testing.assert_close(exact[..., k], (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-6)


def test_residuals_are_the_camera_s_own_and_infinite_behind_it():
    camera, body = c_arm(mirrored=True), points(5)
    pixels = torch.full((5, 2), 100.0, dtype=torch.float64)
    sights = sights_of(body, [pixels], [camera], [torch.ones(5, dtype=torch.bool)], [2.0])
    torch.testing.assert_close(sights.residuals(IDENTITY), (camera.project(body) - pixels) / 2)
    behind = se3.from_translation(-2000.0 * camera.world_from_camera[:3, 2])
    assert bool(torch.isinf(sights.residuals(behind)).all())
    pose, cost = minimise(sights, behind)
    assert bool(torch.isinf(cost))
    assert bool(torch.isfinite(pose).all())


def test_rotations_are_even():
    turns = even_rotations()
    assert turns.shape == (60, 3, 3)
    assert torch.equal(turns[0], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(turns @ turns.transpose(1, 2), torch.eye(3).double().expand(60, 3, 3))
    angles = se3.so3_log(turns[1:]).norm(dim=-1)
    assert float(angles.min()) == pytest.approx(2 * math.pi / 5)


# ---- what cannot be ----


def test_too_few_points():
    body, camera = points(3), c_arm()
    with pytest.raises(RegistrationError, match="3 landmarks are seen, and 4 are needed; place more"):
        pose_from_landmarks(body, shown(camera, body, IDENTITY)[0], camera)
    body = points(5)
    with pytest.raises(RegistrationError, match="5 landmarks are seen, and 6 are needed"):
        pose_from_landmarks(body, shown(camera, body, IDENTITY)[0], camera, min_points=6)


def test_points_on_a_line_or_in_one_place():
    camera = c_arm()
    line = MIDDLE + torch.linspace(-80, 80, 6)[:, None].double() * torch.tensor([0.3, 0.2, 0.9]).double()
    for body in (line, MIDDLE.expand(6, 3)):
        with pytest.raises(RegistrationError, match="one line"):
            pose_from_landmarks(body, shown(camera, body, IDENTITY)[0], camera)
    body = torch.cat([line, points(2, 1)])  # only wrong points keep it from being a line
    pixels, _ = shown(camera, body, IDENTITY)
    pixels[6:] += torch.tensor([300.0, -200.0])
    with pytest.raises(RegistrationError, match="one line"):
        pose_from_landmarks(body, pixels, camera, backend="own")


def test_points_behind_the_source_have_no_pixels():
    camera, body = c_arm(), points(6)
    behind = se3.from_translation(-2000.0 * camera.world_from_camera[:3, 2])
    with pytest.raises(RegistrationError, match="behind the source"):
        pose_from_landmarks(body, shown(camera, body, behind)[0], camera)


def test_points_beyond_the_detector():
    camera, body = c_arm(), points(8)
    far = se3.from_translation(600.0 * camera.world_from_camera[:3, 2])
    with pytest.raises(RegistrationError, match="behind the detector"):
        pose_from_landmarks(body, shown(camera, body, far)[0], camera)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_that_fit_no_pose(backend):
    body, camera = points(10), c_arm()
    random = torch.from_numpy(np.random.default_rng(0).uniform(0, 900, (10, 2)))
    with pytest.raises(RegistrationError, match="no pose explains the landmarks: at best"):
        pose_from_landmarks(body, random, camera, backend=backend)
    with pytest.raises(
        RegistrationError, match="no pose explains"
    ):  # a film taken as if it were not mirrored
        pose_from_landmarks(body, shown(c_arm(mirrored=True), body, IDENTITY)[0], c_arm(), backend=backend)


def test_bad_arguments():
    body, camera = points(6), c_arm()
    pixels, _ = shown(camera, body, IDENTITY)
    nan = body.clone()
    nan[2, 1] = torch.nan
    cases = [
        ((nan, pixels, camera), {}, "points must be finite"),
        ((body, torch.full((6, 2), torch.nan), camera), {}, "NaN or infinity where a point is seen"),
        ((body, pixels[:5], camera), {}, "match them by name"),
        ((body[:, :2], pixels, camera), {}, r"points must have shape \[N, 3\]"),
        ((body, pixels[:, :1], camera), {}, r"pixels must have shape \[N, 2\]"),
        ((body, [pixels], [camera, camera]), {}, "each view needs its camera"),
        ((body, pixels, camera), {"ransac_px": 0.0}, "ransac_px must be"),
        ((body, pixels, camera), {"backend": "magic"}, "backend must be"),
        ((body, pixels, Camera.stack([camera, camera])), {}, "got a batch"),
    ]
    for arguments, known, said in cases:
        with pytest.raises(RegistrationError, match=said):
            pose_from_landmarks(*arguments, **known)


def test_without_opencv_ours_serves_and_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(module, "_cv2", lambda: None)
    body, camera = points(8), c_arm()
    pixels, _ = shown(camera, body, turned(1))
    assert mtre(pose_from_landmarks(body, pixels, camera).world_from_body, turned(1), body) < 1e-4
    with pytest.raises(BackendError, match=r"xreg\[landmarks\]"):
        pose_from_landmarks(body, pixels, camera, backend="opencv")


def test_opencv_knows_no_parallel_beam():
    if len(BACKENDS) < 2:
        pytest.skip("OpenCV is not installed")
    body, camera = points(8), parallel()
    pixels, _ = shown(camera, body, turned(1))
    with pytest.raises(RegistrationError, match="no parallel beam"):
        pose_from_landmarks(body, pixels, camera, backend="opencv")
    assert pose_from_landmarks(body, pixels, camera).rms_px < 1e-6


@pytest.mark.parametrize("backend", ["auto", "own"])
@pytest.mark.parametrize("primaries", [(0.0,), (0.0, 90.0)], ids=["one view", "two views"])
def test_of_the_two_poses_of_a_plane_the_better_is_the_answer(backend, primaries):
    cameras = [c_arm(primary) for primary in primaries]
    for seed in range(12):
        body, truth = points(8, seed, flat=True), turned(seed)
        pixels = [shown(camera, body, truth)[0] for camera in cameras]
        found = pose_from_landmarks(body, pixels, cameras, backend=backend)
        assert mtre(found.world_from_body, truth, body) < 1e-3
        assert found.inliers.all()
