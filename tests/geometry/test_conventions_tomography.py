"""RTK, TIGRE, NAF, R²-Gaussian, X-Gaussian, plastimatch: each by its own formula, written out again."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from geometry_views import LPS, awkward
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.errors import GeometryError
from xreg.geometry import Camera
from xreg.geometry.conventions import naf, plastimatch, r2_gaussian, rtk, tigre, x_gaussian


def turn(axis: str, angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


# ---- RTK --------------------------------------------------------------------------------------------------

# GetMatrix of RTK 2.7 for AddProjection(sid, sdd, gantry, projX, projY, outOfPlane, inPlane, sourceX, Y).
RTK_MATRICES = {
    (1000.0, 1500.0, 30.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0): [
        [-1297.1315646520957, -207.69106602847378, 724.1064321459676, 9500.0],
        [92.26376423612837, -1474.817618457715, -257.7137755256657, 11000.0],
        [0.49627307582066094, -0.12186934340514748, 0.8595701817498667, -1000.0],
    ],
    (800.0, 1100.0, -125.0, -12.0, 3.0, -20.0, 100.0, 0.0, -4.0): [
        [-422.2987218204779, -1013.8539945182476, -62.51293744644853, -9600.0],
        [-562.4450733832886, 177.09936127990858, 928.622827449937, 1200.0],
        [-0.7697511313200571, 0.3420201433256687, -0.5389855446957563, -800.0],
    ],
}


def rtk_params(words: tuple[float, ...], **more) -> rtk.RTK:
    sid, sdd, gantry, px, py, tilt, roll, sx, sy = words
    return rtk.RTK(
        sid=sid,
        sdd=sdd,
        gantry_angle=gantry,
        size=(261, 200),
        spacing=(1.1, 0.9),
        origin=(-140.0, -95.0),
        proj_offset_x=px,
        proj_offset_y=py,
        out_of_plane_angle=tilt,
        in_plane_angle=roll,
        source_offset_x=sx,
        source_offset_y=sy,
        **more,
    )


@pytest.mark.parametrize("words", RTK_MATRICES)
@pytest.mark.parametrize("patient_position", ["HFS", None])
def test_rtk_against_its_own_matrices(check, words, patient_position) -> None:
    params = rtk_params(words, patient_position=patient_position)

    def pixels(world: np.ndarray) -> np.ndarray:
        if patient_position == "HFS":  # (x, y, z) of IEC 61217 = (left, superior, anterior)
            right, anterior, superior = world.T
            world = np.stack([-right, superior, anterior], axis=-1)
        h = np.c_[world, np.ones(len(world))] @ np.array(RTK_MATRICES[words]).T
        physical = h[:, :2] / h[:, 2:]  # mm on the detector
        return (physical - params.origin) / params.spacing  # ITK: index = (physical − origin) / spacing

    camera = check(params, pixels, patient_position=patient_position)
    assert camera.mirrored
    assert camera.size == (200, 261)
    again = rtk.from_camera(camera, patient_position=patient_position)
    for name in ("sid", "sdd", "out_of_plane_angle", "source_offset_x", "source_offset_y"):
        assert getattr(again, name) == pytest.approx(getattr(params, name), abs=1e-8), name


@pytest.mark.slow
def test_rtk_matrices_are_still_what_rtk_computes() -> None:
    # In a process of its own: loading RTK takes twenty seconds and does not survive warnings as errors.
    pytest.importorskip("itk")
    script = (
        "import itk, json, sys; g = itk.RTK.ThreeDCircularProjectionGeometry.New();"
        "[g.AddProjection(*w) for w in json.loads(sys.argv[1])];"
        "print(json.dumps([itk.array_from_matrix(g.GetMatrix(i)).tolist() for i in range(2)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(list(RTK_MATRICES))],
        capture_output=True,
        text=True,
        check=True,
    )
    np.testing.assert_allclose(json.loads(done.stdout), list(RTK_MATRICES.values()), atol=1e-9)


def test_rtk_takes_an_ordinary_camera_with_its_rows_flipped(points) -> None:
    camera = awkward()
    with pytest.raises(GeometryError, match="flip_rows"):
        rtk.from_camera(camera)
    stored = rtk.to_camera(rtk.from_camera(camera.flip_rows())).project(points).numpy()
    ours = camera.project(points).numpy()
    np.testing.assert_allclose(stored, np.stack([ours[:, 0], 199 - ours[:, 1]], axis=-1), atol=1e-6)


def test_rtk_gantry_zero_has_the_source_before_the_patient() -> None:
    # IEC 61217: at gantry 0 the source is above a supine patient; towards +90 it goes to the patient's left.
    front, left = (
        rtk.to_camera(rtk_params((1000.0, 1500.0, g, 0, 0, 0, 0, 0, 0))).source for g in (0.0, 90.0)
    )
    np.testing.assert_allclose(front, [0, 1000, 0], atol=1e-9)
    np.testing.assert_allclose(left, [-1000, 0, 0], atol=1e-9)


# ---- TIGRE ------------------------------------------------------------------------------------------------


def tigre_pixels(p: tigre.TIGRE, world: np.ndarray) -> np.ndarray:
    """computeDeltas of the kernel: place source and panel, rotate, shift; then cut the ray with the panel."""
    rotation = turn("z", p.angles[0]) @ turn("y", p.angles[1]) @ turn("z", p.angles[2])
    shift = p.COR * np.array([-math.sin(p.angles[0]), math.cos(p.angles[0]), 0]) - np.array(p.offOrigin[::-1])
    (dv, du), (nv, nu), (off_v, off_u) = p.dDetector, p.nDetector, p.offDetector
    first = np.array([-(p.DSD - p.DSO), du * (0.5 - nu / 2) + off_u, dv * (0.5 - nv / 2) + off_v])
    source = rotation @ [p.DSO, 0, 0] + shift
    corner, step_u, step_v = rotation @ first + shift, rotation @ [0, du, 0], rotation @ [0, 0, dv]
    result = []
    for point in world:
        ray = (point - source) if p.mode == "cone" else rotation @ [-1.0, 0, 0]
        u, v, _ = np.linalg.solve(np.stack([step_u, step_v, -ray], axis=1), point - corner)
        result.append((u, v))
    return np.array(result)


@pytest.mark.parametrize("angles", [(0.7, 0.0, 0.0), (-2.0, 0.3, 0.4), (1.0, math.pi, 0.2)])
@pytest.mark.parametrize("mode", ["cone", "parallel"])
def test_tigre(check, angles, mode: str) -> None:
    params = tigre.TIGRE(
        DSD=1500.0,
        DSO=1000.0,
        nDetector=(200, 261),
        dDetector=(0.9, 1.1),
        angles=angles,
        offDetector=(-7.0, 13.0),
        offOrigin=(10.0, -20.0, 30.0),
        COR=4.0,
        mode=mode,
    )
    camera = check(params, lambda x: tigre_pixels(params, x))
    assert camera.mirrored
    assert camera.parallel == (mode == "parallel")


def test_tigre_round_trip_of_a_plain_orbit() -> None:
    params = tigre.TIGRE(1500.0, 1000.0, (200, 261), (0.9, 1.1), (2.5, 0.0, 0.0), (-7.0, 13.0))
    again = tigre.from_camera(tigre.to_camera(params))
    for name in ("DSD", "DSO", "dDetector", "angles", "offDetector", "offOrigin"):
        np.testing.assert_allclose(getattr(again, name), getattr(params, name), atol=1e-9, err_msg=name)
    assert again.nDetector == params.nDetector


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.floats(-3.1, 3.1), st.floats(0, math.pi), st.floats(-3.1, 3.1)))
def test_tigre_for_any_angles(angles) -> None:
    p = tigre.TIGRE(1500.0, 1000.0, (20, 26), (9.0, 11.0), angles, (-7.0, 13.0), (10.0, -20.0, 30.0))
    x = np.random.default_rng(0).normal(size=(6, 3)) * 40
    camera = tigre.to_camera(p)
    np.testing.assert_allclose(camera.project(x).numpy(), tigre_pixels(p, x), atol=1e-6)
    again = tigre.to_camera(tigre.from_camera(camera))
    np.testing.assert_allclose(again.project(x).numpy(), tigre_pixels(p, x), atol=1e-6)


# ---- NAF and the two Gaussians ----------------------------------------------------------------------------


def circle(angle: float, dso: float) -> np.ndarray:
    """angle2pose: camera to world."""
    pose = np.eye(4)
    pose[:3, :3] = turn("z", angle) @ turn("z", math.pi / 2) @ turn("x", -math.pi / 2)
    pose[:3, 3] = [dso * math.cos(angle), dso * math.sin(angle), 0]
    return pose


@pytest.mark.parametrize("mode", ["cone", "parallel"])
def test_naf(check, mode: str) -> None:
    params = naf.NAF(1500.0, 1000.0, (261, 200), (1.1, 0.9), 0.8, (13.0, -7.0), mode)

    def pixels(world: np.ndarray) -> np.ndarray:
        # get_rays, in metres: uu = (i + 0.5 − W/2)·d + off, direction (uu/DSD, vv/DSD, 1)
        local = (np.linalg.inv(circle(0.8, 1.0)) @ np.c_[world / 1000, np.ones(len(world))].T)[:3].T
        flat = local[:, :2] / local[:, 2:] * 1.5 if mode == "cone" else local[:, :2]
        return (
            (flat - np.array([0.013, -0.007])) / np.array([0.0011, 0.0009]) - 0.5 + np.array([261, 200]) / 2
        )

    camera = check(params, pixels)
    again = naf.from_camera(camera)
    for name in ("DSD", "DSO", "dDetector", "angle", "offDetector"):
        np.testing.assert_allclose(getattr(again, name), getattr(params, name), atol=1e-9, err_msg=name)


def test_naf_images_are_tigres_with_the_rows_flipped(points) -> None:
    t = tigre.TIGRE(1500.0, 1000.0, (256, 256), (1.1, 1.1), (0.8, 0.0, 0.0))
    n = naf.NAF(1500.0, 1000.0, (256, 256), (1.1, 1.1), 0.8)
    flipped = tigre.to_camera(t).flip_rows()
    np.testing.assert_allclose(flipped.project(points), naf.to_camera(n).project(points), atol=1e-6)
    # The second offset has the opposite sign: a detector moved up shows the object further down.
    t = tigre.TIGRE(1500.0, 1000.0, (256, 256), (1.1, 1.1), (0.8, 0.0, 0.0), (5.0, 3.0))
    n = naf.NAF(1500.0, 1000.0, (256, 256), (1.1, 1.1), 0.8, (3.0, -5.0))
    flipped = tigre.to_camera(t).flip_rows()
    np.testing.assert_allclose(flipped.project(points), naf.to_camera(n).project(points), atol=1e-6)


def test_r2_gaussian(check) -> None:
    params = r2_gaussian.R2Gaussian(1500.0, 1000.0, (200, 261), (180.0, 287.1), (300.0, 200.0, 250.0), 0.8)
    assert params.scene_scale == 2 / 300

    def pixels(world: np.ndarray) -> np.ndarray:
        # readCTameras on the scaled scene: field of view from sDetector; 3DGS puts NDC ±1 at −0.5 and S − 0.5
        s = params.scene_scale
        w2c = np.linalg.inv(circle(0.8, 1000.0 * s))
        local = (w2c @ np.c_[world * s, np.ones(len(world))].T)[:3].T
        fov_y = 2 * math.atan2(180.0 * s / 2, 1500.0 * s)
        fov_x = 2 * math.atan2(287.1 * s / 2, 1500.0 * s)
        ndc = local[:, :2] / local[:, 2:] / [math.tan(fov_x / 2), math.tan(fov_y / 2)]
        return ((ndc + 1) * [261, 200] - 1) / 2

    camera = check(params, pixels, size_mm=params.sVoxel)
    again = r2_gaussian.from_camera(camera, size_mm=params.sVoxel)
    for name in ("DSD", "DSO", "nDetector", "sDetector", "sVoxel", "angle"):
        np.testing.assert_allclose(getattr(again, name), getattr(params, name), atol=1e-9, err_msg=name)


def test_x_gaussian(check) -> None:
    params = x_gaussian.XGaussian(1500.0, 1000.0, (256, 256), 0.8, scene_scale=0.8)

    def pixels(world: np.ndarray) -> np.ndarray:
        local = (np.linalg.inv(circle(0.8, 1000.0)) @ np.c_[world * 0.8, np.ones(len(world))].T)[:3].T
        half_tan = 256 / (2 * 1500.0)  # focal2fov(DSD, w)
        return ((local[:, :2] / local[:, 2:] / half_tan + 1) * 256 - 1) / 2

    camera = check(params, pixels)
    assert float(camera.sdd) == pytest.approx(1875.0)
    again = x_gaussian.from_camera(camera)
    for name in ("DSD", "DSO", "angle", "scene_scale"):
        assert getattr(again, name) == pytest.approx(getattr(params, name), abs=1e-9)


def test_what_a_circle_cannot_hold_is_refused() -> None:
    good = naf.to_camera(naf.NAF(1500.0, 1000.0, (256, 256), (1.1, 1.1), 0.8))
    offset = naf.to_camera(naf.NAF(1500.0, 1000.0, (256, 256), (1.1, 1.1), 0.8, (3.0, 0.0)))
    flat = naf.to_camera(naf.NAF(1500.0, 1000.0, (9, 9), (1.0, 1.0), 0.8, mode="parallel"))
    for module, camera, message in (
        (naf, awkward(), "z axis"),
        (naf, good.flip_columns(), "mirrored"),
        (naf, Camera.c_arm(sdd=1020, sod=600, size=(9, 9), spacing=1, isocenter=(0, 0, 5)), "misses it"),
        (r2_gaussian, offset, "offsets"),
        (x_gaussian, offset, "offsets"),
        (x_gaussian, good.crop(0, 1, 256, 254), "square"),
        (
            r2_gaussian,
            flat,
            "parallel",
        ),
    ):
        with pytest.raises(GeometryError, match=message):
            module.from_camera(camera)
    for params in (
        r2_gaussian.R2Gaussian(
            1500.0, 1000.0, (9, 9), (9.0, 9.0), (9.0, 9.0, 9.0), 0.0, offDetector=(1.0, 0.0)
        ),
        r2_gaussian.R2Gaussian(1500.0, 1000.0, (9, 9), (9.0, 9.0), (9.0, 9.0, 9.0), 0.0, mode="parallel"),
        x_gaussian.XGaussian(1500.0, 1000.0, (9, 8), 0.0),
        x_gaussian.XGaussian(1500.0, 1000.0, (9, 9), 0.0, dDetector=(2.0, 2.0)),
        x_gaussian.XGaussian(1500.0, 1000.0, (9, 9), 0.0, offDetector=(2.0, 0.0)),
    ):
        with pytest.raises(GeometryError):
            (r2_gaussian if params.tool == "r2_gaussian" else x_gaussian).to_camera(params)


# ---- plastimatch ------------------------------------------------------------------------------------------

# Written by plastimatch 1.10: drr -n "1 0.3 0.2" --vup "0 0 1" --sad 1000 --sid 1500 -r "101 141"
# -z "300 420" -c "45 70" -o "10 20 30". The image it belongs to is 101 columns wide and 141 rows high.
PLASTIMATCH_FILE = """\
    4.50000000e+01     7.00000000e+01
   -9.67404583e-02     3.22468182e-01     0.00000000e+00    -5.48195905e+00
    6.04988822e-02     1.81496654e-02    -3.29718905e-01     8.92358503e+00
   -6.27147243e-04    -1.88144180e-04    -1.25429451e-04     6.80463906e-01
    1.00000000e+03
    1.50000000e+03
   -9.40720865e-01    -2.82216271e-01    -1.88144176e-01
