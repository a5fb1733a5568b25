"""NIfTI files: CT volumes and label maps in any orientation, with a header that is checked before it is used.

World coordinates are RAS+ mm, as NIfTI and nibabel have them.  Arrays come as [D, H, W], index [k, j, i].
"""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from ..errors import FileError, InputWarning, VolumeError
from .files import atomic_write, require_file
from .grid import check_affine

_WHAT = "a NIfTI file (.nii or .nii.gz)"
_WRITTEN = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_UNIT_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}


@dataclass(frozen=True, eq=False)
class NiftiGrid:
    """What a NIfTI file holds: values [D, H, W], affine (index to RAS mm), and how the header was read."""

    values: Shaped[np.ndarray, "D H W"]
    affine: Float64[Tensor, "4 4"]
    notes: dict[str, Any]
    extensions: tuple[bytes, ...] = field(default=())


def read_nifti(path: str | PathLike, *, planes: bool = False) -> NiftiGrid:
    """Read a 3D NIfTI-1 or NIfTI-2 file, plain or gzipped; header slope and intercept are applied.

    values: integers where the file holds unscaled integers, otherwise float32 (float64 stays).  A fourth and
    further dimension of length 1 is dropped; with ``planes`` a 2D file becomes one plane, [1, H, W].  The
    affine is the sform where its code is set, otherwise the qform, otherwise the voxel sizes (with an
    InputWarning); ``notes`` says which.  Raises FileError (missing, truncated, damaged, not NIfTI) and
    VolumeError (dimensions, voxel sizes, singular affine).
    """
    file = require_file(path, _WHAT)
    data = _read_bytes(file)
    image = _parse(data, file)
    header = image.header
    shape = _shape_3d((*image.shape, 1) if planes and len(image.shape) == 2 else image.shape, file)
    affine, notes = _world_affine(header, file)
    notes.update(file=str(file), stored_dtype=str(header.get_data_dtype()), shape_ijk=list(shape))
    values = _scaled(image, data, file).reshape(shape, order="F").transpose(2, 1, 0)
    contents = tuple(bytes(extension.get_content()) for extension in _byte_extensions(header))
    return NiftiGrid(values, affine, notes, contents)


def write_nifti(
    path: str | PathLike,
    values: Shaped[np.ndarray, "D H W"],
    affine: Float64[Tensor, "4 4"],
    *,
    description: str = "",
    extensions: Iterable[bytes] = (),
) -> None:
    """Write an array [D, H, W] (index [k, j, i]) with its affine (index to RAS mm), atomically.

    The dtype is kept: integers of 8 to 32 bits, float32 or float64.  sform and qform are both set (a sheared
    affine has no qform).  Raises FileError for another suffix or an unwritable folder, VolumeError for a bad
    affine, and for values of another dtype or dimension.
    """
    import nibabel as nib

    file = Path(path)
    if not file.name.lower().endswith((".nii", ".nii.gz")):
        raise FileError(f"{file}: a NIfTI file must end in .nii or .nii.gz; choose such a name")
    matrix = check_affine(affine).numpy()
    if values.ndim != 3 or values.dtype.newbyteorder("=").name not in _WRITTEN:
        raise VolumeError(
            f"{file}: values must be [D, H, W] of {', '.join(_WRITTEN)}, got {values.dtype} of shape "
            f"{values.shape}; convert them first, labels to int32 and masks to uint8"
        )
    image = nib.Nifti1Image(np.ascontiguousarray(values).transpose(2, 1, 0), matrix)
    image.set_sform(matrix, code=1)
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    orthogonal = np.allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    image.set_qform(matrix if orthogonal else None, code=1 if orthogonal else 0)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    for content in extensions:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("ignore", content))
    with atomic_write(file) as temporary:
        nib.save(image, temporary)


