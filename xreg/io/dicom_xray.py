"""DICOM radiographs: pixels of one frame, header values with their origin, and the pixels that are valid."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from ..errors import ImageError
from .dicom import Header, read_dataset, read_pixels
from .images import check_frame, grey
from .provenance import Provenance
from .xray_header import read_header, usable_number, usable_numbers

_MODALITIES = ("XA", "RF", "DX", "CR", "RG", "PX", "IO", "MG", "DR", "OT", "SC", "XC", "RTIMAGE", "")
_ELSEWHERE = {"CT": "use load_volume for a CT", "MR": "MR has no X-ray geometry"}


def read_dicom_xray(
    path: str | PathLike, *, frame: int = 0, masked: bool = True
) -> tuple[Shaped[np.ndarray, "H W"], dict[str, Provenance], Bool[np.ndarray, "H W"] | None]:
    """Read one frame: stored values [H, W], header values by name, and valid pixels (None: not stated).

    masked: whether to look for the valid pixels; without, shutters and padding cannot be wrong.
    Raises FileError, ImageError and BackendError; see ``load_radiograph``.
    """
    dataset = read_dataset(path)
    header = Header(dataset, path)
    modality, tag = header.text("Modality")
    if modality not in _MODALITIES:
        hint = _ELSEWHERE.get(modality, "expected XA, RF, DX or CR")
        raise ImageError(f"{path}: modality {modality} {tag} is no radiograph; {hint}")
    rows, _ = header.number("Rows")
    columns, _ = header.number("Columns")
    if not rows or not columns:
        raise ImageError(f"{path}: the DICOM object (modality {modality or 'not stated'}) holds no image")
    frames = int(header.number("NumberOfFrames")[0] or 1)
    frame = check_frame(frame, frames, path)
    header = Header(dataset, path, frame)
    pixels = grey(read_pixels(dataset, path, frame=frame), path)
    found = read_header(header, pixels.shape)
    found["modality"] = Provenance(modality or None, "header", "", tag)
    photometric, photometric_tag = header.text("PhotometricInterpretation")
    found["photometric"] = Provenance(photometric, "header", "for display only", photometric_tag)
    return pixels, found, _valid_pixels(header, pixels) if masked else None


def _valid_pixels(header: Header, pixels: np.ndarray) -> np.ndarray | None:
    """Pixels inside shutter and collimator and not padding; None where the header states none of them."""
    valid = np.ones(pixels.shape, dtype=bool)
    stated = False
    for kind in ("Shutter", "Collimator"):
        shapes, _ = header.text(f"{kind}Shape")
        for shape in filter(None, shapes.split("\\")):
            inside = _shape(header, kind, shape, pixels.shape)
            if inside is not None:
                valid &= inside
                stated = True
    padding, tag, _ = usable_number(header, "PixelPaddingValue")
    if padding is not None:
        end, _, _ = usable_number(header, "PixelPaddingRangeLimit")
        low, high = sorted((padding, padding if end is None else end))
        valid &= ~((pixels >= low) & (pixels <= high))
        stated = True
    if stated and not valid.any():
        raise ImageError(
            f"{header.source}: shutter, collimator and padding {tag} leave no valid pixel; pass mask=None to "
            "ignore them"
        )
    return valid if stated else None


def _shape(header: Header, kind: str, shape: str, size: tuple[int, int]) -> np.ndarray | None:
    """Inside of one shutter or collimator; DICOM counts rows and columns from 1."""
    row, column = np.mgrid[1 : size[0] + 1, 1 : size[1] + 1]
    if shape == "RECTANGULAR":
        names = ("LeftVerticalEdge", "RightVerticalEdge", "UpperHorizontalEdge", "LowerHorizontalEdge")
        edges = [usable_number(header, kind + name)[0] for name in names]
        if any(edge is None for edge in edges):
            return None
        left, right, upper, lower = edges
        return (column > left) & (column < right) & (row > upper) & (row < lower)
    if shape == "CIRCULAR":
        centre, _, _ = usable_numbers(header, f"CenterOfCircular{kind}", 2)
        radius, _, _ = usable_number(header, f"RadiusOfCircular{kind}")
        if centre is None or radius is None:
            return None
        return (row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= radius**2
    if shape == "POLYGONAL":
        value, _, _ = usable_numbers(header, f"VerticesOfThePolygonal{kind}", None)
        if value is None or len(value) < 6 or len(value) % 2:
            return None
        return _polygon(np.asarray(value).reshape(-1, 2), row, column)
    return None


def _polygon(vertices: np.ndarray, row: Any, column: Any) -> np.ndarray:
    """Even-odd rule: how many edges lie to the right of each pixel."""
    inside = np.zeros(row.shape, dtype=bool)
    for (r0, c0), (r1, c1) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        if r0 == r1:
            continue
        crosses = (r0 > row) != (r1 > row)
        inside ^= crosses & (column < c0 + (row - r0) * (c1 - c0) / (r1 - r0))
    return inside
