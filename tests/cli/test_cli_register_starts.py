"""`xreg register` from several films and from every kind of start."""

import json

import pytest
import torch
from cli_files import VIEW, done, files_below, refused, said, xreg

from xreg.cli import starts
from xreg.cli.demo import error_of, target_points
from xreg.geometry import Rig, se3
from xreg.io import (
    Landmarks,
    load_camera,
    load_pose,
    load_rig,
    read_json,
    save_landmarks,
    save_pose,
    save_rig,
)
from xreg.volume import Volume

LINES = ["--intensity", "line_integral"]


@pytest.fixture(scope="module")
def two(chest, tmp_path_factory):
    """A folder with two films of the hidden pose (0 and 70 degrees), their cameras, and landmarks."""
    folder = tmp_path_factory.mktemp("two")
    for name, primary in (("ap", 0), ("lat", 70)):
        made = ["--pose", chest / "truth.json", "--integrator", "siddon", "-o", folder / f"{name}.tif"]
        view = [*VIEW, "--primary", primary, "--save-camera", folder / f"{name}.json"]
        done("drr", chest / "ct.nii.gz", *view, *made)
    save_rig(folder / "rig.json", Rig((load_camera(folder / "ap.json"), load_camera(folder / "lat.json"))))
    write_landmarks(folder, chest)
    return folder


