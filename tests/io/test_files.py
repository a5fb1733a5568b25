import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.errors import FileError
from xreg.io.files import atomic_write, read_json, require_file, write_json

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def test_atomic_write_makes_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "ct.nii.gz"
    with atomic_write(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["ct.nii.gz"]


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path):
    target = tmp_path / "pose.json"
    target.write_text("old")

    def fail():
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["pose.json"]


def test_atomic_write_refusals(tmp_path):
    with pytest.raises(FileError, match="does not exist"), atomic_write(tmp_path / "no" / "a.json"):
        pass
    with pytest.raises(FileError, match="folder"), atomic_write(tmp_path):
        pass
    with pytest.raises(FileError, match="nothing was written"), atomic_write(tmp_path / "a.json"):
        pass
    with pytest.raises(FileError, match="could not be written: No space"), atomic_write(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_protected_file_is_not_replaced(tmp_path):
    """Replacing needs leave to write the folder only, so that the file's own mode has to be asked."""
    file = tmp_path / "labels.nii.gz"
    file.write_bytes(b"kept")
    file.chmod(0o444)
    with pytest.raises(FileError, match="is write-protected; give another name"), atomic_write(file) as other:
        other.write_bytes(b"new")
    assert file.read_bytes() == b"kept"
    assert [f.name for f in tmp_path.iterdir()] == [file.name]
    file.chmod(0o644)
    with atomic_write(file) as other:
        other.write_bytes(b"new")
    assert file.read_bytes() == b"new"


def test_require_file(tmp_path):
    with pytest.raises(FileError, match=r"gone.nii: no such file; expected a CT"):
        require_file(tmp_path / "gone.nii", "a CT")
    with pytest.raises(FileError, match="is a folder"):
        require_file(tmp_path, "a CT")
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(FileError, match="0 bytes"):
        require_file(empty, "a CT")


@settings(deadline=None, max_examples=50)
@given(values)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value
    assert json.loads(path.read_text("utf-8")) == value


def test_json_of_tensors_and_arrays(tmp_path):
    path = tmp_path / "a.json"
    write_json(
        path, {"m": torch.eye(2, dtype=torch.float64), "a": np.arange(3), "p": tmp_path, 3: np.float32(0.5)}
    )
    assert read_json(path) == {"m": [[1, 0], [0, 1]], "a": [0, 1, 2], "p": str(tmp_path), "3": 0.5}
    assert "[1.0, 0.0]" in path.read_text()


def test_json_refuses_what_it_cannot_hold(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(FileError, match=r"\$\.score\[1\] is nan"):
        write_json(path, {"score": [1.0, math.nan]})
    with pytest.raises(FileError, match="set"):
        write_json(path, {1, 2})
    assert os.listdir(tmp_path) == []


def test_bad_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1, ')
    with pytest.raises(FileError, match="not valid JSON"):
        read_json(path)
    path.write_text('{"a": NaN}')
    with pytest.raises(FileError, match="NaN"):
        read_json(path)
    path.write_text('{"a": 1e999}')
    with pytest.raises(FileError, match="1e999"):
        read_json(path)
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(FileError, match="not text"):
        read_json(path)
