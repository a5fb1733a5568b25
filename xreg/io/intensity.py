"""From stored pixel values to line integrals of attenuation, and which pixels saw the beam at all."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ImageError

RELATIONSHIPS = ("linear", "log", "line_integral")
_AUTO_SHARE = 0.001  # of the valid pixels may be brighter than an automatic I0
_MIN_FIELD = 0.01  # of the image must be dark and joined to the border before it counts as outside


def linearise(
    image: Float[Tensor, "*batch H W"],
    relationship: str = "linear",
    sign: int = 1,
    *,
    i0: float | str = "auto",
    mask: Bool[Tensor, "*batch H W"] | None = None,
    floor: float = 1e-4,
    full_scale: float | None = None,
    log_gain: float = 1.0,
) -> Float[Tensor, "*batch H W"]:
    """Line integrals of attenuation (no unit) from pixel values: Beer–Lambert, p = −ln(I / I0).

    relationship, sign (DICOM 0028,1040 and 0028,1041; sign −1: a higher value means less beam):
      "linear", +1: I = value;  −1: I = full_scale − value, full_scale being the largest storable value (by
        default the largest valid one).  I / I0 under ``floor`` is set to it, so p never exceeds −ln(floor).
      "log", +1: p = (I0 − value) / log_gain;  −1: p = (value − I0) / log_gain.  log_gain is the number of
        stored units that a factor e takes; DICOM does not say it, and 1 leaves p in stored units.
      "line_integral": values are p already; sign −1 negates them.
    i0: the value of the unattenuated beam (after the sign is undone, for "linear"), or "auto": the value that
        one valid pixel in a thousand exceeds.  Without air in the field "auto" leaves a constant offset in p.
    mask: valid pixels, which "auto" looks at.  Every pixel is converted.

    dtype is kept; gradients flow to ``image`` (zero at the floor, none through "auto").  Raises ImageError.
    """
    _check_options(relationship, sign, floor, log_gain)
    if not image.is_floating_point():
        raise ImageError(f"image must be floating, got {image.dtype}; convert the stored values to float32")
    if relationship == "line_integral":
        return image if sign > 0 else -image
    valid = image.detach() if mask is None else image.detach()[mask]
    if valid.numel() == 0:
        raise ImageError("mask leaves no valid pixel; it must be True where the detector saw the beam")
    if relationship == "log":
        bright = _beam_value(valid, i0, brighter_is_higher=sign > 0)
        return (bright - image) * (sign / log_gain)
    if sign < 0:
        top = float(valid.max()) if full_scale is None else float(full_scale)
        image, valid = top - image, top - valid
    bright = _beam_value(valid, i0, brighter_is_higher=True)
    if bright <= 0.0:
        raise ImageError(
            f"i0, the value of the unattenuated beam, must be positive, got {bright:g}; pass i0=, or say "
            'relationship="log" or sign=-1 if the values are not proportional to the beam'
        )
    return -torch.log((image / bright).clamp_min(floor))


def field_mask(
    image: Float[Tensor, "H W"], *, dark: float | None = None, margin_px: int = 2
) -> Bool[Tensor, "H W"]:
    """Valid pixels of an image with a dark surround (a round intensifier, a collimator): True inside.

    Outside is what has exactly the value ``dark`` (by default the smallest), is joined to the border, and
    makes up at least a hundredth of the image; otherwise every pixel is valid.  ``margin_px`` pixels more are
    taken off, since the edge of the field is blurred.  No gradient.
    """
    from scipy import ndimage

    values = image.detach().cpu().numpy()
    is_dark = values == (values.min() if dark is None else dark)
    parts, _ = ndimage.label(is_dark)
    rim = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    outside = np.isin(parts, rim[rim > 0])
    if outside.mean() < _MIN_FIELD or outside.all():
        return torch.ones(image.shape, dtype=torch.bool, device=image.device)
    if margin_px > 0:
        outside = ndimage.binary_dilation(outside, iterations=margin_px)
    return torch.from_numpy(~outside).to(image.device)


def _beam_value(valid: Tensor, i0: float | str, *, brighter_is_higher: bool) -> float:
    if i0 != "auto":
        if isinstance(i0, str) or not math.isfinite(i0):
            raise ImageError(f'i0 must be a finite number in stored units or "auto", got {i0!r}')
        return float(i0)
    values = valid.flatten()
    rank = round((values.numel() - 1) * (1.0 - _AUTO_SHARE if brighter_is_higher else _AUTO_SHARE))
    return float(values.kthvalue(rank + 1).values)


def _check_options(relationship: str, sign: int, floor: float, log_gain: float) -> None:
    if relationship not in RELATIONSHIPS:
        raise ImageError(f"relationship must be one of {', '.join(RELATIONSHIPS)}, got {relationship!r}")
    if sign not in (-1, 1):
        raise ImageError(f"sign must be 1 (a higher value means more beam) or -1 (less beam), got {sign!r}")
    if not 0.0 < floor < 1.0:
        raise ImageError(f"floor, the least I / I0, must lie between 0 and 1, got {floor}")
    if not (math.isfinite(log_gain) and log_gain > 0.0):
        raise ImageError(f"log_gain must be a positive number of stored units per factor e, got {log_gain}")
