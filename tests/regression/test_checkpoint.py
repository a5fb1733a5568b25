"""Networks on disk: whole, or a clear error."""

import json

import pytest
import torch
from safetensors import safe_open

from xreg.errors import FileError
from xreg.regression import checkpoint

FACTS = {"step": 3, "range": {"primary": [-1.5, 2.0]}, "name": "naïve"}


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.randn(4, 5), "b": torch.arange(6, dtype=torch.int64), "c": torch.tensor(2.5)}
    checkpoint.save(path, tensors, FACTS)
    return path, tensors


def test_round_trip_through_the_library(kept) -> None:
    path, tensors = kept
    found, facts = checkpoint.load(path)
    assert facts == FACTS
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
    with safe_open(path, framework="pt") as opened:
        assert json.loads(opened.metadata()["facts"]) == FACTS
        assert torch.equal(opened.get_tensor("b"), tensors["b"])


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(FileError, match="is not there"):
        checkpoint.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_file(kept, keep: int) -> None:
    path, _ = kept
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileError, match="damaged"):
        checkpoint.load(path)


def test_one_bit_that_flipped(kept) -> None:
    path, _ = kept
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(bytes(data))
    with pytest.raises(FileError, match="checksum"):
        checkpoint.load(path)


def test_a_file_of_another_kind(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="schema"):
        checkpoint.load(tmp_path / "other.safetensors")


def test_a_failed_write_leaves_what_was_there(kept, monkeypatch) -> None:
    path, tensors = kept
    before = path.read_bytes()
    with pytest.raises(ValueError):
        checkpoint.save(path, tensors, {"step": float("nan")})
    assert path.read_bytes() == before
    assert [f.name for f in path.parent.iterdir()] == [path.name]
