"""Pose networks on disk, in a folder as `xreg.training` describes it."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from xreg.io import write_json
from xreg.io.tensors import load_tensors, save_tensors
from xreg.training import FACTS, LOG, MODEL, TRAINING, read_log, require, write_log

__all__ = [
    "FACTS", "LOG", "MODEL", "SCHEMA", "TRAINING", "load", "read_log", "require", "save", "save_facts",
    "write_log",
]  # fmt: skip

SCHEMA = "xreg.regressor/1"


def save(path: str | PathLike, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors with JSON facts and a checksum, atomically."""
    save_tensors(path, tensors, facts, schema=SCHEMA)


def load(path: str | PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote.  FileError for a file that is missing, truncated, changed, or another's."""
    what, remedy = "a network that xreg train wrote", "take a copy, or train anew"
    return load_tensors(path, schema=SCHEMA, what=what, remedy=remedy)


def save_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """The facts of a folder, for people."""
    write_json(folder / FACTS, {"schema": SCHEMA, **facts})
