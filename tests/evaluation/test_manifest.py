import json
from pathlib import Path

import pytest
import torch
from evaluation_files import POINTS, pose_of, write_manifest

from xreg import se3
from xreg.errors import FileError
from xreg.evaluation import RandomStarts, load_manifest, random_starts
from xreg.io import save_pose, save_tfm

FILM = {"path": "a.tif", "camera": "cam.json"}
EYE = torch.eye(4).tolist()
CASE = {"name": "a", "ct": "ct.nii.gz", "films": [FILM], "truth": EYE}


def without(name):
    return {k: v for k, v in CASE.items() if k != name}


def test_a_manifest_is_read(tmp_path):
    ct = {"path": "ct", "mask": "m.nii", "labels": [3, "sacrum"], "units": "mu", "rescale": [2, -1000]}
    films = [{"path": "b.dcm", "frame": 2, "geometry": {"sdd": 1000}}, "c.dcm"]
    starts = [EYE, "s.tfm"]
    other = {"name": "b", "films": films, "truth": "t.json", "landmarks": "p.fcsv", "starts": starts}
    found = load_manifest(write_manifest(tmp_path / "m.json", [CASE, other], {"ct": ct, "landmarks": POINTS}))
    a, b = found.cases
    assert a.ct.path == tmp_path / "ct.nii.gz"
    assert a.landmarks == tuple(map(tuple, POINTS))
    assert a.films[0].camera == tmp_path / "cam.json"
    assert a.starts == RandomStarts(20.0, 10.0, 1, 0)
    assert b.ct.labels == (3, "sacrum")
    assert dict(b.ct.options) == {"units": "mu", "rescale": (2.0, -1000.0)}
    assert b.landmarks == tmp_path / "p.fcsv"
    assert dict(b.films[0].options) == {"frame": 2, "geometry": (("sdd", 1000),)}
    assert b.films[1].path == tmp_path / "c.dcm"
    assert b.starts[1] == tmp_path / "s.tfm"
    assert (a.start_count, b.start_count) == (1, 2)


def test_one_entry_stands_for_many_films_of_deepfluoro(tmp_path):
    entry = {
        "deepfluoro": {"path": "f.h5", "specimen": "17-1882", "projections": [0, 12], "half_voxel": True}
    }
    found = load_manifest(write_manifest(tmp_path / "m.json", [entry]))
    assert [c.name for c in found.cases] == ["17-1882/000", "17-1882/012"]
    assert found.cases[1].deepfluoro.projection == "012"
    assert found.cases[1].deepfluoro.half_voxel


def test_deepfluoro_inherits_nothing_that_it_brings(tmp_path):
    entry = {"deepfluoro": {"path": "f.h5", "specimen": "17-1882", "projections": [0]}}
    shared = {"ct": "ct.nii.gz", "films": [FILM], "truth": EYE, "landmarks": POINTS, "starts": [EYE, EYE]}
    case, mine = load_manifest(
        write_manifest(tmp_path / "m.json", [entry, {**entry, "name": "b", "landmarks": "p.fcsv"}], shared)
    ).cases
    assert (case.ct, case.films, case.rig, case.truth, case.landmarks) == (None, (), None, None, None)
    assert case.start_count == 2
    assert mine.landmarks == tmp_path / "p.fcsv"


