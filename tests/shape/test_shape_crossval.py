"""The cross-validation runs on a made-up patient, and its tables hold what it found."""

import json
import pathlib

import numpy as np
import pytest
import shape_case
import torch
from benchmark_scripts import run

from xreg.io import write_nifti
from xreg.shape import load_shipped
from xreg.shape.atlas import build_atlas
from xreg.shape.networks import NetworkSettings
from xreg.shape.patients import Patient
from xreg.shape.sources import AsTheyAre, Member
from xreg.shape.train_settings import ShapeTrainSettings
from xreg.shape.training import train

SMALL = NetworkSettings(film_widths=(8, 16), features=4, cells=12, space_widths=(8,), hidden=8)
QUICK = ShapeTrainSettings(steps=20, points=16, rate=1e-2, average=0.5, validations=1, network=SMALL)


def ship(folder: pathlib.Path, labels: torch.Tensor) -> None:
    """A patient's folder as published ones are: films repeated in depth, 8 bit, index j told to the back."""
    folder.mkdir(parents=True)
    affine = np.diag([4.0, -4.0, 4.0, 1.0])
    for name, axis in (("cor", 1), ("sag", 2)):
        shadow = (labels > 0).float().sum(axis)
        film = (255 * shadow / shadow.max()).byte().numpy()
        values = np.repeat(np.expand_dims(film, axis), labels.shape[axis], axis)
        write_nifti(folder / f"film_{name}.nii.gz", values, affine)
    write_nifti(folder / "label_spine.nii.gz", labels.numpy().astype(np.uint8), affine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("crossval")
    ship(place / "data" / "p9", shape_case.body(9))
    case = load_shipped(place / "data" / "p9")
    made = Patient.from_labels(case.labels(), case.grid, "p9", scheme="spine")
    (place / "prepared" / "p9").mkdir(parents=True)
    made.save(place / "prepared" / "p9")
    train(AsTheyAre([shape_case.sample("a", 1)]), QUICK, place / "net", held_out=[shape_case.sample("p9", 9)])
    build_atlas([Member("a", "spine", shape_case.body(1), shape_case.grid())]).save(place / "net")
    return place


def test_a_held_out_patient_is_scored_and_told_of(folder) -> None:
    words = [str(folder / "data"), "--model", str(folder / "net"), "--prepared", str(folder / "prepared")]
    said = run("shape_crossval.py", *words, "--out", str(folder / "shape_crossval.json"))
    assert "p9     spine   (4) network" in said
    found = json.loads((folder / "shape_crossval.json").read_text())
    assert {(r["way"], r["classes"]) for r in found["patients"]} == {("network", 4), ("refined", 4)}
    assert len(found["angles"]) == 2 * 6
    assert found["networks"][0]["patients"] == ["a"]
    page = folder / "page.md"
    page.write_text(
        "".join(
            f"<!-- {n}:{e} -->\n"
            for n in ("shape_crossval", "shape_crossval_angles")
            for e in ("begin", "end")
        )
    )
    run("table.py", str(page), "--results", str(folder))
    text = page.read_text()
    assert "| p9, spine (4) |" in text
    assert "learned from 1 patients (a)" in text
    assert "| p9, spine, refined |" in text


def test_a_patient_that_was_learned_from_is_refused(folder) -> None:
    with pytest.raises(AssertionError, match="did not hold out a"):
        run("shape_crossval.py", str(folder / "data"), "--model", str(folder / "net"), "--patient", "a")


def test_networks_are_made_from_nothing_and_scored(tmp_path) -> None:
    for number, name in enumerate(("p1", "p2", "p3")):
        ship(tmp_path / "data" / name, shape_case.body(number))
    words = [str(tmp_path / "data"), "-o", str(tmp_path / "made"), "--fold", "p3", "--minutes", "0.05"]
    more = [
        "--near",
        "1",
        "--turned",
        "1",
        "--jobs",
        "1",
        "--more",
        "0.03",
        "--out",
        str(tmp_path / "found.json"),
    ]
    run("shape_learn.py", *words, *more)
    found, again = (json.loads((tmp_path / name).read_text()) for name in ("found.json", "found_more.json"))
    assert [network["held_out"] for network in found["networks"]] == [["p3"]]
    assert [network["settings"]["seed"] for network in (*found["networks"], *again["networks"])] == [0, 1]
    assert found["networks"][0]["patients"] == ["p1", "p2"]
    assert {row["patient"] for row in found["patients"]} == {"p3"}
    assert {row["angle"] for row in found["angles"]} == {0.0, 4.0, 8.0, 12.0, 16.0, 20.0}
    assert (tmp_path / "made" / "more" / "without-p3" / "model.safetensors").is_file()
