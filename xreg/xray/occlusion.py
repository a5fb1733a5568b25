"""What covers a film: blades and round fields, tools in the beam, erased boxes.

Places are parts of the side: u of the width to the right, v of the height downwards, 0 to 1, so that the
centre of pixel i of n lies at (i + ½)/n.  Lengths are parts of the shorter side, pixels being square.
Angles are in radians from u towards v.  Every parameter is one number, or one a film [B].  ``like`` are the
images that the result is for: it has their shape [B, H, W], dtype and device.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.xray._inputs import per_film
from xreg.xray.film import own_range

Number = float | Float[Tensor, " B"]
Pair = tuple[float, float] | Float[Tensor, "B 2"]


def _pixels(like: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [1, 1, W] and rows [1, H, 1] of the pixel centres, in parts of the shorter side."""
    height, width = like.shape[-2:]
    u = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    v = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    return (u / min(height, width))[None, None, :], (v / min(height, width))[None, :, None]


def _about(like: Tensor, at: Pair, angle: Number | None = None) -> tuple[Tensor, Tensor]:
    """Pixel centres along and across an axis through a place, in parts of the shorter side, [B, H, W]."""
    height, width = like.shape[-2:]
    places = per_film(at, "at", like, low=-10.0, high=10.0, tail=(2,))
    u, v = _pixels(like)
    x = u - (places[:, 0] * (width / min(height, width)))[:, None, None]
    y = v - (places[:, 1] * (height / min(height, width)))[:, None, None]
    if angle is None:
        return x, y
    turn = per_film(angle, "angle", like, low=-1e3, high=1e3)[:, None, None]
    return x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()


def blades(
    like: Float[Tensor, "B H W"],
    covered: tuple[float, float, float, float] | Float[Tensor, "B 4"],
    angle: Number = 0.0,
    *,
    edge: Number = 0.0,
) -> Float[Tensor, "B H W"]:
    """How open the field of a rectangular collimator is: 1 inside, 0 behind a blade.

    covered: at the top, bottom, left and right, parts of the height and the width.  angle: of the collimator
    about the film's middle.  edge: width of the shadow's soft edge, in parts of the shorter side; a pixel is
    half open where its centre lies on the edge.  0: open where the centre lies inside.  Raises ImageError.
    """
    parts = per_film(covered, "covered", like, low=0.0, high=1.0, tail=(4,))
    height, width = (n / min(like.shape[-2:]) for n in like.shape[-2:])
    x, y = _about(like, (0.5, 0.5), angle)
    top, bottom, left, right = ((0.5 - part)[:, None, None] for part in parts.unbind(-1))
    inside_v = torch.minimum(y + top * height, bottom * height - y)
    inside_u = torch.minimum(x + left * width, right * width - x)
    return _openness(torch.minimum(inside_u, inside_v), edge)


def round_field(
    like: Float[Tensor, "B H W"], radius: Number, at: Pair = (0.5, 0.5), *, edge: Number = 0.0
) -> Float[Tensor, "B H W"]:
    """How open a round field is: 1 within ``radius`` of a place, 0 beyond; ``edge`` as in ``blades``."""
    reach = per_film(radius, "radius", like, low=0.0, high=10.0)[:, None, None]
    x, y = _about(like, at)
    return _openness(reach - torch.hypot(x, y), edge)


def _openness(inside: Float[Tensor, "B H W"], edge: Number) -> Float[Tensor, "B H W"]:
    soft = per_film(edge, "edge", inside, low=0.0, high=1.0)[:, None, None]
    return ((inside / soft.clamp_min(1e-6) + 0.5).clamp(0.0, 1.0)).where(soft > 0, (inside > 0).to(inside))


def rod(
    like: Float[Tensor, "B H W"],
    at: Pair,
    angle: Number,
    length: Number,
    width: Number,
    peak: Number = 2.5,
    *,
    bend: Number = 0.0,
    thread: Number = 0.0,
) -> Float[Tensor, "B H W"]:
    """Line integrals of a round rod seen from the side: peak · √(1 − (distance / radius)²), no unit.

    at: its middle (u, v).  angle: of its axis.  length and width: parts of the shorter side.  peak: through
    its middle.  bend: how far the middle bows out from the line between the ends, for a wire (distances from
    the bow are to first order in its slope).  thread: part of the radius that the thread of a screw is cut
    in, its pitch being a third of the width.  Overlapping tools add up.  Raises ImageError.
    """
    half = 0.5 * per_film(length, "length", like, low=1e-6, high=10.0)[:, None, None]
    radius = 0.5 * per_film(width, "width", like, low=1e-6, high=10.0)[:, None, None]
    height = per_film(peak, "peak", like, low=0.0, high=1e3)[:, None, None]
    bow = per_film(bend, "bend", like, low=-10.0, high=10.0)[:, None, None]
    cut = per_film(thread, "thread", like, low=0.0, high=0.9)[:, None, None]
    along, across = _about(like, at, angle)
    if not _is_zero(bend):
        slope = along * (-2.0 * bow / half**2)
        across = (across - bow + along**2 * (bow / half**2)) * torch.rsqrt(1.0 + slope**2)
    if not _is_zero(thread):
        turns = along * (1.5 / radius)
        radius = radius * (1.0 - cut * (2.0 * (turns - turns.round())).abs())
    chord = (1.0 - (across / radius) ** 2).clamp_min(0.0).sqrt()
    return torch.where(along.abs() < half, height * chord, 0.0)


def _is_zero(value: Number) -> bool:
    """Whether a number for all films is 0, so that a plain rod costs nothing more."""
    return not isinstance(value, Tensor) and value == 0


def ball(
    like: Float[Tensor, "B H W"], at: Pair, radius: Number, peak: Number = 2.5, *, flat: bool = False
) -> Float[Tensor, "B H W"]:
    """Line integrals of a ball, peak · √(1 − (r / radius)²), or of a ``flat`` disc, ``peak`` throughout."""
    reach = per_film(radius, "radius", like, low=1e-6, high=10.0)[:, None, None]
    height = per_film(peak, "peak", like, low=0.0, high=1e3)[:, None, None]
    x, y = _about(like, at)
    inside = (1.0 - (x**2 + y**2) / reach**2).clamp_min(0.0)
    return height * ((inside > 0).to(inside) if flat else inside.sqrt())


def box(like: Float[Tensor, "B H W"], corner: Pair, size: Pair) -> Float[Tensor, "B H W"]:
    """1 in an upright box, 0 elsewhere.  corner: its top left (u, v).  size: parts of width and height."""
    first = per_film(corner, "corner", like, low=-10.0, high=10.0, tail=(2,))[:, None, None, :]
    last = first + per_film(size, "size", like, low=0.0, high=10.0, tail=(2,))[:, None, None, :]
    height, width = like.shape[-2:]
    u = ((torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) / width)[None, None, :]
    v = ((torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) / height)[None, :, None]
    inside_u = (u > first[..., 0]) & (u < last[..., 0])
    return (inside_u & (v > first[..., 1]) & (v < last[..., 1])).to(like)


def cover(
    films: Float[Tensor, "B H W"], visible: Float[Tensor, "B H W"], shade: Number
) -> Float[Tensor, "B H W"]:
    """Films where ``visible`` is 1, one grey where it is 0, a mixture between.

    shade: of that grey, from 0 (each film's lowest value) to 1 (its highest).  Gradients flow to the films.
    """
    part = per_film(shade, "shade", films, low=0.0, high=1.0)[:, None, None]
    low, high = own_range(films)
    return films.lerp(low + part * (high - low), 1.0 - visible)
