import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_files import POINTS, answer, pose_of, small_camera, write_manifest

import xreg
from xreg import Rig, metrics, se3
from xreg.errors import FileError, XregError
from xreg.evaluation import Shelf, load_manifest, read_trials, run
from xreg.evaluation.fingerprint import Fingerprints
from xreg.io import save_camera, save_pose, save_rig

SHIFT = se3.from_translation(torch.tensor([0.0, 3.0, 4.0], dtype=torch.float64))


class Method:
    """Answers the start moved by 5 mm, and remembers what it was asked."""

    def __init__(self, fail=()):
        self.asked, self.fail, self.lock = [], fail, threading.Lock()

    def __call__(self, volume, film, camera, init):
        with self.lock:
            self.asked.append((volume, film, camera, init))
            number = len(self.asked)
        if number in self.fail:
            raise ZeroDivisionError("the method broke")
        return answer(SHIFT @ init)


def comparable(records):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def test_every_case_is_registered_from_every_start(cases, tmp_path):
    manifest, method, told = load_manifest(cases), Method(), []
    records = run(manifest, {"m": method}, tmp_path, on_trial=lambda *a: told.append(a))
    assert [(r["case"], r["start"]) for r in records] == [
        (f"view {n}", s) for n in range(3) for s in range(2)
    ]
    assert [(done, total) for done, total, _ in told] == [(n, 6) for n in range(7)]
    assert told[0][2] is None
    assert told[1][2] == records[0]
    volume, film, camera, init = method.asked[0]
    assert all(asked[0] is volume for asked in method.asked), "a CT is read once"
    assert film.relationship == "line_integral"
    assert camera.size == (64, 64)
    case = Shelf().open(manifest.cases[0])
    pose = torch.tensor(records[0]["pose"], dtype=torch.float64)
    torch.testing.assert_close(pose, SHIFT @ init)
    assert records[0]["mtre_mm"] == metrics.mtre(pose, case.truth, POINTS)
    assert records[0]["start_mtre_mm"] == metrics.mtre(init, case.truth, POINTS)
    assert records[0]["mpe_px"] == metrics.mpe(camera, pose, case.truth, POINTS, unit="px")
    assert records[0]["mrpe_mm"] == metrics.mrpe(camera, pose, case.truth, POINTS)
    assert records[0]["probability"] is records[0]["nees"] is records[0]["accepted"] is None


