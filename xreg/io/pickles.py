"""Pickles read as data: numbers, texts, containers and NumPy arrays, and nothing else.

A pickle is a program for a small stack machine that may name and call any function.  This reader runs that
program itself, on opcodes taken apart by `pickletools`, and knows a handful of names by heart: those that
NumPy's arrays, dtypes and scalars are written with.  Nothing is imported or called because a file says so.
Source of the opcodes: the standard library's `pickletools`; of an array's parts: `numpy.ndarray.__reduce__`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from os import PathLike
from typing import Any, NamedTuple

import numpy as np

from ..errors import FileError
from .files import require_file

_CORES = ("numpy.core", "numpy._core")
_KINDS = "biufcSUV?"  # of dtypes: numbers and fixed texts, never objects


class _Name(NamedTuple):
    """A name that the pickle asked for, and that is known."""

    kind: str


class _Dtype:
    """A dtype under construction: NumPy writes its byte order apart."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str):
            raise ValueError(f"a dtype of {type(code).__name__}")
        self.value = np.dtype(code)
        if self.value.hasobject or self.value.kind not in _KINDS or self.value.fields:
            raise ValueError(f"an array of {code!r}, and only plain numbers and texts are read")

    def build(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "=", "|") or (len(state) > 4 and state[4] is not None):
            raise ValueError("a structured dtype")
        self.value = self.value.newbyteorder(order) if order in "<>" else self.value


