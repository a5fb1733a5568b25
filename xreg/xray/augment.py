"""Random looks for training: the same anatomy as many machines would show it.

Each step is applied to a film with its own probability and with its own draws, in the order of the physics:
beam quality, tools, blur, scatter, photons; then the machine's curve, CLAHE, collimator, what is erased.
The steps of `film`, `styles` and `occlusion` do the work; here is what is drawn for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from xreg.errors import ImageError
from xreg.xray import film, occlusion, styles
from xreg.xray._inputs import check_generator, check_images

Range = tuple[float, float]
_OFTEN = 1 / 3
_COLUMNS = 12  # uniform numbers a step may use of a film
_TOOLS = 3  # at most in one film
_KINDS = 4  # of tools
_MEAN_LIMIT = 50.0  # of a film's mean line integral, where it sets the exposure


@dataclass(frozen=True)
class AugmentSettings:
    """How often each step is applied, and the range of what is drawn for it.

    A field named like a step is its probability; the ranges after it are (low, high).  The probability of a
    third is that of xvr.  Lengths named _px are in pixels of the images, others in parts of the shorter side.

    contrast: power of the line integrals about their mean; hardening, see `styles.contrast_curve`.
    tools: tool_count, tool_length, tool_width, tool_peak (line integral through the middle), tool_bend.
    blur: blur_px.  scatter: scatter_ratio, to the primary beam where the film has its mean line integral;
    scatter_width.  noise: detected, photons a pixel at the mean line integral, as an exposure control sets
    them.  tone: gamma, gain, offset.  invert: bright where the beam arrives.
    clahe: clahe_clips, one of which is taken; clahe_tiles along each side.
    collimate: blade, part of the side covered by each of four; blade_degrees, turned at most by; edge, its
    softness; round_share, of round fields; round_radius.  erase: erase_size, of each side.
    """

    contrast: float = _OFTEN
    power: Range = (0.7, 1.5)
    hardening: Range = (0.0, 0.12)
    tools: float = _OFTEN
    tool_count: tuple[int, int] = (1, _TOOLS)
    tool_length: Range = (0.1, 0.8)
    tool_width: Range = (0.008, 0.05)
    tool_peak: Range = (0.8, 5.0)
    tool_bend: float = 0.15
    blur: float = _OFTEN
    blur_px: Range = (0.3, 1.2)
    scatter: float = _OFTEN
    scatter_ratio: Range = (0.1, 1.5)
    scatter_width: Range = (0.05, 0.25)
    noise: float = _OFTEN
    detected: Range = (100.0, 10000.0)
    tone: float = _OFTEN
    gamma: Range = (0.7, 1.4)
    gain: Range = (0.5, 2.0)
    offset: Range = (-0.3, 0.5)
    invert: float = 0.0
    clahe: float = _OFTEN
    clahe_clips: tuple[float, ...] = (1.0, 2.0, 4.0)
    clahe_tiles: int = 4
    collimate: float = _OFTEN
    blade: Range = (0.0, 0.2)
    blade_degrees: float = 15.0
    edge: Range = (0.0, 0.03)
    round_share: float = 0.3
    round_radius: Range = (0.42, 0.6)
    erase: float = _OFTEN
    erase_size: Range = (0.05, 0.3)

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in (*STEPS, "round_share"):
            if not 0.0 <= values[name] <= 1.0:
                raise ImageError(f"{name} is a probability, 0 to 1, got {values[name]}")
        for name, (low, high) in _LIMITS.items():
            given = values[name]
            if len(given) != 2 or not low <= given[0] <= given[1] <= high:
                raise ImageError(f"{name} must be (low, high) within {low:g} to {high:g}, got {given}")
        if not self.clahe_clips or not all(0 < clip < math.inf for clip in self.clahe_clips):
            raise ImageError(f"clahe_clips must hold positive numbers, got {self.clahe_clips}")
        if not isinstance(self.clahe_tiles, int) or self.clahe_tiles < 1:
            raise ImageError(f"clahe_tiles must be a whole number of at least 1, got {self.clahe_tiles!r}")
        if not 0.0 <= self.tool_bend <= 1.0:
            raise ImageError(f"tool_bend must lie between 0 and 1 (of the length), got {self.tool_bend}")
        if not 0.0 <= self.blade_degrees <= 180.0:
            raise ImageError(f"blade_degrees must lie between 0 and 180, got {self.blade_degrees}")

    @classmethod
    def none(cls) -> AugmentSettings:
        """No step at all, to switch on one by one with `dataclasses.replace`."""
        return cls(**dict.fromkeys(STEPS, 0.0))


_LIMITS: dict[str, tuple[float, float]] = {
    "power": (0.05, 20.0), "hardening": (0.0, 10.0), "tool_count": (1, _TOOLS), "tool_length": (1e-3, 2.0),
    "tool_width": (1e-3, 1.0), "tool_peak": (1e-3, 100.0), "blur_px": (0.0, 100.0),
    "scatter_ratio": (0.0, 100.0), "scatter_width": (0.0, 1.0), "detected": (1.0, 1e7), "gamma": (0.05, 20.0),
    "gain": (1e-3, 1e3), "offset": (-1e3, 1e3), "blade": (0.0, 0.5), "edge": (0.0, 1.0),
    "round_radius": (0.05, 2.0), "erase_size": (0.0, 1.0),
}  # fmt: skip


class _Draws:
    """Everything that is random about a batch, drawn at once: the same amount whatever the settings."""

    def __init__(self, films: Tensor, generator: torch.Generator) -> None:
        count, steps = films.shape[0], len(STEPS) + _TOOLS
        on = {"generator": generator, "device": generator.device}
        # on the host, where the choices are made: one wait for the device, not one a step
        self.uniform = torch.rand((count, steps, _COLUMNS), **on).cpu()
        self.seeds = torch.randint(2**62, (count,), **on).cpu()
        self.like = films

    def chosen(self, step: int, probability: float) -> Int64[Tensor, " n"]:
        return (self.uniform[:, step, 0] < probability).nonzero()[:, 0]


class _Draw:
    """The draws of one step for its chosen films; each call of `number` takes the next column."""

    def __init__(self, draws: _Draws, step: int, chosen: Tensor) -> None:
        self._draws, self._chosen = draws, chosen
        self._columns = iter(draws.uniform[chosen, step, 1:].unbind(-1))

    def number(self, low: float, high: float) -> Float[Tensor, " n"]:
        """Uniform, in the films' dtype, on the host."""
        return (low + (high - low) * next(self._columns)).to(self._draws.like.dtype)

    def scale(self, low: float, high: float) -> Float[Tensor, " n"]:
        """Uniform in its logarithm."""
        return self.number(math.log(low), math.log(high)).exp()

    def choice(self, count: int) -> Int64[Tensor, " n"]:
        """A whole number below count, on the host."""
        return (next(self._columns) * count).long().clamp_max(count - 1)

    def of(self, step: int, among: Tensor | None = None) -> _Draw:
        """What these films, or some of them, draw for another step."""
        return _Draw(self._draws, step, self._chosen if among is None else self._chosen[among])

    def seeds(self) -> list[int]:
        return self._draws.seeds[self._chosen].tolist()