Extrinsic
   -2.87347896e-01     9.57826282e-01    -0.00000000e+00    -1.62830467e+01
    1.80209436e-01     5.40628331e-02    -9.82141420e-01     2.65808916e+01
   -9.40720865e-01    -2.82216271e-01    -1.88144176e-01     1.02069586e+03
    0.00000000e+00     0.00000000e+00     0.00000000e+00     1.00000000e+00
Intrinsic
    3.36666667e-01     0.00000000e+00     0.00000000e+00     0.00000000e+00
    0.00000000e+00     3.35714286e-01     0.00000000e+00     0.00000000e+00
    0.00000000e+00     0.00000000e+00     6.66666667e-04     0.00000000e+00
"""


def test_plastimatch_file(points) -> None:
    params = plastimatch.parse(PLASTIMATCH_FILE, rows=141, columns=101)
    camera = plastimatch.to_camera(params)
    h = np.c_[points * LPS, np.ones(len(points))] @ np.array(params.matrix).T
    expected = h[:, :2] / h[:, 2:] + params.image_center
    np.testing.assert_allclose(camera.project(points).numpy(), expected, atol=1e-5)  # nine digits in the file
    assert not camera.mirrored
    again = plastimatch.from_camera(camera, isocenter=(-10.0, -20.0, 30.0))
    assert again.sad == pytest.approx(1000.0, abs=1e-4)
    for name in ("image_center", "matrix", "sid", "nrm", "extrinsic", "intrinsic"):
        np.testing.assert_allclose(
            getattr(again, name), getattr(params, name), rtol=1e-7, atol=1e-5, err_msg=name
        )
    rewritten = plastimatch.parse(plastimatch.write(params), rows=141, columns=101)
    assert rewritten == params


def test_plastimatch_exactly(check) -> None:
    params = plastimatch.from_camera(awkward(), isocenter=(10, -30, 50))
    assert params.sad == pytest.approx(620.0)

    def pixels(world: np.ndarray) -> np.ndarray:
        h = np.c_[world * LPS, np.ones(len(world))] @ np.array(params.matrix).T
        return h[:, :2] / h[:, 2:] + params.image_center

    check(params, pixels)


def test_plastimatch_renders_where_the_camera_says(tmp_path) -> None:
    if shutil.which("plastimatch") is None:
        pytest.skip("the plastimatch program is not installed")
    sitk = pytest.importorskip("SimpleITK")
    volume = np.full((40, 40, 40), -1000.0, np.float32)
    volume[30, 12, 8] = volume[10, 25, 30] = 30000.0
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((4.0, 4.0, 4.0))
    image.SetOrigin((-78.0, -78.0, -78.0))
    sitk.WriteImage(image, str(tmp_path / "ct.mha"))
    words = "-t pfm -n|1 0.3 0.2|--vup|0 0 1|--sad|1000|--sid|1500|-r|101 141|-z|150 210|-c|45 70|-o|0 0 0"
    command = [
        "plastimatch",
        "drr",
        *words.replace("-t pfm ", "-t|pfm|").split("|"),
        "-O",
        str(tmp_path / "out"),
    ]
    subprocess.run([*command, "-I", str(tmp_path / "ct.mha")], check=True, capture_output=True)
    raw = (tmp_path / "out0000.pfm").read_bytes().split(b"\n", 3)
    width, height = map(int, raw[1].split())
    assert (width, height) == (101, 141)  # "-r" is (columns, rows), whatever its help says
    film = np.frombuffer(raw[3], "<f4").reshape(height, width)
    film = film - np.median(film)
    camera = plastimatch.to_camera(
        plastimatch.parse((tmp_path / "out0000.txt").read_text(), rows=height, columns=width)
    )
    for index in ((8, 12, 30), (30, 25, 10)):
        lps = -78.0 + 4.0 * np.array(index)
        u, v = camera.project((lps * LPS)[None])[0].tolist()
        window = film[round(v) - 4 : round(v) + 5, round(u) - 4 : round(u) + 5]
        rows, columns = np.mgrid[-4:5, -4:5]
        assert abs((window * columns).sum() / window.sum() + round(u) - u) < 0.3
        assert abs((window * rows).sum() / window.sum() + round(v) - v) < 0.3


def test_plastimatch_text_that_is_no_projection_file() -> None:
    for text in ("", PLASTIMATCH_FILE.replace("Intrinsic", ""), PLASTIMATCH_FILE + " 7", "a b c"):
        with pytest.raises(GeometryError, match="19 numbers"):
            plastimatch.parse(text, rows=141, columns=101)
    p = plastimatch.parse(PLASTIMATCH_FILE.replace("4.50000000e+01", "4.5e+01"), rows=141, columns=101)
    with pytest.raises(GeometryError, match="differ"):
        plastimatch.to_camera(
            plastimatch.Plastimatch.from_dict(p.to_dict() | {"matrix": np.eye(4)[:3].tolist()})
        )
