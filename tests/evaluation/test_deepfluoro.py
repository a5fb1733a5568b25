import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deepfluoro_files import (
    BONE,
    LANDMARKS,
    MIDDLE,
    NUMBERS,
    SIZE,
    SPACING,
    cam_to_pelvis,
    line_integrals,
    pixel_of,
    write_deepfluoro,
)
from evaluation_files import answer, write_manifest

import xreg
from xreg import metrics, se3
from xreg.errors import BackendError, FileError, GeometryError
from xreg.evaluation import load_manifest, run
from xreg.evaluation.deepfluoro import DeepFluoroFile

LPS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    pytest.importorskip("h5py", reason="h5py is not installed: pip install 'xreg[evaluate]'")
    return write_deepfluoro(tmp_path_factory.mktemp("deepfluoro") / "small.h5")


@pytest.fixture
def file(path):
    with DeepFluoroFile(path) as opened:
        yield opened


def test_it_says_what_it_holds(file):
    assert file.specimens == ("17-1882",)
    assert file.projections("17-1882") == NUMBERS
    shots = [file.projection("17-1882", n, crop_px=4) for n in (0, "001")]
    assert [s.upside_down for s in shots] == [False, True]
    camera = shots[0].film.camera
    assert camera.mirrored
    assert camera.size == (72, 80)
    assert float(camera.sdd) == pytest.approx(1020.0)
    assert shots[0].film.spacing == pytest.approx((3.0, 3.0))
    torch.testing.assert_close(camera.camera_from_world, shots[1].film.camera.camera_from_world)
    assert not bool(shots[0].film.mask[3].any())
    assert bool(shots[0].film.mask[4:-4, 4:-4].all())


def test_the_ct_lies_where_its_header_says(file):
    volume = file.volume("17-1882")
    assert volume.size == SIZE
    np.testing.assert_allclose(volume.spacing, SPACING)
    np.testing.assert_allclose(volume.center, MIDDLE * LPS)
    assert volume.label_names == {1: "left-hemipelvis", 2: "vertebra"}
    bone = torch.nonzero(volume.labels == 2).double().mean(0).flip(0)
    there = volume.affine[:3, :3] @ bone + volume.affine[:3, 3]
    np.testing.assert_allclose(there, (MIDDLE + BONE) * LPS, atol=0.6)
    assert float(volume.hu.max()) == pytest.approx(900, abs=1)