class _Array:
    """An array under construction."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


_MARK = object()
_NAMES = {
    **{f"{core}.multiarray _reconstruct": _Name("reconstruct") for core in _CORES},
    **{f"{core}.multiarray scalar": _Name("scalar") for core in _CORES},
    **{f"{core}.numeric _frombuffer": _Name("frombuffer") for core in _CORES},
    "numpy ndarray": _Name("ndarray"),
    "numpy dtype": _Name("dtype"),
    "_codecs encode": _Name("encode"),
    "collections OrderedDict": _Name("dict"),
    "builtins dict": _Name("dict"),
    "builtins list": _Name("list"),
    "builtins set": _Name("set"),
    "builtins bytearray": _Name("bytes"),
    "builtins bytes": _Name("bytes"),
    "__builtin__ bytes": _Name("bytes"),
}


def read_pickle(path: str | PathLike) -> Any:
    """The value in a pickle of numbers, texts, containers and NumPy arrays (any protocol).

    FileError names what else the file asks for; nothing of it is run.  Texts of Python 2 are read as Latin-1.
    """
    file = require_file(path, "a pickle")
    try:
        return _Machine().run(file.read_bytes())
    except Exception as error:  # whatever a damaged or hostile file makes of the stack
        raise FileError(
            f"{file}: cannot be read as a pickle of plain data: {error or type(error).__name__}. Only "
            "numbers, texts, lists, dicts and NumPy arrays are read, and nothing in a pickle is executed"
        ) from error


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, place in pickletools.genops(data):
            if opcode.name == "STOP":
                return _finish(self.stack[-1], {})
            if opcode.name in _LITERAL:
                self.stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise ValueError(f"the operation {opcode.name} at byte {place}")
        raise ValueError("it ends before its end mark")

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("a stack that is too short")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def since_mark(self) -> list[Any]:
        for n in range(len(self.stack) - 1, -1, -1):
            if self.stack[n] is _MARK:
                taken = self.stack[n + 1 :]
                del self.stack[n:]
                return taken
        raise ValueError("a mark that is missing")

    def name(self, full: str) -> None:
        if full not in _NAMES:
            raise ValueError(f"it asks for {full.replace(' ', '.')}, which may run code and is refused")
        self.stack.append(_NAMES[full])

    def call(self) -> None:
        called, arguments = self.pop(2)
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is no name")
        self.stack.append(_call(called.kind, arguments))

    def build(self) -> None:
        state = self.pop(1)[0]
        if not isinstance(self.stack[-1], (_Array, _Dtype)):
            raise ValueError("a state for an object that has none")
        self.stack[-1].build(state)

    def put_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ValueError("items for something that is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            key = _finish(key, {})
            target[key] = value

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("entries for something that is no list")
        self.stack[-1].extend(values)

    def add(self, values: list[Any]) -> None:
        self.stack[-1].update(values)


def _push(value: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda m, _: m.stack.append(value())


def _remember(m: _Machine, number: Any) -> None:
    m.memo[len(m.memo) if number is None else number] = m.stack[-1]


def _stack_name(m: _Machine, _: Any) -> None:
    module, name = m.pop(2)
    m.name(f"{module} {name}")


def _collect(make: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    return lambda m, _: m.stack.append(make(m.since_mark()))


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    return lambda m, _: m.stack.append(tuple(m.pop(count)))


def _dict_of(pairs: list[Any]) -> dict[Any, Any]:
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


_LITERAL = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "NONE": _push(lambda: None), "NEWTRUE": _push(lambda: True), "NEWFALSE": _push(lambda: False),
    "EMPTY_LIST": _push(list), "EMPTY_DICT": _push(dict), "EMPTY_TUPLE": _push(tuple),
    "EMPTY_SET": _push(set), "MARK": _push(lambda: _MARK),
    "POP": lambda m, _: m.pop(1) and None, "POP_MARK": lambda m, _: m.since_mark() and None,
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "PUT": _remember, "BINPUT": _remember, "LONG_BINPUT": _remember, "MEMOIZE": _remember,
    "GET": lambda m, n: m.stack.append(m.memo[n]), "BINGET": lambda m, n: m.stack.append(m.memo[n]),
    "LONG_BINGET": lambda m, n: m.stack.append(m.memo[n]),
    "GLOBAL": lambda m, name: m.name(name), "STACK_GLOBAL": _stack_name,
    "REDUCE": lambda m, _: m.call(), "BUILD": lambda m, _: m.build(),
    "TUPLE": _collect(tuple), "LIST": _collect(list), "DICT": _collect(_dict_of),
    "FROZENSET": _collect(frozenset),
    "TUPLE1": _tuple(1), "TUPLE2": _tuple(2), "TUPLE3": _tuple(3),
    "APPEND": lambda m, _: m.append(m.pop(1)), "APPENDS": lambda m, _: m.append(m.since_mark()),
    "SETITEM": lambda m, _: m.put_items(m.pop(2)), "SETITEMS": lambda m, _: m.put_items(m.since_mark()),
    "ADDITEMS": lambda m, _: m.add(m.since_mark()),
}  # fmt: skip


def _call(kind: str, arguments: tuple[Any, ...]) -> Any:
    """What a known name gives for its arguments."""
    if kind == "reconstruct" and arguments[0] == _Name("ndarray"):
        return _Array()
    if kind == "dtype":
        return _Dtype(arguments[0])
    if kind == "scalar":
        return _array(arguments[1], arguments[0], (), "C")[()]
    if kind == "frombuffer":
        data, dtype, shape, order = arguments
        return _array(data, dtype, shape, order)
    if kind == "encode" and len(arguments) == 2 and arguments[1] == "latin1":
        return arguments[0].encode("latin1")
    if kind == "bytes" and len(arguments) <= 1:
        data = arguments[0] if arguments else b""
        return bytes(data) if isinstance(data, (bytes, bytearray)) else b""
    if kind in ("dict", "list", "set") and not arguments:
        return {"dict": dict, "list": list, "set": set}[kind]()
    if kind in ("list", "set") and len(arguments) == 1 and isinstance(arguments[0], (list, tuple)):
        return {"list": list, "set": set}[kind](arguments[0])
    raise ValueError(f"a call of {kind} that is not one of NumPy's")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if isinstance(data, str):  # the bytes of a Python 2 pickle
        data = data.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)) or order not in ("C", "F"):
        raise ValueError("an array without plain bytes and dtype")
    return np.frombuffer(data, dtype.value).reshape(tuple(int(n) for n in shape), order=order)


def _finish(value: Any, seen: dict[int, Any]) -> Any:
    """The value with arrays in place of their parts; shared containers stay shared, and are walked once."""
    if isinstance(value, (_Array, _Dtype)):
        if value.value is None:
            raise ValueError("an array without contents")
        return value.value
    if isinstance(value, _Name) or value is _MARK:
        raise ValueError("a name where a value should be")
    if id(value) in seen:
        return seen[id(value)][1]
    seen[id(value)] = (value, value)  # which also keeps it alive, so that its id stays its own
    if isinstance(value, dict):
        for key, entry in list(value.items()):
            value[key] = _finish(entry, seen)
    elif isinstance(value, list):
        value[:] = [_finish(entry, seen) for entry in value]
    elif isinstance(value, tuple):
        new = tuple(_finish(entry, seen) for entry in value)
        seen[id(value)] = (value, new)
        return new
    return value
