"""`xreg reconstruct`, run in this process; an oracle stands in the network's place."""

import json

import numpy as np
import pytest
import shape_case
import torch
from click.testing import CliRunner
from shape_oracle import Oracle

from xreg.cli import main
from xreg.geometry import Rig
from xreg.io import save_camera, save_image, save_rig, write_nifti
from xreg.shape.atlas import FILE, build_atlas
from xreg.shape.films import normalise
from xreg.shape.predict import ShapeModel
from xreg.shape.sources import Member


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place, case = tmp_path_factory.mktemp("in"), shape_case.sample("a")
    for name, film in zip(("ap", "lat"), case.films, strict=True):
        save_image(place / f"{name}.npy", film)
    save_rig(place / "rig.json", Rig(case.cameras))
    write_nifti(place / "like.nii.gz", np.zeros(case.grid.shape, dtype=np.uint8), case.grid.affine)
    return place, case


def run(files, out, *words, films=("ap", "lat"), code=0):
    place, _ = files
    arguments = [
        "reconstruct",
        *(str(place / f"{name}.npy") for name in films),
        "--model",
        str(place / "net"),
    ]
    arguments += ["--cameras", str(place / "rig.json"), "-o", str(out), "--intensity", "line_integral"]
    arguments += ["--like", str(place / "like.nii.gz"), "--draws", "2", *words]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def stand_in(monkeypatch, files, **known):
    _, case = files
    oracle = Oracle(case.labels, case.grid, "spine", **known)
    monkeypatch.setattr(ShapeModel, "load", classmethod(lambda cls, folder, **_: oracle))
    return oracle


def test_films_become_a_folder(files, tmp_path, monkeypatch) -> None:
    oracle = stand_in(monkeypatch, files)
    said = run(files, tmp_path / "out", "--meshes", "ply")
    assert "4: L1, L2, L3, L4" in said.stdout
    assert "2 patients: p1, <p2>" in said.stdout
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "out" / "meshes" / "L1.ply").is_file()
    (films, cameras, grid) = oracle.asked[0]
    _, case = files
    torch.testing.assert_close(films, normalise(case.films))  # as in training
    assert len(cameras) == 2
    assert grid.shape == case.grid.shape


def test_an_uncertain_level_ends_with_3(files, tmp_path, monkeypatch) -> None:
    stand_in(monkeypatch, files, level_doubt=0.45)
    told = json.loads(run(files, tmp_path / "out", "--json", code=3).stdout)
    assert told["status"] == "rejected"
    assert "level is not certain" in told["rejected"][0]
    assert {a["shift"] for a in told["level"]["alternatives"]} == {-2, -1, 0, 1, 2}
    assert (tmp_path / "out" / "report.html").is_file()


def test_what_is_refused(files, tmp_path, monkeypatch) -> None:
    assert "model.safetensors" in run(files, tmp_path / "out", code=1).output  # no network there
    assert not (tmp_path / "out").exists()
    stand_in(monkeypatch, files)
    assert "rig of 2 cameras, and there are 1" in run(files, tmp_path / "o", films=("ap",), code=1).output
    assert "leave out --voxel" in run(files, tmp_path / "o", "--voxel", "3", code=2).output
    place, case = files
    save_image(place / "small.npy", case.films[1][:20])
    assert "small.npy: has 20×24 px" in run(files, tmp_path / "o", films=("ap", "small"), code=1).output
    save_camera(place / "one.json", case.cameras[0])
    rig = (place / "rig.json").read_bytes()
    (place / "one.json").replace(place / "rig.json")
    told = run(files, tmp_path / "o", code=1).output
    (place / "rig.json").write_bytes(rig)
    assert "is one camera, and there are 2 films; give --cameras once a film" in told


def test_an_atlas_beside_the_model_is_used(files, tmp_path, monkeypatch) -> None:
    place, case = files
    stand_in(monkeypatch, files)
    assert "atlas.safetensors, which --refine needs" in run(files, tmp_path / "a", "--refine", code=1).output
    (place / "net").mkdir()
    build_atlas([Member("p7", "spine", case.labels, case.grid)]).save(place / "net")
    said = run(files, tmp_path / "b")
    assert "bones by the atlas" in said.stdout
    assert "by the atlas" not in run(files, tmp_path / "c", "--no-refine").stdout
    (place / "net" / FILE).unlink()
    (place / "net").rmdir()
