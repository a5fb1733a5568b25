"""Training a pose network: films as they are needed, bounded by time or steps, resumed to the same curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xreg import __version__
from xreg.errors import FileError, RegistrationError
from xreg.regression import losses
from xreg.regression.canonical import Canonical
from xreg.regression.checkpoint import FILES, MODEL, TRAINING, require
from xreg.regression.films import Batch, FilmSource, films_of, identity, same_ct
from xreg.regression.network import Prediction, make_network
from xreg.regression.ranges import PoseRange
from xreg.regression.settings import TrainSettings
from xreg.regression.validation import HeldOut, Validation
from xreg.training import (
    Budget,
    descend,
    follow,
    forget,
    load_weights,
    looks_due,
    require_one_beginning,
    require_same,
    schedule,
    step_generator,
)
from xreg.volume import Volume

_SPENT = "the budget is spent"
_BETTER = 0.99  # of the best score so far, from which a validation counts as an improvement


@dataclass(frozen=True)
class Report:
    """Where a training stands: steps done, part of the budget spent, seconds; the losses of the last step.

    validation: where one was just made.
    """

    step: int
    progress: float
    seconds: float
    losses: dict[str, float]
    validation: Validation | None = None


@dataclass(frozen=True)
class Trained:
    """What a training ends with: its folder, steps and seconds, validations, and why it ended."""

    folder: Path
    steps: int
    seconds: float
    validations: tuple[dict[str, Any], ...]
    ended: str


def train(
    volumes: Sequence[Volume],
    box: PoseRange,
    settings: TrainSettings,
    folder: str | PathLike,
    *,
    start: str | PathLike | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    on_report: Callable[[Report], None] | None = None,
) -> Trained:
    """Train a network that guesses poses of these volumes from one film, and keep it in a folder.

    With several volumes each step takes one of them.  start: a folder whose network is trained on (fine
    tuning; backbone and size must agree).  resume: go on where a training in `folder` was stopped; with a
    budget of steps it ends with the same bits on the CPU, as all of a step's random numbers come from (seed,
    step).  In a process group of torch.distributed each process renders its part of a batch.  on_report is
    told of each step, on the first process.  A training that had ended is left as it is.  GeometryError for
    a range that never sees the anatomy, VolumeError for labels that are not there, FileError for a checkpoint
    that does not fit, before films are made.
    """
    require_beginning(folder, box, settings, start=start, resume=resume)
    trainer = Trainer(volumes, box, settings, Path(folder), torch.device(device))
    if resume:
        trainer.resume()
    elif start is not None:
        trainer.begin_from(Path(start))
    return trainer.run(on_report)


def require_beginning(
    folder: str | PathLike,
    box: PoseRange,
    settings: TrainSettings,
    *,
    start: str | PathLike | None = None,
    resume: bool = False,
) -> None:
    """Raise what `train` raises of start and resume where no CT is needed to know it."""
    require_one_beginning(start, resume, RegistrationError)
    if resume:
        file = Path(folder) / TRAINING
        _, facts = FILES.load(file)
        require(facts, ("range", "settings"), file)
        require_same(
            facts, {"range": box.to_dict(), "settings": settings.to_dict()}, ("range", "settings"), file
        )
    elif start is not None:
        file = _weights_of(Path(start))
        tensors, facts = FILES.load(file)
        require(facts, ("settings", "step"), file)
        load_weights(make_network(settings.network, box, settings.size, settings.seed), tensors, file)


def _weights_of(start: Path) -> Path:
    """The file of a network that is given by its folder or by itself."""
    return start / MODEL if start.is_dir() else start


class Trainer:
    """The state of one training; its films are made when they are first asked for."""

    def __init__(
        self,
        volumes: Sequence[Volume],
        box: PoseRange,
        settings: TrainSettings,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.box, self.settings, self.folder, self.device = box, settings, folder, device
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if settings.batch % self.world:
            raise RegistrationError(f"a batch of {settings.batch} cannot be shared by {self.world} processes")
        self.canonical = Canonical.of(box, settings.size)
        self._volumes = volumes
        self.net = make_network(settings.network, box, settings.size, settings.seed).to(device)
        self.average = make_network(settings.network, box, settings.size, settings.seed).to(device)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=settings.rate, weight_decay=settings.decay, betas=(0.9, 0.99)
        )
        self.shared: nn.Module = self.net
        if self.world > 1:
            self.shared = nn.parallel.DistributedDataParallel(
                self.net, device_ids=[device] if device.type == "cuda" else None
            )
        self.step, self.budget = 0, Budget(settings.steps, settings.minutes)
        self.log: list[dict[str, Any]] = []
        self.mark = 0  # validations that were due so far
        self.volumes = [identity(volume) for volume in volumes]
        self.parent: str | None = None

    @cached_property
    def sources(self) -> list[FilmSource]:
        """Where films come from, a volume each."""
        volumes = [volume.to(self.device) for volume in self._volumes]
        return films_of(volumes, self.box, self.canonical, self.settings)

    @cached_property
    def held_out(self) -> HeldOut | None:
        """What the network is judged on, by the first process."""
        return HeldOut(self.sources, self.settings) if self.rank == 0 else None

    # ---- the loop ----

    def run(self, on_report: Callable[[Report], None] | None) -> Trained:
        """Train until the budget is spent or nothing improves; nothing where that is so already."""
        self.budget.begin()
        ended = self._ended() or self._run(on_report)
        if self.step == 0:
            raise RegistrationError("the training ended before its first step: give it more minutes")
        return Trained(self.folder, self.step, self.budget.seconds, tuple(self.log), ended)

    def _ended(self) -> str:
        """Why a training that is taken up has nothing left to do; empty where it has."""
        if self._agreed(float(self._stalled())) > 0:
            return self._no_better
        return _SPENT if self._progress() >= 1 else ""

    @property
    def _no_better(self) -> str:
        return f"no better for {self.settings.patience} validations"

    def _run(self, on_report: Callable[[Report], None] | None) -> str:
        """The steps that are left; why they end."""
        _ = self.sources, self.held_out  # made before the clock runs, and before anything is written
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.step:
                forget(self.folder)
        self.budget.begin()
        with ThreadPoolExecutor(1) as maker:  # it renders the films of the next step meanwhile
            ahead = maker.submit(self.films_at, self.step)
            while (progress := self._progress()) < 1:
                films, ahead = ahead.result(), maker.submit(self.films_at, self.step + 1)
                if self._after(self.advance(progress, *films), on_report):
                    return self._no_better
        return _SPENT

    def _progress(self) -> float:
        """The part of the budget that is spent, as the first process sees it."""
        spent = self.budget.spent(self.step)
        return self._agreed(spent) if self.settings.steps is None else spent

    def _agreed(self, value: float) -> float:
        if self.world == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def advance(self, progress: float, batch: Batch, source: FilmSource) -> dict[str, float]:
        """One step on these films; the losses of this process."""
        self.shared.train()
        prediction = Prediction(*self.shared(batch.images.to(self.device)))
        parts = self.losses(prediction, batch, source)
        total = sum(weight * part for weight, part in parts.values())
        rate = self.settings.rate * schedule(progress, self.settings.warm_up)
        descend(self.net, self.optimiser, total, rate=rate, clip=self.settings.clip)
        self.step += 1
        follow(self.average, self.net, self.step, self.settings.average)
        return {"loss": float(total.detach()), **{n: float(p.detach()) for n, (_, p) in parts.items()}}

    def films_at(self, step: int) -> tuple[Batch, FilmSource]:
        """The films of a step: all that is random about them comes from (seed, step, process)."""
        source = self.sources[step % len(self.sources)]
        generator = step_generator(self.settings.seed, step, self.rank)
        return source.draw(self.settings.batch // self.world, generator), source

    def losses(
        self, prediction: Prediction, batch: Batch, source: FilmSource
    ) -> dict[str, tuple[float, Tensor]]:
        """Weight and value of each part of the loss."""
        weights = self.settings.weights
        truth = (batch.rotation.to(self.device).float(), batch.place.to(self.device).float())
        error = losses.in_units(losses.tangent(prediction, *truth))
        found = {
            "geodesic": (weights.geodesic, losses.double_geodesic(error)),
            "nll": (weights.nll, losses.gaussian_nll(error, prediction.log_variance, weights.beta)),
        }
        if weights.image or weights.dice:
            found |= self._rendered(prediction, batch, source)
        return found

    def _rendered(
        self, prediction: Prediction, batch: Batch, source: FilmSource
    ) -> dict[str, tuple[float, Tensor]]:
        """Losses through the renderer, on the first films of a batch."""
        weights, (volume, many) = self.settings.weights, batch.volumes[0]
        count, camera, found = min(weights.rendered, many), source.camera.bin(2), {}
        poses = source.pose(prediction, count)
        truth = Prediction(batch.rotation[:count], batch.place[:count], prediction.log_variance)
        true_poses = source.pose(truth, count)
        if weights.image:
            pair = [source.render(volume, camera, p) for p in (poses, true_poses)]
            found["image"] = (weights.image, losses.dissimilarity(*pair))
        if weights.dice:
            named = source.shown(volume)
            pair = [source.render(named, camera, p, labels="soft") for p in (poses, true_poses)]
            found["dice"] = (weights.dice, losses.soft_dice(*pair))
        return found

    # ---- validation, files ----

    def _after(self, found: dict[str, float], on_report: Callable[[Report], None] | None) -> bool:
        """Validate, save and report where it is time; whether to stop."""
        progress, validation = self._progress(), None
        mark = looks_due(progress, self.settings.validations)
        due = mark > self.mark
        self.mark = mark
        if due and self.held_out is not None:
            validation = self.held_out.judge(self.average)
            if not math.isfinite(validation.score + found["loss"]):
                most = self.settings.rate
                raise RegistrationError(
                    f"the training diverged at step {self.step}: take a rate below {most:g}"
                )
            rate = self.optimiser.param_groups[0]["lr"]
            line = {"step": self.step, "seconds": round(self.budget.seconds, 3), "rate": rate}
            self.log.append({**line, **found, "validation": validation.to_dict()})
            self.save(validation)
        if on_report is not None and self.rank == 0:
            on_report(Report(self.step, progress, self.budget.seconds, found, validation))
        return due and self._agreed(float(self._stalled())) > 0

    def _stalled(self) -> bool:
        scores = [line["validation"]["score"] for line in self.log]
        best, since = math.inf, 0
        for score in scores:
            best, since = (score, 0) if score < _BETTER * best else (best, since + 1)
        return since >= self.settings.patience

    def facts(self, validation: Validation | None) -> dict[str, Any]:
        """What is kept beside the weights."""
        return {
            "volumes": self.volumes,
            "range": self.box.to_dict(),
            "camera": self.canonical.to_dict(),
            "settings": self.settings.to_dict(),
            "versions": {"xreg": __version__, "torch": torch.__version__},
            "seed": self.settings.seed,
            "step": self.step,
            "seconds": self.budget.seconds,
            "parent": self.parent,
            "validation": None if validation is None else validation.to_dict(),
        }

    def save(self, validation: Validation | None) -> None:
        """Write where the training stands into its folder."""
        FILES.save_training(self.folder, self.facts(validation), self.mark, self.log, self._state())

    def resume(self) -> None:
        """Take up what `save` wrote; FileError where it is of another training."""
        facts = FILES.resume(self.folder, self.facts(None), ("range", "settings"), self._state())
        require(facts, ("volumes",), self.folder / TRAINING)
        known = facts["volumes"]
        if len(known) != len(self.volumes) or not all(map(same_ct, known, self.volumes)):
            raise FileError(
                f"{self.folder / TRAINING}: cannot be resumed, since its volumes differ from those asked "
                "for; train into another folder, or start from it with --from"
            )
        self.step, self.budget.before = facts["step"], facts["seconds"]
        self.log, self.mark = facts["log"], facts["mark"]
        self.parent = facts.get("parent")

    def _state(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        return self.net, self.average, self.optimiser

    def begin_from(self, folder: Path) -> None:
        """Start with the weights of another network; FileError where its layers are others."""
        file = _weights_of(folder)
        tensors, facts = FILES.load(file)
        require(facts, ("settings", "step"), file)
        for net in (self.net, self.average):
            load_weights(net, tensors, file)
        self.parent = f"{file} at step {facts['step']}"