# ---- one step of the chain each: what is drawn for the chosen films ----


def _contrast(images: Tensor, draw: _Draw, settings: AugmentSettings) -> Tensor:
    return styles.contrast_curve(images, draw.scale(*settings.power), draw.number(*settings.hardening))


def _tools(images: Tensor, draw: _Draw, settings: AugmentSettings) -> Tensor:
    few, many = settings.tool_count
    count = few + draw.choice(many - few + 1)
    result = images.clone()
    for slot in range(many):
        kind = torch.where(count > slot, draw.of(len(STEPS) + slot).choice(_KINDS), -1)
        for number in range(_KINDS):
            films = (kind == number).nonzero()[:, 0]
            if len(films):
                index = films.to(images.device, non_blocking=True)
                result[index] += _tool(result[index], number, draw.of(len(STEPS) + slot, films), settings)
    return result


def _tool(like: Tensor, kind: int, draw: _Draw, settings: AugmentSettings) -> Tensor:
    """A rod (0), a wire (1), a screw (2) or a ball (3)."""
    draw.choice(_KINDS)  # the kind, which is known
    at = torch.stack([draw.number(0.1, 0.9), draw.number(0.1, 0.9)], dim=-1)
    angle, bow = draw.number(0.0, 2.0 * math.pi), draw.number(-1.0, 1.0) * settings.tool_bend
    length, width = draw.scale(*settings.tool_length), draw.scale(*settings.tool_width)
    peak = draw.scale(*settings.tool_peak)
    if kind == 3:
        return occlusion.ball(like, at, width, peak)
    if kind == 1:
        width = 0.5 * width
    # what is thinner than the pixels can show would come out dashed: as wide as they show, and fainter
    shown = width.clamp_min(1.5 / min(like.shape[-2:]))
    peak = peak * width / shown
    if kind == 2:
        return occlusion.rod(like, at, angle, length.minimum(8.0 * shown), shown, peak, thread=0.35)
    return occlusion.rod(like, at, angle, length, shown, peak, bend=bow * length if kind == 1 else 0.0)


def _blur(images: Tensor, draw: _Draw, settings: AugmentSettings) -> Tensor:
    # the kernel's reach is that of the widest blur allowed, so that a film does not depend on its neighbours'
    reach = film.blur_reach(settings.blur_px[1])
    return film.log_signal(film.blur(film.transmission(images), draw.number(*settings.blur_px), reach=reach))


