import dataclasses
import json

import numpy as np
import pytest
import torch
from cli_files import XA_CLASS, done, files_below, pixels_of, said, write_dicom, xreg

from xreg import registration
from xreg.cli.demo import error_of, target_points
from xreg.geometry import se3
from xreg.io import load_pose, load_tfm, read_json
from xreg.registration import register as find
from xreg.volume import Volume


def error(chest, pose):
    volume = Volume.load(chest / "ct.nii.gz")
    truth = load_pose(chest / "truth.json").world_from_body
    return error_of(pose, truth, target_points(volume), volume.center)


def test_a_film_is_registered(chest, tmp_path):
    out = tmp_path / "a" / "out"
    words = ["--camera", chest / "camera.json", "--intensity", "line_integral", "-o", out]
    result = done("register", chest / "ct.nii.gz", chest / "film.tif", *words)
    assert "accepted" in result.stdout
    assert "registering" in result.stderr
    assert sorted(files_below(out)) == ["overlay.png", "pose.json", "pose.tfm", "result.json"]
    record = load_pose(out / "pose.json")
    assert error(chest, record.world_from_body).mtre_mm < 2.0 < error(chest, torch.eye(4).double()).mtre_mm
    torch.testing.assert_close(load_tfm(out / "pose.tfm"), record.world_from_body, atol=1e-6, rtol=0)
    assert record.accepted
    assert record.covariance is not None
    assert record.camera.size == (72, 64)
    answer = read_json(out / "result.json")
    assert answer["renders"] > 2
    assert answer["score"] == record.score
    assert answer["seconds"]["register"] > 0
    assert pixels_of(out / "overlay.png").shape[1:] == (1200, 3)


def test_json_is_the_only_thing_on_stdout(chest, tmp_path):
    words = [
        "--camera",
        chest / "camera.json",
        "--intensity",
        "line_integral",
        "--init",
        chest / "truth.json",
    ]
    answer = said("register", chest / "ct.nii.gz", chest / "film.tif", *words, "-o", tmp_path)
    pose = torch.tensor(answer["world_from_body"], dtype=torch.float64)
    assert error(chest, pose).mtre_mm < 2.0
    assert answer["accepted"] is True
    assert np.shape(answer["covariance"]) == (6, 6)
    assert len(answer["deviation"]["mm"]) == 3


def test_a_rejected_result_is_exit_code_3(chest, tmp_path, monkeypatch):
    def doubtful(*args, **known):
        return dataclasses.replace(find(*args, **known), accepted=False, reason="no match was found")

    monkeypatch.setattr(registration, "register", doubtful)
    words = ["--camera", chest / "camera.json", "--intensity", "line_integral", "-o", tmp_path]
    result = xreg("register", chest / "ct.nii.gz", chest / "film.tif", *words)
    assert result.exit_code == 3
    assert "REJECTED: no match was found" in result.stdout
    assert read_json(tmp_path / "result.json")["accepted"] is False
    answer = said("register", chest / "ct.nii.gz", chest / "film.tif", *words, code=3)
    assert answer["status"] == "rejected"


def test_a_film_read_as_its_negative_is_rejected_with_a_hint(chest, tmp_path):
    words = ["--camera", chest / "camera.json", "-o", tmp_path]  # line integrals, taken as values of the beam
    answer = said("register", chest / "ct.nii.gz", chest / "film.tif", *words, code=3)
    assert "--intensity line_integral" in answer["hint"]
    assert not load_pose(tmp_path / "pose.json").accepted


@pytest.fixture
def xa(chest, tmp_path):
    """The film as an X-ray angiography file: 16 bit, linear in the beam, with its own view."""
    p = pixels_of(chest / "film.tif")
    tags = {
        "DistanceSourceToDetector": 1020.0,
        "DistanceSourceToPatient": 850.0,
        "PositionerPrimaryAngle": 0.0,
        "PositionerSecondaryAngle": 0.0,
        "ImagerPixelSpacing": [5.6, 5.4],
        "PixelIntensityRelationship": "LIN",
        "PixelIntensityRelationshipSign": 1,
        "FieldOfViewHorizontalFlip": "YES",
    }
    return write_dicom(tmp_path / "film.dcm", np.round(60000 * np.exp(-p)), XA_CLASS, "XA", **tags)


def test_a_dicom_film_brings_its_own_view(chest, xa, tmp_path):
    answer = said("register", chest / "ct.nii.gz", xa, "-o", tmp_path / "out")
    assert error(chest, torch.tensor(answer["world_from_body"], dtype=torch.float64)).mtre_mm < 2.0
    assert answer["camera"]["size"] == [72, 64]


def test_words_given_win_over_the_header(chest, xa, tmp_path):
    volume = Volume.load(chest / "ct.nii.gz")
    words = ["--primary", 3, "--isocenter", *volume.center.tolist(), "--sdd", 1020]
    answer = said("register", chest / "ct.nii.gz", xa, *words, "-o", tmp_path / "out")
    assert answer["camera"]["camera_from_world"][0][0] == pytest.approx(np.cos(np.radians(3)))
    found = torch.tensor(answer["world_from_body"], dtype=torch.float64)
    turn = se3.about(se3.exp(torch.tensor([0, 0, np.radians(3), 0, 0, 0])), volume.center)
    assert error(chest, se3.inverse(turn) @ found).mtre_mm < 2.0


def test_a_film_without_a_view_says_what_is_missing(chest, tmp_path):
    result = xreg("register", chest / "ct.nii.gz", chest / "film.tif", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "--camera, or --spacing, --sdd, --sod" in result.stderr
    words = ["--spacing", 5.6, 5.4, "--sdd", 1020, "--sod", 850, "--intensity", "line_integral"]
    answer = said("register", chest / "ct.nii.gz", chest / "film.tif", *words, "-o", tmp_path / "out")
    assert error(chest, torch.tensor(answer["world_from_body"], dtype=torch.float64)).mtre_mm < 2.0


def test_camera_and_words_exclude_each_other(chest, tmp_path):
    result = xreg("register", "ct", "film", "--camera", "c.json", "--sdd", 1000, "-o", tmp_path)
    assert result.exit_code == 2
    assert "leave out --sdd" in result.stderr
    assert xreg("register", "ct", "film", "--size", 8, 8, "-o", tmp_path).exit_code == 2


def test_the_verdict_rests_on_what_it_was_calibrated_with(chest, tmp_path):
    words = ["--camera", chest / "camera.json", "--intensity", "line_integral", "-o", tmp_path]
    film = [chest / "ct.nii.gz", chest / "film.tif", *words]
    usual = said("register", *film)
    assert usual["verdict"]["evidence"]["restarts_apart_mm"] > 0
    assert (
        said("register", *film, "--restarts", registration.Settings().restarts)["verdict"] == usual["verdict"]
    )
    assert "restarts_apart_mm" not in said("register", *film, "--restarts", 0)["verdict"]["evidence"]


def test_help_names_the_default_of_the_library():
    text = " ".join(done("register", "--help").stdout.split())
    assert f"[default: {registration.Settings().restarts}, with which" in text


def test_the_result_is_json_that_numpy_reads(chest, tmp_path):
    words = ["--camera", chest / "camera.json", "--intensity", "line_integral", "-o", tmp_path]
    done("register", chest / "ct.nii.gz", chest / "film.tif", *words)
    data = json.loads((tmp_path / "pose.json").read_text())
    assert np.linalg.det(np.array(data["matrix"])[:3, :3]) == pytest.approx(1.0)
    assert data["provenance"]["method"] == "xreg register"
