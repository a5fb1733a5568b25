"""Pools of new patients: drawn once, gone on with, and never of those held out; and losses of rare labels."""

import json

import pytest
import shape_case
import torch
from click.testing import CliRunner

from xreg.cli import main
from xreg.errors import FileError, ShapeError
from xreg.io.tensors import save_tensors
from xreg.shape import losses
from xreg.shape.atlas import FILE, Atlas
from xreg.shape.networks.backproject import stride
from xreg.shape.patients import Patient
from xreg.shape.population import Exposure
from xreg.shape.samples import Sample
from xreg.shape.sources import Population, draw_pool, require_apart


def run(*words, code=0):
    result = CliRunner().invoke(main, ["shape", "draw", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def test_a_pool_is_drawn_and_gone_on_with(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b", "c")
    words = [tmp_path / "in", "-o", tmp_path / "pool", "--hold-out", "c", "--seed", 3]
    assert json.loads(run(*words, "--count", 3, "--json").stdout)["drawn"] == 3
    first = {n: Sample.load(tmp_path / "pool" / f"{n:05d}") for n in range(3)}
    assert {s.patient for s in first.values()} <= {"a", "b"}
    (tmp_path / "pool" / "00001" / "sample.safetensors").unlink()
    told = json.loads(run(*words, "--count", 5, "--json").stdout)
    assert (told["drawn"], told["patients"]) == (3, ["a", "b"])
    again = Sample.load(tmp_path / "pool" / "00001")
    assert torch.equal(again.labels, first[1].labels)
    assert torch.equal(again.films, first[1].films)
    assert not torch.equal(first[0].films, first[2].films)


def test_a_pool_is_kept_apart_from_held_out_patients(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b", "c")
    run(tmp_path / "in", "-o", tmp_path / "pool", "--hold-out", "c", "--count", 2)
    require_apart([tmp_path / "in", tmp_path / "pool"], ["c"])
    with pytest.raises(ShapeError, match="drawn from b too"):
        require_apart([tmp_path / "pool"], ["b"])
    words = ["shape", "train", str(tmp_path / "pool"), str(tmp_path / "in"), "-o", str(tmp_path / "net")]
    more = ["--as-they-are", "--steps", "1", "--hold-out"]
    assert "drawn from a too" in CliRunner().invoke(main, [*words, *more, "a"]).output
    assert CliRunner().invoke(main, [*words, *more, "c"]).exit_code == 0
    assert Atlas.beside(tmp_path / "net").patients == ("a", "b")  # those scanned, none of those drawn
    (tmp_path / "pool" / "pool.json").write_text("{")
    with pytest.raises(FileError, match="draw the pool again"):
        require_apart([tmp_path / "pool"], ["b"])


def test_an_atlas_is_made_anew_without_whom_its_network_held_out(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a", "b", "c")
    words = [str(tmp_path / "in"), "-o", str(tmp_path / "net")]
    trained = ["shape", "train", *words, "--as-they-are", "--steps", "1", "--hold-out", "c"]
    assert CliRunner().invoke(main, trained).exit_code == 0
    first = Atlas.beside(tmp_path / "net")
    (tmp_path / "net" / FILE).unlink()
    result = CliRunner().invoke(main, ["shape", "atlas", *words, "--json"])
    told, again = json.loads(result.stdout), Atlas.beside(tmp_path / "net")
    assert (told["patients"], told["bones"]) == (["a", "b"], len(again.bones))
    assert (again.patients, list(again.bones)) == (first.patients, list(first.bones))
    for name, bone in again.bones.items():
        assert torch.equal(bone.fields, first.bones[name].fields)
    other = ["shape", "atlas", words[0], "-o", str(tmp_path / "new")]
    assert "a, b, c" in CliRunner().invoke(main, other).output
    wrong = CliRunner().invoke(main, [*other, "--hold-out", "nobody"])
    assert wrong.exit_code == 1
    assert "nobody" in wrong.output


def test_an_atlas_of_another_version_says_how_to_make_it_anew(tmp_path) -> None:
    save_tensors(tmp_path / FILE, {"x": torch.zeros(1)}, {}, schema="xreg.shape-atlas/1")
    with pytest.raises(FileError, match="xreg shape atlas"):
        Atlas.beside(tmp_path)


def test_what_cannot_be_drawn(tmp_path) -> None:
    shape_case.prepare(tmp_path / "in", "a")
    assert "nobody" in run(tmp_path / "in", "-o", tmp_path / "p", "--hold-out", "nobody", code=1).output
    assert "no patient" in run(tmp_path / "in", "-o", tmp_path / "p", "--hold-out", "a", code=1).output
    assert run(tmp_path / "in", "-o", tmp_path / "p", "--count", 0, code=2)
    assert run(tmp_path / "in", "-o", tmp_path / "p", "--tilt", "nan", code=2)
    for tilt in (float("nan"), -1.0):
        with pytest.raises(ShapeError, match="tilt_degrees must be a number of 0 or more"):
            Exposure(tilt_degrees=tilt)
    labels = shape_case.body()
    two = [Patient.from_labels(labels, shape_case.grid(), s, scheme=s) for s in ("spine", "verse")]
    with pytest.raises(ShapeError, match="share a scheme, got spine, verse"):
        draw_pool(Population(two), tmp_path / "p", 1)
    assert not (tmp_path / "p").exists()


def test_patients_are_taken_by_their_bones() -> None:
    labels = shape_case.body()
    one = torch.where(labels == 20, labels, 0)
    made = [
        Patient.from_labels(x, shape_case.grid(), name, scheme="spine")
        for name, x in (("four", labels), ("one", one))
    ]
    shares = Population(made)._shares
    assert float(shares[0] / shares[1]) == pytest.approx(4.5 / 1.5)


# ---- rare labels ----


def test_balance_weighs_rare_labels_and_keeps_the_mean() -> None:
    labels = torch.tensor([[0] * 96 + [1] * 4])
    known = torch.ones(1, 2, dtype=torch.bool)
    even = torch.zeros(1, 2, 100)
    plain, half = (losses.segmentation_loss(even, labels, known, b)["entropy"] for b in (0.0, 0.5))
    torch.testing.assert_close(plain, half)  # all voxels cost the same: weights are one on average
    timid = torch.stack([torch.full((100,), 3.0), torch.zeros(100)])[None]  # all background
    costs = [float(losses.segmentation_loss(timid, labels, known, b)["entropy"]) for b in (0.0, 0.5, 1.0)]
    rare, common = 3.0485873515737421, 0.0485873515737421  # softplus of 3 and of -3
    share = [0.04, 4**0.5 / (4**0.5 + 96**0.5), 0.5]  # counts to the power of 1 - balance
    assert costs == pytest.approx([s * rare + (1 - s) * common for s in share], rel=1e-5)


def test_strides_follow_the_grid() -> None:
    assert [stride((n, n, n), 20) for n in (160, 80, 20, 8)] == [8, 4, 1, 1]
    assert stride((160, 3, 160), 20) == 3
