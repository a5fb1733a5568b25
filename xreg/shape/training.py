"""Training a network of labels: cases as they are needed, bounded in time or steps, the same when resumed."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xreg import __version__
from xreg.errors import FileError, ShapeError
from xreg.shape import losses
from xreg.shape.checkpoint import FILES
from xreg.shape.film_cases import FilmBatch, FilmDraws, exposed_anew, uniform
from xreg.shape.film_losses import film_losses
from xreg.shape.networks import Lattice, Output, RayNet, make_network
from xreg.shape.networks.orders import rows_of
from xreg.shape.points import Points
from xreg.shape.samples import Sample
from xreg.shape.schemes import Scheme, scheme
from xreg.shape.scores import mean_dice
from xreg.shape.sources import AsTheyAre, Member, Source, case_of
from xreg.shape.targets import Cases
from xreg.shape.train_settings import ShapeTrainSettings
from xreg.training import (
    MODEL,
    TRAINING,
    Budget,
    descend,
    follow,
    forget,
    hand_back_memory,
    looks_due,
    require,
    require_one_beginning,
    require_same,
    schedule,
    step_generator,
)

_ENOUGH = 0.5  # of a network's weights, that one to begin with must have
_VALIDATION_STEP = 2  # every second voxel along each axis is scored: quick, and close enough for a curve


@dataclass(frozen=True)
class Report:
    """Where a training stands: steps done, part of the budget spent, seconds; the losses of the last step.

    validation: mean Dice of each held-out patient, where they were just looked at.
    """

    step: int
    progress: float
    seconds: float
    losses: dict[str, float]
    validation: dict[str, float] | None = None


@dataclass(frozen=True)
class Trained:
    """What a training ends with: folder, steps and seconds, lines of its log, and its patients."""

    folder: Path
    steps: int
    seconds: float
    log: tuple[dict[str, Any], ...]
    patients: tuple[str, ...]
    held_out: tuple[str, ...]


def train(
    source: Source,
    settings: ShapeTrainSettings,
    folder: str | PathLike,
    *,
    held_out: Sequence[Sample] = (),
    start: str | PathLike | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    workers: int = 1,
    on_report: Callable[[Report], None] | None = None,
) -> Trained:
    """Train a network that labels bones from films, and keep it in a folder.

    held_out: samples of patients that are not among the source's; they are scored over the training and never
    learned from, nor is anything chosen by them: the last weights are kept.  start: a network of the same
    scheme whose weights are begun with, as far as they fit; its patients count as learned from, so none of
    them may be held out.  resume: go on where a training in ``folder`` was stopped (without it, one that is
    there is replaced); with a budget of steps it ends with the same bits on the CPU, as all that is random
    about a step comes from (seed, step).  workers: threads that make the cases of the next steps.
    on_report is told of each step.  Raises ShapeError for samples that cannot be trained on together,
    FileError for a checkpoint that does not fit.
    """
    known = {"held_out": held_out, "start": start, "resume": resume, "device": device}
    return ready_to_train(source, settings, folder, **known).run(on_report, workers)


def ready_to_train(
    source: Source,
    settings: ShapeTrainSettings,
    folder: str | PathLike,
    *,
    held_out: Sequence[Sample] = (),
    start: str | PathLike | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> Trainer:
    """A training of which all is checked that `train` checks; nothing is written before it is run."""
    require_one_beginning(start, resume, ShapeError)
    trainer = Trainer(source, settings, Path(folder), held_out, torch.device(device))
    if isinstance(trainer.net, RayNet) and not settings.film_share and not (resume or start):
        raise ShapeError("film_share 0 keeps the film half of another network: give one to start from")
    if resume:
        trainer.resume()
    elif start is not None:
        trainer.begin_from(Path(start))
    return trainer


class Trainer:
    """The state of one training."""

    def __init__(
        self,
        source: Source,
        settings: ShapeTrainSettings,
        folder: Path,
        held_out: Sequence[Sample],
        device: torch.device,
    ) -> None:
        self.source, self.settings, self.folder, self.device = source, settings, folder, device
        self.scheme, self.patients, self.learned = _checked(
            source.members, AsTheyAre(held_out).members, settings.mirror
        )
        self.held_out = tuple(held_out)
        self.voxels = statistics.mode(max(m.labels.shape) for m in source.members)  # along the longest edge
        self.net, self.average = (
            make_network(settings.network, self.scheme, settings.seed).to(device) for _ in range(2)
        )
        self.average.eval()
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=settings.rate, weight_decay=settings.decay, betas=(0.9, 0.99)
        )
        self.variation = settings.variation.on_grids_of(self.voxels)
        self.films = FilmDraws(source, replace(settings, variation=self.variation))
        self.film_share = settings.film_share if isinstance(self.net, RayNet) else 0.0
        self.step, self.mark, self.budget = 0, 0, Budget(settings.steps, settings.minutes)
        self.log: list[dict[str, Any]] = []
        self.before: tuple[str, ...] = ()  # patients of the network that this one began with

    # ---- the loop ----

    def run(self, on_report: Callable[[Report], None] | None = None, workers: int = 1) -> Trained:
        """Train until the budget is spent."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.step:
            forget(self.folder)
        self.budget.begin()
        for cases in self._ahead(workers):
            found = self.advance(self.budget.spent(self.step), cases)
            self._after(found, on_report)
            hand_back_memory(self.step)
        held_out = tuple(dict.fromkeys(sample.patient for sample in self.held_out))
        return Trained(
            self.folder, self.step, self.budget.seconds, tuple(self.log), self._known_patients, held_out
        )

    def _ahead(self, workers: int) -> Iterator[Cases]:
        """The cases of each step until the budget is spent, made beside the network."""
        with ThreadPoolExecutor(workers) as makers:
            pending = deque(makers.submit(self.cases_at, self.step + n) for n in range(workers))
            following = self.step + workers
            while self.budget.spent(self.step) < 1:
                cases = pending.popleft().result()
                pending.append(makers.submit(self.cases_at, following))
                following += 1
                yield cases
            for future in pending:
                future.cancel()

    def cases_at(self, step: int) -> Cases | FilmBatch:
        """The cases of a step: all that is random about them comes from (seed, step, place in the batch)."""
        if self.budget.spent(step) < self.film_share:
            return self.films.batch(step)
        return Cases.batch([self._case(step, n) for n in range(self.settings.batch)])

    def _case(self, step: int, number: int) -> Cases:
        sample, generator = case_of(self.source, self.settings.seed, step, number)
        variation = self.variation
        mirror = self.settings.mirror and uniform(generator, 0, 1) < 0.5
        cases = Cases.of(sample, mirror=mirror)
        voxel = sum(sample.grid.spacing) / 3
        cases = _shown(cases, 1 / variation.zoom_of(voxel, generator), generator)
        cases = cases.scaled(math.exp(variation.body * float(torch.randn((), generator=generator))))
        films = exposed_anew(cases.views.films[0], variation, generator)
        return replace(cases, views=cases.views.with_films(films[None]))

    def advance(self, progress: float, cases: Cases | FilmBatch) -> dict[str, float]:
        """One step on these cases; its losses."""
        self.net.train()
        reading = isinstance(cases, FilmBatch)
        if isinstance(self.net, RayNet):
            self.net.learn(films=reading)
        begun, ends = (0.0, self.film_share) if reading else (self.film_share, 1.0)
        part = min(1.0, max(0.0, (progress - begun) / (ends - begun)))
        balance = self.settings.balance * max(0.0, 1 - 2 * part)
        if reading:
            parts = self.film_losses(cases.to(self.device), balance)
        else:
            parts = self.losses(cases.to(self.device), self._points(cases), balance)
        weights = self.settings.weights
        total = sum(getattr(weights, name) * loss for name, loss in parts.items())
        rate = self.settings.film_rate if reading else self.settings.rate
        rate *= schedule(part, self.settings.warm_up)
        descend(self.net, self.optimiser, total, rate=rate, clip=self.settings.clip)
        self.step += 1
        follow(self.average, self.net, self.step, self.settings.average)
        return {"loss": float(total.detach()), **{name: float(loss.detach()) for name, loss in parts.items()}}

    def _points(self, cases: Cases) -> Points:
        """Another set of voxels each step."""
        generator = step_generator(self.settings.seed, self.step, -1)
        return Points.draw(cases.labels, self.settings.points, generator).to(self.device)

    def losses(self, cases: Cases, points: Points, balance: float = 0.0) -> dict[str, Tensor]:
        """Each part of the loss at points of the grid; balance: see `loss_parts`."""
        with self._precision():
            output = self.net(cases.views, points)
        return loss_parts(output, cases, points, self.scheme, balance)

    def film_losses(self, films: FilmBatch, balance: float = 0.0) -> dict[str, Tensor]:
        """Each part of the loss in films."""
        with self._precision():
            _, maps = self.net.read(films.inputs)
        spine = list(self.scheme.groups.get("spine", ()))
        return film_losses(maps, films, spine, balance)

    def _precision(self) -> torch.autocast:
        enabled = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    # ---- validation, files ----

    def _after(self, found: dict[str, float], on_report: Callable[[Report], None] | None) -> None:
        """Look at the held-out patients, save and report where it is time."""
        progress, validation = self.budget.spent(self.step), None
        mark = looks_due(progress, self.settings.validations)
        if mark > self.mark:
            self.mark = mark
            validation = self.validate()
            rate = self.optimiser.param_groups[0]["lr"]
            line = {"step": self.step, "seconds": round(self.budget.seconds, 3), "rate": rate}
            self.log.append({**line, **found, "validation": validation})
            self.save()
        if on_report is not None:
            on_report(Report(self.step, progress, self.budget.seconds, found, validation))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean Dice of each held-out patient over the labels that it has, on every second voxel."""
        found, hulls = {}, {"hulls": self.settings.hulls} if isinstance(self.net, RayNet) else {}
        for sample in self.held_out:
            case = Cases.of(sample).to(self.device)
            lattice = Lattice(case.views.shape, min(_VALIDATION_STEP, *case.views.shape))
            with self._precision():
                logits = self.average(case.views, lattice, **hulls).combined.flatten(2)
            logits = losses.marginal_log_probability(
                logits.float(), case.known & self.learned.to(logits.device)
            )
            found[sample.patient] = mean_dice(logits[0].argmax(0), lattice.take(case.labels)[0].flatten())
        return found

    @property
    def _known_patients(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.before, *self.patients)))

    def facts(self) -> dict[str, Any]:
        """What is kept beside the weights."""
        return {
            "patients": list(self._known_patients),
            "before": list(self.before),
            "held_out": [sample.patient for sample in self.held_out],
            "scheme": self.scheme.name,
            "names": list(self.scheme.names),
            "learned": [self.scheme.names[n] for n in self.learned.nonzero()[:, 0].tolist() if n],
            "settings": self.settings.to_dict(),
            "versions": {"xreg": __version__, "torch": torch.__version__},
            "voxels": self.voxels,
            "cases": self.source.facts,
            "step": self.step,
            "seconds": self.budget.seconds,
            "validation": self.log[-1]["validation"] if self.log else None,
        }

    def save(self) -> None:
        """Write where the training stands into its folder."""
        FILES.save_training(self.folder, self.facts(), self.mark, self.log, self._state())

    def resume(self) -> None:
        """Take up what `save` wrote; FileError where it is of another training."""
        same, file = ("held_out", "scheme", "settings", "voxels", "cases"), self.folder / TRAINING
        facts = FILES.resume(self.folder, self.facts(), same, self._state())
        require(facts, ("patients",), file)
        self.before = tuple(facts.get("before", ()))
        require_same(facts, self.facts(), ("patients",), file)
        self.step, self.budget.before = facts["step"], facts["seconds"]
        self.log, self.mark = facts["log"], facts["mark"]

    def begin_from(self, folder: Path) -> None:
        """Take the weights of another network that have a place here.

        ShapeError where it learned from a patient that is held out, FileError where less than half fits.
        """
        file = folder / MODEL
        tensors, facts = FILES.load(file)
        require(facts, ("patients", "scheme"), file)
        if both := sorted(set(facts["patients"]) & {sample.patient for sample in self.held_out}):
            raise ShapeError(f"{folder}: learned from {', '.join(both)}, which shall be held out")
        own = self.net.state_dict()
        fitting = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
        part = sum(v.numel() for v in fitting.values()) / sum(v.numel() for v in own.values())
        if facts["scheme"] != self.scheme.name or part < _ENOUGH:
            raise FileError(
                f"{file}: has no weights for {100 * (1 - part):.0f} % of a network of kind "
                f"{self.settings.network.kind!r} and these sizes and scheme {self.scheme.name!r}; begin with "
                "another (--network may tell which it is), or anew"
            )
        for net in (self.net, self.average):
            net.load_state_dict({**own, **fitting})
        self.before = tuple(facts["patients"])

    def _state(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        return self.net, self.average, self.optimiser


def loss_parts(
    output: Output, cases: Cases, points: Points, names: Scheme, balance: float = 0.0
) -> dict[str, Tensor]:
    """The parts of the loss of a network's output; several branches count by their mean.

    balance: power of a label's rarity by which its voxels weigh more.
    """
    labels = points.take(cases.labels)
    each = [losses.segmentation_loss(x, labels, cases.known, balance, points.weight) for x in output.logits]
    parts = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
    if len(each) > 1:
        parts["mutual"] = losses.mutual_loss(output.logits)
    if output.levels is not None:
        parts["order"] = losses.order_loss(output.levels, labels, rows_of(names))
    return parts


def _shown(cases: Cases, zoom: float, generator: torch.Generator) -> Cases:
    """A case on larger or smaller voxels; the case as it is where that would lose all of its bones."""
    free = 0.5 * abs(1 - zoom)
    shift = free * (2 * torch.rand(3, generator=generator) - 1)
    made = cases.reframed(zoom, shift)
    return made if bool((made.labels > 0).any()) else cases


def _checked(
    members: Sequence[Member], held_out: Sequence[Member], mirror: bool
) -> tuple[Scheme, tuple[str, ...], Tensor]:
    """Scheme and patients of a training, and which labels it can learn; ShapeError where they do not fit."""
    if not members:
        raise ShapeError("a training needs at least one labelled sample, got none")
    schemes = {member.scheme for member in (*members, *held_out)}
    if len(schemes) > 1:
        raise ShapeError(
            f"samples of a training must share one label scheme, got {', '.join(sorted(schemes))}; "
            "prepare them with one --scheme"
        )
    patients = tuple(dict.fromkeys(member.patient for member in members))
    if both := sorted(set(patients) & {member.patient for member in held_out}):
        raise ShapeError(f"patients {', '.join(both)} are both learned from and held out; choose one")
    for member in (*members, *held_out):
        if member.labels is None:
            raise ShapeError(
                f"{member.patient}: has no labels; a training and its held-out patients need them"
            )
    names = scheme(members[0].scheme)
    learned = torch.zeros(len(names), dtype=torch.bool)
    for member in members:
        learned[member.labels.unique().long()] = True
    if mirror:
        learned |= learned[names.mirror]
    learned[0] = True
    return names, patients, learned
