"""Trainings of networks of labels: they learn, go on to the same bits, and keep patients apart."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import shape_case
import torch
from click.testing import CliRunner

from xreg.cli import main
from xreg.errors import FileError, ShapeError
from xreg.shape import checkpoint, losses
from xreg.shape.atlas import Atlas
from xreg.shape.film_cases import FilmBatch
from xreg.shape.networks import NetworkSettings
from xreg.shape.predict import ShapeModel
from xreg.shape.sources import AsTheyAre, Population, read_prepared, split_patients
from xreg.shape.train_settings import ShapeTrainSettings, Weights
from xreg.shape.training import Trainer, mean_dice, train
from xreg.training import LOG, MODEL, NAMES, TRAINING, hand_back_memory, read_log, require_same

SMALL = NetworkSettings(film_widths=(8, 16, 16), features=8, cells=16, space_widths=(8, 16), hidden=16)
QUICK = ShapeTrainSettings(steps=6, validations=3, points=8, film_share=0.6, network=SMALL)


def source(*patients: str) -> AsTheyAre:
    return AsTheyAre([shape_case.sample(p, n) for n, p in enumerate(patients or ("a", "b"))])


# ---- losses ----


def test_a_patient_without_rib_labels_may_have_ribs() -> None:
    """An empty voxel costs nothing where the network says an unknown label, and much where a known one."""
    known = torch.tensor([[True, True, False]])
    labels = torch.zeros(1, 4, dtype=torch.long)
    for number, cheap in ((0, True), (1, False), (2, True)):
        logits = torch.full((1, 3, 4), -9.0)
        logits[:, number] = 9.0
        entropy = float(losses.segmentation_loss(logits, labels, known)["entropy"])
        assert (entropy < 1e-3) == cheap
    whole = losses.marginal_log_probability(torch.randn(1, 3, 4), known).exp()
    torch.testing.assert_close(whole[:, :2].sum(1), torch.ones(1, 4))


def test_entropy_of_full_annotations_is_the_usual_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 30, generator=generator)
    labels = torch.randint(4, (2, 30), generator=generator)
    found = losses.segmentation_loss(logits, labels, torch.ones(2, 4, dtype=torch.bool))["entropy"]
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, labels))


def test_dice_of_hard_answers_is_one_minus_dice() -> None:
    labels = torch.tensor([[0, 1, 1, 2, 2, 2, 0, 0] * 200])
    guess = torch.tensor([[0, 1, 0, 2, 2, 0, 0, 1] * 200])
    hard = torch.nn.functional.one_hot(guess, 3).transpose(1, 2).double()
    found = float(losses.dice_loss(hard, labels, torch.ones(1, 3, dtype=torch.bool)))
    assert found == pytest.approx(1 - (2 * 1 / 4 + 2 * 2 / 5) / 2, abs=2e-3)
    assert mean_dice(guess[0], labels[0]) == pytest.approx((0.5 + 0.8) / 2)


# ---- training ----


def test_a_stopped_training_ends_with_the_same_bits(tmp_path) -> None:
    held_out = [shape_case.sample("c", 7)]
    train(source(), QUICK, tmp_path / "whole", held_out=held_out)

    class Stop(Exception):
        pass

    def stop(report) -> None:
        if report.step == 3:
            raise Stop

    with pytest.raises(Stop):
        train(source(), QUICK, tmp_path / "parts", held_out=held_out, on_report=stop)
    assert checkpoint.load(tmp_path / "parts" / TRAINING)[1]["step"] == 2
    done = train(source(), QUICK, tmp_path / "parts", held_out=held_out, resume=True, workers=3)
    assert done.steps == 6
    for name in (MODEL, TRAINING):
        one, other = (checkpoint.load(tmp_path / f / name)[0] for f in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one)
    curves = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(tmp_path / f)]
        for f in ("whole", "parts")
    ]
    assert curves[0] == curves[1]
    assert [line["step"] for line in curves[0]] == [2, 4, 6]


def test_the_folder_says_who_was_learned_from(tmp_path) -> None:
    done = train(source("a", "b"), QUICK, tmp_path, held_out=[shape_case.sample("c", 2)])
    assert (done.patients, done.held_out) == (("a", "b"), ("c",))
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["patients"] == ["a", "b"]
    assert facts["held_out"] == ["c"]
    assert facts["learned"] == ["L1", "L2", "L3", "L4"]
    assert set(facts["validation"]) == {"c"}
    assert checkpoint.load(tmp_path / MODEL)[1]["patients"] == ["a", "b"]
    assert (tmp_path / LOG).is_file()


def test_a_training_begins_with_another_network(tmp_path) -> None:
    train(source("a"), QUICK, tmp_path / "first")
    barely = replace(QUICK, rate=1e-9, film_share=0, network=replace(SMALL, hidden=SMALL.hidden + 4))
    done = train(source("b"), barely, tmp_path / "second", start=tmp_path / "first")
    assert done.patients == ("a", "b")
    before, after = (checkpoint.load(tmp_path / n / MODEL)[0] for n in ("first", "second"))
    assert torch.equal(after["encoder.out.weight"], before["encoder.out.weight"])
    torch.testing.assert_close(after["decoder.narrow.bias"], before["decoder.narrow.bias"])
    assert after["points.out.weight"].shape != before["points.out.weight"].shape  # has no place for it
    wide = replace(QUICK, network=replace(SMALL, film_widths=(12, 24, 24), space_widths=(12, 24)))
    with pytest.raises(FileError, match=r"no weights for \d\d % of a network"):
        train(source("b"), wide, tmp_path / "x", start=tmp_path / "first")
    again = train(source("b"), barely, tmp_path / "second", resume=True)
    assert (again.patients, again.steps) == (("a", "b"), 6)
    with pytest.raises(ShapeError, match="learned from a, which shall be held out"):
        train(
            source("b"), QUICK, tmp_path / "x", held_out=[shape_case.sample("a")], start=tmp_path / "second"
        )
    with pytest.raises(ShapeError, match="give one to start from"):
        train(source("b"), barely, tmp_path / "x")
    with pytest.raises(ShapeError, match="not both"):
        train(source("b"), barely, tmp_path / "second", start=tmp_path / "first", resume=True)
    (tmp_path / "empty").mkdir()
    checkpoint.save(tmp_path / "empty" / MODEL, {"w": torch.ones(1)}, {"patients": [], "scheme": "spine"})
    with pytest.raises(FileError, match="no weights for 100 % of a network of kind 'rays' and these sizes"):
        train(source("b"), QUICK, tmp_path / "x", start=tmp_path / "empty")


def test_a_training_of_minutes_ends(tmp_path) -> None:
    settings = replace(QUICK, steps=None, minutes=0.01)
    done = train(source("a"), settings, tmp_path)
    assert done.steps >= 1
    assert done.seconds >= 0.6


def test_half_precision_inside(tmp_path) -> None:
    done = train(source("a"), replace(QUICK, steps=2, precision="bfloat16"), tmp_path)
    assert done.log[-1]["loss"] < 50


def test_cases_come_from_seed_and_step_alone(tmp_path) -> None:
    trainers = [Trainer(source(), QUICK, tmp_path, [], torch.device("cpu")) for _ in range(2)]
    one, same = (t.cases_at(4) for t in trainers)
    assert torch.equal(one.views.films, same.views.films)
    assert not torch.equal(one.views.films, trainers[0].cases_at(5).views.films)
    one, same = (t.cases_at(1) for t in trainers)
    assert isinstance(one, FilmBatch)
    assert torch.equal(one.inputs, same.inputs)
    assert torch.equal(one.thickness, same.thickness)
    assert not torch.equal(one.inputs, trainers[0].cases_at(2).inputs)


def test_new_patients_are_learned_from_and_come_from_their_seed(tmp_path) -> None:
    shape_case.prepare(tmp_path, "a", "b", "c")
    made, held_out = split_patients(*read_prepared([tmp_path]), ["c"])
    assert isinstance(made, Population)
    assert [m.patient for m in made.members] == ["a", "b"]
    assert [s.patient for s in held_out] == ["c"]
    one, same, other = (made.sample(n) for n in (3, 3, 5))
    assert torch.equal(one.films, same.films)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.labels, other.labels)
    done = train(made, replace(QUICK, steps=2), tmp_path / "net", held_out=held_out)
    assert done.patients == ("a", "b")
    with pytest.raises(ShapeError, match="nobody"):
        split_patients(*read_prepared([tmp_path]), ["nobody"])
    with pytest.raises(FileError, match="holds no sample"):
        read_prepared([tmp_path / "net"])


# ---- what is refused ----


def test_patients_are_kept_apart(tmp_path) -> None:
    with pytest.raises(ShapeError, match="a are both learned from and held out"):
        train(source("a", "b"), QUICK, tmp_path, held_out=[shape_case.sample("a")])


def test_samples_that_do_not_fit(tmp_path) -> None:
    with pytest.raises(ShapeError, match="at least one"):
        train(AsTheyAre([]), QUICK, tmp_path)
    bare = replace(shape_case.sample("b"), labels=None)
    with pytest.raises(ShapeError, match="b: has no labels"):
        train(AsTheyAre([bare]), QUICK, tmp_path)
    other = replace(shape_case.sample("b"), scheme="all", known=None)
    with pytest.raises(ShapeError, match="one label scheme"):
        train(AsTheyAre([shape_case.sample("a"), other]), QUICK, tmp_path)


def test_another_training_is_not_resumed(tmp_path) -> None:
    train(source("a"), QUICK, tmp_path)
    with pytest.raises(FileError, match="patients differ"):
        train(source("b"), QUICK, tmp_path, resume=True)
    told = r"settings differ .*\(settings.rate: 0.0008 there, 0.001 asked for\); train into another folder"
    with pytest.raises(FileError, match=told):
        train(source("a"), replace(QUICK, rate=1e-3), tmp_path, resume=True)


def test_a_null_is_not_an_entry_that_is_missing(tmp_path) -> None:
    with pytest.raises(FileError, match=r"\(settings.cut: nothing there, null asked for\)"):
        require_same({"settings": {}}, {"settings": {"cut": None}}, ("settings",), tmp_path)
    require_same({"settings": {"cut": None}}, {"settings": {"cut": None}}, ("settings",), tmp_path)


@pytest.mark.parametrize(
    "known",
    [{}, {"steps": 2, "minutes": 1}, {"steps": 0}, {"steps": 1, "points": 0}, {"steps": 1, "rate": 0}],
)
def test_settings_are_checked(known: dict) -> None:
    with pytest.raises(ShapeError):
        ShapeTrainSettings(**known)
    with pytest.raises(ShapeError):
        Weights(entropy=-1)
    assert ShapeTrainSettings.from_dict(json.loads(json.dumps(QUICK.to_dict()))) == QUICK


# ---- the verb ----


def test_the_verb_trains_and_says_on_whom(tmp_path) -> None:
    for n, name in enumerate(("a", "b", "c")):
        shape_case.sample(name, n).save(tmp_path / "samples" / name)
    arguments = ["shape", "train", str(tmp_path / "samples"), "-o", str(tmp_path / "net"), "--hold-out", "c"]
    result = CliRunner().invoke(main, [*arguments, "--steps", "2", "--as-they-are", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["patients"] == ["a", "b"]
    assert set(found["validation"]) == {"c"}
    assert set(Atlas.beside(tmp_path / "net").patients) == {"a", "b"}
    again = CliRunner().invoke(main, [*arguments, "--steps", "2", "--as-they-are", "--resume"])
    assert again.exit_code == 0
    assert "2 patients: a, b" in again.output
    other = [*arguments[:3], "-o", str(tmp_path / "other"), "--steps", "1", "--as-they-are"]
    coarse = CliRunner().invoke(main, [*other, "--voxels", "16"])
    assert coarse.exit_code == 0, coarse.output
    assert ShapeModel.load(tmp_path / "other").facts["voxels"] == 16
    third = [*other[:4], str(tmp_path / "third"), *other[5:]]
    more = CliRunner().invoke(main, [*third, "--hold-out", "a", "--from", str(tmp_path / "net")])
    assert "learned from a, which shall be held out" in more.output
    both = CliRunner().invoke(main, [*other, "--resume", "--from", str(tmp_path / "net")])
    assert both.exit_code == 2
    missing = CliRunner().invoke(main, [*third, "--hold-out", "nobody"])
    assert missing.exit_code == 1
    assert "nobody" in missing.output


def test_a_training_is_not_replaced_without_a_word(tmp_path) -> None:
    for n, name in enumerate(("a", "b")):
        shape_case.sample(name, n).save(tmp_path / "in" / name)
    net = tmp_path / "net"
    words = ["shape", "train", str(tmp_path / "in"), "-o", str(net), "--as-they-are", "--steps", "1"]
    nothing = CliRunner().invoke(main, [*words, "--resume"])
    assert nothing.exit_code == 1
    assert "nothing to resume; leave --resume out" in " ".join(nothing.output.split())
    assert CliRunner().invoke(main, words).exit_code == 0
    before = {name: (net / name).read_bytes() for name in NAMES}
    again = CliRunner().invoke(main, [*words, "--seed", "3"])
    assert again.exit_code == 2
    assert "--resume to go on with it, another folder, or --overwrite" in " ".join(again.output.split())
    both = CliRunner().invoke(main, [*words, "--resume", "--overwrite"])
    assert "give one" in " ".join(both.output.split())
    assert CliRunner().invoke(main, [*words, "--resume"]).exit_code == 0
    assert {name: (net / name).read_bytes() for name in NAMES} == before
    (net / TRAINING).unlink()  # a network that was copied without what it would go on with
    alone = CliRunner().invoke(main, words)
    assert alone.exit_code == 2
    assert "--resume to" not in " ".join(alone.output.split())
    done = CliRunner().invoke(main, [*words, "--seed", "3", "--overwrite", "--from", str(net)])
    assert done.exit_code == 0, done.output  # even from itself
    assert checkpoint.load(net / TRAINING)[1]["settings"]["seed"] == 3


def test_what_was_replaced_is_not_gone_on_with(tmp_path) -> None:
    train(source(), QUICK, tmp_path)

    class Stop(Exception):
        pass

    def stop(report) -> None:
        raise Stop

    with pytest.raises(Stop):  # before anything of it is saved
        train(source(), QUICK, tmp_path, on_report=stop)
    with pytest.raises(FileError):
        train(source(), QUICK, tmp_path, resume=True)
    assert not (tmp_path / MODEL).exists()


@pytest.mark.parametrize(
    ("platform", "can", "times"), [("linux", True, 3), ("linux", False, 0), ("darwin", True, 0)]
)
def test_free_memory_is_handed_back_where_the_c_library_can(monkeypatch, platform, can, times) -> None:
    asked = []
    library = SimpleNamespace(**({"malloc_trim": asked.append} if can else {}))
    monkeypatch.setattr("xreg.training.ctypes.CDLL", lambda _: library)
    monkeypatch.setattr("xreg.training.sys.platform", platform)
    for step in range(101):
        hand_back_memory(step)
    assert len(asked) == times


def test_a_training_goes_on_with_the_same_samples_alone(tmp_path) -> None:
    half = replace(QUICK, steps=3)
    train(source(), half, tmp_path)
    more = AsTheyAre([*source().samples, shape_case.sample("a", 5)])
    coarse = AsTheyAre([sample.binned(2) for sample in source().samples])
    for other, what in ((more, "cases"), (coarse, "voxels")):
        with pytest.raises(FileError, match=what):
            train(other, half, tmp_path, resume=True)
