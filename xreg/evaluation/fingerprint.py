"""What tells the inputs of a trial from others, beside the manifest's own words: the files' contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from xreg.io.dicom import is_dicom

WHOLE = 256 * 2**20  # bytes: larger files go by size and time, since reading them takes as long as a trial
_HEADERS = (".mhd", ".nhdr", ".hdr", ".img")  # the numbers lie beside them, in a file of the same name


class Fingerprints:
    """Digests of files, each read once; one that is not there has a digest too, which its arrival changes."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """The digest of a file, or of the files that a folder holds; names of folders do not enter."""
        if path not in self._known:
            self._known[path] = "/".join(f"{p.name}:{_content(p)}" for p in _parts(path)) or "missing"
        return self._known[path]

    def of_all(self, value: Any) -> list[str]:
        """The digests of all paths in a record, in its order."""
        return [self.of(path) for path in paths_in(value)]


def paths_in(value: Any) -> Iterator[Path]:
    """The paths in nested dataclasses, mappings and sequences."""
    if isinstance(value, Path):
        yield value
    elif is_dataclass(value):
        for one in fields(value):
            yield from paths_in(getattr(value, one.name))
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from paths_in(one)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for one in value:
            yield from paths_in(one)


def _parts(path: Path) -> list[Path]:
    try:
        if path.is_dir():  # a DICOM series; whatever else lies there may be this evaluation's own
            return sorted(p for p in path.rglob("*") if p.is_file() and is_dicom(p))
        if path.suffix.lower() in _HEADERS:
            return sorted(p for p in path.parent.iterdir() if p.stem == path.stem and p.is_file())
        return [path] if path.is_file() else []
    except OSError:  # the reader of the case says what is wrong with it
        return []


def _content(file: Path) -> str:
    try:
        known = file.stat()
        if known.st_size > WHOLE:
            return f"{known.st_size}@{known.st_mtime_ns}"
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        return type(error).__name__