def write_landmarks(folder, chest):
    center, truth = Volume.load(chest / "ct.nii.gz").center, load_pose(chest / "truth.json").world_from_body
    random = torch.rand(8, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    points = center + (random - 0.5) * torch.tensor([200.0, 120.0, 200.0])
    names = [f"point {n}" for n in range(8)]
    save_landmarks(folder / "points.mrk.json", Landmarks(names, points))
    for view in ("ap", "lat"):
        pixels = load_camera(folder / f"{view}.json").project(se3.apply(truth, points))
        pixels[2] += torch.tensor([14.0, -9.0])  # px of 5.5 mm: a wrong one
        rows = [f"{name},{u},{v}" for name, (u, v) in zip(names, pixels.tolist(), strict=True)]
        (folder / f"{view}.csv").write_text("name,u,v\n" + "\n".join(rows[:7]) + "\n")


def mtre(chest, pose):
    volume = Volume.load(chest / "ct.nii.gz")
    truth = load_pose(chest / "truth.json").world_from_body
    pose = torch.as_tensor(pose, dtype=torch.float64)
    return error_of(pose, truth, target_points(volume), volume.center).mtre_mm


def test_two_films_and_a_rig(chest, two, tmp_path):
    films = [two / "ap.tif", two / "lat.tif", "--camera", two / "rig.json", *LINES]
    result = done("register", chest / "ct.nii.gz", *films, "--restarts", 1, "-o", tmp_path / "out")
    assert sorted(files_below(tmp_path / "out")) == [
        "overlay_1.png", "overlay_2.png", "pose.json", "pose.tfm", "result.json", "rig.json",
    ]  # fmt: skip
    assert all(
        word in result.stdout for word in ("film 1", "view 2", "trust ", "evidence ", "views_apart_mm")
    )
    answer = read_json(tmp_path / "out" / "result.json")
    assert mtre(chest, answer["world_from_body"]) < 1.5
    assert answer["film"] == [str(two / "ap.tif"), str(two / "lat.tif")]
    assert len(answer["cameras"]) == len(answer["valid"]) == 2
    assert answer["start"] == {"kind": "header"}
    assert answer["init"] is None
    verdict = answer["verdict"]
    assert verdict["accepted"] is True
    assert 0.5 < verdict["probability"] <= 1
    assert {"score", "condition", "restarts_apart_mm"} <= set(verdict["evidence"])
    record = load_pose(tmp_path / "out" / "pose.json")
    assert record.camera is None
    assert record.provenance["verdict"] == verdict
    assert len(load_rig(tmp_path / "out" / "rig.json")) == 2


def test_a_camera_a_film_is_the_same(chest, two, tmp_path):
    films = [two / "ap.tif", two / "lat.tif", *LINES]
    rig = said("register", chest / "ct.nii.gz", *films, "--camera", two / "rig.json", "-o", tmp_path)
    each = ["--camera", two / "ap.json", "--camera", two / "lat.json"]
    again = said("register", chest / "ct.nii.gz", *films, *each, "-o", tmp_path)
    assert again["world_from_body"] == rig["world_from_body"]
    assert again["verdict"] == rig["verdict"]


def test_a_second_answer_leaves_nothing_of_the_first(chest, two, tmp_path):
    films, kept = [two / "ap.tif", two / "lat.tif", "--camera", two / "rig.json"], "overlay_3.png"
    quick = [*LINES, "--restarts", 0, "--init", chest / "truth.json", "-o", tmp_path]
    (tmp_path / kept).write_text("of the user")
    said("register", chest / "ct.nii.gz", *films, *quick)
    assert {"rig.json", "overlay_1.png", "overlay_2.png"} < set(files_below(tmp_path))
    said("register", chest / "ct.nii.gz", films[0], "--camera", two / "ap.json", *quick)
    one = {"overlay.png", "pose.json", "pose.tfm", "result.json", kept}
    assert set(files_below(tmp_path)) == one
    said("register", chest / "ct.nii.gz", *films, *quick)
    assert set(files_below(tmp_path)) == one - {"overlay.png"} | {
        "rig.json",
        "overlay_1.png",
        "overlay_2.png",
    }


def test_files_of_others_in_the_folder_stay(chest, two, tmp_path):
    for name in ("rig.json", "overlay_1.png"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "result.json").write_text('{"method": "xreg drr", "film": ["a", "b"]}')
    words = [two / "ap.tif", "--camera", two / "ap.json", "--init", chest / "truth.json", *LINES]
    said("register", chest / "ct.nii.gz", *words, "-o", tmp_path)
    assert {"rig.json", "overlay_1.png"} < set(files_below(tmp_path))


def test_landmarks_start_it_where_the_header_cannot(chest, two, tmp_path):
    words = [two / "ap.tif", "--camera", two / "ap.json", *LINES]
    marks = ["--landmarks", two / "points.mrk.json", "--pixels", two / "ap.csv"]
    answer = said("register", chest / "ct.nii.gz", *words, *marks, "--ransac-px", 2, "-o", tmp_path)
    assert mtre(chest, answer["world_from_body"]) < 2.0
    start = answer["start"]
    assert start["kind"] == "landmarks"
    assert (start["sights"], start["agree"], start["not_shown"]) == (7, 6, ["point 7"])
    assert [wrong["name"] for wrong in start["put_aside"]] == ["point 2"]
    assert start["rms_px"] < 1e-3
    assert mtre(chest, start["poses"][0]) < 0.1
    text = done("register", chest / "ct.nii.gz", *words, *marks, "--ransac-px", 2, "-o", tmp_path).stdout
    assert "landmarks: 6 of 7 agree, 0.00 px rms; put aside as wrong: point 2 (16.6 px)" in text


def test_landmarks_in_both_films(chest, two, tmp_path):
    words = [two / "ap.tif", two / "lat.tif", "--camera", two / "rig.json", *LINES, "-o", tmp_path]
    marks = ["--landmarks", two / "points.mrk.json", "--pixels", two / "ap.csv", "--pixels", two / "lat.csv"]
    answer = said("register", chest / "ct.nii.gz", *words, *marks)
    assert mtre(chest, answer["world_from_body"]) < 1.5
    assert answer["start"]["sights"] == 14
    assert [wrong["film"] for wrong in answer["start"]["put_aside"]] == [1, 2]


def test_a_name_that_the_landmarks_lack(chest, two, tmp_path):
    (tmp_path / "px.csv").write_text((two / "ap.csv").read_text().replace("point 3", "pt 3"))
    words = [two / "ap.tif", "--camera", two / "ap.json", "-o", tmp_path / "out"]
    marks = ["--landmarks", two / "points.mrk.json", "--pixels", tmp_path / "px.csv"]
    message = refused("register", chest / "ct.nii.gz", *words, *marks)
    assert "'pt 3'" in message
    assert "'point 3'" in message
    assert not (tmp_path / "out").exists()


def test_landmarks_that_fit_nothing_name_the_option(chest, two, tmp_path):
    rows = "\n".join(f"point {n},{7 * n * n % 60},{11 * n % 64}" for n in range(7))
    (tmp_path / "px.csv").write_text(rows)
    words = [two / "ap.tif", "--camera", two / "ap.json", "-o", tmp_path / "out"]
    marks = ["--landmarks", two / "points.mrk.json", "--pixels", tmp_path / "px.csv"]
    assert "no pose explains the landmarks" in refused("register", chest / "ct.nii.gz", *words, *marks)


def test_markups_placed_on_the_film(chest, two, tmp_path):
    rows = [row.split(",") for row in (two / "ap.csv").read_text().splitlines()[1:]]
    ras = [[-float(u) * 5.4, -float(v) * 5.6, 0.0] for _, u, v in rows]
    save_landmarks(tmp_path / "on.mrk.json", Landmarks([row[0] for row in rows], ras))
    words = [two / "ap.tif", "--camera", two / "ap.json", *LINES, "-o", tmp_path]
    marks = ["--landmarks", two / "points.mrk.json", "--pixels", tmp_path / "on.mrk.json"]
    answer = said("register", chest / "ct.nii.gz", *words, *marks, "--pixels-spacing", 5.6, 5.4)
    assert mtre(chest, answer["start"]["poses"][0]) < 0.5
    table = [*marks[:3], two / "ap.csv", "--pixels-spacing", 5.6, 5.4]
    assert "which need no spacing" in refused("register", chest / "ct.nii.gz", *words, *table)


def test_the_best_of_several_poses_is_kept(chest, two, tmp_path):
    bad = se3.from_translation(torch.tensor([70.0, 0.0, -60.0], dtype=torch.float64))
    save_pose(tmp_path / "bad.json", bad)
    words = [two / "ap.tif", "--camera", two / "ap.json", *LINES, "-o", tmp_path]
    tries = ["--init", tmp_path / "bad.json", "--init", chest / "truth.tfm"]
    answer = said("register", chest / "ct.nii.gz", *words, *tries)
    assert mtre(chest, answer["world_from_body"]) < 2.0
    assert answer["init"] == [str(tmp_path / "bad.json"), str(chest / "truth.tfm")]
    assert answer["start"]["kind"] == "init"


def test_a_search_finds_it_from_nowhere(chest, two, tmp_path, monkeypatch):
    monkeypatch.setattr(starts, "find_spec", lambda name: None)  # as if cmaes were not installed
    words = [two / "ap.tif", "--camera", two / "ap.json", *LINES, "-o", tmp_path]
    box = ["--search", "--box-degrees", 20, 15, 10, "--box-mm", 30, 30, 40]
    result = done("register", chest / "ct.nii.gz", *words, *box)
    assert "xreg[search]" in result.stderr
    assert "search: ±20, 15, 10° and ±30, 30, 40 mm" in result.stdout
    answer = read_json(tmp_path / "result.json")
    assert mtre(chest, answer["world_from_body"]) < 2.5
    assert answer["start"] == {
        "kind": "search", "box_degrees": [20, 15, 10], "box_mm": [30, 30, 40], "evolution": False,
    }  # fmt: skip


WRONG = [
    (["--init", "a.json", "--search"], "--init and --search exclude each other"),
    (["--landmarks", "p", "--pixels", "q", "--init", "a"], "--init and --landmarks exclude"),
    (["--landmarks", "p", "--pixels", "q", "--search"], "--landmarks and --search exclude"),
    (["--landmarks", "p"], "--landmarks needs --pixels"),
    (["--pixels", "q"], "--pixels is for --landmarks"),
    (["--ransac-px", 3], "--ransac-px is for --landmarks"),
    (["--landmarks", "p", "--pixels", "q", "--pixels", "r"], "--pixels was given 2 times for 1 films"),
    (["--box-degrees", 1, 2, 3], "--box-degrees is for --search"),
    (["--box-mm", 1, 2, 3], "--box-mm is for --search"),
    (["--search", "--box-mm", 1, -2, 3], "--box-mm"),
    (["--restarts", -1], "--restarts"),
    (["--camera", "a", "--camera", "b"], "--camera was given 2 times for 1 film"),
    (["--film-mask", "a", "--film-mask", "b"], "--film-mask was given 2 times"),
    (["second.tif", "--sdd", 1000, "--primary", 3], "--sdd, --primary describes one view"),
    (["second.tif", "third.tif", "--camera", "a", "--camera", "b"], "2 times for 3 films"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[m for _, m in WRONG])
def test_wrong_usage(words, message, chest, tmp_path):
    result = xreg("register", chest / "ct.nii.gz", chest / "film.tif", *words, "-o", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_cameras_that_do_not_fit_the_films(chest, two, tmp_path):
    films = [two / "ap.tif", two / "lat.tif", "-o", tmp_path / "out"]
    message = refused("register", chest / "ct.nii.gz", *films, "--camera", two / "ap.json")
    assert "is one camera, and there are 2 films" in message
    one = [two / "ap.tif", "--camera", two / "rig.json", "-o", tmp_path / "out"]
    assert "is a rig of 2 cameras" in refused("register", chest / "ct.nii.gz", *one)
    assert "give --camera" in refused("register", chest / "ct.nii.gz", *films)


def test_help_shows_each_kind_of_start_by_example():
    text = " ".join(done("register", "--help").stdout.split())
    assert all(word in text for word in ("--landmarks P --pixels Q", "--search", "rig.json", "3 found but"))


def test_the_record_stays_json(chest, two, tmp_path):
    words = [two / "ap.tif", "--camera", two / "ap.json", *LINES, "--init", chest / "truth.json"]
    done("register", chest / "ct.nii.gz", *words, "-o", tmp_path)
    data = json.loads((tmp_path / "pose.json").read_text())
    assert data["provenance"]["start"]["files"] == [str(chest / "truth.json")]
    assert data["camera"]["size"] == [72, 64]
