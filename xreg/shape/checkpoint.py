"""Networks of labels on disk, in a folder as `xreg.training` describes it."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor

from xreg.io.tensors import load_tensors, save_tensors

SCHEMA = "xreg.shape-network/1"


def save(path: str | PathLike, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors with JSON facts and a checksum, atomically.  Raises FileError."""
    save_tensors(path, tensors, facts, schema=SCHEMA)


def load(path: str | PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote.  FileError for a file that is missing, truncated, changed, or another's."""
    what, remedy = "a network that xreg shape train wrote", "take a copy, or train anew"
    return load_tensors(path, schema=SCHEMA, what=what, remedy=remedy)
