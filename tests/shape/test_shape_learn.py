"""A model of prepared patients in one go: what it leaves, whom it leaves out, and how it goes on."""

import json
from dataclasses import replace

import pytest
import shape_case
import torch
from click.testing import CliRunner

from xreg.cli import main
from xreg.errors import FileError, ShapeError
from xreg.io.tensors import load_tensors
from xreg.shape import ShapeModel
from xreg.shape.atlas import Atlas
from xreg.shape.learn import COARSE, POOLS, Learning, LearnSettings
from xreg.shape.samples import sample_folders
from xreg.training import MODEL, read_log

SETTINGS = LearnSettings(steps=20, near=2, turned=1)


class StoppedError(Exception):
    pass


def run(*words, code=0):
    result = CliRunner().invoke(main, ["shape", "learn", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def take(learning: Learning, on_report=None) -> None:
    learning.draw()
    learning.keep_bones()
    learning.read_coarse(on_report)
    learning.read_fine(on_report)
    learning.count_vertebrae(on_report)


def weights(folder) -> dict[str, torch.Tensor]:
    files = (folder / MODEL, folder / "spine" / MODEL)
    schemas = ("xreg.shape-network/1", "xreg.shape-spine/1")
    both = [load_tensors(f, schema=s, what="", remedy="")[0] for f, s in zip(files, schemas, strict=True)]
    return {f"{n}.{name}": tensor for n, one in enumerate(both) for name, tensor in one.items()}


def test_one_command_makes_all_that_a_reconstruction_needs(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b", "c")
    words = [tmp_path / "in", "-o", tmp_path / "net", "--hold-out", "c", "--steps", 10, "--near", 2]
    told = json.loads(run(*words, "--turned", 1, "--json").stdout)
    assert (told["patients"], told["held_out"], told["drawn"]) == (["a", "b"], ["c"], 3)
    assert set(told["validation"]) == {"c"}
    assert (told["steps"], told["spine_steps"]) == (4, 2)  # of ten, with four for coarse films
    assert Atlas.beside(tmp_path / "net").patients == ("a", "b")
    assert ShapeModel.load(tmp_path / "net").facts["before"] == ["a", "b"]
    pools = [sample_folders(tmp_path / "net" / POOLS / name) for name in ("near", "turned")]
    assert [len(pool) for pool in pools] == [2, 1]
    again = json.loads(run(*words, "--turned", 1, "--json").stdout)  # nothing is left to do
    assert {**again, "seconds": 0} == {**told, "seconds": 0}


@pytest.mark.parametrize("reports", [3, 13, 19])  # in coarse films, in fine ones, in vertebrae
def test_what_was_stopped_goes_on_to_the_same_bits(tmp_path, reports: int) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b")
    left = [reports]

    def stop(_) -> None:
        left[0] -= 1
        if not left[0]:
            raise StoppedError

    take(Learning([tmp_path / "in"], SETTINGS, tmp_path / "whole"))
    with pytest.raises(StoppedError):
        take(Learning([tmp_path / "in"], SETTINGS, tmp_path / "parts"), stop)
    take(Learning([tmp_path / "in"], SETTINGS, tmp_path / "parts"))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert read_log(tmp_path / "parts" / COARSE)[-1]["step"] == 8


def test_another_recipe_does_not_go_on(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b", "c")
    folders = [tmp_path / "in"]
    Learning(folders, SETTINGS, tmp_path / "net", held_out=["c"]).draw()
    with pytest.raises(FileError, match=r"other patients; go on with the same"):
        Learning(folders, SETTINGS, tmp_path / "net").draw()
    turned = LearnSettings(steps=20, near=2, turned=1, tilts=(3.0, 20.0))
    with pytest.raises(FileError, match=r"turned: holds a pool with other tilt;"):
        Learning(folders, turned, tmp_path / "net", held_out=["c"]).draw()


def test_a_model_is_gone_on_with(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b", "c")
    words = [tmp_path / "in", "--hold-out", "c", "--steps", 10, "--near", 2, "--turned", 1]
    run(*words, "-o", tmp_path / "one")
    more = [*words, "--from", tmp_path / "one", "-o", tmp_path / "two"]
    assert "drawn again by the seed 0; choose another" in run(*more, code=1).output
    told = json.loads(run(*more, "--seed", 7, "--json").stdout)
    assert told["steps"] == 5  # of ten: nothing is taken for what counts vertebrae
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert {n for n in one if n.startswith("1.")} == {n for n in same if n.startswith("1.")}
    assert any(n.startswith("0.") and n not in same for n in one)
    known = Learning(
        [tmp_path / "in"], replace(SETTINGS, seed=7), tmp_path / "two", held_out=["c"], start=tmp_path / "one"
    )
    samples = known._samples(None)[0].samples
    assert len(samples) == 2 + 3 + 3  # prepared, drawn then, drawn now
    assert ShapeModel.load(tmp_path / "two").facts["before"] == ["a", "b"]


def test_a_model_to_go_on_with_is_checked(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b")
    words = [tmp_path / "in", "--steps", 10, "--near", 2, "--turned", 0, "--seed", 7]
    run(*words[:-2], "-o", tmp_path / "one")
    more = [*words, "--from", tmp_path / "one"]
    assert "cannot begin with itself" in run(*more, "-o", tmp_path / "one", code=1).output
    held = run(*more, "-o", tmp_path / "two", "--hold-out", "b", code=1).output
    assert "learned from b, which shall be held out" in " ".join(held.split())
    none = run(*words, "--from", tmp_path / "none", "-o", tmp_path / "two", code=1).output
    assert "none" in none
    assert not (tmp_path / "two" / POOLS).exists()


@pytest.mark.parametrize(
    ("known", "what"),
    [
        ({}, "give exactly one"),
        ({"steps": 10, "near": 0, "turned": 0}, "at least one in all"),
        ({"steps": 10, "coarse": 0.7, "spine": 0.3}, "leave a part"),
        ({"steps": 10, "tilts": (-1, 2)}, "tilts not negative"),
    ],
)
def test_settings_of_a_recipe_are_checked(known: dict, what: str) -> None:
    with pytest.raises(ShapeError, match=what):
        LearnSettings(**known)


def test_bad_input_of_the_verb(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b")
    words = [tmp_path / "in", "-o", tmp_path / "net"]
    assert "no CT is of the patients to hold out z" in run(*words, "--hold-out", "z", code=1).output
    assert "give one" in run(*words, "--minutes", 1, "--steps", 5, code=2).output
    assert "holds no sample" in run(tmp_path, "-o", tmp_path / "net", code=1).output