@pytest.mark.parametrize("number", [0, 1])
def test_landmarks_fall_where_the_authors_formula_puts_them(file, number):
    shot, marks = file.projection("17-1882", number, crop_px=4), file.landmarks("17-1882")
    assert marks.names == shot.landmarks.names == tuple(sorted(LANDMARKS))
    np.testing.assert_allclose(marks.points, [LANDMARKS[name] * LPS for name in marks.names])
    seen = shot.film.camera.project(se3.apply(shot.world_from_body, marks.points))
    np.testing.assert_allclose(seen, [pixel_of(LANDMARKS[name], number) for name in marks.names], atol=1e-6)
    np.testing.assert_allclose(seen, shot.landmarks.pixels, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_a_render_at_the_truth_is_the_film(file, number):
    """Chords of ellipsoids on one side, the voxels, camera and pose of the file on the other."""
    shot, volume = file.projection("17-1882", number, crop_px=4), file.volume("17-1882")
    image = xreg.drr(volume, shot.film.camera, shot.world_from_body).double()
    film, valid = shot.film.line_integrals.double(), shot.film.mask
    np.testing.assert_allclose(film[valid], line_integrals(number)[valid.numpy()], atol=2e-3)
    alike = np.corrcoef(image[valid], film[valid])[0, 1]
    assert alike > 0.995
    assert float(image[valid].sum() / film[valid].sum()) == pytest.approx(1.0, abs=0.03)
    for wrong in (image.flip(1), image.flip(0), image.flip(0, 1)):
        assert np.corrcoef(wrong[valid], film[valid])[0, 1] < alike - 0.02


def test_half_a_voxel_moves_the_truth_in_the_volume(file):
    as_stored = file.projection("17-1882", 0, crop_px=4).world_from_body
    moved = file.projection("17-1882", 0, half_voxel=True, crop_px=4).world_from_body
    step = se3.inverse(moved) @ as_stored  # the body point that was at p is now taken at p − half a voxel
    np.testing.assert_allclose(step[:3, :3], np.eye(3), atol=1e-9)
    np.testing.assert_allclose(step[:3, 3], -0.5 * SPACING * LPS, atol=1e-9)


def test_rounding_of_float32_is_taken_out(path, tmp_path):
    import h5py

    other = tmp_path / "rounded.h5"
    other.write_bytes(path.read_bytes())
    with h5py.File(other, "r+") as raw:
        where = "17-1882/projections/000/gt-poses/cam-to-pelvis-vol"
        del raw[where]
        raw[where] = cam_to_pelvis(0).astype(np.float32)
    with DeepFluoroFile(path) as exact, DeepFluoroFile(other) as rounded:
        a, b = (f.projection("17-1882", 0, crop_px=4).world_from_body for f in (exact, rounded))
    se3.require_rigid(b, "truth", tolerance=1e-12)
    assert metrics.mtre(b, a, torch.from_numpy(MIDDLE * LPS)[None]) < 1e-3


def test_films_are_cases_of_a_manifest(path, tmp_path):
    entry = {"deepfluoro": {"path": str(path), "specimen": "17-1882", "projections": [0, 1], "crop_px": 4}}
    entry["starts"] = {"random": {"mm": 5, "degrees": 2, "count": 1}}
    manifest = load_manifest(write_manifest(tmp_path / "m.json", [entry]))
    asked = []

    def method(volume, film, camera, init):
        asked.append((volume, film, camera))
        return answer(init)

    records = run(manifest, {"m": method}, tmp_path)
    assert [r["case"] for r in records] == ["17-1882/000", "17-1882/001"]
    assert all(0 < r["mtre_mm"] < 40 for r in records)
    assert asked[0][0] is asked[1][0]


def broken(path, tmp_path, where, value):
    import h5py

    other = tmp_path / "broken.h5"
    other.write_bytes(path.read_bytes())
    with h5py.File(other, "r+") as raw:
        del raw[where]
        if value is not None:
            raw[where] = value
    return DeepFluoroFile(other)


@pytest.mark.parametrize(
    ("where", "value", "error", "message"),
    [
        ("proj-params/intrinsic", None, FileError, "has no data 'proj-params/intrinsic'"),
        (
            "proj-params/extrinsic",
            np.diag([1, 1, -1, 1.0]),
            GeometryError,
            "proj-params/extrinsic must have det",
        ),
        ("proj-params/intrinsic", np.eye(3), GeometryError, "intrinsic of rg2_xreg must be"),
        ("17-1882/projections/000/image/pixels", np.ones((3, 3)), FileError, "must be numbers of shape"),
        ("17-1882/vol/pixels", np.ones((3, 3)), FileError, "vol/pixels must be"),
        ("17-1882/vol-seg/image/origin", np.zeros(3), FileError, "is not on the grid"),
        ("17-1882/vol-landmarks/FH-l", np.zeros(2), FileError, "vol-landmarks/FH-l must be numbers"),
        ("17-1882/projections/000/gt-poses", None, FileError, "has no data"),
    ],
)
def test_damage_is_named_with_file_and_place(where, value, error, message, path, tmp_path):
    def read_all() -> None:
        with broken(path, tmp_path, where, value) as file:
            file.volume("17-1882")
            file.landmarks("17-1882")
            file.projection("17-1882", 0, crop_px=4)

    with pytest.raises(error, match=message) as caught:
        read_all()
    assert "broken.h5: " in str(caught.value)


def test_what_is_not_there_is_refused(file, path, tmp_path):
    with pytest.raises(FileError, match="has no specimen 'x'; it has 17-1882"):
        file.volume("x")
    with pytest.raises(FileError, match="has no projection '007'; it has 000 to 001"):
        file.projection("17-1882", 7)
    with pytest.raises(FileError, match="crop_px must leave something"):
        file.projection("17-1882", 0, crop_px=40)
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(FileError, match="is not HDF5"):
        DeepFluoroFile(tmp_path / "text.h5")
    with pytest.raises(FileError, match="no such file"):
        DeepFluoroFile(tmp_path / "none.h5")


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(BackendError, match=r"pip install 'xreg\[evaluate\]'"):
        DeepFluoroFile(tmp_path / "a.h5")
