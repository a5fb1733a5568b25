"""Pickles read as data: plain values and arrays as pickle itself reads them, and nothing run."""

import contextlib
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.errors import FileError
from xreg.io.pickles import read_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


def through(tmp_path, value, protocol=None):
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(value, protocol))
    return read_pickle(tmp_path / "a.pickle")


@settings(max_examples=60, deadline=None)
@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_values(tmp_path_factory, value, protocol):
    assert through(tmp_path_factory.mktemp("p"), value, protocol) == value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "u1", "?", "<c8", "<U5", "S3", "<i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays(tmp_path, protocol, dtype, order):
    array = np.asarray(np.arange(24).reshape(2, 3, 4).astype(dtype), order=order)
    found = through(tmp_path, {"a": array, "b": [array[0, 0, 1], array.dtype], "c": (array[::2],)}, protocol)
    np.testing.assert_array_equal(found["a"], array)
    assert found["a"].dtype == array.dtype
    assert found["b"][0] == array[0, 0, 1]
    assert found["b"][1] == array.dtype
    np.testing.assert_array_equal(found["c"][0], array[::2])


def test_containers_that_are_shared_stay_so(tmp_path):
    one = [1]
    found = through(tmp_path, {"a": one, "b": one, "c": OrderedDict(x=one), "d": {3, 4}})
    assert found["a"] is found["b"]
    assert found["c"] == {"x": [1]}
    assert found["d"] == {3, 4}


class Calls:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "evil", [(os.system, "touch {}"), (eval, "open({!r}, 'w')"), (exec, "open({!r}, 'w')"), (open, "{}", "w")]
)
def test_nothing_is_run(tmp_path, protocol, evil):
    mark = tmp_path / "ran"
    function, *arguments = evil
    payload = pickle.dumps({"train": Calls(function, *[a.format(str(mark)) for a in arguments])}, protocol)
    (tmp_path / "a.pickle").write_bytes(payload)
    with pytest.raises(FileError, match="refused"):
        read_pickle(tmp_path / "a.pickle")
    assert not mark.exists()
    if function is os.system and protocol == 2:
        pickle.loads(payload)
        assert mark.exists(), "the payload does what it should, where it is let"


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}, 1], dtype=object),
        np.zeros(2, dtype=[("a", "f4")]),
        Calls(dict, [("a", 1)]),
        1 + 2j,
        range(3),
    ],
)
def test_other_things_are_refused(tmp_path, value):
    with pytest.raises(FileError, match="plain data"):
        through(tmp_path, {"a": value})


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damage_is_a_file_error(tmp_path_factory, data):
    whole = pickle.dumps({"a": np.arange(5.0), "b": [1, "x", (2, 3)]})
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        damaged = damaged[:at]
    else:
        damaged[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("d") / "a.pickle"
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(FileError):
        read_pickle(path)
