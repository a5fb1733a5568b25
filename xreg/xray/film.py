"""The physics of one film: from line integrals of attenuation to what the detector's computer shows.

In the order of the beam: transmission exp(−p), blur of focal spot and detector, scatter, counting of
photons, logarithm, the film's curve, and storage in a few bits.  The steps can be used alone; each takes
images [B, H, W] and parameters of one number, or one a film [B].  Films are bright where attenuation is high.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.errors import ImageError
from xreg.xray._inputs import blurred, check_generator, check_images, per_film, raised

BITS = (8, 12, 16)
_CUT = 4.0  # standard deviations at which a blur's kernel ends
_COARSE = 32  # pixels of the longer side on which scatter is spread: it has no finer detail
_COUNTABLE = 1e12  # photons: the noise of more is below what float32 resolves, and they would overflow
_MOST = 60.0  # a line integral beyond this transmits nothing that float32 could tell from 0


def _check_storage(bits: int | None, window: tuple[float, float] | None) -> None:
    if bits is not None and bits not in BITS:
        raise ImageError(f"bits must be 8, 12 or 16, or None to store no whole numbers, got {bits!r}")
    pair = window is None or (isinstance(window, (tuple, list)) and len(window) == 2)
    if not pair or (window is not None and not -math.inf < window[0] < window[1] < math.inf):
        raise ImageError(
            f"window must be (low, high), finite and low < high, in the film's values, got {window}"
        )


@dataclass(frozen=True)
class FilmSettings:
    """What makes a film of an ideal image.

    photons: per pixel in air, infinite for no noise.  scatter: its mean over the film, as a part of the open
    beam.  scatter_width: how far it spreads, standard deviation as a part of the longer side.  blur: of focal
    spot and detector, standard deviation (px); the MTF is exp(−2π² blur² f²), f in cycles a pixel.  gamma,
    gain, offset: the film shows gain · p^gamma + offset.  bits: 8, 12, 16, or None to store no whole numbers.
    window: the film's values that the lowest and the highest number stand for; None: the film's own range.
    """

    photons: float = 2.0e4
    scatter: float = 0.02
    scatter_width: float = 0.15
    blur: float = 0.6
    gamma: float = 1.0
    gain: float = 1.0
    offset: float = 0.0
    bits: int | None = None
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        limits = {
            "photons": (1.0, math.inf), "scatter": (0.0, 1.0), "scatter_width": (0.0, 1.0),
            "blur": (0.0, 100.0), "gamma": (0.05, 20.0), "gain": (1e-6, 1e6), "offset": (-1e6, 1e6),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ImageError(f"{name} must lie between {low:g} and {high:g}, got {getattr(self, name)}")
        _check_storage(self.bits, self.window)


def expose(
    line_integrals: Float[Tensor, "*batch H W"],
    settings: FilmSettings = FilmSettings(),
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch H W"]:
    """Films of line integrals (no unit; below 0 reads as 0), dtype kept, bright where attenuation is high.

    generator: for the photons, on the images' device; not needed where ``photons`` is infinite.  Without
    noise and ``bits``, gradients flow to the line integrals.  Raises ImageError; BackendError where blur or
    scatter is asked for and kornia is missing.
    """
    shape = line_integrals.shape if isinstance(line_integrals, Tensor) else ()
    flat = line_integrals.reshape(-1, *shape[-2:]) if len(shape) >= 2 else line_integrals
    beam = transmission(check_images(flat))
    if settings.blur > 0:
        beam = blur(beam, settings.blur)
    if settings.scatter > 0:
        beam = scatter(beam, settings.scatter, settings.scatter_width)
    if settings.photons < math.inf:
        beam = count(beam, settings.photons, check_generator(generator, beam.device, "the noise of a film"))
    film = tone(log_signal(beam, settings.photons), settings.gamma, settings.gain, settings.offset)
    if settings.bits is not None:
        film = quantise(film, settings.bits, settings.window)
    return film.reshape(shape)


def transmission(line_integrals: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """The part of the open beam that arrives: exp(−p), p being held within 0 and 60.  Gradients flow."""
    return torch.exp(-line_integrals.clamp(0.0, _MOST))


def blur(
    beam: Float[Tensor, "B H W"], sigma: float | Float[Tensor, " B"], *, reach: int | None = None
) -> Float[Tensor, "B H W"]:
    """Blur of focal spot and detector by a Gaussian of standard deviation ``sigma`` (px).

    From half a pixel on, that is an MTF of exp(−2π² sigma² f²).  The border is repeated.  reach: where the
    kernel ends (px), by default four of the widest ``sigma``.  Gradients flow to the beam.  Raises
    ImageError; BackendError without kornia.
    """
    sigmas = per_film(sigma, "blur", beam, low=0.0, high=100.0)
    return blurred(beam, sigmas, reach=blur_reach(float(sigmas.max())) if reach is None else reach)


def blur_reach(sigma: float) -> int:
    return max(1, math.ceil(_CUT * sigma))


def scatter(
    beam: Float[Tensor, "B H W"], part: float | Float[Tensor, " B"], width: float | Float[Tensor, " B"] = 0.15
) -> Float[Tensor, "B H W"]:
    """The beam with scatter, whose mean over the film is ``part`` of the open beam.

    A ray that loses p in matter scatters as p exp(−p): what was taken out of it, weakened on the way.  Spread
    by a Gaussian (standard deviation: ``width`` of the longer side), that gives the shape; its height is set
    by ``part``, since it depends on air gap, grid and field.  A film of air alone has none.  It has no detail
    under a 32nd of the longer side.

    This is the convolution model of scatter, see B. Ohnesorge, T. Flohr, K. Klingenbeck-Regn, "Efficient
    object scatter correction algorithm for third and fourth generation CT scanners", Eur. Radiol. 9 (1999)
    563-569.
    Gradients flow to the beam.  Raises ImageError; BackendError without kornia.
    """
    parts = per_film(part, "scatter", beam, low=0.0, high=1e3)
    widths = per_film(width, "scatter_width", beam, low=0.0, high=1.0)
    size = tuple(beam.shape[-2:])
    coarse = _coarse_size(size)
    held = torch.where(beam == 0, 1.0, beam)  # 1 scatters nothing either, and its slope is finite
    source = F.adaptive_avg_pool2d(-torch.xlogy(held, held)[:, None], coarse)[:, 0].clamp_min(0.0)
    spread = blurred(source, widths * max(coarse), reach=max(coarse) - 1)
    shape = F.interpolate(spread[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    mean = shape.mean((-1, -2)).clamp_min(1e-30)
    return beam + (parts / mean)[:, None, None] * shape


def _coarse_size(size: tuple[int, int]) -> tuple[int, int]:
    """At most 32 pixels on the longer side, the shape of the film kept."""
    shrink = max(1.0, max(size) / _COARSE)
    return max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))


def count(
    beam: Float[Tensor, "B H W"], photons: float | Float[Tensor, " B"], generator: torch.Generator
) -> Float[Tensor, "B H W"]:
    """The beam as counted: Poisson numbers of mean ``photons`` · beam, over ``photons`` (a pixel in air).

    Films are counted one after the other from the same generator.  No gradient.  Raises ImageError.
    """
    numbers = per_film(photons, "photons", beam, low=1e-6, high=1e30)[:, None, None]
    check_generator(generator, beam.device, "the noise of a film")
    with torch.no_grad():
        rate = beam * numbers
        counted = torch.poisson(rate.clamp(0.0, _COUNTABLE), generator=generator)
        return torch.where(rate < _COUNTABLE, counted, rate) / numbers


def log_signal(
    beam: Float[Tensor, "B H W"], photons: float | Float[Tensor, " B"] = math.inf
) -> Float[Tensor, "B H W"]:
    """Line integrals as the detector sees them, −ln(beam); a pixel without a photon reads as half a one.

    Gradients flow to the beam.  Raises ImageError.
    """
    floor = (0.5 / per_film(photons, "photons", beam, low=1e-6)).clamp_min(1e-30)
    return -torch.log(torch.maximum(beam, floor[:, None, None]))


def tone(
    signal: Float[Tensor, "B H W"],
    gamma: float | Float[Tensor, " B"] = 1.0,
    gain: float | Float[Tensor, " B"] = 1.0,
    offset: float | Float[Tensor, " B"] = 0.0,
) -> Float[Tensor, "B H W"]:
    """The film's curve: gain · max(signal, 0)^gamma + offset.  Raises ImageError.

    Gradients flow to the signal; where it is 0 and gamma below 1, they are 0.
    """
    power = per_film(gamma, "gamma", signal, low=0.05, high=20.0)[:, None, None]
    slope = per_film(gain, "gain", signal, low=1e-6, high=1e6)[:, None, None]
    level = per_film(offset, "offset", signal, low=-1e6, high=1e6)[:, None, None]
    return slope * raised(signal, power) + level


def quantise(
    film: Float[Tensor, "B H W"], bits: int, window: tuple[float, float] | None = None
) -> Float[Tensor, "B H W"]:
    """The film in 2^bits equal steps from the lowest to the highest value of its window, in its own units.

    bits: 8, 12 or 16.  window: values that the first and the last step stand for, what lies beyond takes
    theirs; None: each film's own range.  No gradient.  Raises ImageError.
    """
    _check_storage(bits, window)
    low, high = own_range(film) if window is None else (film.new_tensor(float(value)) for value in window)
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-30)
    return (low + ((film.clamp(low, high) - low) / step).round() * step).detach()


def own_range(film: Float[Tensor, "B H W"]) -> tuple[Float[Tensor, "B 1 1"], Float[Tensor, "B 1 1"]]:
    """The lowest and the highest value of each film."""
    return film.amin((-1, -2), keepdim=True), film.amax((-1, -2), keepdim=True)
