"""Plain image files: PNG, TIFF and others by Pillow, NPY, 2D NIfTI; and writing of PNG and TIFF."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from ..errors import FileError, ImageError
from .files import atomic_write, require_file

_WHAT = "a radiograph (DICOM, PNG, TIFF, NPY or NIfTI)"
_CHANNELS = (1, 2, 3, 4)  # as a last axis: no film is so narrow
_PHOTOMETRIC = 262  # TIFF's tag: 0 where white is zero
_SAMPLES, _UNSIGNED = 339, 1  # TIFF's tag of how numbers are stored: whole and not negative if not said
_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, eq=False)
class ImageFile:
    """Pixels [H, W] as stored, how many frames the file has, their spacing (row, col) in mm if it says so."""

    pixels: Shaped[np.ndarray, "H W"]
    frames: int
    spacing: tuple[float, float] | None
    kind: str


def read_image(path: str | PathLike, *, frame: int = 0) -> ImageFile:
    """Read one frame of an image file that is not DICOM; the suffix says which kind.

    Colour is taken only where the channels agree.  NIfTI: rows run along j, columns along i, frames along k.
    Raises FileError (missing, truncated), ImageError (not an image, colour, wrong dimensions, no such frame).
    """
    file = require_file(path, _WHAT)
    name = file.name.lower()
    if name.endswith(".npy"):
        return _read_npy(file, frame)
    if name.endswith((".nii", ".nii.gz")):
        return _read_nifti(file, frame)
    return _read_pillow(file, frame)


def check_frame(frame: int, frames: int, file: Any) -> int:
    """Return a frame number that exists; raises ImageError otherwise."""
    try:
        number = -1 if isinstance(frame, bool) else operator.index(frame)
    except TypeError:
        number = -1
    if not 0 <= number < frames:
        raise ImageError(f"{file}: frame must be a whole number from 0 to {frames - 1}, got {frame!r}")
    return number


def grey(pixels: Shaped[np.ndarray, "H W *channels"], file: Any) -> Shaped[np.ndarray, "H W"]:
    """Drop colour channels that agree, and an alpha channel that is opaque; raises ImageError otherwise."""
    if pixels.ndim == 2:
        return pixels
    if pixels.ndim != 3 or pixels.shape[2] not in _CHANNELS:
        raise ImageError(f"{file}: expected an image [H, W], got shape {pixels.shape}")
    channels = pixels.shape[2]
    if channels in (2, 4):
        alpha = pixels[..., -1]
        if alpha.min() != alpha.max():
            raise ImageError(f"{file}: has a transparency channel that varies; save it as plain grey")
    colour = pixels[..., : 3 if channels >= 3 else 1]
    if colour.shape[2] > 1 and (colour != colour[..., :1]).any():
        raise ImageError(
            f"{file}: is a colour image whose channels differ; save it as grey, from the original data"
        )
    return colour[..., 0]


def save_image(
    path: str | PathLike,
    image: Float[Tensor, "H W"] | Float[np.ndarray, "H W"],
    *,
    window: tuple[float, float] | None = None,
) -> None:
    """Write a float image as PNG (16 bit), TIFF (float32, not scaled) or NPY (as it is), atomically.

    ``window`` = (low, high), of PNG only: values that become black and white, by default least and greatest;
    beyond them values are clipped.  Raises ImageError for another shape, NaN or an empty window, FileError.
    """
    file = Path(path)
    pixels = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if pixels.ndim != 2 or pixels.dtype.kind not in "fiu" or pixels.size == 0:
        raise ImageError(f"image must be real numbers [H, W], got {pixels.dtype} of shape {pixels.shape}")
    if not np.isfinite(pixels).all():
        raise ImageError(
            f"image must be finite, got {int((~np.isfinite(pixels)).sum())} NaN or infinite pixels"
        )
    suffix = file.suffix.lower()
    if suffix not in (".png", ".tif", ".tiff", ".npy"):
        raise FileError(f"{file}: expected a name that ends in .png, .tif or .npy")
    if window is not None and suffix != ".png":
        raise ImageError(f"{file}: window is for PNG; TIFF and NPY keep the values as they are")
    stored = _windowed(pixels, window) if suffix == ".png" else pixels
    with atomic_write(file) as temporary:
        if suffix == ".npy":
            write_npy(temporary, stored)
            return
        from PIL import Image

        picture = Image.fromarray(stored if suffix == ".png" else stored.astype(np.float32))
        picture.save(temporary, format="PNG" if suffix == ".png" else "TIFF")


def write_npy(file: Path, array: Shaped[np.ndarray, "*shape"]) -> None:
    """Write NPY under exactly this name: `np.save` adds .npy to a name that does not end so."""
    with file.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def save_png16(
    path: str | PathLike, image: Float[Tensor, "H W"], *, window: tuple[float, float] | None = None
) -> None:
    """Write a float image as a 16-bit grey PNG, atomically; see ``save_image``."""
    if Path(path).suffix.lower() != ".png":
        raise FileError(f"{path}: expected a name that ends in .png")
    save_image(path, image, window=window)


def _windowed(pixels: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    low, high = (float(pixels.min()), float(pixels.max())) if window is None else map(float, window)
    if window is None and low == high:
        high = low + 1.0
    if not (np.isfinite([low, high]).all() and low < high):
        raise ImageError(f"window must be (low, high) with low < high, got {window}")
    share = (pixels.astype(np.float64) - low) / (high - low)
    return np.round(share.clip(0.0, 1.0) * 65535.0).astype(np.uint16)


def _read_npy(file: Path, frame: int) -> ImageFile:
    try:
        array = np.load(file, allow_pickle=False)
    except Exception as error:  # a damaged header ends in whatever its parser met first
        raise FileError(
            f"{file}: cannot be read as NPY ({error}); it may be truncated or hold objects"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or array.size == 0:
        shape = getattr(array, "shape", type(array).__name__)
        raise ImageError(f"{file}: wrong dimension: expected [H, W] or [frames, H, W], got {shape}")
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{file}: pixels must be real numbers, got {array.dtype}")
    if array.ndim == 3 and array.shape[2] in _CHANNELS:
        if array.shape[0] in _CHANNELS:
            raise ImageError(
                f"{file}: shape {array.shape} may be frames [frames, H, W] or channels [H, W, channels]; "
                "save one image as [H, W]"
            )
        array = grey(array, file)
    frames = array.shape[0] if array.ndim == 3 else 1
    number = check_frame(frame, frames, file)
    return ImageFile(array[number] if array.ndim == 3 else array, frames, None, "NPY")


def _read_nifti(file: Path, frame: int) -> ImageFile:
    from .nifti import read_nifti

    grid = read_nifti(file, planes=True)
    number = check_frame(frame, grid.values.shape[0], file)
    i, j, _ = grid.affine[:3, :3].norm(dim=0).tolist()
    return ImageFile(grid.values[number], grid.values.shape[0], (j, i), "NIfTI")


def _read_pillow(file: Path, frame: int) -> ImageFile:
    from PIL import Image, UnidentifiedImageError

    _refuse_deep_colour(file)
    try:
        with Image.open(file) as picture:
            frames = int(getattr(picture, "n_frames", 1))
            picture.seek(check_frame(frame, frames, file))
            if picture.mode == "P":
                picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
            mode, kind = picture.mode, picture.format or "image"
            pixels = np.array(picture)
            if kind == "TIFF" and mode == "I" and picture.tag_v2.get(_SAMPLES, (1,))[0] == _UNSIGNED:
                pixels = pixels.astype(np.int32).view(np.uint32)
            if kind == "TIFF" and mode in ("1", "L") and picture.tag_v2.get(_PHOTOMETRIC) == 0:
                pixels = ~pixels  # Pillow inverted these, and no deeper ones, where white is zero
    except UnidentifiedImageError as error:
        raise ImageError(f"{file}: is not an image that can be read; expected {_WHAT}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{file}: {error}; no radiograph is that large") from error
    except ImageError:
        raise
    except Exception as error:  # each format of Pillow fails in its own way
        raise FileError(f"{file}: the image is truncated or damaged ({error}); copy it again") from error
    if mode not in (*_GREY_MODES, "LA", "RGB", "RGBA"):
        raise ImageError(f"{file}: expected a grey image, got mode {mode}; save it as 8-bit or 16-bit grey")
    return ImageFile(grey(pixels, file), frames, None, kind)


def _refuse_deep_colour(file: Path) -> None:
    """Pillow cuts 16-bit colour PNG to 8 bits without a word."""
    with file.open("rb") as stream:
        head = stream.read(26)
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 and head[24] == 16 and head[25] != 0:
        raise ImageError(f"{file}: is a 16-bit PNG with colour or transparency; save it as plain 16-bit grey")
