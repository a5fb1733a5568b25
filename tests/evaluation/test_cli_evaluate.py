import json

import pytest
import torch
from click.testing import CliRunner
from evaluation_files import write_manifest

from xreg import registration
from xreg.cli import main
from xreg.evaluation import read_trials

CT = {"units": "mu"}


def run(*words):
    return CliRunner().invoke(main, ["evaluate", *map(str, words)])


@pytest.fixture
def two_cases(cases):
    """A manifest of two of the cases, from one start each."""
    data = json.loads(cases.read_text())
    data["defaults"]["starts"] = {"random": {"mm": 5, "degrees": 2}}
    return write_manifest(cases.parent / "two_cases.json", data["cases"][:2], data["defaults"])


def test_cases_are_registered_and_reported(two_cases, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'xreg[evaluate]'")
    out = tmp_path / "a" / "out"
    result = run(two_cases, "-o", out, "--require", "gross_failure<=0", "--within", 5)
    assert result.exit_code == 0, result.output
    assert "gross_failure<=0: held" in result.stdout
    assert "success" in result.stdout
    assert "2/2, view 1: mTRE" in result.stderr
    names = ["report.json", "report.md", "report.png", "trials.jsonl"]
    assert sorted(f.name for f in out.iterdir()) == names
    again = run(two_cases, "-o", out, "--json", "--no-plots", "--within", 5)
    answer = json.loads(again.stdout)
    assert answer["status"] == "done"
    assert answer["methods"]["refine"]["trials"] == 2
    assert answer["methods"]["refine"]["mtre_median_mm"] < 5
    assert len(read_trials(out / "trials.jsonl")) == 2


def test_a_gate_that_does_not_hold_is_exit_code_3(two_cases, tmp_path):
    words = [two_cases, "-o", tmp_path, "--no-plots", "--require", "mtre_median_mm<0"]
    result = run(*words)
    assert result.exit_code == 3, result.output
    assert "mtre_median_mm<0: FAILED" in result.stdout
    answer = json.loads(run(*words, "--json").stdout)
    assert answer["status"] == "rejected"
    assert answer["gates"] == {"mtre_median_mm<0": False}


def test_methods_are_compared(two_cases, tmp_path, monkeypatch):
    """Both by stand-ins: a search takes minutes, and which one is called is what counts here."""
    monkeypatch.setattr(registration, "register", lambda volume, film, camera, init: init)
    monkeypatch.setattr(registration, "register_anywhere", lambda volume, film, camera, init: torch.eye(4))
    result = run(
        two_cases, "-o", tmp_path, "--method", "refine", "--method", "search", "--jobs", 2, "--no-plots"
    )
    assert result.exit_code == 0, result.output
    records = read_trials(tmp_path / "trials.jsonl")
    assert {r["method"] for r in records} == {"refine", "search"}
    assert all((r["pose"] == torch.eye(4).tolist()) == (r["method"] == "search") for r in records)
    assert "refine 2, search 2" in result.stdout


@pytest.fixture(scope="module")
def network(cases, tmp_path_factory):
    """The folder of a network that has hardly begun to learn the cases' CT."""
    from xreg import Volume, regression
    from xreg.xray import AugmentSettings

    small = regression.NetworkSettings(width=8, depths=(1,), features=8, hidden=8)
    settings = regression.TrainSettings(
        steps=2, size=32, batch=4, held_out=4, validations=1, grid_mm=20, groups=1, network=small,
        augment=AugmentSettings.none(),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("network")
    box = regression.PoseRange(sdd=1000, sod=800, field=256)
    regression.train([Volume.load(cases.parent / "ct.nii.gz", **CT)], box, settings, folder)
    return folder


def test_a_network_is_judged_alone_and_with_registration(two_cases, network, tmp_path, monkeypatch):
    """Registration from the guess by a stand-in, which takes long after a bad guess."""
    from xreg import Volume, regression
    from xreg.io import load_camera, load_radiograph

    asked = []

    def stand_in(regressor, volume, film, camera):
        asked.append(film)
        return regression.Guessed(torch.eye(4), None, "guess", 0.0)

    monkeypatch.setattr(regression, "register_guessed", stand_in)
    words = ["--method", "guess", "--method", "guided", "--model", network, "--no-plots"]
    result = run(two_cases, "-o", tmp_path, *words)
    assert result.exit_code == 0, result.output
    records = {(r["method"], r["case"]): r for r in read_trials(tmp_path / "trials.jsonl")}
    assert {method for method, _ in records} == {"guess", "guided"}
    assert len(asked) == 2
    spec = json.loads(two_cases.read_text())["cases"][0]["films"][0]
    folder = two_cases.parent
    camera = load_camera(folder / spec["camera"])
    film = load_radiograph(folder / spec["path"], camera=camera, intensity="line_integral")
    volume = Volume.load(folder / "ct.nii.gz", **CT)
    guess = regression.Regressor.load(network).guess(film, center=volume.center)
    found = torch.tensor(records["guess", "view 0"]["pose"], dtype=torch.float64)
    torch.testing.assert_close(found, guess.world_from_body, rtol=0, atol=1e-6)


def test_another_network_is_another_method(two_cases, network, tmp_path):
    """The same folder, in which the network was trained on."""
    import shutil

    from xreg.regression import checkpoint

    model = tmp_path / "model"
    shutil.copytree(network, model)
    words = ["--method", "guess", "--model", model, "--no-plots"]

    def found():
        assert run(two_cases, "-o", tmp_path / "out", *words).exit_code == 0
        return read_trials(tmp_path / "out" / "trials.jsonl")

    first = found()
    assert found() == first
    tensors, facts = checkpoint.load(model / checkpoint.MODEL)
    checkpoint.save(model / checkpoint.MODEL, {k: v * 1.5 for k, v in tensors.items()}, facts)
    second = found()
    assert [r["case"] for r in second] == [r["case"] for r in first]
    assert all(a["pose"] != b["pose"] for a, b in zip(first, second, strict=True))


def test_verdicts_of_another_rule_are_not_used_again(monkeypatch):
    from xreg.cli.evaluate import _fingerprints
    from xreg.registration import trust

    before = _fingerprints(("refine", "search"), None)
    assert before == _fingerprints(("refine", "search"), None)
    monkeypatch.setattr(trust, "SURE_VAGUE", 0.5)
    after = _fingerprints(("refine", "search"), None)
    assert all(before[name] != after[name] for name in before)


def test_trials_of_other_methods_stay_and_are_not_reported(two_cases, tmp_path, monkeypatch):
    monkeypatch.setattr(registration, "register", lambda volume, film, camera, init: init)
    monkeypatch.setattr(registration, "register_anywhere", lambda volume, film, camera, init: torch.eye(4))
    assert run(two_cases, "-o", tmp_path, "--method", "refine", "--no-plots").exit_code == 0
    answer = json.loads(run(two_cases, "-o", tmp_path, "--method", "search", "--no-plots", "--json").stdout)
    assert list(answer["methods"]) == ["search"]
    kept = [(r["method"], r["case"]) for r in read_trials(tmp_path / "trials.jsonl")]
    assert kept == [(method, f"view {n}") for method in ("refine", "search") for n in (0, 1)]


def test_a_run_without_any_answer_has_failed(two_cases, tmp_path, monkeypatch):
    def broken(volume, film, camera, init):
        raise ZeroDivisionError("no luck")

    monkeypatch.setattr(registration, "register", broken)
    result = run(two_cases, "-o", tmp_path, "--no-plots")
    assert result.exit_code == 1
    assert "none of 2 trials gave a pose; the first: ZeroDivisionError: no luck" in result.stderr
    monkeypatch.setattr(registration, "register", lambda volume, film, camera, init: init)
    assert run(two_cases, "-o", tmp_path, "--no-plots").exit_code == 1, "failures are results too"
    assert run(two_cases, "-o", tmp_path, "--no-plots", "--retry").exit_code == 0


def test_a_wrong_manifest_is_exit_code_1_and_writes_nothing(tmp_path):
    path = write_manifest(tmp_path / "m.json", [{"name": "a"}])
    result = run(path, "-o", tmp_path / "out", "--no-plots")
    assert result.exit_code == 1
    assert f"error: {path}: the field cases[0].ct is missing" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--require", "speed>1"],
        ["--require", "search.success>0.5"],
        ["--method", "guess"],  # without --model
        ["--method", "guided", "--method", "refine"],
        ["--model", "network"],  # which nothing needs
        ["--method", "magic"],
        ["--jobs", "0"],
        ["--within", "20"],
    ],
)
def test_wrong_words_are_exit_code_2(words, two_cases, tmp_path):
    result = run(two_cases, "-o", tmp_path / "out", *words)
    assert result.exit_code == 2, result.output
    assert "Usage:" in result.stderr
    assert not (tmp_path / "out").exists()
