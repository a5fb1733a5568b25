"""DiffDRR, nanodrr, xvr, DeepFluoro, rg2/xReg, DeepDRR, PyTorch3D: each by its own formula, written out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from xreg.errors import GeometryError
from xreg.geometry import Camera
from xreg.geometry.conventions import deepdrr, deepfluoro, diffdrr, nanodrr, pytorch3d, rg2_xreg, xvr
from xreg.geometry.conventions.lps import camera_from_ras, conjugate, flip_points

LPS = np.array([-1.0, -1.0, 1.0])
ANGLES = st.tuples(st.floats(-3.1, 3.1), st.floats(-1.5, 1.5), st.floats(-3.1, 3.1))


def near(angles: tuple[float, ...], offset: tuple[float, ...]) -> np.ndarray:
    """A rotation and a translation that keeps the points before the source, as 4×4."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("ZXY", angles).as_matrix()
    pose[:3, 3] = offset
    return pose


# ---- DiffDRR ----------------------------------------------------------------------------------------------

REORIENT = {
    "AP": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    "PA": [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
    None: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}
TOWARDS = {
    "AP": (0.0, 1.0, 0.0),
    "PA": (0.0, -1.0, 0.0),
    None: (0.0, 0.0, -1.0),
}  # from the volume to the source


def diffdrr_pixels(p: diffdrr.DiffDRR, world: np.ndarray) -> np.ndarray:
    """Intersect the ray with the detector that ``Detector._initialize_carm`` builds, and read off (j, i)."""
    rotation = Rotation.from_euler(p.convention, p.rotation).as_matrix()
    camera_to_world = rotation @ np.array(REORIENT[p.orientation], dtype=float)
    local = (world - p.isocenter - rotation @ np.array(p.translation)) @ np.linalg.inv(camera_to_world).T
    x, y = (local[:, :2] * p.sdd / local[:, 2:]).T
    s = -1 if p.reverse_x_axis else 1
    j = s * (x - p.x0) / p.delx + (p.width - 1) / 2
    i = -(y - p.y0) / p.dely + (p.height - 1) / 2
    return np.stack([j, i], axis=-1)


@pytest.mark.parametrize("reverse_x_axis", [True, False])
@pytest.mark.parametrize("orientation", ["AP", "PA", None])
@pytest.mark.parametrize("convention", ["ZXY", "XYZ"])
def test_diffdrr(check, orientation, reverse_x_axis: bool, convention: str) -> None:
    params = diffdrr.DiffDRR(
        rotation=(0.3, -0.2, 0.15) if convention == "ZXY" else (-0.1, 0.2, 0.25),
        translation=np.array(TOWARDS[orientation]) * 700 + [12.0, -9.0, 21.0],
        sdd=1020.0,
        height=200,
        width=261,
        delx=1.1,
        dely=0.9,
        x0=13.0,
        y0=-7.0,
        orientation=orientation,
        reverse_x_axis=reverse_x_axis,
        convention=convention,
        isocenter=(3.0, -20.0, 40.0),
    )
    options = {"isocenter": params.isocenter, "orientation": orientation}
    camera = check(params, lambda x: diffdrr_pixels(params, x), **options)
    # Handedness: the array is a pinhole's unless a reflection of the pose or of x alone is in it.
    assert camera.mirrored == ((orientation == "PA") == reverse_x_axis)
    if convention == "ZXY":
        again = diffdrr.from_camera(camera, **options)
        assert again.reverse_x_axis == reverse_x_axis
        for name in ("rotation", "translation", "delx", "dely", "x0", "y0", "sdd"):
            np.testing.assert_allclose(getattr(again, name), getattr(params, name), atol=1e-9, err_msg=name)


def test_diffdrr_perspective_projection_is_at_corners(points) -> None:
    # drr.perspective_projection: intrinsic·(pose⁻¹ x), y and (if reversed) x counted from the other end. Its
    # detector.x0 is minus the x0 that was given.
    p = diffdrr.DiffDRR((0.3, -0.2, 0.1), (5, 700, 9), 1020.0, 200, 261, 1.1, 0.9, x0=13.0, y0=-7.0)
    pose = Rotation.from_euler("ZXY", p.rotation).as_matrix()
    local = (points - pose @ np.array(p.translation)) @ (pose @ np.array(REORIENT["AP"]))
    x = p.sdd / p.delx * local[:, 0] / local[:, 2] + (-p.x0 / p.delx + p.width / 2)
    y = p.sdd / p.dely * local[:, 1] / local[:, 2] + (-p.y0 / p.dely + p.height / 2)
    corners = np.stack([p.width - x, p.height - y], axis=-1)
    np.testing.assert_allclose(diffdrr.to_camera(p).project(points).numpy() + 0.5, corners, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(angles=ANGLES, reverse=st.booleans(), orientation=st.sampled_from(["AP", "PA", None]))
def test_diffdrr_for_any_angle(angles, reverse: bool, orientation) -> None:
    towards = np.array(TOWARDS[orientation]) * 700
    p = diffdrr.DiffDRR(
        angles,
        towards,
        1000.0,
        64,
        80,
        2.0,
        3.0,
        x0=5.0,
        y0=6.0,
        orientation=orientation,
        reverse_x_axis=reverse,
    )
    x = np.random.default_rng(0).normal(size=(8, 3)) * 40
    camera = diffdrr.to_camera(p)
    np.testing.assert_allclose(camera.project(x).numpy(), diffdrr_pixels(p, x), atol=1e-6)
    again = diffdrr.to_camera(diffdrr.from_camera(camera, orientation=orientation))
    np.testing.assert_allclose(again.project(x).numpy(), diffdrr_pixels(p, x), atol=1e-6)


# ---- nanodrr: against the package itself -------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["AP", "PA", None])
def test_nanodrr_against_its_own_rays(check, orientation) -> None:
    package = pytest.importorskip("nanodrr.camera")
    params = nanodrr.NanoDRR(
        rotation=(25.0, -14.0, 8.0),
        translation=np.array(TOWARDS[orientation]) * 700 + [12.0, -9.0, 21.0],
        sdd=1020.0,
        height=200,
        width=261,
        delx=1.1,
        dely=0.9,
        x0=13.0,
        y0=-7.0,
        orientation=orientation,
        isocenter=(3.0, -20.0, 40.0),
    )
    one = {"dtype": torch.float64}
    rt_inv = package.make_rt_inv(
        torch.tensor([params.rotation], **one),
        torch.tensor([params.translation], **one),
        orientation,
        torch.tensor(params.isocenter, **one),
    )[0]
    k_inv = package.make_k_inv(1020.0, 1.1, 0.9, 13.0, -7.0, 200, 261, **one)[0]

    def pixels(world: np.ndarray) -> np.ndarray:
        local = torch.linalg.solve(rt_inv, torch.tensor(np.c_[world, np.ones(len(world))].T))[:3]
        uv = torch.linalg.solve(k_inv, local / local[2:])[:2]
        return uv.T.numpy() - 0.5  # its rays run through u + 0.5, v + 0.5

    camera = check(params, pixels, isocenter=params.isocenter, orientation=orientation)
    assert camera.mirrored == (orientation == "PA")
    again = nanodrr.from_camera(camera, isocenter=params.isocenter, orientation=orientation)
    for name in ("rotation", "translation", "delx", "dely", "x0", "y0", "sdd"):
        np.testing.assert_allclose(getattr(again, name), getattr(params, name), atol=1e-9, err_msg=name)


def test_diffdrr_and_nanodrr_mean_the_same_views() -> None:
    # The same view told to both: nanodrr's camera-to-world is T(isocentre)·E·Ro·diag(−1, −1, 1).
    view = Camera.c_arm(
        sdd=1020, sod=600, size=(64, 80), spacing=(2.0, 3.0), primary=20, secondary=10, roll=5
    )
    iso = (10.0, 20.0, -5.0)
    d, n = diffdrr.from_camera(view, isocenter=iso), nanodrr.from_camera(view, isocenter=iso)
    assert d.reverse_x_axis
    np.testing.assert_allclose(np.degrees(d.rotation), n.rotation, atol=1e-9)
    np.testing.assert_allclose(d.translation, n.translation, atol=1e-9)
    assert (d.x0, d.y0) == pytest.approx((n.x0, n.y0), abs=1e-9)


def test_nanodrr_refuses_the_other_handedness() -> None:
    view = Camera.c_arm(sdd=1020, sod=600, size=(64, 80), spacing=2.0)
    assert nanodrr.from_camera(view.flip_columns()).orientation == "PA"
    with pytest.raises(GeometryError, match="PA"):
        nanodrr.from_camera(view, orientation="PA")
    with pytest.raises(GeometryError, match="must be one of"):
        nanodrr.from_camera(view, orientation="LAT")


# ---- xvr --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["AP", "PA"])
@pytest.mark.parametrize("reverse_x_axis", [True, False])
def test_xvr(check, orientation: str, reverse_x_axis: bool) -> None:
    p = xvr.Xvr(
        primary_angle=31.0,
        secondary_angle=-17.0,
        source_to_patient=740.0,
        source_to_detector=1100.0,
        rows=200,
        columns=261,
        pixel_spacing=(0.9, 1.1),
        x0=13.0,
        y0=-7.0,
        orientation=orientation,
        reverse_x_axis=reverse_x_axis,
        isocenter=(3.0, -20.0, 40.0),
    )
    a, b = math.radians(31), math.radians(-17)
    rotation = np.array(
        [[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]]
    ) @ np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    source = rotation @ [0, 740 if orientation == "AP" else -740, 0] + p.isocenter

    def pixels(world: np.ndarray) -> np.ndarray:
        local = (world - source) @ rotation @ np.linalg.inv(np.array(REORIENT[orientation])).T
        x, y = (1100 * local[:, :2] / local[:, 2:]).T
        j = (1 if not reverse_x_axis else -1) * (x - 13.0) / 1.1 + 130.0
        return np.stack([j, 99.5 - (y + 7.0) / 0.9], axis=-1)

    camera = check(p, pixels, isocenter=p.isocenter, orientation=orientation)
    again = xvr.from_camera(camera, isocenter=p.isocenter, orientation=orientation)
    for name in ("primary_angle", "secondary_angle", "source_to_patient", "x0", "y0"):
        assert getattr(again, name) == pytest.approx(getattr(p, name), abs=1e-9), name


def test_xvr_with_pa_reads_the_angles_as_dicom_does() -> None:
    p = xvr.Xvr(30.0, 20.0, 600.0, 1000.0, 64, 80, (2.0, 2.0), orientation="PA")
    ours = Camera.c_arm(sdd=1000, sod=600, primary=30, secondary=20, size=(64, 80), spacing=2.0)
    np.testing.assert_allclose(xvr.to_camera(p).source, ours.source, atol=1e-9)
    with pytest.raises(GeometryError, match="roll"):
        xvr.from_camera(ours.rotate90(), orientation="PA")
    with pytest.raises(GeometryError, match="isocenter"):
        xvr.from_camera(ours, orientation="PA", isocenter=(1.0, 2.0, 3.0))


# ---- DeepFluoro and rg2/xReg ------------------------------------------------------------------------------


def test_deepfluoro(check) -> None:
    params = deepfluoro.DeepFluoro(
        intrinsic=[[-5257.732, 0, 760.5], [0, -5257.732, 771.25], [0, 0, 1]],
        extrinsic=near((0.1, -0.2, 0.3), (-157.0, -2.7, -631.8)),
        cam_to_pelvis_vol=np.linalg.inv(near((-0.2, 0.3, 0.15), (20.0, 30.0, 40.0))),
        num_rows=1536,
        num_cols=1530,
        pixel_row_spacing=0.194,
        pixel_col_spacing=0.194,
    )

    def pixels(world: np.ndarray) -> np.ndarray:
        # p_cam = extrinsic · inv(cam-to-pelvis-vol) · p_LPS, origin at the source, detector at −z
        homogeneous = np.c_[world * LPS, np.ones(len(world))].T
        local = (np.array(params.extrinsic) @ np.linalg.inv(params.cam_to_pelvis_vol) @ homogeneous)[:3]
        assert (local[2] < 0).all()
        return (np.array(params.intrinsic) @ local / local[2])[:2].T

    camera = check(params, pixels, extrinsic=params.extrinsic)
    assert camera.mirrored
    assert float(camera.sdd) == pytest.approx(1020.0, abs=1e-3)
    again = deepfluoro.from_camera(camera, extrinsic=params.extrinsic)
    np.testing.assert_allclose(again.cam_to_pelvis_vol, params.cam_to_pelvis_vol, atol=1e-9)
    with pytest.raises(GeometryError, match="flip_columns"):
        deepfluoro.from_camera(camera.flip_columns())


@pytest.mark.parametrize("frame", rg2_xreg.FRAMES)
def test_rg2_xreg(check, frame: str) -> None:
    z = -1.0 if frame == rg2_xreg.FRAMES[0] else 1.0
    params = rg2_xreg.Rg2Camera(
        intrinsic=[[z * 4000.0, 0, 120.0], [0, z * 5000.0, 99.5], [0, 0, 1]],
        extrinsic=near((0.4, -0.2, 0.3), (15.0, -25.0, z * 650.0)),
        num_rows=200,
        num_cols=261,
        row_spacing=0.2,
        col_spacing=0.25,
        cam_coord_frame_type=frame,
    )

    def pixels(world: np.ndarray) -> np.ndarray:
        local = (np.array(params.extrinsic) @ np.c_[world * LPS, np.ones(len(world))].T)[:3]
        return (np.array(params.intrinsic) @ local / local[2])[:2].T

    camera = check(params, pixels)
    assert camera.mirrored == (z < 0)
    again = rg2_xreg.from_camera(camera)
    assert again.cam_coord_frame_type == frame
    for name in ("intrinsic", "extrinsic", "row_spacing", "col_spacing"):
        np.testing.assert_allclose(getattr(again, name), getattr(params, name), atol=1e-9, err_msg=name)
    with pytest.raises(GeometryError, match="mirrored"):
        rg2_xreg.from_camera(camera.flip_columns(), cam_coord_frame_type=frame)
    wrong = params.to_dict() | {"cam_coord_frame_type": rg2_xreg.FRAMES[0 if z > 0 else 1]}
    with pytest.raises(GeometryError, match="intrinsic"):
        rg2_xreg.to_camera(rg2_xreg.Rg2Camera.from_dict(wrong))


# ---- DeepDRR ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["RAS", "LPS"])
def test_deepdrr(check, world: str) -> None:
    params = deepdrr.DeepDRR(
        camera_intrinsics=[[4000.0, 0, 130.5], [0, 5000.0, 90.0], [0, 0, 1]],
        camera3d_from_world=near((0.4, -0.2, 0.3), (15.0, -25.0, 650.0)),
        sensor_width=261,
        sensor_height=200,
        source_to_detector_distance=1020.0,
        world=world,
    )

    def pixels(points: np.ndarray) -> np.ndarray:
        points = points * LPS if world == "LPS" else points
        local = (np.array(params.camera3d_from_world) @ np.c_[points, np.ones(len(points))].T)[:3]
        index = (np.array(params.camera_intrinsics) @ local / local[2])[:2].T
        return index - 0.5  # the kernel's ray of pixel n is that of index n + 0.5

    check(params, pixels, world=world)
    with pytest.raises(GeometryError, match="mirrored"):
        deepdrr.from_camera(deepdrr.to_camera(params).flip_columns())


@pytest.mark.parametrize("left", [True, False])
def test_deepdrr_mobile_c_arm(points, left: bool) -> None:
    p = deepdrr.mobile_c_arm(
        alpha=20.0,
        beta=-35.0,
        gamma=12.0,
        isocenter=(5.0, 6.0, 7.0),
        source_to_isocenter_horizontal_offset=9.0,
        rotate_camera_left=left,
    )
    camera = deepdrr.to_camera(p)
    # device_from_arm = T(isocentre)·Ry(β)·Rx(α) (scipy's extrinsic "xy"); the source is at (0, 9, −530).
    arm = Rotation.from_euler("xy", [20.0, -35.0], degrees=True).as_matrix()
    source = np.array([5.0, 6.0, 7.0]) + arm @ [0.0, 9.0, -530.0]
    np.testing.assert_allclose(camera.source.numpy(), source, atol=1e-9)
    turn = Rotation.from_euler("z", 12.0 + (90.0 if left else 0.0), degrees=True).as_matrix()
    local = (points - source) @ arm @ turn.T
    expected = 1020 / 0.194 * local[:, :2] / local[:, 2:] + 767.5
    np.testing.assert_allclose(camera.project(points).numpy(), expected, atol=1e-6)


# ---- PyTorch3D --------------------------------------------------------------------------------------------


def test_pytorch3d(check) -> None:
    pose = near((0.4, -0.2, 0.3), (-15.0, 25.0, 650.0))
    params = pytorch3d.PyTorch3D(
        R=pose[:3, :3].T,
        T=pose[:3, 3],
        focal_length=(7.5, 8.25),
        principal_point=(0.125, -0.25),
        image_size=(200, 261),
        sdd=1020.0,
    )

    def pixels(world: np.ndarray) -> np.ndarray:
        local = world @ np.array(params.R) + params.T  # row vectors; +x left, +y up
        ndc = np.array(params.focal_length) * local[:, :2] / local[:, 2:] + params.principal_point
        return (
            np.array([261, 200]) / 2 - ndc * 200 / 2 - 0.5
        )  # NDC spans the shorter side; corners to centres

    camera = check(params, pixels)
    again = pytorch3d.from_camera(camera)
    for name in ("R", "T", "focal_length", "principal_point", "image_size", "sdd"):
        np.testing.assert_allclose(getattr(again, name), getattr(params, name), atol=1e-9, err_msg=name)


# ---- LPS --------------------------------------------------------------------------------------------------


def test_lps_is_a_half_turn_about_z() -> None:
    np.testing.assert_allclose(flip_points([[1.0, 2.0, 3.0]]), [[-1.0, -2.0, 3.0]])
    extrinsic = near((0.4, -0.2, 0.3), (1.0, 2.0, 3.0))
    point = np.array([5.0, 6.0, 7.0, 1.0])
    lps = np.array([-5.0, -6.0, 7.0, 1.0])
    np.testing.assert_allclose(camera_from_ras(extrinsic) @ point, extrinsic @ lps)
    moved = extrinsic @ lps
    np.testing.assert_allclose(conjugate(extrinsic) @ point, moved * [-1, -1, 1, 1])
