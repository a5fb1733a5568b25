"""What cutting, padding, averaging and resampling an image do to its pixel coordinates.

Pixel centres are at integers, so the image of W columns spans −0.5 … W − 0.5. Each function returns the size
of the new image and the map of pixel coordinates, new = (su·u + ou, sv·v + ov), as (su, ou, sv, ov).
"""

from __future__ import annotations

from xreg.errors import GeometryError
from xreg.geometry._numbers import image_size

Size = tuple[int, int]
PixelMap = tuple[float, float, float, float]


def crop_map(size: Size, top: int, left: int, height: int, width: int) -> tuple[Size, PixelMap]:
    """Cut the window of ``height``×``width`` pixels whose first pixel is (``top``, ``left``)."""
    new = image_size((height, width), "(height, width) of the crop")
    if top < 0 or left < 0 or top + new[0] > size[0] or left + new[1] > size[1]:
        raise GeometryError(
            f"a crop of rows {top}…{top + new[0]} and columns {left}…{left + new[1]} leaves the image of "
            f"{size[0]}×{size[1]} pixels (rows × columns); use pad to grow an image"
        )
    return new, (1.0, -float(left), 1.0, -float(top))


def pad_map(size: Size, top: int, bottom: int, left: int, right: int) -> tuple[Size, PixelMap]:
    """Add ``top``, ``bottom`` rows and ``left``, ``right`` columns; all counts are ≥ 0."""
    if min(top, bottom, left, right) < 0:
        raise GeometryError(f"pad counts must be ≥ 0, got {(top, bottom, left, right)}; use crop to cut")
    new = image_size((size[0] + top + bottom, size[1] + left + right), "padded size")
    return new, (1.0, float(left), 1.0, float(top))


def bin_map(size: Size, n: int) -> tuple[Size, PixelMap]:
    """Average blocks of n×n pixels; rows and columns left over at the bottom and right are dropped."""
    if int(n) != n or n < 1:
        raise GeometryError(f"bin needs a positive whole number of pixels, got {n!r}")
    if size[0] < n or size[1] < n:
        raise GeometryError(f"an image of {size[0]}×{size[1]} pixels cannot be binned {n}×{n}")
    offset = 0.5 / n - 0.5
    return (size[0] // int(n), size[1] // int(n)), (1.0 / n, offset, 1.0 / n, offset)


def resize_map(size: Size, new: Size) -> tuple[Size, PixelMap]:
    """Resample to ``new`` = (height, width) over the same field: edges stay put, u' + ½ = (u + ½)·W'/W.

    This is ``align_corners=False`` of torch and the default of OpenCV and Pillow.
    """
    new = image_size(new, "new size")
    sv, su = new[0] / size[0], new[1] / size[1]
    return new, (su, 0.5 * su - 0.5, sv, 0.5 * sv - 0.5)
