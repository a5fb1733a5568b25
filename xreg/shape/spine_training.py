"""Training what reads the levels of the spine: films straightened along the lines of labelled spines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg import __version__
from xreg.errors import ShapeError
from xreg.geometry import Camera
from xreg.shape.film_cases import FilmVariation, exposed_anew, uniform
from xreg.shape.losses import masked_mean
from xreg.shape.networks.spine_reader import PARTS, SpineReader
from xreg.shape.samples import Sample
from xreg.shape.schemes import scheme
from xreg.shape.strips import SACRUM, STEP_MM, labelled_line, resampled, straighten
from xreg.training import (
    Budget,
    NetworkFiles,
    descend,
    drawing_from,
    follow,
    forget,
    hand_back_memory,
    looks_due,
    require_one_end,
    schedule,
    step_generator,
    step_seed,
)

FOLDER = "spine"  # in that of the network of labels
FILES = NetworkFiles("xreg.shape-spine/1", "xreg shape train-spine")
_LOOKS = 10


@dataclass(frozen=True)
class SpineTrainSettings:
    """How a reader of the spine is trained; exactly one of steps and minutes ends it.

    batch: strips of so many patients a step, ``rows`` long.  rate: greatest learning rate.  average: decay of
    the running average of the weights, which is what is used.  width: channels of the network.

    size: standard deviation of the log by which rows lie closer or further apart.  bend, off: standard
    deviations (mm) of smooth errors of the line, and of its shift to the side and to the front.  single:
    chance that one film alone is shown.  variation: how films are exposed anew.
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int = 8
    rows: int = 128
    rate: float = 2e-3
    warm_up: float = 0.05
    clip: float = 5.0
    decay: float = 1e-2
    average: float = 0.995
    width: int = 24
    size: float = 0.17
    bend: float = 4.0
    off: tuple[float, float] = (4.0, 8.0)
    single: float = 0.15
    variation: FilmVariation = field(default_factory=FilmVariation)
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "off", tuple(float(x) for x in self.off))
        require_one_end(self.steps, self.minutes, ShapeError)
        if min(self.batch, self.rows) < 1:
            raise ShapeError(f"batch and rows must be positive, got {self.batch}, {self.rows}")