def test_the_documented_manifest_is_read(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    path = tmp_path / "cases.json"
    path.write_text(text.partition("```json\n")[2].partition("```")[0])
    found = load_manifest(path).cases
    assert [c.name for c in found] == ["ap", "both", "17-1882/000", "17-1882/001", "17-1882/002"]
    assert found[0].ct.labels == ("sacrum", 4)
    assert found[1].rig == tmp_path / "rig.json"
    assert all(c.ct is None and c.landmarks is None and c.start_count == 4 for c in found[2:])


WRONG = [
    ([without("truth")], r"cases\[0\].truth is missing"),
    ([without("ct")], r"cases\[0\].ct is missing"),
    ([CASE, CASE], "two cases are named 'a'"),
    ([], "cases must be one case or more"),
    ([{**CASE, "films": []}], r"cases\[0\].films must be one film or more"),
    ([{**CASE, "films": [{"camera": "c"}]}], r"cases\[0\].films\[0\] must be an object with a path"),
    ([{**CASE, "films": [{**FILM, "sign": 2}]}], r"films\[0\].sign must be one of 'auto', 1, -1, got 2"),
    ([{**CASE, "films": [{**FILM, "geometry": {"sdd": 1}}]}], r"geometry must be left out beside camera"),
    ([{**CASE, "films": [{**FILM, "frame": 1.5}]}], r"frame must be a whole number"),
    ([{**CASE, "rig": "r.json"}], r"cases\[0\].rig must be left out where films name"),
    ([{**CASE, "truth": EYE[:3]}], r"cases\[0\].truth must be world_from_body \[4, 4\]"),
    ([{**CASE, "truth": 3}], r"cases\[0\].truth must be"),
    ([{**CASE, "landmarks": [[1, 2]]}], r"landmarks must be a list of points"),
    ([{**CASE, "landmarks": []}], r"landmarks must be a list of points"),
    ([{**CASE, "starts": []}], r"starts must be one start or more"),
    ([{**CASE, "starts": {"around": {}}}], r"unknown field 'around' of cases\[0\].starts"),
    (
        [{**CASE, "starts": {"random": {"mm": -1}}}],
        r"starts.random.mm must be from 0 to 10000 \(mm\), got -1",
    ),
    ([{**CASE, "starts": {"random": {"count": 0}}}], r"random.count must be a whole number, 1 or more"),
    ([{**CASE, "film": []}], r"unknown field 'film' of cases\[0\]; the fields are name, ct, films"),
    (
        [{**CASE, "ct": {"path": "a", "units": "SUV"}}],
        r"ct.units must be one of 'hu', 'mu', 'auto', got 'SUV'",
    ),
    ([{**CASE, "ct": {"path": "a", "labels": [1]}}], r"ct.labels must be left out, or accompanied by mask"),
    ([{**CASE, "ct": {"path": "a", "energy_kev": 0}}], r"ct.energy_kev must be an energy"),
    ([{**CASE, "ct": {"path": "a", "rescale": [1]}}], r"ct.rescale must be a slope and an intercept"),
    ([{**CASE, "deepfluoro": {}}], r"ct must be left out beside deepfluoro"),
    (
        [{"deepfluoro": {"path": "x", "specimen": "y"}}],
        r"deepfluoro must be an object with path, specimen and",
    ),
    (["a"], r"cases\[0\] must be an object, got 'a'"),
    ({}, "cases must be a list"),
]


@pytest.mark.parametrize(("entries", "message"), WRONG, ids=[m[:40] for _, m in WRONG])
def test_what_is_wrong_is_named_with_file_and_field(entries, message, tmp_path):
    path = write_manifest(tmp_path / "m.json", entries)
    with pytest.raises(FileError, match=message) as caught:
        load_manifest(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_other_json_is_no_manifest(tmp_path):
    path = tmp_path / "m.json"
    for data, message in (
        (["x"], "must be an object"),
        ({"schema": "xreg.cases/2"}, "expected a JSON object with"),
    ):
        path.write_text(json.dumps(data))
        with pytest.raises(FileError, match=message):
            load_manifest(path)
    path.write_text('{"schema": "xreg.cases/1"}')
    with pytest.raises(FileError, match="the field cases is missing"):
        load_manifest(path)
    with pytest.raises(FileError, match="unknown field 'default'"):
        load_manifest(write_manifest(path, [CASE], default={}))
    with pytest.raises(FileError, match="no such file"):
        load_manifest(tmp_path / "none.json")
    with pytest.raises(FileError, match=r"defaults\.name must be no name"):
        load_manifest(write_manifest(path, [CASE], {"name": "b"}))


def test_random_starts_are_bounded_repeatable_and_differ_between_cases():
    truth = pose_of((10, 20, 30), (40, 50, 60))
    center = torch.tensor([5.0, -80.0, 30.0], dtype=torch.float64)
    how = RandomStarts(mm=20, degrees=10, count=200, seed=4)
    starts = random_starts(truth, center, how, "a")
    there = se3.apply(truth, center[None])
    moves = torch.stack([(se3.apply(s, center[None]) - there).norm() for s in starts])
    turns = torch.stack([torch.rad2deg(se3.geodesic_distance(s, truth)[0]) for s in starts])
    assert 18 < float(moves.max()) <= 20
    assert 9 < float(turns.max()) <= 10
    assert float(moves.median()) == pytest.approx(10, abs=2)
    assert torch.equal(starts[3], random_starts(truth, center, how, "a")[3])
    assert not torch.equal(starts[3], random_starts(truth, center, how, "b")[3])
    more = random_starts(truth, center, RandomStarts(20, 10, 300, 4), "a")
    assert torch.equal(starts[199], more[199]), "more starts are those before, and others"


def test_poses_come_from_numbers_json_and_tfm(tmp_path):
    from xreg.evaluation.cases import read_pose

    pose = pose_of((1, 2, 3), (4, 5, 6))
    save_pose(tmp_path / "p.json", pose)
    save_tfm(tmp_path / "p.tfm", pose)
    for source in (tuple(map(tuple, pose.tolist())), tmp_path / "p.json", tmp_path / "p.tfm"):
        torch.testing.assert_close(read_pose(source), pose, atol=1e-9, rtol=0)