def _read_bytes(file: Path) -> bytes:
    data = file.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except EOFError as error:
        raise FileError(
            f"{file}: the file is truncated: its gzip stream ends after {len(data)} bytes; copy it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FileError(f"{file}: the gzip stream is damaged ({error}); copy the file again") from error


def _parse(data: bytes, file: Path) -> Any:
    """Check the raw header, which nibabel would mend with a log line, and return the image."""
    import nibabel as nib
    from nibabel.imageglobals import LoggingOutputSuppressor

    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        size = kind.header_class.sizeof_hdr
        if len(data) > size and size in (int.from_bytes(data[:4], order) for order in ("little", "big")):
            break
    else:
        text = f"expected {_WHAT}, got bytes that start with {data[:8]!r}"
        if len(data) < 348:
            text = f"the file is truncated: {len(data)} bytes, and a NIfTI header alone has 348"
        raise FileError(f"{file}: {text}; give a NIfTI file, or a folder for DICOM")
    raw = kind.header_class(data[:size], check=False)
    _check_header(raw, file)
    try:
        with LoggingOutputSuppressor():
            image = kind.from_bytes(data)
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        ValueError,
        OSError,
    ) as error:
        raise FileError(
            f"{file}: the NIfTI header cannot be used ({error}); convert the file again"
        ) from error
    if int(image.dataobj.offset) < size or min(image.shape, default=0) < 1:
        raise FileError(
            f"{file}: the NIfTI header is damaged: voxels at byte {int(image.dataobj.offset)}, shape "
            f"{image.shape}; copy it again"
        )
    expected = (
        int(image.dataobj.offset) + math.prod(int(n) for n in image.shape) * image.get_data_dtype().itemsize
    )
    if len(data) < expected:
        raise FileError(
            f"{file}: the file is truncated: its header announces {expected} bytes, {len(data)} are there; "
            "copy it again"
        )
    return image


def _check_header(raw: Any, file: Path) -> None:
    sizes = np.asarray(raw["pixdim"], dtype=np.float64)[1:4]
    if bytes(raw["magic"].item())[:2] not in (b"n+", b"ni"):
        raise FileError(
            f"{file}: is Analyze 7.5, not NIfTI (no magic string); it has no orientation: convert it"
        )
    if not np.isfinite(sizes).all() or not (sizes > 0).all():
        raise VolumeError(
            f"{file}: the voxel sizes (pixdim) must be positive mm, got {sizes.tolist()}; a negative "
            "spacing says nothing about orientation in NIfTI: repair the header"
        )


def _shape_3d(shape: tuple[int, ...], file: Path) -> tuple[int, int, int]:
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
        raise VolumeError(
            f"{file}: wrong dimension: expected one 3D volume (further dimensions of length 1), "
            f"got shape {shape}; split a time series, and use load_radiograph for a 2D image"
        )
    return tuple(int(n) for n in shape[:3])


def _world_affine(header: Any, file: Path) -> tuple[Tensor, dict[str, Any]]:
    try:
        sform, sform_code = header.get_sform(coded=True)
        qform, qform_code = header.get_qform(coded=True)
        unit = header.get_xyzt_units()[0]
    except (ValueError, KeyError) as error:
        raise VolumeError(
            f"{file}: orientation or length unit in the header cannot be read ({error}); repair the header"
        ) from error
    if sform_code:
        matrix, source = sform, "sform"
    elif qform_code:
        matrix, source = qform, "qform"
    else:
        matrix, source = header.get_base_affine(), "pixdim"
        warnings.warn(
            f"{file}: has neither sform nor qform; axes are taken as L, A, S with the middle at the origin",
            InputWarning,
            stacklevel=4,
        )
    scale = _UNIT_MM[unit]
    affine = np.array(matrix, dtype=np.float64)
    affine[:3] *= scale
    tensor = check_affine(torch.from_numpy(affine), f"{file}: the {source} affine")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    pixdim = np.asarray(header["pixdim"], dtype=np.float64)[1:4] * scale
    notes = {"affine_from": source, "sform_code": int(sform_code or 0), "qform_code": int(qform_code or 0)}
    notes["length_unit"] = unit
    if not np.allclose(spacing, pixdim, rtol=0.01):
        notes["pixdim_mm"] = pixdim.tolist()
        warnings.warn(
            f"{file}: the {source} gives voxels of {spacing.round(4).tolist()} mm but pixdim says "
            f"{pixdim.round(4).tolist()}; the {source} is used",
            InputWarning,
            stacklevel=4,
        )
    return tensor, notes


def _scaled(image: Any, data: bytes, file: Path) -> np.ndarray:
    """All values in the order of the file, scaled as the header says, in an array of their own."""
    stored = image.get_data_dtype()
    if stored.names is not None or stored.kind not in "iuf":
        raise VolumeError(
            f"{file}: voxels must be plain numbers, got {stored}; colour and complex are not volumes"
        )
    raw = np.frombuffer(data, stored, math.prod(image.shape), int(image.dataobj.offset))
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if slope == 1.0 and intercept == 0.0 and stored.kind in "iu":
        return raw.astype(stored.newbyteorder("="))
    values = raw.astype(np.float64 if stored.kind == "f" and stored.itemsize >= 8 else np.float32)
    if slope != 1.0:
        values *= np.float32(slope)
    if intercept != 0.0:
        values += np.float32(intercept)
    return values


def _byte_extensions(header: Any) -> list[Any]:
    return [e for e in header.extensions if isinstance(e.get_content(), (bytes, bytearray))]