@dataclass(frozen=True, eq=False)
class SpineCase:
    """Films with cameras, and the line of a labelled spine with its levels (`labelled_line`)."""

    patient: str
    films: Float[Tensor, "V H W"]
    cameras: tuple[Camera, ...]
    line: Float[Tensor, "n 3"]
    levels: Float[Tensor, " n"]

    @classmethod
    def of(cls, sample: Sample) -> SpineCase | None:
        """None for a sample that shows too little of a spine."""
        if sample.labels is None:
            raise ShapeError(f"{sample.patient}: has no labels, from which the spine's levels are learned")
        found = labelled_line(sample.labels, sample.grid, scheme(sample.scheme))
        if found is None:
            return None
        films = sample.films.reshape(-1, *sample.films.shape[-2:])
        return cls(sample.patient, films.half(), tuple(sample.cameras), *found)

    def drawn(
        self, settings: SpineTrainSettings, generator: torch.Generator
    ) -> tuple[Float[Tensor, "V S O"], Float[Tensor, "V 2"], Float[Tensor, " S"]]:
        """Strips along a line that is a little wrong, their directions, and the level at each row."""
        scale = math.exp(settings.size * float(torch.randn((), generator=generator)))
        knots = max(3, len(self.line) // 16)
        bend = torch.randn(1, 3, knots, generator=generator) * settings.bend
        bend = F.interpolate(bend, len(self.line), mode="linear", align_corners=True)[0].T
        off = torch.randn(2, generator=generator) * torch.tensor(settings.off)
        line = self.line + bend + F.pad(off, (0, 1))
        length, reach = float((line[1:] - line[:-1]).norm(dim=1).sum()), settings.rows * STEP_MM * scale
        if length < reach:
            start = uniform(generator, -0.35 * reach, min(0.35 * reach, 30 + 0.3 * length))
        else:
            start = uniform(generator, -20.0, length - reach + 20.0)
        points, place = resampled(line, STEP_MM * scale, start=start, count=settings.rows)
        films = exposed_anew(self.films.float(), settings.variation, generator)
        mirror = uniform(generator, 0, 1) < 0.5
        made = straighten(films, self.cameras, points, scale=scale, mirror=mirror)
        values, across = made.values, made.across
        if uniform(generator, 0, 1) < settings.single:
            one = int(torch.randint(len(values), (1,), generator=generator))
            values, across = (part[one].expand_as(part) for part in (values, across))
        return values, across, levels_at(self.levels, place)


def levels_at(levels: Float[Tensor, " n"], place: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
    """Levels of a line at places between its points; NaN beyond its ends and beside what is not known."""
    last = len(levels) - 1
    low = place.floor().clamp(0, last).long()
    high = (low + 1).clamp_max(last)
    made = torch.lerp(levels[low], levels[high], (place - low).clamp(0, 1))
    mixed = (levels[low] == SACRUM) != (levels[high] == SACRUM)
    nearest = levels[place.round().clamp(0, last).long()]
    made = torch.where(mixed, torch.where(nearest == SACRUM, nearest, torch.nan), made)
    return made.masked_fill((place < 0) | (place > last), torch.nan)


def reader_losses(
    parts: Float[Tensor, "B 8 S"], numbers: Float[Tensor, "B 26 S"], levels: Float[Tensor, "B S"]
) -> dict[str, Tensor]:
    """Cross entropies of the part of a vertebra, between the two nearest, and of its number."""
    known = levels.isfinite()
    bone = known & (levels != SACRUM)
    place = (levels.nan_to_num() + 0.5) % 1 * PARTS - 0.5
    low, logs = place.floor(), parts.log_softmax(1)
    both = [logs.gather(1, ((low.long() + n) % PARTS)[:, None])[:, 0] for n in (0, 1)]
    part = -torch.lerp(*both, place - low)
    number = levels.nan_to_num().round().clamp(0, SACRUM).long()
    name = F.cross_entropy(numbers, number, reduction="none")
    return {"part": masked_mean(part, bone), "number": masked_mean(name, known)}


def _repeated(views: Tensor, count: int) -> Tensor:
    """So many views, from the first again where there are fewer: a batch has as many of each case."""
    return views[torch.arange(count) % len(views)]


@dataclass(frozen=True)
class SpineReport:
    """Where a training of a reader stands."""

    step: int
    progress: float
    seconds: float
    losses: dict[str, float]


def train_spine(
    samples: Sequence[Sample],
    settings: SpineTrainSettings,
    folder: str | PathLike,
    *,
    held_out: Sequence[str] = (),
    resume: bool = False,
    on_report: Callable[[SpineReport], None] | None = None,
) -> dict[str, Any]:
    """Train a reader of the spine on labelled samples, and keep it in ``folder``/spine; its facts.

    held_out: names of patients that are not learned from.  resume: go on where a training in the folder was
    stopped (without it, one that is there is replaced); with steps it ends with the same bits.  Patients are
    drawn alike often, and of each one of its samples.  Raises ShapeError where no sample shows a spine,
    FileError for a checkpoint that does not fit.
    """
    cases: dict[str, list[SpineCase]] = {}
    for sample in samples:
        case = None if sample.patient in held_out else SpineCase.of(sample)
        if case is not None:
            cases.setdefault(case.patient, []).append(case)
    if not cases:
        raise ShapeError("no sample shows two whole vertebrae, from which levels could be learned")
    run = _Run(cases, settings, Path(folder) / FOLDER, tuple(held_out))
    if resume:
        run.resume()
    return run.descend(on_report)


class _Run:
    """The state of one training."""

    def __init__(self, cases, settings, folder, held_out) -> None:
        self.cases, self.settings, self.folder, self.held_out = cases, settings, folder, held_out
        with drawing_from(settings.seed):
            self.net, self.average = SpineReader(settings.width), SpineReader(settings.width)
        self.average.load_state_dict(self.net.state_dict())
        self.average.eval()
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=settings.rate, weight_decay=settings.decay
        )
        self.budget = Budget(settings.steps, settings.minutes)
        self.step, self.mark, self.log = 0, 0, []

    def descend(self, on_report: Callable[[SpineReport], None] | None) -> dict[str, Any]:
        settings = self.settings
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.step:
            forget(self.folder)
        self.budget.begin()
        while (progress := self.budget.spent(self.step)) < 1:
            values, across, levels = self.batch(self.step)
            self.net.train()
            with drawing_from(step_seed(settings.seed, self.step)):
                parts = reader_losses(*self.net(values, across), levels)
            rate = settings.rate * schedule(progress, settings.warm_up)
            descend(self.net, self.optimiser, sum(parts.values()), rate=rate, clip=settings.clip)
            self.step += 1
            follow(self.average, self.net, self.step, settings.average)
            self._after({name: float(loss.detach()) for name, loss in parts.items()}, on_report)
            hand_back_memory(self.step)
        return self.facts()

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        drawn = []
        for number in range(self.settings.batch):
            generator = step_generator(self.settings.seed, step, number)
            of = list(self.cases.values())[int(torch.randint(len(self.cases), (1,), generator=generator))]
            case = of[int(torch.randint(len(of), (1,), generator=generator))]
            drawn.append(case.drawn(self.settings, generator))
        most = max(len(values) for values, _, _ in drawn)
        drawn = [(*(_repeated(part, most) for part in views), levels) for *views, levels in drawn]
        return tuple(torch.stack(part) for part in zip(*drawn, strict=True))

    def _after(self, found: dict[str, float], on_report: Callable[[SpineReport], None] | None) -> None:
        progress = self.budget.spent(self.step)
        mark = looks_due(progress, _LOOKS)
        if mark > self.mark:
            self.mark = mark
            self.log.append({"step": self.step, "seconds": round(self.budget.seconds, 3), **found})
            FILES.save_training(self.folder, self.facts(), self.mark, self.log, self._state())
        if on_report is not None:
            on_report(SpineReport(self.step, progress, self.budget.seconds, found))

    def facts(self) -> dict[str, Any]:
        return {
            "patients": list(self.cases),
            "held_out": list(self.held_out),
            "samples": sum(map(len, self.cases.values())),
            "settings": asdict(self.settings),
            "versions": {"xreg": __version__, "torch": torch.__version__},
            "step": self.step,
            "seconds": self.budget.seconds,
        }

    def resume(self) -> None:
        same, remedy = ("patients", "held_out", "samples", "settings"), "train into another folder, or anew"
        facts = FILES.resume(self.folder, self.facts(), same, self._state(), remedy=remedy)
        self.step, self.budget.before = facts["step"], facts["seconds"]
        self.log, self.mark = facts["log"], facts["mark"]

    def _state(self) -> tuple[SpineReader, SpineReader, torch.optim.Optimizer]:
        return self.net, self.average, self.optimiser
