"""What the DICOM readers share: opening a file, its pixels, and header values with the tag they came from."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from ..errors import BackendError, FileError
from .files import require_file

if TYPE_CHECKING:
    from pydicom import Dataset

_PLUGINS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")


def is_dicom(path: str | PathLike) -> bool:
    """Whether a file starts as DICOM files do: "DICM" after 128 bytes."""
    with Path(path).open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_dataset(path: str | PathLike, *, pixels: bool = True) -> Dataset:
    """Open a DICOM file; ``pixels=False`` stops before the pixel data.  Raises FileError."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    file = require_file(path, "a DICOM file")
    try:
        return pydicom.dcmread(file, stop_before_pixels=not pixels)
    except InvalidDicomError as error:
        raise FileError(f'{file}: is not a DICOM file (no "DICM" after 128 bytes)') from error
    except Exception as error:  # a damaged header ends in whatever the parser met first
        raise FileError(f"{file}: the DICOM header cannot be read ({error}); it may be truncated") from error


def read_pixels(dataset: Dataset, source: Any, *, frame: int | None = None) -> Shaped[np.ndarray, "*shape"]:
    """Stored pixel values, [H, W] of one frame or as many frames as there are; no rescale, no window.

    Raises BackendError where a compressed transfer syntax needs a plugin (and says which), FileError where
    the pixel data are missing, truncated or damaged.
    """
    from pydicom.pixels import pixel_array

    if "PixelData" not in dataset:
        raise FileError(f"{source}: has no pixel data; expected an image")
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        raise FileError(f"{source}: states no transfer syntax (0002,0010), so its pixels cannot be decoded")
    _require_plugin(syntax, source)
    try:
        return pixel_array(dataset, index=frame, raw=True)
    except Exception as error:  # decoders raise errors of their own; whatever they say is passed on
        raise FileError(
            f"{source}: the pixel data ({syntax.name}) cannot be decoded ({error}); the file may be "
            f"truncated, or need another decoder: {_PLUGINS}"
        ) from error


def _require_plugin(syntax: Any, source: Any) -> None:
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise BackendError(
            f"{source}: no decoder exists for its transfer syntax {syntax.name} ({syntax})"
        ) from error
    if not decoder.is_available:
        raise BackendError(
            f"{source}: is compressed as {syntax.name} ({syntax}), and no plugin that decodes it is "
            f"installed: {_PLUGINS}, or decompress the file (dcmdjpeg, gdcmconv --raw)"
        )


class Header:
    """Header values of one frame, each with the tag that it came from.

    Looks into the functional groups of the frame, then into the shared ones, then at the top level, so that
    plain and Enhanced objects are read alike.
    """

    def __init__(self, dataset: Dataset, source: Any, frame: int = 0) -> None:
        self.dataset, self.source, self.frame = dataset, source, frame
        self._scopes: list[Any] = []
        for name in _GROUPS:
            groups = dataset.get(name)
            if groups:
                self._scopes.append(groups[frame if name == _GROUPS[0] and frame < len(groups) else 0])
        self._scopes.append(dataset)

    def find(self, keyword: str) -> tuple[Any, str]:
        """Return (value, "(gggg,eeee)") of the first element that is there and not empty, else (None, "")."""
        try:
            for scope in self._scopes:
                found = _search(scope, keyword, deep=scope is not self.dataset)
                if found is not None:
                    return found.value, str(found.tag).replace(" ", "")
        except Exception as error:  # elements are decoded when they are read; a damaged one ends anyhow
            raise FileError(
                f"{self.source}: {keyword} cannot be read ({error}); the header is damaged"
            ) from error
        return None, ""

    def numbers(self, keyword: str, count: int | None) -> tuple[tuple[float, ...] | None, str]:
        """Return (numbers, tag), or (None, tag) where absent.  FileError for other counts or non-numbers.

        ``count`` None takes any number of them.
        """
        value, tag = self.find(keyword)
        if value is None:
            return None, tag
        many = list(value) if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
        try:
            numbers = tuple(float(v) for v in many)
        except (TypeError, ValueError) as error:
            raise FileError(f"{self.source}: {keyword} {tag} must be numbers, got {value!r}") from error
        if count not in (None, len(numbers)) or not all(math.isfinite(v) for v in numbers):
            expected = "finite numbers" if count is None else f"{count} finite number(s)"
            raise FileError(f"{self.source}: {keyword} {tag} must be {expected}, got {list(many)}")
        return numbers, tag

    def number(self, keyword: str) -> tuple[float | None, str]:
        """Return (number, tag), or (None, tag) where absent."""
        numbers, tag = self.numbers(keyword, 1)
        return (None if numbers is None else numbers[0]), tag

    def text(self, keyword: str) -> tuple[str, str]:
        """Return (upper-case text, tag), "" where absent; several values are joined by a backslash."""
        value, tag = self.find(keyword)
        if value is None:
            return "", tag
        many = [value] if isinstance(value, (str, int, float)) else list(value)
        return "\\".join(str(v).strip() for v in many).upper(), tag


def _search(scope: Any, keyword: str, *, deep: bool) -> Any:
    if keyword in scope:
        element = scope[keyword]
        if element.value is not None and str(element.value) not in ("", "[]"):
            return element
    if deep:
        for child in scope:
            if child.VR == "SQ":
                for item in child.value:
                    found = _search(item, keyword, deep=True)
                    if found is not None:
                        return found
    return None
