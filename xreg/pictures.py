"""Pictures for people: radiographs as grey, edges of a render drawn over a film, labelled panels, GIFs.

Arrays in, arrays out: grey images are float [H, W] from 0 to 1, pictures uint8 [H, W, 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from xreg.errors import FileError, ImageError
from xreg.io import atomic_write

RED, GREEN, YELLOW = (255, 92, 72), (64, 232, 128), (255, 214, 64)
INK, PAPER, FAINT = (236, 240, 244), (17, 21, 28), (150, 162, 176)
UNLIT = (34, 41, 54)
EDGE_SHARE = 0.06  # of the pixels are drawn as edges
_MARGIN, _CAPTION, _TITLE = 10, 24, 40


def grey(
    image: Any, mask: Any = None, *, window: tuple[float, float] | None = None, invert: bool = False
) -> Float[np.ndarray, "H W"]:
    """Scale an image to 0 … 1 for the eye, by a window or by the 0.5th and 99.5th percentile of valid pixels.

    mask: bool [H, W], True where valid; the rest becomes 0.  ``invert`` turns black and white round.
    """
    pixels = _image(image)
    valid = np.ones(pixels.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if valid.shape != pixels.shape or not valid.any():
        raise ImageError(
            f"mask must be True somewhere and of the image's shape {pixels.shape}, got {valid.shape}"
        )
    low, high = np.percentile(pixels[valid], [0.5, 99.5]) if window is None else window
    scaled = np.clip((pixels - low) / max(float(high - low), 1e-12), 0.0, 1.0)
    return np.where(valid, 1.0 - scaled if invert else scaled, 0.0)


def edges(
    image: Any, *, share: float = EDGE_SHARE, blur: float = 1.8, shortest: int = 24
) -> Bool[np.ndarray, "H W"]:
    """Thin lines where an image changes most: the ridges of its gradient, joined from strong to weak ones.

    share: of the pixels, that may be lines at most.  blur: standard deviation (px) of the smoothing before.
    shortest: lines of fewer pixels are left out.
    """
    from scipy import ndimage

    pixels = _image(image)
    gy, gx = (ndimage.gaussian_filter(pixels, blur, order=o) for o in ((1, 0), (0, 1)))
    strength = np.hypot(gx, gy)
    ridge = _ridge(gx, gy, strength) & (strength > 1e-9 * max(float(strength.max()), 1e-30))
    weak = ridge & (strength > np.quantile(np.where(ridge, strength, 0.0), 1.0 - share))
    if not weak.any():
        return weak
    strong = weak & (strength > np.median(strength[weak]))
    parts, _ = ndimage.label(weak, structure=np.ones((3, 3)))
    keep = (np.bincount(parts[strong], minlength=parts.max() + 1) > 0) & (
        np.bincount(parts.ravel()) >= shortest
    )
    keep[0] = False
    return keep[parts]


def _ridge(
    gx: Float[np.ndarray, "H W"], gy: Float[np.ndarray, "H W"], strength: Float[np.ndarray, "H W"]
) -> Bool[np.ndarray, "H W"]:
    """Where the gradient is stronger than a pixel ahead and behind, along its own direction."""
    from scipy import ndimage

    rows, columns = np.indices(strength.shape).astype(float)
    length = np.maximum(strength, 1e-30)
    ahead, behind = (
        ndimage.map_coordinates(
            strength, [rows + s * gy / length, columns + s * gx / length], order=1, mode="nearest"
        )
        for s in (1.0, -1.0)
    )
    return (strength >= ahead) & (strength > behind)


def colour(image: Float[np.ndarray, "H W"], mask: Any = None) -> UInt8[np.ndarray, "H W 3"]:
    """A grey image (0 … 1) as a picture; where ``mask`` is False, the colour of what no beam has reached."""
    picture = np.repeat((np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)[..., None], 3, axis=2)
    if mask is not None:
        picture[~np.asarray(mask, dtype=bool)] = UNLIT
    return picture


def draw_edges(
    picture: UInt8[np.ndarray, "H W 3"],
    lines: Bool[np.ndarray, "H W"],
    ink: tuple[int, int, int] = RED,
    *,
    strength: float = 0.85,
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture with lines drawn over it in one colour."""
    mixed = picture.astype(np.float32)
    mixed[lines] = (1.0 - strength) * mixed[lines] + strength * np.array(ink, dtype=np.float32)
    return (mixed + 0.5).astype(np.uint8)


