"""Files that are either whole or not there: atomic writes, and JSON that says what is wrong with it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import FileError, GeometryError

_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


@contextlib.contextmanager
def atomic_write(path: str | PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends, it becomes ``path`` in one step.

    The temporary name keeps the suffixes, so that writers which look at them agree.  File and folder are
    flushed to the disk before and after the rename.  If the block raises, the temporary file is removed and
    what ``path`` held before is untouched.  Raises FileError where the folder is missing or not writable, the
    file is write-protected, or the block wrote nothing.
    """
    target = require_place(path)
    folder = target.parent
    temporary = folder / f".{secrets.token_hex(6)}.{target.name}"
    try:
        yield temporary
        if not temporary.is_file():
            raise FileError(
                f"{target}: nothing was written to the temporary file; write to the path that was given"
            )
        _flush(temporary)
        os.replace(temporary, target)
        _flush(folder)
    except OSError as error:
        raise FileError(f"{target}: could not be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


def require_place(path: str | PathLike) -> Path:
    """The path of a file that can be written; FileError where its folder lacks, or a file is write-protected.

    A file is replaced as a whole, which its own mode would not hinder.
    """
    target = Path(path)
    if not target.name or target.is_dir():
        raise FileError(f"{target}: is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise FileError(f"{target}: the folder {target.parent} does not exist; make it first")
    if target.exists() and not target.stat().st_mode & _WRITABLE:
        raise FileError(f"{target}: is write-protected; give another name, or take the protection off")
    return target


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk; a system that cannot open folders has nothing to flush."""
    writable = path.is_file()
    if not writable and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_file(path: str | PathLike, what: str) -> Path:
    """Return the path of an existing file with something in it; raises FileError otherwise."""
    file = Path(path)
    if not file.exists():
        raise FileError(f"{file}: no such file; expected {what}")
    if file.is_dir():
        raise FileError(f"{file}: is a folder; expected {what}")
    if file.stat().st_size == 0:
        raise FileError(f"{file}: is empty (0 bytes); expected {what}")
    return file


@contextlib.contextmanager
def named(path: str | PathLike) -> Iterator[None]:
    """Put the name of the file before what a GeometryError of the block says, unless it is there."""
    try:
        yield
    except GeometryError as error:
        if str(error).startswith(f"{path}:"):
            raise
        raise type(error)(f"{path}: {error}") from error


def read_json(path: str | PathLike, what: str = "a JSON file") -> Any:
    """Read JSON (UTF-8).  FileError where it is missing, cut off, not JSON, or not finite."""
    file = require_file(path, what)
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"), parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise FileError(f"{file}: is not text; expected {what}") from error
    except RecursionError as error:
        raise FileError(f"{file}: is nested too deeply for {what}") from error
    except ValueError as error:
        raise FileError(f"{file}: is not valid JSON ({error}); expected {what}") from error


def write_json(path: str | PathLike, value: Any) -> None:
    """Write JSON atomically: UTF-8, indented, keys as given.

    Takes mappings, sequences, strings, finite numbers, booleans, None, paths, and what has ``tolist``
    (tensors, arrays).  Raises FileError, before anything is written, for NaN, infinity or another type.
    """
    text = json.dumps(_plain(value, str(path), "$"), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(_short_rows(text) + "\n", encoding="utf-8")


def _refuse(number: str) -> float:
    raise ValueError(f"it holds {number}, and every number must be finite")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def _plain(value: Any, path: str, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FileError(f"{path}: the value at {where} is {value}; JSON holds finite numbers only")
        return float(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, path, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, path, f"{where}[{i}]") for i, v in enumerate(value)]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), path, where)
    if isinstance(value, PathLike):
        return os.fspath(value)
    raise FileError(f"{path}: the value at {where} is a {type(value).__name__}, which JSON cannot hold")


def _short_rows(text: str) -> str:
    """Put arrays of plain numbers on one line, so that a matrix reads as a matrix."""
    lines, out = text.split("\n"), []
    row: list[str] | None = None
    for line in lines:
        bare = line.strip()
        if row is None:
            if bare.endswith("["):
                row = [line]
            else:
                out.append(line)
        elif bare.rstrip(",") == "]":
            out.append(row[0] + " ".join(part.strip() for part in row[1:]) + bare)
            row = None
        elif _is_number(bare.rstrip(",")):
            row.append(line)
        else:
            out += row
            row = [line] if bare.endswith("[") else None
            if row is None:
                out.append(line)
    return "\n".join(out if row is None else out + row)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
