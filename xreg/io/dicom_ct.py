"""CT series from DICOM: slices found, checked and stacked along their normal.

DICOM's patient coordinates are LPS mm; ``_stack_affine`` turns them into RAS mm, once.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from ..errors import FileError, InputWarning, VolumeError
from .dicom import Header, is_dicom, read_dataset, read_pixels

_SAME_PLACE = 0.01  # mm
_UNEVEN = 0.02  # of the slice distance
_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class _Slice:
    """One slice (or one frame of a multi-frame object) as its header describes it; positions are LPS mm."""

    file: Path
    frame: int | None
    series: str
    about: str
    size: tuple[int, int]
    position: np.ndarray
    axes: np.ndarray  # [2, 3]: directions of growing column and growing row
    spacing: tuple[float, float]  # row, column
    slope: float
    intercept: float
    notes: dict[str, Any]

    @property
    def normal(self) -> np.ndarray:
        """Direction of growing slices that makes columns, rows and slices right-handed (LPS)."""
        return np.cross(self.axes[0], self.axes[1])


def load_dicom_ct(
    path: str | PathLike, *, series_uid: str | None = None, recursive: bool = True
) -> tuple[Shaped[Tensor, "D H W"], Float64[Tensor, "4 4"], dict[str, Any]]:
    """Read one CT series from a folder, or from one (multi-frame) file.

    Returns CT numbers [D, H, W] (int16 where rescaling keeps them whole, otherwise float32), the affine
    (index (i, j, k) to RAS mm) and notes.  Files that are not DICOM, scouts and other objects are skipped and
    counted in the notes.  ``series_uid`` picks one of several series; ``recursive`` looks into sub-folders.

    Raises FileError (nothing to read, several series), VolumeError (slices missing, twice, uneven, or sheared
    by a tilted gantry; each with its positions) and BackendError (a decoder is missing).
    """
    source = Path(path)
    slices, skipped = _find_slices(source, recursive)
    chosen = _one_series(slices, series_uid, source, skipped)
    _require_alike(chosen, source)
    normal = chosen[0].normal
    chosen.sort(key=lambda s: float(s.position @ normal))
    step = _slice_step(chosen, source)
    affine = _stack_affine(chosen[0], step)
    values = _stack_pixels(chosen, source)
    notes = {
        "file": str(source),
        "format": "DICOM CT",
        "series_uid": chosen[0].series,
        "slices": len(chosen),
        "skipped": dict(skipped),
        "world": "RAS mm, from DICOM's LPS",
        "shape_ijk": [values.shape[2], values.shape[1], values.shape[0]],
        **chosen[0].notes,
    }
    return values, affine, notes


def _find_slices(source: Path, recursive: bool) -> tuple[list[_Slice], Counter[str]]:
    if source.is_dir():
        found = source.rglob("*") if recursive else source.glob("*")
        files = sorted(file for file in found if file.is_file())
        if not files:
            raise FileError(f"{source}: the folder is empty; expected the DICOM slices of a CT")
    else:
        files = [source]
    slices: list[_Slice] = []
    skipped: Counter[str] = Counter()
    for file in files:
        if not is_dicom(file):
            skipped["not DICOM"] += 1
            continue
        dataset = read_dataset(file, pixels=False)
        header = Header(dataset, file)
        kind = _kind(header)
        if kind:
            skipped[kind] += 1
        elif "PerFrameFunctionalGroupsSequence" in dataset:
            frames = range(len(dataset.PerFrameFunctionalGroupsSequence))
            slices += [_describe(Header(dataset, file, frame), file, frame) for frame in frames]
        else:
            slices.append(_describe(header, file, None))
    if not slices:
        seen = ", ".join(f"{count} {kind}" for kind, count in skipped.items())
        what = (
            f"no CT slice among {len(files)} files ({seen})"
            if source.is_dir()
            else f"is no CT image ({seen})"
        )
        raise FileError(f"{source}: {what}; expected a folder with the DICOM slices of a CT, or a NIfTI file")
    return slices, skipped


def _kind(header: Header) -> str:
    """Why an object is no CT slice; empty if it is one."""
    modality, _ = header.text("Modality")
    if modality != "CT":
        return f"modality {modality or 'not stated'}"
    if header.find("Rows")[0] is None:
        return "without an image"
    if "LOCALIZER" in header.text("ImageType")[0]:
        return "scout"
    return ""


def _describe(header: Header, file: Path, frame: int | None) -> _Slice:
    position, _ = header.numbers("ImagePositionPatient", 3)
    axes, tag = header.numbers("ImageOrientationPatient", 6)
    spacing, spacing_tag = header.numbers("PixelSpacing", 2)
    for name, value in (
        ("ImagePositionPatient (0020,0032)", position),
        ("ImageOrientationPatient (0020,0037)", axes),
        ("PixelSpacing (0028,0030)", spacing),
    ):
        if value is None:
            raise VolumeError(
                f"{file}: has no {name}, so the slice has no place in the patient; export it again"
            )
    if min(spacing) <= 0:
        raise VolumeError(f"{file}: PixelSpacing {spacing_tag} must be two positive mm, got {list(spacing)}")
    directions = np.asarray(axes).reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-3):
        raise VolumeError(
            f"{file}: ImageOrientationPatient {tag} must be two unit vectors at 90°, got {list(axes)}"
        )
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    slope, intercept = header.number("RescaleSlope")[0], header.number("RescaleIntercept")[0]
    notes = {"kvp": header.number("KVP")[0], "rescale_type": header.text("RescaleType")[0] or None}
    notes["rescale_stated"] = slope is not None and intercept is not None
    notes["padding"], notes["gantry_tilt"] = (
        header.find("PixelPaddingValue")[0],
        header.find("GantryDetectorTilt")[0],
    )
    number, _ = header.text("SeriesNumber")
    about = f"{number or '?'} {header.find('SeriesDescription')[0] or 'without description'!s}"
    return _Slice(
        file=file,
        frame=frame,
        series=str(header.find("SeriesInstanceUID")[0] or ""),
        about=about,
        size=(int(header.number("Rows")[0] or 0), int(header.number("Columns")[0] or 0)),
        position=np.asarray(position),
        axes=directions,
        spacing=(spacing[0], spacing[1]),
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        notes=notes,
    )


def _one_series(
    slices: list[_Slice], series_uid: str | None, source: Path, skipped: Counter[str]
) -> list[_Slice]:
    count = Counter(s.series for s in slices)
    about = {s.series: s.about for s in slices}
    listing = "; ".join(f"{uid} (series {about[uid]}, {n} slices)" for uid, n in count.items())
    if series_uid is None and len(count) > 1:
        raise FileError(f"{source}: holds {len(count)} CT series; pass series_uid= one of: {listing}")
    wanted = next(iter(count)) if series_uid is None else series_uid
    if wanted not in count:
        raise FileError(f"{source}: has no CT series {wanted}; it has: {listing}")
    skipped["of another series"] += len(slices) - count[wanted]
    skipped += Counter()  # drops zeros
    chosen = [s for s in slices if s.series == wanted]
    if len(chosen) < 2:
        raise VolumeError(
            f"{source}: series {wanted} has one slice, which makes no volume; expected two or more (of other "
            f"objects {sum(skipped.values())} were skipped)"
        )
    return chosen


def _require_alike(slices: list[_Slice], source: Path) -> None:
    first = slices[0]
    for other in slices[1:]:
        for what, same in (
            ("size", other.size == first.size),
            ("pixel spacing", np.allclose(other.spacing, first.spacing, rtol=1e-4)),
            ("orientation", np.allclose(other.axes, first.axes, atol=1e-3)),
        ):
            if not same:
                raise VolumeError(
                    f"{source}: the slices of the series differ in {what}: {first.file.name} has "
                    f"{_fact(first, what)}, {other.file.name} {_fact(other, what)}; keep one stack"
                )


def _fact(s: _Slice, what: str) -> Any:
    facts = {"size": s.size, "pixel spacing": s.spacing, "orientation": s.axes.round(4).tolist()}
    return facts[what]


def _slice_step(slices: list[_Slice], source: Path) -> np.ndarray:
    """Vector (LPS mm) from one slice to the next; refuses stacks that are not a regular grid."""
    normal = slices[0].normal
    places = np.array([s.position @ normal for s in slices])
    gaps = np.diff(places)
    twice = np.flatnonzero(gaps < _SAME_PLACE)
    if twice.size:
        a, b = slices[twice[0]], slices[twice[0] + 1]
        raise VolumeError(
            f"{source}: {twice.size} slice positions occur twice, first {places[twice[0]]:.2f} mm "
            f"({_name(a)} and {_name(b)}); remove copies, or keep one phase of a series in time"
        )
    usual = float(np.median(gaps[gaps < 1.2 * gaps.min()]))
    if (gaps > 1.5 * usual).any() and np.allclose(gaps / usual, np.round(gaps / usual), atol=0.1):
        missing = [
            places[i] + usual * n for i in range(gaps.size) for n in range(1, round(float(gaps[i] / usual)))
        ]
        shown = ", ".join(f"{p:.2f}" for p in missing[:10]) + (" …" if len(missing) > 10 else "")
        raise VolumeError(
            f"{source}: {len(missing)} slices are missing, at {shown} mm along the slice normal (the stack "
            f"runs from {places[0]:.2f} to {places[-1]:.2f} mm in steps of {usual:.4g}); get the whole series"
        )
    mean = float(gaps.mean())
    worst = int(np.abs(gaps - mean).argmax())
    if abs(gaps[worst] - mean) > _UNEVEN * mean:
        raise VolumeError(
            f"{source}: slices are not evenly spaced: {gaps.min():.4g} to {gaps.max():.4g} mm apart, "
            f"furthest off between {places[worst]:.2f} and {places[worst + 1]:.2f} mm; resample to one "
            "spacing first"
        )
    return _untilted(slices, source, normal)


def _untilted(slices: list[_Slice], source: Path, normal: np.ndarray) -> np.ndarray:
    travel = slices[-1].position - slices[0].position
    along = float(travel @ normal)
    sideways = float(np.linalg.norm(travel - along * normal))
    if sideways > 0.5 * min(slices[0].spacing):
        angle = math.degrees(math.atan2(sideways, along))
        stated = slices[0].notes["gantry_tilt"]
        raise VolumeError(
            f"{source}: the slices are sheared by a tilted gantry: the stack moves {angle:.2f}° off its "
            f"normal, {sideways:.1f} mm in all (GantryDetectorTilt (0018,1120) says {stated}); correct "
            "the tilt first, for instance with dcm2niix or 3D Slicer's acquisition geometry regularisation"
        )
    bent = [s.position - slices[0].position - i * travel / (len(slices) - 1) for i, s in enumerate(slices)]
    worst = max(range(len(bent)), key=lambda i: float(np.linalg.norm(bent[i])))
    if np.linalg.norm(bent[worst]) > 0.5 * min(slices[0].spacing):
        raise VolumeError(
            f"{source}: {_name(slices[worst])} lies {np.linalg.norm(bent[worst]):.2f} mm beside the line of "
            "the stack; is it a slice of another acquisition?"
        )
    return travel / (len(slices) - 1)


def _name(s: _Slice) -> str:
    return s.file.name if s.frame is None else f"frame {s.frame} of {s.file.name}"


def _stack_affine(first: _Slice, step: np.ndarray) -> Tensor:
    """Index (i column, j row, k slice) to RAS mm; DICOM gives the centre of the first pixel in LPS mm."""
    lps = np.eye(4)
    lps[:3, 0] = first.axes[0] * first.spacing[1]
    lps[:3, 1] = first.axes[1] * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = first.position
    return torch.from_numpy(_RAS_LPS @ lps)


def _stack_pixels(slices: list[_Slice], source: Path) -> Tensor:
    whole = all(float(v).is_integer() and abs(v) < 10000 for s in slices for v in (s.slope, s.intercept))
    whole = whole and all(s.slope == 1.0 for s in slices)
    stack = np.empty((len(slices), *slices[0].size), dtype=np.int32 if whole else np.float32)
    for place, s, stored in _stored(stack, slices):
        if stored.shape != s.size:
            raise VolumeError(
                f"{s.file}: expected one grey slice {s.size}, got pixels of shape {stored.shape}"
            )
        place[...] = stored
        place *= stack.dtype.type(s.slope)
        place += stack.dtype.type(s.intercept)
    _warn_of_values(slices[0], stack, source)
    if whole and stack.min() >= -32768 and stack.max() <= 32767:
        stack = stack.astype(np.int16)
    return torch.from_numpy(stack)


def _stored(stack: np.ndarray, slices: list[_Slice]) -> Iterator[tuple[np.ndarray, _Slice, np.ndarray]]:
    """Where each slice goes, the slice, and its pixels as stored; every file is decoded once."""
    by_file: dict[Path, list[int]] = {}
    for number, s in enumerate(slices):
        by_file.setdefault(s.file, []).append(number)
    for file, numbers in by_file.items():
        pixels = read_pixels(read_dataset(file), file)
        for number in numbers:
            s = slices[number]
            if s.frame is None or (s.frame == 0 and pixels.shape == s.size):  # of one frame [H, W] comes
                yield stack[number], s, pixels
            elif pixels.ndim < 3 or s.frame >= len(pixels):
                raise VolumeError(
                    f"{file}: the header describes frame {s.frame}, and the pixels of shape {pixels.shape} "
                    "do not hold it; export it again"
                )
            else:
                yield stack[number], s, pixels[s.frame]


def _warn_of_values(first: _Slice, stack: np.ndarray, source: Path) -> None:
    unit = first.notes["rescale_type"]
    if unit not in (None, "HU"):
        warnings.warn(
            f"{source}: RescaleType is {unit}, not HU; values are read as CT numbers",
            InputWarning,
            stacklevel=5,
        )
    if not first.notes["rescale_stated"]:
        warnings.warn(
            f"{source}: states no rescale slope and intercept; stored values are read as CT numbers",
            InputWarning,
            stacklevel=5,
        )
    padding = first.notes["padding"]
    if isinstance(padding, int) and padding * first.slope + first.intercept > -900:
        value = padding * first.slope + first.intercept
        share = float((stack[:: max(1, len(stack) // 8)] == value).mean())
        if share > 0.01:
            warnings.warn(
                f"{source}: padding (0028,0120) has the CT number {value:g}, not air, in {100 * share:.0f} % "
                "of the voxels; set it to −1000 before rendering",
                InputWarning,
                stacklevel=5,
            )
