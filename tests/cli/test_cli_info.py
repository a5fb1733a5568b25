import numpy as np
import pytest
from cli_files import XA_CLASS, done, refused, said, write_dicom, write_slices

from xreg.geometry import Camera, Rig
from xreg.io import save_rig
from xreg.volume import Volume


def test_a_ct(chest):
    answer = said("info", chest / "ct.nii.gz", "--mask", chest / "mask.nii.gz")
    facts, volume = answer["facts"], Volume.load(chest / "ct.nii.gz")
    assert answer["kind"] == "ct"
    assert facts["voxels"]["value"] == list(volume.size)
    assert facts["affine"]["origin"].startswith("header sform")
    np.testing.assert_allclose(facts["centre"]["value"], volume.center)
    assert facts["CT numbers"]["value"][0] == pytest.approx(-1000)
    assert facts["label 6"]["value"]["name"] == "ribs"
    text = done("info", chest / "ct.nii.gz").stdout
    assert "to the patient's right, front, head" in text
    assert "header sform" in text


def test_a_folder_of_dicom_slices(tmp_path):
    answer = said("info", write_slices(tmp_path / "ct", [0.0, 2.0, 4.0, 6.0]))
    assert answer["facts"]["voxels"]["value"] == [14, 12, 4]
    assert answer["facts"]["orientation"]["value"] == "LPS"
    assert answer["facts"]["slices"]["value"] == 4
    one = said("info", tmp_path / "ct" / "2.dcm", code=1)
    assert "slice" in one["error"]["message"]


def test_a_label_map(chest):
    answer = said("info", chest / "mask.nii.gz")
    assert answer["kind"] == "labels"
    assert answer["facts"]["structures"]["value"] == 8
    assert "ribs" in done("info", chest / "mask.nii.gz").stdout


def test_a_film_without_a_header(chest):
    answer = said("info", chest / "film.tif")
    assert answer["kind"] == "film"
    assert answer["facts"]["relationship"]["origin"] == "default"
    assert "spacing, sdd, sod" in answer["facts"]["camera"]["note"]


def test_a_dicom_film_with_origins_and_tags(tmp_path):
    tags = {
        "DistanceSourceToDetector": 1020.0,
        "DistanceSourceToPatient": 510.0,
        "PositionerPrimaryAngle": 30.0,
        "ImagerPixelSpacing": [0.31, 0.29],
    }
    pixels = np.random.default_rng(0).integers(1, 4000, (20, 24))
    facts = said("info", write_dicom(tmp_path / "film", pixels, XA_CLASS, "XA", **tags))["facts"]
    assert facts["sdd"] == {
        "value": 1020.0, "unit": "mm", "origin": "header (0018,1110)", "note": facts["sdd"]["note"]
    }  # fmt: skip
    assert facts["primary"]["value"] == 30.0
    assert facts["secondary"]["origin"].startswith("default")
    assert facts["sign"]["origin"].startswith("default")
    assert facts["angles"]["value"][0] == pytest.approx(30.0)


def test_poses(chest, tmp_path):
    answer = said("info", chest / "truth.json")
    same = said("info", chest / "truth.tfm")
    assert answer["kind"] == same["kind"] == "pose"
    np.testing.assert_allclose(
        answer["facts"]["matrix"]["value"], same["facts"]["matrix"]["value"], atol=1e-9
    )
    assert 5 <= answer["facts"]["rotation"]["value"] <= 8
    assert "world from body" in done("info", chest / "truth.json").stdout


def test_cameras_of_xreg_and_of_others(chest, tmp_path):
    own = said("info", chest / "camera.json")
    assert own["facts"]["source to detector"]["value"] == 1020
    done("convert", chest / "camera.json", "--to", "deepdrr", "-o", tmp_path / "d.json")
    other = said("info", tmp_path / "d.json")
    np.testing.assert_allclose(other["facts"]["K"]["value"], own["facts"]["K"]["value"])
    assert "camera_intrinsics" in other["facts"]


def test_a_rig(tmp_path):
    view = {"sdd": 1000, "sod": 700, "size": (10, 12), "spacing": 2.0}
    save_rig(tmp_path / "rig.json", Rig((Camera.c_arm(**view), Camera.c_arm(primary=90, **view))))
    facts = said("info", tmp_path / "rig.json")["facts"]
    assert facts["views"]["value"] == 2
    assert facts["view 1 angles"]["value"][0] == pytest.approx(90)


def test_what_it_is_can_be_said(chest):
    assert (
        said("info", chest / "mask.nii.gz", "--as", "ct", "--units", "hu", code=1)["error"]["type"]
        == "VolumeError"
    )
    assert "--rescale" in refused("info", chest / "mask.nii.gz", "--as", "ct")


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("notes.md", b"# notes", "not an image"),
        ("a.json", b"{}", "neither a pose nor a camera"),
        ("a.json", b'{"schema": "xreg.pose/1", "ma', "not valid JSON"),
        ("a.json", b'{"schema": "xreg.pose/7"}', "reads 'xreg.pose/1'"),
        ("a.png", b"", "empty"),
        ("a.tfm", b"#Insight Transform File V1.0\nTransform: BSpline_3_3\n", "affine"),
    ],
)
def test_other_files(tmp_path, name, content, hint):
    (tmp_path / name).write_bytes(content)
    assert hint in refused("info", tmp_path / name)


def test_no_such_file(tmp_path):
    assert "no such file" in refused("info", tmp_path / "none")
