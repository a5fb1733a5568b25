"""A model of prepared patients in one go: what it leaves, whom it leaves out, and how it goes on."""

import json
import shutil
from dataclasses import replace

import pytest
import shape_case
import torch
from click.testing import CliRunner

from xreg.cli import main
from xreg.errors import FileError, ShapeError
from xreg.io.tensors import load_tensors
from xreg.shape import ShapeModel
from xreg.shape.atlas import Atlas, keep_atlas
from xreg.shape.learn import COARSE, POOLS, Learning, LearnSettings
from xreg.shape.patients import Patient
from xreg.shape.sources import Member, drawn_in, read_prepared
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
    pools = [list((tmp_path / "net" / POOLS / name).glob("*/sample.json")) for name in ("near", "turned")]
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
    turned = LearnSettings(steps=20, near=3, turned=1, tilts=(3.0, 20.0))
    with pytest.raises(FileError, match=r"turned: holds a pool with other tilt;"):
        Learning(folders, turned, tmp_path / "net", held_out=["c"]).draw()
    assert drawn_in(tmp_path / "net" / POOLS / "near") == 2  # not a third


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
        [tmp_path / "in"],
        replace(SETTINGS, steps=10, seed=7),
        tmp_path / "two",
        held_out=["c"],
        start=tmp_path / "one",
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


def test_patients_without_vertebrae_make_a_model_that_counts_none(tmp_path) -> None:
    """Of pelves alone there is a network and an atlas, and all of the time is theirs."""
    for n, name in enumerate(("a", "b")):
        case = shape_case.sample(name, n)
        labels = torch.where(case.labels == 22, 22, 0).to(torch.int16)  # one vertebra tells no line
        replace(case, labels=labels).save(tmp_path / "in" / name)
        Patient.from_labels(labels, case.grid, name, scheme="spine").save(tmp_path / "in" / name)
    words = [tmp_path / "in", "-o", tmp_path / "net", "--steps", 10, "--near", 1, "--turned", 0, "--json"]
    told = json.loads(run(*words).stdout)
    assert told["spine_steps"] is None
    assert told["steps"] == 5  # of ten; with vertebrae four
    assert not (tmp_path / "net" / "spine").exists()
    assert "nothing counts vertebrae" in run(*words[:-1]).output


def test_an_atlas_is_of_those_learned_from(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b", "c")
    every = [Member(p.name, p.scheme, p.labels, p.grid) for p in read_prepared([tmp_path / "in"])[1]]
    keep_atlas(every, tmp_path / "net")  # by hand, of all
    known = {"held_out": ["c"]}
    Learning([tmp_path / "in"], SETTINGS, tmp_path / "net", **known).keep_bones()
    assert Atlas.load(tmp_path / "net").patients == ("a", "b")


def test_bones_of_the_model_gone_on_with_are_kept(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b")
    shape_case.prepare(tmp_path / "other", "c")
    run(tmp_path / "in", "-o", tmp_path / "one", "--steps", 10, "--near", 1, "--turned", 0)
    more = {"start": tmp_path / "one"}
    learning = Learning([tmp_path / "other"], replace(SETTINGS, seed=3), tmp_path / "two", **more)
    assert learning.keep_bones() == 4
    assert Atlas.load(tmp_path / "two").patients == ("c", "a", "b")
    bones = [Atlas.load(tmp_path / name).bones for name in ("one", "two")]
    assert len(bones[1]["L2"].sizes) == len(bones[0]["L2"].sizes)  # of two patients' rather than one's


def test_what_does_not_fit_is_refused_before_anything_is_drawn(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b")
    words = [tmp_path / "in", "--steps", 10, "--near", 1, "--turned", 0]
    run(*words, "-o", tmp_path / "one")
    assert "settings differ" in run(*words, "-o", tmp_path / "one", "--steps", 12, code=1).output
    alone = CliRunner().invoke(
        main, ["shape", "train", str(tmp_path / "in"), "-o", str(tmp_path / "two"), "--steps", "2"]
    )
    assert alone.exit_code == 0, alone.output
    assert "was trained otherwise" in run(*words, "-o", tmp_path / "two", code=1).output
    assert not (tmp_path / "two" / POOLS).exists()
    other = [*words, "--from", tmp_path / "one", "--seed", 5, "-o", tmp_path / "three"]
    assert "leave that out" in run(*other, "--network", "rays", code=1).output
    assert not (tmp_path / "three").exists()


def test_a_training_that_began_goes_on_with_the_same_new_patients(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b")
    net = tmp_path / "net"
    words = [tmp_path / "in", "-o", net, "--steps", 10, "--near"]
    few = LearnSettings(steps=10, near=1, turned=1)
    Learning([tmp_path / "in"], few, net).draw()
    learning = Learning([tmp_path / "in"], replace(few, near=2), net)  # more, as no training began
    assert learning.draw() == 1
    learning.keep_bones()
    learning.read_coarse()
    before = {file: file.read_bytes() for file in net.rglob("*") if file.is_file()}
    for near, turned, count in ((3, 1, 6), (1, 1, 4), (1, 2, 5), (3, 0, 5)):
        said = " ".join(run(*words, near, "--turned", turned, code=1).stderr.split())
        assert "its training began with 5 samples, new patients included (2 near and 1 turned are" in said
        assert f"near={near} and turned={turned} make it {count}." in said
        assert "[options here: --near, --turned]" in said
    assert {file: file.read_bytes() for file in net.rglob("*") if file.is_file()} == before
    shutil.rmtree(net / POOLS)  # the same are drawn again
    again = Learning([tmp_path / "in"], replace(few, near=2), net)
    assert again.draw() == 3
    assert again.read_coarse().steps == 4


def test_a_pool_that_holds_more_is_not_all_learned_from(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b")
    Learning([tmp_path / "in"], SETTINGS, tmp_path / "net").draw()
    fewer = Learning([tmp_path / "in"], replace(SETTINGS, near=1), tmp_path / "net")
    assert len(fewer._samples(None)[0].samples) == 2 + 1 + 1


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
