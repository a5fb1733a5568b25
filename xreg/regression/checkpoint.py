"""Networks on disk: tensors and what is known of them in one file, written whole or not at all.

A folder holds `model.safetensors` (the weights to use), `training.safetensors` (all that a training needs to
go on), `log.jsonl` (its curve), and `model.json`, for people: the same facts as in the headers of the first
two, which are what is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from xreg.errors import FileError
from xreg.io import atomic_write, write_json

SCHEMA = "xreg.regressor/1"
MODEL, TRAINING, FACTS, LOG = "model.safetensors", "training.safetensors", "model.json", "log.jsonl"


def save(path: str | PathLike, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors with JSON facts and a checksum, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    head = {"schema": SCHEMA, "checksum": checksum(plain), "facts": json.dumps(facts, allow_nan=False)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(plain, metadata=head))


def load(path: str | PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote.  FileError for a file that is missing, truncated, changed, or another's."""
    file = Path(path)
    if not file.is_file():
        raise FileError(f"{file}: is not there; a folder that xreg train wrote holds it")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            head = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise FileError(
            f"{file}: is damaged, or no safetensors file ({error}); take a copy, or train anew"
        ) from error
    if head.get("schema") != SCHEMA:
        raise FileError(f"{file}: expected a network of schema {SCHEMA}, got {head.get('schema')!r}")
    if head.get("checksum") != checksum(tensors):
        raise FileError(f"{file}: is damaged: its numbers have another checksum than when written")
    try:
        return tensors, json.loads(head["facts"])
    except (KeyError, json.JSONDecodeError) as error:
        raise FileError(f"{file}: is damaged, its facts cannot be read ({error})") from error


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """The facts of a folder, for people."""
    write_json(folder / FACTS, {"schema": SCHEMA, **facts})


def require(facts: Mapping[str, Any], names: tuple[str, ...], file: str | PathLike) -> None:
    """FileError where facts lack an entry."""
    if missing := [name for name in names if name not in facts]:
        raise FileError(f"{file}: lacks the entries {missing}; was it written by another version of xreg?")


def write_log(path: Path, lines: list[dict[str, Any]]) -> None:
    """The curve of a training, a JSON object a line, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_log(folder: str | PathLike) -> list[dict[str, Any]]:
    """The lines of a training's log; FileError where there is none or a line is damaged."""
    file = Path(folder) / LOG
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, json.JSONDecodeError) as error:
        raise FileError(f"{file}: the log of a training cannot be read ({error})") from error