def checkerboard(
    first: Float[np.ndarray, "H W"], second: Float[np.ndarray, "H W"], *, squares: int = 6
) -> Float[np.ndarray, "H W"]:
    """Two grey images in alternating squares: lines run on across the borders where they agree."""
    first, second = _image(first), _image(second)
    if first.shape != second.shape:
        raise ImageError(f"both images must have one shape, got {first.shape} and {second.shape}")
    side = max(1, -(-max(first.shape) // squares))
    rows, columns = np.indices(first.shape) // side
    return np.where((rows + columns) % 2 == 0, first, second)


def match_contrast(image: Any, like: Any, mask: Any = None) -> Float[np.ndarray, "H W"]:
    """The image with the mean and spread that ``like`` has over valid pixels."""
    image, like = _image(image), _image(like)
    valid = np.ones(like.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    spread = float(image[valid].std())
    gain = float(like[valid].std()) / spread if spread > 0.0 else 0.0
    return (image - image[valid].mean()) * gain + like[valid].mean()


def enlarge(picture: UInt8[np.ndarray, "H W 3"], width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture at another width in pixels, its proportions kept."""
    from PIL import Image

    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    kind = Image.Resampling.LANCZOS if width >= picture.shape[1] else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize((width, height), kind))


def panels(
    rows: Sequence[Sequence[tuple[str, UInt8[np.ndarray, "H W 3"]]]],
    *,
    title: str = "",
    footer: str = "",
    width: int = 1200,
) -> UInt8[np.ndarray, "H W 3"]:
    """Put captioned pictures into rows of equal columns, with a title above and a line below.

    rows: (caption, picture) each; the caption stands above its picture.  width: of the whole, in pixels.
    """
    from PIL import Image, ImageDraw

    count = max(len(row) for row in rows)
    side = (width - _MARGIN * (count + 1)) // count
    drawn = [[(caption, enlarge(picture, side)) for caption, picture in row] for row in rows]
    heights = [max(picture.shape[0] for _, picture in row) for row in drawn]
    head = _TITLE if title else _MARGIN
    total = head + sum(h + _CAPTION + _MARGIN for h in heights) + (_CAPTION + 4 if footer else 0)
    sheet = Image.new("RGB", (width, total), PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((_MARGIN, 9), title, INK, font=_font(20))
    top = head
    for row, height in zip(drawn, heights, strict=True):
        for n, (caption, picture) in enumerate(row):
            left = _MARGIN + n * (side + _MARGIN)
            pen.text((left, top + 3), caption, INK, font=_font(14, caption, side))
            sheet.paste(Image.fromarray(picture), (left, top + _CAPTION))
        top += height + _CAPTION + _MARGIN
    if footer:
        pen.text((_MARGIN, top), footer, FAINT, font=_font(13, footer, width - 2 * _MARGIN))
    return np.asarray(sheet)


def caption(picture: UInt8[np.ndarray, "H W 3"], text: str) -> UInt8[np.ndarray, "h W 3"]:
    """The picture with a line of text below it."""
    from PIL import Image, ImageDraw

    height, width = picture.shape[:2]
    sheet = Image.new("RGB", (width, height + _CAPTION), PAPER)
    sheet.paste(Image.fromarray(picture), (0, 0))
    ImageDraw.Draw(sheet).text((6, height + 4), text, INK, font=_font(14, text, width - 12))
    return np.asarray(sheet)


def save_picture(path: str | PathLike, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write a picture as PNG, atomically.  Raises FileError."""
    from PIL import Image

    if Path(path).suffix.lower() != ".png":
        raise FileError(f"{path}: a picture is written as PNG; choose a name that ends in .png")
    with atomic_write(path) as temporary:
        Image.fromarray(_picture(picture)).save(temporary, format="PNG")


def save_gif(
    path: str | PathLike,
    frames: Sequence[UInt8[np.ndarray, "H W 3"]],
    *,
    milliseconds: int | Sequence[int] = 200,
    colours: int = 96,
) -> None:
    """Write pictures of one size as an endless GIF with one palette, atomically.

    milliseconds: how long a frame stays, one number or one each.  Raises ImageError, FileError.
    """
    from PIL import Image

    shapes = {_picture(frame).shape for frame in frames}
    if len(shapes) != 1:
        raise ImageError(f"a GIF needs one frame or more, of one size, got the shapes {sorted(shapes)}")
    if Path(path).suffix.lower() != ".gif":
        raise FileError(f"{path}: choose a name that ends in .gif")
    sample = np.concatenate([frames[0], frames[-1]])
    palette = Image.fromarray(sample).quantize(colours, method=Image.Quantize.MEDIANCUT)
    drawn = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    times = milliseconds if isinstance(milliseconds, int) else list(milliseconds)
    with atomic_write(path) as temporary:
        drawn[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=drawn[1:],
            duration=times,
            loop=0,
            optimize=False,
        )


def _image(value: Any) -> Float[np.ndarray, "H W"]:
    pixels = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)
    if pixels.ndim != 2 or pixels.size == 0 or not np.isfinite(pixels).all():
        raise ImageError(f"image must be finite numbers [H, W], got shape {pixels.shape}")
    return pixels


def _picture(value: Any) -> UInt8[np.ndarray, "H W 3"]:
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ImageError(f"a picture must be a uint8 array [H, W, 3], got {found}")
    return value


def _font(size: int, text: str = "", width: int = 0) -> Any:
    """Pillow's own font, small enough for the text to fit into ``width`` pixels."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    while text and size > 9 and font.getlength(text) > width:
        size -= 1
        font = ImageFont.load_default(size)
    return font
