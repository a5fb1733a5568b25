import json

import numpy as np
import pytest
import torch
from cli_files import done, files_below, refused, said, xreg

from xreg.cli.convert import TOOLS
from xreg.geometry import Camera, se3
from xreg.io import load_camera, load_pose, load_tfm, save_camera, save_pose

MIRRORED = ("deepfluoro", "rtk", "tigre")


@pytest.fixture
def camera(tmp_path):
    """A view that every tool can express: on the circle about z through the origin, centred."""
    camera = Camera.c_arm(sdd=1000, sod=700, size=(40, 40), spacing=1.0, primary=25)
    save_camera(tmp_path / "cam.json", camera)
    return camera


def points():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(20, 3, generator=generator, dtype=torch.float64) * 60 - 30


@pytest.mark.parametrize("tool", TOOLS)
def test_there_and_back(tool, camera, tmp_path):
    flip = ["--flip", "rows"] if tool in MIRRORED else []
    theirs, back = tmp_path / "theirs.json", tmp_path / "back.json"
    assert (
        "flipud" in done("convert", tmp_path / "cam.json", "--to", tool, "-o", theirs, *flip).stdout
        or not flip
    )
    assert json.loads(theirs.read_text())["tool"] == tool
    done("convert", theirs, "--to", "xreg", "-o", back, *flip)
    torch.testing.assert_close(
        load_camera(back).project(points()), camera.project(points()), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("tool", MIRRORED)
def test_a_mirrored_tool_asks_for_the_flip(tool, camera, tmp_path):
    assert "--flip rows or --flip columns" in refused("convert", tmp_path / "cam.json", "--to", tool)


@pytest.mark.parametrize(("tool", "size"), [("autoscoper", []), ("plastimatch", ["--size", 40, 40])])
def test_text_files_of_the_tools(tool, size, camera, tmp_path):
    done("convert", tmp_path / "cam.json", "--to", tool, "-o", tmp_path / "a.txt")
    words = ["--from", tool, "--to", "xreg", "-o", tmp_path / "b.json", "--sdd", 1000]
    done("convert", tmp_path / "a.txt", *words, *size)
    found = load_camera(tmp_path / "b.json")
    torch.testing.assert_close(found.project(points()), camera.project(points()), atol=1e-3, rtol=0)
    assert float(found.sdd) == pytest.approx(1000)
    printed = done("convert", tmp_path / "cam.json", "--to", tool).stdout
    assert printed.strip() == (tmp_path / "a.txt").read_text().strip()


def test_poses_between_json_and_itk(chest, tmp_path):
    truth = load_pose(chest / "truth.json").world_from_body
    done("convert", chest / "truth.json", "--to", "itk", "-o", tmp_path / "a.tfm")
    done("convert", tmp_path / "a.tfm", "--to", "pose", "-o", tmp_path / "b.json")
    torch.testing.assert_close(load_tfm(tmp_path / "a.tfm"), truth)
    torch.testing.assert_close(load_pose(tmp_path / "b.json").world_from_body, truth)
    answer = said("convert", chest / "truth.json", "--to", "itk")
    np.testing.assert_allclose(answer["result"]["matrix"], truth)
    for source, target, file in (("truth.json", "itk", "a.tfm"), ("truth.tfm", "pose", "b.json")):
        assert done("convert", chest / source, "--to", target).stdout == (tmp_path / file).read_text()


def test_a_pose_becomes_the_view_of_a_tool_and_a_pose_again(chest, camera, tmp_path):
    pose = se3.from_euler([5.0, -3.0, 2.0], "ZXY", torch.tensor([4.0, -6.0, 9.0]).double(), degrees=True)
    save_pose(tmp_path / "pose.json", pose, camera=camera)
    done("convert", tmp_path / "pose.json", "--to", "diffdrr", "-o", tmp_path / "d.json")
    done("convert", tmp_path / "d.json", "--to", "xreg", "-o", tmp_path / "seen.json")
    seen = load_camera(tmp_path / "seen.json")
    torch.testing.assert_close(seen.project(points()), camera.project(se3.apply(pose, points())))
    done(
        "convert",
        tmp_path / "d.json",
        "--to",
        "pose",
        "--camera",
        tmp_path / "cam.json",
        "-o",
        tmp_path / "p.json",
    )
    torch.testing.assert_close(load_pose(tmp_path / "p.json").world_from_body, pose)


def test_a_pose_of_a_flipped_view(camera, tmp_path):
    done("convert", tmp_path / "cam.json", "--to", "rtk", "--flip", "rows", "-o", tmp_path / "rtk.json")
    words = ["--to", "itk", "--camera", tmp_path / "cam.json"]
    assert "mirrored" in refused("convert", tmp_path / "rtk.json", *words)
    matrix = said("convert", tmp_path / "rtk.json", *words, "--flip", "rows")["result"]["matrix"]
    np.testing.assert_allclose(matrix, np.eye(4), atol=1e-9)


def test_other_intrinsics_are_pointed_out(camera, tmp_path):
    save_camera(tmp_path / "other.json", camera.bin(2))
    result = done("convert", tmp_path / "other.json", "--to", "itk", "--camera", tmp_path / "cam.json")
    assert "warning: sizes or intrinsics differ" in result.stderr


def test_words_of_a_tool(camera, tmp_path):
    words = ["--isocenter", 0, 0, 5, "--set", "orientation=PA"]
    made = said("convert", tmp_path / "cam.json", "--to", "diffdrr", *words)["result"]
    assert made["orientation"] == "PA"
    assert made["isocenter"] == [0.0, 0.0, 5.0]
    made = said("convert", tmp_path / "cam.json", "--to", "deepdrr", "--set", 'world="LPS"')["result"]
    assert made["world"] == "LPS"


@pytest.mark.parametrize("tool", ["diffdrr", "nanodrr", "xvr"])
def test_the_isocenter_of_a_file_that_lacks_it(tool, tmp_path):
    """What DiffDRR and its kin hold is about the middle of the CT, which only the CT knows."""
    center = torch.tensor([-13.6, -7.9, -175.0], dtype=torch.float64)
    camera = Camera.c_arm(sdd=1000, sod=700, size=(40, 40), spacing=1.0, primary=25, isocenter=center)
    save_camera(tmp_path / "cam.json", camera)
    words = ["--isocenter", *center.tolist()]
    done("convert", tmp_path / "cam.json", "--to", tool, *words, "-o", tmp_path / "theirs.json")
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    assert theirs.pop("isocenter") == center.tolist()
    (tmp_path / "bare.json").write_text(json.dumps(theirs))
    for target in ("xreg", "pytorch3d", "diffdrr"):
        done("convert", tmp_path / "bare.json", "--to", target, *words, "-o", tmp_path / "back.json")
        made = said("convert", tmp_path / "back.json", "--to", "xreg")["result"]
        found = Camera.from_dict(made)
        torch.testing.assert_close(
            found.project(points() + center), camera.project(points() + center), atol=1e-6, rtol=0
        )
    result = xreg("convert", tmp_path / "theirs.json", "--to", "xreg", *words)
    assert result.exit_code == 2
    assert "--isocenter is not used" in result.stderr


def test_the_input_is_not_written_over(camera, tmp_path):
    before = files_below(tmp_path)
    result = xreg("convert", tmp_path / "cam.json", "--to", "xreg", "-o", tmp_path / "cam.json")
    assert result.exit_code == 2
    assert "FILE reads" in " ".join(result.stderr.split())
    assert files_below(tmp_path) == before


def test_sdd_of_a_camera_beside_a_pose(camera, tmp_path):
    save_camera(tmp_path / "cam.json", camera.replace(sdd=None))
    save_pose(tmp_path / "pose.json", torch.eye(4, dtype=torch.float64))
    words = ["--to", "xreg", "--camera", tmp_path / "cam.json", "--sdd", 1000]
    made = said("convert", tmp_path / "pose.json", *words)["result"]
    assert made["sdd"] == 1000.0


@pytest.mark.parametrize(
    ("file", "words", "flag"),
    [
        ("cam.json", ["--to", "naf", "--isocenter", 0, 0, 5], "--isocenter"),
        ("cam.json", ["--to", "xreg", "--isocenter", 0, 0, 5], "--isocenter"),
        ("cam.json", ["--to", "xreg", "--set", "orientation=PA"], "--set"),
        ("cam.json", ["--to", "rtk", "--size", 40, 40], "--size"),
        ("cam.json", ["--to", "rtk", "--camera", "cam.json"], "--camera"),
        ("cam.json", ["--to", "xreg", "--sdd", 900], "--sdd"),
        ("pose.json", ["--to", "itk", "--flip", "rows"], "--flip"),
        ("pose.json", ["--to", "itk", "--isocenter", 0, 0, 5], "--isocenter"),
    ],
)
def test_an_option_without_effect_is_refused(file, words, flag, camera, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pose("pose.json", torch.eye(4, dtype=torch.float64))
    before = files_below(tmp_path)
    result = xreg("convert", file, *words, "-o", "out.json")
    assert result.exit_code == 2
    assert flag in result.stderr
    assert "leave" in result.stderr
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--to", "naf", "--set", "orientation=PA"], "no word orientation"),
        (["--to", "diffdrr", "--set", "orientation"], "NAME=VALUE"),
        (["--to", "pose"], "give --camera"),
        (["--to", "nothing"], "nothing"),
        ([], "--to"),
    ],
)
def test_wrong_usage(words, hint, camera, tmp_path):
    before = files_below(tmp_path)
    result = xreg("convert", tmp_path / "cam.json", *words, *(["-o", tmp_path / "out.json"] if words else []))
    assert result.exit_code == 2
    assert hint in result.stderr
    assert files_below(tmp_path) == before


