"""Tensors with what is known of them in one safetensors file: written whole, and checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError
from .files import atomic_write


def save_tensors(
    path: str | PathLike, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, schema: str
) -> None:
    """Write tensors with JSON facts, the schema's name and a checksum, atomically.  Raises FileError."""
    import safetensors.torch

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    head = {"schema": schema, "checksum": checksum(plain), "facts": json.dumps(facts, allow_nan=False)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(plain, metadata=head))


def load_tensors(
    path: str | PathLike, *, schema: str, what: str, remedy: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: tensors on the host, and facts.

    what: how people call such a file ("a network").  remedy: what to do where it is missing or damaged.
    Raises FileError for a file that is missing, truncated, changed, or of another schema.
    """
    import safetensors

    file = Path(path)
    if not file.is_file():
        raise FileError(f"{file}: is not there; expected {what}; {remedy}")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            head = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{file}: is damaged, or no safetensors file ({error}); {remedy}") from error
    if head.get("schema") != schema:
        raise FileError(f"{file}: expected {what} of schema {schema}, got {head.get('schema')!r}; {remedy}")
    if head.get("checksum") != checksum(tensors):
        raise FileError(f"{file}: is damaged: its numbers have another checksum than when written; {remedy}")
    try:
        return tensors, json.loads(head["facts"])
    except (KeyError, json.JSONDecodeError) as error:
        raise FileError(f"{file}: is damaged, its facts cannot be read ({error}); {remedy}") from error


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