def test_what_a_method_says_of_itself_is_kept(cases, tmp_path):
    case = Shelf().open(load_manifest(cases).cases[0])
    middle = se3.apply(case.truth, case.volume.center[None])[0]
    xi = torch.tensor([0.01, 0.0, 0.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    covariance = torch.diag(torch.tensor([1e-4, 1, 1, 1, 1.0, 1]).double())

    def method(volume, film, camera, init):
        return answer(
            se3.inverse(se3.exp(xi)) @ case.truth,
            covariance=covariance,
            center=torch.zeros(3, dtype=torch.float64),
            score=torch.tensor(0.75),
            accepted=True,
            reason="fine",
            verdict=SimpleNamespace(probability=0.875),
            renders=7,
        )

    record = run(load_manifest(cases), {"m": method}, tmp_path)[0]
    assert record["nees"] == pytest.approx(1 + 4)
    assert record["tangent_error"] == pytest.approx(xi.tolist(), abs=1e-9)
    assert (record["score"], record["probability"], record["renders"]) == (0.75, 0.875, 7)
    assert (record["accepted"], record["reason"]) == (True, "fine")
    assert float(middle.norm()) < 10


def test_a_method_may_answer_a_bare_pose(cases, tmp_path):
    found = run(load_manifest(cases), {"m": lambda volume, film, camera, init: init}, tmp_path)
    assert all(r["mtre_mm"] == pytest.approx(r["start_mtre_mm"]) for r in found)


def test_a_run_goes_on_where_it_stopped(cases, tmp_path):
    manifest, whole = load_manifest(cases), run(load_manifest(cases), {"m": Method()}, tmp_path / "whole")
    method = Method()

    def stop(done, total, record):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(manifest, {"m": method}, tmp_path / "cut", on_trial=stop)
    assert len(method.asked) == 3
    journal = tmp_path / "cut" / "trials.jsonl"
    with journal.open("a") as stream:
        stream.write('{"schema": "xreg.trials/1", "case": "view 1", "sta')  # as a power cut leaves it
    assert len(read_trials(journal)) == 3
    records = run(manifest, {"m": method}, tmp_path / "cut")
    assert len(method.asked) == 6
    assert comparable(records) == comparable(whole)
    assert [json.loads(line)["case"] for line in journal.read_text().splitlines()] == [
        r["case"] for r in records
    ]
    assert run(manifest, {"m": method}, tmp_path / "cut") == records
    assert len(method.asked) == 6


def test_a_changed_case_is_run_again_and_a_dropped_one_stays(cases, tmp_path):
    method, other = Method(), cases.parent / "changed.json"
    run(load_manifest(cases), {"m": method}, tmp_path)
    data = json.loads(cases.read_text())
    data["cases"] = [{**data["cases"][0], "landmarks": [[0, 0, 0]]}, data["cases"][1]]
    other.write_text(json.dumps(data))
    records = run(load_manifest(other), {"m": method}, tmp_path)
    assert len(method.asked) == 8
    assert [r["case"] for r in records] == ["view 0", "view 0", "view 1", "view 1"]
    kept = read_trials(tmp_path / "trials.jsonl")
    assert sorted((r["case"], r["start"]) for r in kept) == [
        (f"view {n}", s) for n in range(3) for s in (0, 1)
    ]
    assert {r["digest"] for r in records} <= {r["digest"] for r in kept}
    run(load_manifest(other), {"m": method, "other": method}, tmp_path)
    assert len(method.asked) == 12


def test_trials_of_other_methods_stay_on_the_disk(cases, tmp_path):
    slow, quick, journal = Method(), Method(), tmp_path / "trials.jsonl"
    before = run(load_manifest(cases), {"slow": slow}, tmp_path)
    found = run(load_manifest(cases), {"quick": quick}, tmp_path)
    assert {r["method"] for r in found} == {"quick"}
    assert [r for r in read_trials(journal) if r["method"] == "slow"] == before
    assert run(load_manifest(cases), {"slow": slow}, tmp_path) == before
    assert (len(slow.asked), len(read_trials(journal))) == (6, 12)


def test_a_method_that_is_another_is_run_again(cases, tmp_path):
    one, two = Method(), Method()
    run(load_manifest(cases), {"m": one, "other": one}, tmp_path, fingerprints={"m": "network a"})
    run(load_manifest(cases), {"m": two, "other": two}, tmp_path, fingerprints={"m": "network b"})
    assert (len(one.asked), len(two.asked)) == (12, 6)
    run(load_manifest(cases), {"m": two, "other": two}, tmp_path, fingerprints={"m": "network b"})
    assert len(two.asked) == 6


def test_a_file_with_other_contents_is_another_case(cases, tmp_path):
    import os
    import shutil

    here = tmp_path / "copy"
    shutil.copytree(cases.parent, here)
    moved = load_manifest(here / "cases.json")
    first, method = run(load_manifest(cases), {"m": Method()}, tmp_path), Method()
    assert run(moved, {"m": method}, tmp_path) == first, "a copy elsewhere holds the same"
    os.utime(here / "truth1.json")
    run(moved, {"m": method}, tmp_path)
    assert not method.asked
    save_pose(here / "truth1.json", se3.from_translation(torch.tensor([0.0, 0.0, 50.0]).double()))
    found = run(moved, {"m": method}, tmp_path)
    assert [case for case, new in zip(found, first, strict=True) if case != new] == found[2:4]
    assert len(method.asked) == 2
    own = torch.tensor(found[2]["pose"], dtype=torch.float64)
    assert found[2]["mtre_mm"] == metrics.mtre(own, Shelf().open(moved.cases[1]).truth, POINTS)


def test_fingerprints_are_of_all_parts_of_a_file(tmp_path):
    head, data, folder = tmp_path / "ct.mhd", tmp_path / "ct.raw", tmp_path / "series"
    head.write_text("ElementDataFile = ct.raw")
    data.write_bytes(b"1")
    folder.mkdir()
    (folder / "1.dcm").write_bytes(bytes(128) + b"DICM1")

    def found():
        return Fingerprints().of(head), Fingerprints().of(folder), Fingerprints().of(tmp_path / "none")

    before = found()
    data.write_bytes(b"2")
    (folder / "trials.jsonl").write_text("{}")
    after = found()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True]
    (folder / "2.dcm").write_bytes(bytes(128) + b"DICM2")
    (tmp_path / "none").write_text("here")
    assert [a == b for a, b in zip(after, found(), strict=True)] == [True, False, False]


def test_a_failed_trial_is_a_result_and_stops_nothing(cases, tmp_path):
    method = Method(fail=(2,))
    records = run(load_manifest(cases), {"m": method}, tmp_path)
    assert [r["status"] for r in records] == ["done", "failed", *["done"] * 4]
    assert records[1]["error"]["type"] == "ZeroDivisionError"
    assert records[1]["error"]["place"].startswith("test_runner.py:")
    assert records[1]["start_mtre_mm"] > 0
    assert run(load_manifest(cases), {"m": method}, tmp_path)[1]["status"] == "failed"
    assert len(method.asked) == 6
    assert run(load_manifest(cases), {"m": method}, tmp_path, retry=True)[1]["status"] == "done"
    assert len(method.asked) == 7


def test_missing_files_cost_their_case_only(cases, tmp_path):
    data = json.loads(cases.read_text())
    data["cases"][1]["films"][0]["path"] = "gone.tif"
    broken = cases.parent / "broken.json"
    broken.write_text(json.dumps(data))
    records = run(load_manifest(broken), {"m": Method()}, tmp_path)
    assert [r["status"] for r in records] == ["done", "done", "failed", "failed", "done", "done"]
    assert "gone.tif" in records[2]["error"]["message"]


def test_answers_of_other_packages_are_read(cases, tmp_path):
    """NumPy poses of any layout, rows of numbers, and tensors where numbers are meant."""
    forms = {
        "numpy": lambda init: init.numpy(),
        "big endian": lambda init: init.numpy().astype(">f8"),
        "reversed": lambda init: init.numpy()[::-1, ::-1].copy()[::-1, ::-1],
        "rows": lambda init: init.tolist(),
        "object": lambda init: answer(
            init.numpy(),
            renders=torch.tensor(7),
            score=np.float32(0.5),
            accepted=np.bool_(True),
            reason=Path("why"),
            covariance=np.eye(6).astype(">f8"),
            center=np.zeros(3)[::-1],
        ),
    }
    methods = {name: lambda volume, film, camera, init, f=form: f(init) for name, form in forms.items()}
    found = run(load_manifest(cases), methods, tmp_path)
    assert {r["status"] for r in found} == {"done"}
    assert all(r["mtre_mm"] == pytest.approx(r["start_mtre_mm"]) for r in found)
    one = next(r for r in found if r["method"] == "object")
    assert (one["renders"], one["score"], one["accepted"], one["reason"]) == (7, 0.5, True, "why")
    assert one["nees"] == pytest.approx(sum(x * x for x in one["tangent_error"]))
    assert read_trials(tmp_path / "trials.jsonl") == sorted(found, key=lambda r: r["case"])


def test_words_that_cannot_be_read_cost_their_trial_only(cases, tmp_path):
    wrong = [{"renders": torch.ones(3)}, {"score": "high"}, {"covariance": torch.eye(6), "center": "there"}]
    wrong += [{"covariance": torch.eye(6), "center": torch.full((3,), torch.nan)}]
    for number, words in enumerate(wrong):
        asked = []

        def method(volume, film, camera, init, words=words, asked=asked):
            asked.append(init)
            return answer(init, **(words if len(asked) == 1 else {}))

        found = run(load_manifest(cases), {"m": method}, tmp_path / str(number))
        assert [r["status"] for r in found] == ["failed", *["done"] * 5]
        assert len(read_trials(tmp_path / str(number) / "trials.jsonl")) == 6
        if number < 3:
            assert f"the method's {list(words)[-1]} cannot be read" in found[0]["error"]["message"]


NO_POSES = [torch.eye(3), torch.full((4, 4), torch.nan), 2 * torch.eye(4), None, "here", {"pose": 1}]


@pytest.mark.parametrize("pose", NO_POSES)
def test_an_answer_that_is_no_pose_is_a_failure(pose, cases, tmp_path):
    records = run(load_manifest(cases), {"m": lambda *_: pose}, tmp_path)
    assert {r["status"] for r in records} == {"failed"}
    assert {r["error"]["type"] for r in records} <= {"XregError", "GeometryError"}


def test_threads_give_the_same_records(cases, tmp_path):
    one = run(load_manifest(cases), {"m": Method()}, tmp_path / "1")
    three = run(load_manifest(cases), {"m": Method()}, tmp_path / "3", jobs=3)
    assert comparable(one) == comparable(three)
    assert len(read_trials(tmp_path / "3" / "trials.jsonl")) == 6

    def stop(done, total, record):
        raise KeyboardInterrupt if record else ValueError

    with pytest.raises(ValueError):
        run(load_manifest(cases), {"m": Method()}, tmp_path / "4", jobs=3, on_trial=stop)


def test_several_films_come_as_a_rig(cases, tmp_path):
    cameras = [small_camera(0.0), small_camera(70.0)]
    save_rig(cases.parent / "rig.json", Rig(tuple(cameras)))
    films = [{"path": f"film{n}.tif", "intensity": "line_integral"} for n in range(2)]
    entry = {"name": "two", "ct": {"path": "ct.nii.gz", "units": "mu"}, "rig": "rig.json", "films": films}
    entry |= {"truth": torch.eye(4).tolist(), "starts": [pose_of((1, 2, 3), (4, 5, 6)).tolist()]}
    manifest = load_manifest(write_manifest(cases.parent / "two.json", [entry]))
    method = Method()
    record = run(manifest, {"m": method}, tmp_path)[0]
    volume, film, rig, _ = method.asked[0]
    assert isinstance(film, list)
    assert isinstance(rig, Rig)
    pose = torch.tensor(record["pose"], dtype=torch.float64)
    points = volume.center + 0.5 * (volume.grid_corners - volume.center)
    both = [metrics.mpe(c, pose, torch.eye(4), points) for c in cameras]
    assert record["mpe_mm"] == pytest.approx(sum(both) / 2)
    entry["films"] = films[:1]
    manifest = load_manifest(write_manifest(cases.parent / "two.json", [entry]))
    record = run(manifest, {"m": method}, tmp_path)[0]
    assert "has 2 cameras for the 1 films of 'two'" in record["error"]["message"]


def test_a_film_without_a_camera_says_what_is_missing(cases, tmp_path):
    entry = {"name": "a", "ct": {"path": "ct.nii.gz", "units": "mu"}, "films": ["film0.tif"]}
    entry["truth"] = torch.eye(4).tolist()
    record = run(
        load_manifest(write_manifest(cases.parent / "bare.json", [entry])), {"m": Method()}, tmp_path
    )[0]
    assert "film0.tif: does not say" in record["error"]["message"]
    words = {"sdd": 1000, "sod": 800, "spacing": [4, 4], "primary": -20}
    entry["films"] = [{"path": "film0.tif", "geometry": words}]
    method = Method()
    run(load_manifest(write_manifest(cases.parent / "bare.json", [entry])), {"m": method}, tmp_path)
    torch.testing.assert_close(method.asked[0][2].camera_from_world, small_camera(-20.0).camera_from_world)


def test_landmarks_and_foreign_cameras_come_from_files(cases, tmp_path):
    from xreg.geometry.conventions import save

    rows = "".join(f"p{n},{x},{y},{z},0,0,0,1,1,1,0,p{n},,\n" for n, (x, y, z) in enumerate(POINTS))
    head = "# Markups fiducial file version = 4.11\n# CoordinateSystem = RAS\n"
    columns = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    (cases.parent / "points.fcsv").write_text(head + columns + rows)
    (cases.parent / "other.json").write_text(json.dumps(save("deepdrr", small_camera(-20.0))))
    data = json.loads(cases.read_text())
    data["defaults"]["landmarks"] = "points.fcsv"
    data["cases"][0]["films"][0]["camera"] = "other.json"
    path = cases.parent / "files.json"
    path.write_text(json.dumps(data))
    case = Shelf().open(load_manifest(path).cases[0])
    assert case.landmarks.tolist() == POINTS
    torch.testing.assert_close(case.cameras[0].K, small_camera(-20.0).K)


def test_a_pose_file_brings_its_camera(cases, tmp_path):
    from xreg.evaluation.cases import read_camera

    save_pose(tmp_path / "pose.json", torch.eye(4).double(), camera=small_camera(-20.0))
    save_pose(tmp_path / "bare.json", torch.eye(4).double())
    found = read_camera(tmp_path / "pose.json")
    torch.testing.assert_close(found.camera_from_world, small_camera(-20.0).camera_from_world)
    torch.testing.assert_close(found.K, small_camera(-20.0).K)
    with pytest.raises(FileError, match=r"bare\.json: is a pose without a camera"):
        read_camera(tmp_path / "bare.json")


def test_a_damaged_journal_is_not_overwritten(cases, tmp_path):
    journal = tmp_path / "trials.jsonl"
    for text, message in (("hello\n\n", "line 1 is no record"), ('{"schema": "x"}\n', "line 1")):
        journal.write_text(text)
        with pytest.raises(FileError, match=message):
            run(load_manifest(cases), {"m": Method()}, tmp_path)
        assert journal.read_text() == text


def test_nothing_to_run_is_refused(cases, tmp_path):
    with pytest.raises(XregError, match="at least one method"):
        run(load_manifest(cases), {}, tmp_path)
    with pytest.raises(XregError, match="jobs"):
        run(load_manifest(cases), {"m": Method()}, tmp_path, jobs=0)


def test_registration_itself_finds_the_films(cases, tmp_path):
    records = run(load_manifest(cases), {"refine": xreg.register}, tmp_path)
    assert [r["status"] for r in records] == ["done"] * 6
    # One small film hardly shows the depth, so the error across the rays is what it is judged by.
    assert max(r["mrpe_mm"] for r in records) < 0.5
    assert max(r["start_mtre_mm"] for r in records) > 5
    assert all(r["renders"] > 2 and r["seconds"] > 0 and r["score"] > 0 for r in records)
    assert all(0 <= r["probability"] <= 1 for r in records)


def test_cases_name_the_film_that_does_not_fit(cases, tmp_path):
    save_camera(cases.parent / "large.json", small_camera(0.0).resize((128, 128)))
    data = json.loads(cases.read_text())
    data["cases"][2]["films"][0]["camera"] = "large.json"
    (cases.parent / "misfit.json").write_text(json.dumps(data))
    record = run(load_manifest(cases.parent / "misfit.json"), {"m": Method()}, tmp_path)[4]
    assert "film2.tif: camera is for images of (128, 128)" in record["error"]["message"]