def _mean_transmission(images: Tensor) -> Tensor:
    return torch.exp(-images.mean((-1, -2)).clamp(0.0, _MEAN_LIMIT))


def _scatter(images: Tensor, draw: _Draw, settings: AugmentSettings) -> Tensor:
    part = draw.number(*settings.scatter_ratio).to(images) * _mean_transmission(images)
    beam = film.scatter(film.transmission(images), part, draw.number(*settings.scatter_width))
    return film.log_signal(beam)


def _noise(images: Tensor, draw: _Draw, settings: AugmentSettings) -> Tensor:
    photons = draw.scale(*settings.detected) / _mean_transmission(images).cpu()  # one wait for all films
    beam = film.transmission(images)
    # a generator a film: how many numbers Poisson's rejection uses up depends on the pixels
    counted = [
        film.count(beam[i : i + 1], photons[i], torch.Generator(beam.device).manual_seed(seed))
        for i, seed in enumerate(draw.seeds())
    ]
    return film.log_signal(torch.cat(counted), photons)


def _tone(images: Tensor, draw: _Draw, settings: AugmentSettings) -> Tensor:
    gamma, gain = draw.scale(*settings.gamma), draw.scale(*settings.gain)
    return film.tone(images, gamma, gain, draw.number(*settings.offset))


def _invert(images: Tensor, draw: _Draw, settings: AugmentSettings) -> Tensor:
    return styles.invert(images)


def _clahe(images: Tensor, draw: _Draw, settings: AugmentSettings) -> Tensor:
    which = draw.choice(len(settings.clahe_clips))
    result = images.clone()
    for number, clip in enumerate(settings.clahe_clips):
        index = (which == number).nonzero()[:, 0].to(images.device, non_blocking=True)
        if len(index):
            result[index] = styles.clahe(images[index], clip, settings.clahe_tiles)
    return result


def _collimate(images: Tensor, draw: _Draw, settings: AugmentSettings) -> Tensor:
    is_round = draw.number(0.0, 1.0) < settings.round_share
    edge, shade = draw.number(*settings.edge), draw.choice(2).to(images)
    covered = torch.stack([draw.number(*settings.blade) for _ in range(4)], dim=-1)
    turn = draw.number(-1.0, 1.0) * math.radians(settings.blade_degrees)
    radius = draw.number(*settings.round_radius)
    visible = torch.empty_like(images)
    other = ~is_round
    if bool(other.any()):
        visible[other] = occlusion.blades(images[other], covered[other], turn[other], edge=edge[other])
    if bool(is_round.any()):
        visible[is_round] = occlusion.round_field(images[is_round], radius[is_round], edge=edge[is_round])
    return occlusion.cover(images, visible, shade)


def _erase(images: Tensor, draw: _Draw, settings: AugmentSettings) -> Tensor:
    size = torch.stack([draw.number(*settings.erase_size) for _ in range(2)], dim=-1)
    corner = torch.stack([draw.number(0.0, 1.0) for _ in range(2)], dim=-1) * (1.0 - size)
    return occlusion.cover(images, 1.0 - occlusion.box(images, corner, size), draw.number(0.0, 1.0))


STEPS: dict[str, Callable[[Tensor, _Draw, AugmentSettings], Tensor]] = {
    "contrast": _contrast,
    "tools": _tools,
    "blur": _blur,
    "scatter": _scatter,
    "noise": _noise,
    "tone": _tone,
    "invert": _invert,
    "clahe": _clahe,
    "collimate": _collimate,
    "erase": _erase,
}


class Augment:
    """Films of line integrals, each with a look drawn at random by the settings."""

    def __init__(self, settings: AugmentSettings = AugmentSettings()) -> None:
        self.settings = settings

    @torch.no_grad()
    def __call__(
        self, line_integrals: Float[Tensor, "B H W"], generator: torch.Generator
    ) -> Float[Tensor, "B H W"]:
        """Films, bright where attenuation is high, dtype and device kept; the input is left as it is.

        generator: on the host or on the images' device; what it gives depends on B alone, and a film neither
        on the other films nor on whether other steps are switched on.  No gradient.  A film that no step
        meets is the line integrals themselves.  Raises ImageError; BackendError where a step that is asked
        for needs kornia.
        """
        films = check_images(line_integrals).clone()
        draws = _Draws(films, check_generator(generator, films.device, "an augmentation", host=True))
        for number, (name, step) in enumerate(STEPS.items()):
            chosen = draws.chosen(number, getattr(self.settings, name))
            if len(chosen):
                index = chosen.to(films.device, non_blocking=True)
                films[index] = step(films[index], _Draw(draws, number, chosen), self.settings)
        return films