def test_files_that_do_not_say_what_they_are(chest, tmp_path):
    (tmp_path / "a.txt").write_text("1 2 3")
    (tmp_path / "a.json").write_text('{"sdd": 1}')
    assert "--from" in xreg("convert", tmp_path / "a.txt", "--to", "xreg").stderr
    assert "--from" in xreg("convert", tmp_path / "a.json", "--to", "xreg").stderr
    assert "missing" in refused("convert", tmp_path / "a.json", "--from", "naf", "--to", "xreg")
    assert "give --camera" in xreg("convert", chest / "truth.json", "--to", "rtk").stderr
    assert "--size" in xreg("convert", tmp_path / "a.txt", "--from", "plastimatch", "--to", "xreg").stderr


def test_a_pose_that_mirrors_is_refused(chest, tmp_path):
    data = json.loads((chest / "truth.json").read_text())
    data["matrix"][0] = [-v for v in data["matrix"][0]]
    (tmp_path / "bad.json").write_text(json.dumps(data))
    assert "det" in refused("convert", tmp_path / "bad.json", "--to", "itk", "-o", tmp_path / "a.tfm")
    assert not (tmp_path / "a.tfm").exists()


def test_a_rig_is_told_as_such(tmp_path):
    (tmp_path / "rig.json").write_text(json.dumps({"schema": "xreg.rig/1", "cameras": []}))
    result = xreg("convert", tmp_path / "rig.json", "--to", "rtk")
    assert result.exit_code == 2
    assert "is a rig of several cameras; convert takes one" in result.stderr
