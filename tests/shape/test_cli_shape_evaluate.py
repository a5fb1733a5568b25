"""`xreg shape evaluate`, run in this process."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from xreg.cli import main
from xreg.io import write_nifti

AFFINE = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))


@pytest.fixture
def files(tmp_path):
    true = np.zeros((12, 8, 8), dtype=np.uint8)
    true[1:5, 2:6, 2:6], true[7:11, 2:6, 2:6] = 21, 20
    mine = true.copy()
    mine[mine > 0] += 1
    for name, values in (("true", true), ("mine", mine)):
        (tmp_path / name).mkdir()
        write_nifti(tmp_path / name / "one.nii.gz", values, AFFINE)
    return tmp_path


def run(*words, code=0):
    result = CliRunner().invoke(main, ["shape", "evaluate", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def test_a_shifted_level_is_told_as_one(files):
    done = run(files / "mine" / "one.nii.gz", files / "true" / "one.nii.gz", "--scheme", "spine")
    assert "Dice 0.000 (shifted 1.000 by spine -1, foreground 1.000)" in done.stdout
    assert "L3     only in the prediction" in done.stdout
    assert "L1" in done.stdout
    assert "missing 1" in done.stdout


def test_folders_json_and_the_file(files):
    out = files / "scores.json"
    said = json.loads(run(files / "mine", files / "true", "--json", "-o", out, "--spacing-scale", 1.5).stdout)
    assert said["status"] == "done"
    assert said["cases"][0]["name"] == "one.nii.gz"
    assert said["mean"]["dice_shifted"] == 1.0
    assert said["cases"][0]["centroid_mm"] == pytest.approx(6 * 3.0)
    assert json.loads(out.read_text())["mean"] == said["mean"]


def test_another_scheme_and_a_table_of_names(files):
    said = run(files / "true", files / "true", "--scheme", "spine", "--prediction-scheme", "all", "--json")
    assert json.loads(said.stdout)["mean"]["dice"] == 1.0
    table = files / "names.csv"
    table.write_text("id,name\n20,this\n21,that\n22,other\n")
    said = json.loads(run(files / "true", files / "true", "--names", table, "--json").stdout)
    assert [label["name"] for label in said["cases"][0]["labels"]] == ["this", "that"]


def test_bad_input_is_refused(files):
    one, other = files / "mine" / "one.nii.gz", files / "true" / "one.nii.gz"
    assert "does not know the labels 21, 22" in run(one, other, "--scheme", "pelvis", code=1).stderr
    assert "scheme must be one of all, spine" in run(one, other, "--scheme", "bones", code=1).stderr
    assert "not one of each" in run(one, files / "true", code=1).stderr
    write_nifti(files / "true" / "two.nii.gz", np.ones((3, 3, 3), dtype=np.uint8), AFFINE)
    assert "lacks two.nii.gz" in run(files / "mine", files / "true", code=1).stderr
    assert "not on the grid" in run(one, files / "true" / "two.nii.gz", code=1).stderr
    assert "leave out --prediction-scheme" in run(
        one, other, "--names", one, "--prediction-scheme", "all", code=2
    ).stderr  # fmt: skip


def test_what_is_read_is_not_written_over(files):
    one, other = files / "mine" / "one.nii.gz", files / "true" / "one.nii.gz"
    before = {file: file.read_bytes() for file in (one, other)}
    for words in ((one, other), (files / "mine", files / "true")):
        for output in before:
            assert "must end in .json" in run(*words, "-o", output, code=2).stderr
    table = files / "names.json"
    table.write_text('{"20": "this", "21": "that", "22": "other"}')
    before[table] = table.read_bytes()
    words = (files / "true", files / "true", "--names", table)
    said = " ".join(run(*words, "-o", files / "mine" / ".." / "names.json", code=2).stderr.split())
    assert "which --names reads; choose another name" in said
    linked = files / "linked.json"
    for what, place in (("PREDICTION", one), ("REFERENCE", other)):
        linked.symlink_to(place)
        for known in ((one, other), (files / "mine", files / "true")):
            assert f"which {what} reads" in " ".join(run(*known, "-o", linked, code=2).stderr.split())
        linked.unlink()
    assert all(file.read_bytes() == content for file, content in before.items())
