"""`xreg train`, and `xreg register --model`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cli_files import done, files_below, refused, said, xreg

QUICK = [
    "--size",
    "32",
    "--batch",
    "8",
    "--grid",
    "12",
    "--range",
    "primary=-20:20",
    "--range",
    "depth=-30:30",
]


@pytest.fixture(scope="module")
def network(chest: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "net"
    words = ["train", chest / "ct.nii.gz", "--mask", chest / "mask.nii.gz", "-o", folder, *QUICK]
    found = said(*words, "--steps", 4, "--label", "spine", "--dice", 0.1, "--sod", 860)
    assert found["status"] == "done"
    assert (found["steps"], found["films"]) == (4, 32)
    assert found["range"]["primary"] == [-20, 20]
    assert found["range"]["sod"] == 860
    assert found["validation"]["degrees"] > 0
    assert found["settings"]["labels"] == ["spine"]
    return folder


def test_what_a_training_leaves(network: Path) -> None:
    names = {"model.safetensors", "training.safetensors", "model.json", "log.jsonl", "curve.png"}
    assert {f.name for f in network.iterdir()} == names
    lines = [json.loads(line) for line in (network / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads((network / "model.json").read_text())["step"] == 4
    assert (network / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_it_says_what_it_does(chest: Path, tmp_path: Path) -> None:
    result = done("train", chest / "ct.nii.gz", "-o", tmp_path / "net", *QUICK, "--steps", 1)
    assert "held out" in result.stdout
    assert "step 1, loss" in result.stderr


def test_resume_and_fine_tune(chest: Path, network: Path, tmp_path: Path) -> None:
    words = ["train", chest / "ct.nii.gz", "-o", tmp_path / "net", *QUICK, "--steps", 1]
    tuned = said(*words, "--sod", 860, "--from", network)
    assert tuned["status"] == "done"
    again = said(*words, "--sod", 860, "--resume")
    assert again["steps"] == 1  # nothing was left to do
    assert "differ" in refused(*words, "--resume")  # another sod


def test_a_training_is_not_replaced_without_a_word(chest: Path, network: Path, tmp_path: Path) -> None:
    shutil.copytree(network, tmp_path / "net")
    before = files_below(tmp_path / "net")
    words = ["train", chest / "ct.nii.gz", "-o", tmp_path / "net", *QUICK, "--steps", 1]
    result = xreg(*words)
    assert result.exit_code == 2
    assert "give --resume to go on with it, another folder, or --overwrite" in result.stderr
    assert xreg(*words, "--resume", "--overwrite").exit_code == 2
    assert files_below(tmp_path / "net") == before
    assert said(*words, "--overwrite")["steps"] == 1
    assert files_below(tmp_path / "net")["model.safetensors"] != before["model.safetensors"]


def test_wrong_beginnings_are_told_before_the_ct_is_read(network: Path, tmp_path: Path) -> None:
    (tmp_path / "ct.nii.gz").write_bytes(b"no CT")
    words = ["train", tmp_path / "ct.nii.gz", "-o", tmp_path / "net", *QUICK, "--steps", 1]
    assert "training.safetensors: is not there" in refused(*words, "--resume")
    assert "none: is not there" in refused(*words, "--from", tmp_path / "none")
    assert "other layers" in refused(*words, "--from", network, "--size", 64)
    assert "ct.nii.gz" in refused(*words, "--from", network)


def test_register_with_a_model(chest: Path, network: Path, tmp_path: Path) -> None:
    words = ["register", chest / "ct.nii.gz", chest / "film.tif", "--camera", chest / "camera.json"]
    words += ["--intensity", "line_integral", "--model", network, "-o", tmp_path / "out"]
    result = xreg(*words, "--json")
    assert result.exit_code in (0, 3), result.output  # four steps teach little; the verdict decides
    found = json.loads(result.stdout)
    assert found["start"]["kind"] == "model"
    assert found["start"]["how"] in ("guess", "variants", "search")
    assert {"coverage", "outside", "focal"} <= found["start"]["checks"].keys()
    assert len(found["start"]["deviation"]["mm"]) == 3
    assert found["verdict"]["evidence"]["guess_sigmas"] == pytest.approx(found["start"]["sigmas_apart"])
    assert isinstance(found["start"]["problems"], list)
    kept = json.loads((tmp_path / "out" / "pose.json").read_text())
    assert kept["provenance"]["start"]["model"] == str(network)


def test_a_stage_that_gave_no_answer_is_told_of(
    chest: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xreg import regression
    from xreg.regression.start import register_guessed

    def troubled(*words, **known):
        return replace(register_guessed(*words, **known), problems=("search: nothing was seen",))

    monkeypatch.setattr(regression, "register_guessed", troubled)
    words = ["register", chest / "ct.nii.gz", chest / "film.tif", "--camera", chest / "camera.json"]
    words += ["--intensity", "line_integral", "--model", network, "-o", tmp_path / "out"]
    assert "search: nothing was seen" in " ".join(xreg(*words).output.split())


def test_a_model_of_another_ct(chest: Path, network: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.nii.gz"
    from xreg.phantom import chest_phantom

    chest_phantom(spacing=8.0).save(other, units="hu")
    words = ["register", other, chest / "film.tif", "--camera", chest / "camera.json", "--model", network]
    assert "another CT" in refused(*words, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_input_leaves_nothing(chest: Path, network: Path, tmp_path: Path) -> None:
    start = ["train", chest / "ct.nii.gz", "-o", tmp_path / "net", *QUICK, "--steps", 1]
    assert "never sees the anatomy" in refused(*start, "--range", "lateral=4000:4001")
    assert "tilt" in refused(*start, "--range", "tilt=1:2")
    assert "label map" in refused(*start, "--label", "spine", "--dice", 0.1)
    assert "is not there" in refused(*start, "--resume")
    assert "other layers" in refused(*start[:4], *QUICK[2:], "--size", "64", "--steps", 1, "--from", network)
    assert "backbone" in refused(*start, "--backbone", "large")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes((network / "model.safetensors").read_bytes()[:-9])
    words = ["register", chest / "ct.nii.gz", chest / "film.tif", "--camera", chest / "camera.json"]
    assert "damaged" in refused(*words, "--model", broken, "-o", tmp_path / "out")
    assert files_below(tmp_path).keys() == {"broken/model.safetensors"}


@pytest.mark.parametrize(
    "words",
    [
        ["--steps", "1", "--minutes", "1"],
        ["--resume", "--from", "x"],
        ["--minutes", "0"],
        ["--preset", "knee"],
    ],
)
def test_wrong_usage(chest: Path, tmp_path: Path, words: list[str]) -> None:
    assert xreg("train", chest / "ct.nii.gz", "-o", tmp_path / "net", *words).exit_code == 2


def test_a_model_excludes_other_starts(chest: Path, tmp_path: Path) -> None:
    words = ["register", chest / "ct.nii.gz", chest / "film.tif", "--model", tmp_path, "--search"]
    result = xreg(*words, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "exclude each other" in result.output
