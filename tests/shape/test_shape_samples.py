"""Samples: what does not fit together is refused, and files come back as they were."""

import json

import pytest
import torch

from xreg.errors import FileError, ImageError, ShapeError
from xreg.geometry import Camera
from xreg.io import VoxelGrid
from xreg.shape.samples import Sample
from xreg.shape.schemes import SCHEMES


def views() -> tuple[Camera, Camera]:
    parallel = Camera.parallel_beam(size=(7, 9), spacing=1.3, sdd=300.0, direction=(0.0, -1.0, 0.1))
    cone = Camera.c_arm(sdd=1000.0, sod=700.0, size=(7, 9), spacing=(0.4, 0.3), primary=81.3, mirrored=True)
    return parallel, cone


def parts(**changes) -> dict:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 26, (4, 5, 6), generator=generator, dtype=torch.int16)
    affine = torch.tensor([[0.1, -2, 0, 3.7], [-2, -0.1, 0, 1 / 3], [0, 0, 2.5, 0], [0, 0, 0, 1]]).double()
    known = SCHEMES["spine"].known_in(SCHEMES["all"])
    films = torch.rand(2, 7, 9, generator=generator)
    grid = VoxelGrid((4, 5, 6), affine)
    return {
        "films": films, "cameras": views(), "labels": labels, "grid": grid, "scheme": "all",
        "patient": "näme 7", "known": known,
    } | changes  # fmt: skip


@pytest.mark.parametrize("without", [(), ("labels",), ("known",), ("labels", "known")])
def test_a_sample_comes_back_as_it_was(tmp_path, without: tuple) -> None:
    sample = Sample(**parts(**dict.fromkeys(without)))
    sample.save(tmp_path / "a" / "b")
    found = Sample.load(tmp_path / "a" / "b")
    assert torch.equal(found.films, sample.films)
    for name in ("labels", "known"):
        one, other = getattr(found, name), getattr(sample, name)
        assert (one is None) == (other is None)
        assert one is None or (torch.equal(one, other) and one.dtype == other.dtype)
    assert [c.to_dict() for c in found.cameras] == [c.to_dict() for c in sample.cameras]
    assert torch.equal(found.grid.affine, sample.grid.affine)
    assert found.grid.shape == sample.grid.shape
    assert (found.scheme, found.patient) == ("all", "näme 7")
    people = json.loads((tmp_path / "a" / "b" / "sample.json").read_text(encoding="utf-8"))
    assert people["names"][20] == "L1"
    assert sorted(f.name for f in (tmp_path / "a" / "b").iterdir()) == ["sample.json", "sample.safetensors"]


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"films": torch.rand(2, 7, 9) + 0.5}, ImageError, "0..1"),
        ({"films": torch.full((2, 7, 9), torch.nan)}, ImageError, "0..1"),
        ({"films": torch.rand(2, 7, 9).double()}, ImageError, "float32"),
        ({"films": torch.rand(2, 9, 7)}, ImageError, "camera 0"),
        ({"films": torch.rand(3, 7, 9)}, ImageError, "one camera a film"),
        ({"cameras": (views()[0], Camera.stack([views()[1]]))}, ImageError, "camera 1"),
        ({"labels": torch.zeros(6, 5, 4, dtype=torch.int16)}, ShapeError, "grid's shape"),
        ({"labels": torch.zeros(4, 5, 6)}, ShapeError, "int16"),
        ({"labels": torch.full((4, 5, 6), 99, dtype=torch.int16)}, ShapeError, "0 to 54, got 99"),
        ({"labels": torch.full((4, 5, 6), 50, dtype=torch.int16)}, ShapeError, "sacrum"),
        ({"known": torch.ones(3, dtype=torch.bool)}, ShapeError, "known"),
        ({"known": torch.zeros(55, dtype=torch.bool)}, ShapeError, "known"),
        ({"scheme": "fingers"}, ShapeError, "fingers"),
        ({"patient": ""}, ShapeError, "patient"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, error: type, why: str) -> None:
    with pytest.raises(error, match=why):
        Sample(**parts(**changes))


def test_damaged_files(tmp_path) -> None:
    Sample(**parts()).save(tmp_path)
    file = tmp_path / "sample.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(FileError, match="damaged"):
        Sample.load(tmp_path)
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    file.write_bytes(bytes(flipped))
    with pytest.raises(FileError, match="checksum"):
        Sample.load(tmp_path)
    file.write_bytes(whole.replace(b"xreg.shape-sample/1", b"xreg.shape-sample/9"))
    with pytest.raises(FileError, match="schema"):
        Sample.load(tmp_path)
    with pytest.raises(FileError, match="is not there"):
        Sample.load(tmp_path / "none")


def test_a_folder_that_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="folder"):
        Sample(**parts()).save(tmp_path / "file")


def test_a_coarser_sample_has_the_commonest_label_of_each_block() -> None:
    labels = torch.zeros(5, 4, 6, dtype=torch.int16)
    labels[:2, :2, :2] = torch.tensor([[[7, 7], [3, 0]], [[0, 7], [3, 3]]])  # 7 and 3 thrice
    labels[2:4, 2:4, 2:4] = 9
    labels[2, 2, 2] = 2
    labels[4] = 5  # no block holds it
    sample = Sample(**{**parts(), "labels": labels, "grid": VoxelGrid.box((5, 4, 6), [12.0, 8.0, 10.0])})
    coarse = sample.binned(2)
    assert coarse.grid.shape == coarse.labels.shape == (2, 2, 3)
    assert coarse.labels[0, 0, 0] == 3
    assert coarse.labels[1, 1, 1] == 9
    assert int((coarse.labels > 0).sum()) == 2
    assert torch.equal(coarse.films, sample.films)
