"""Where a fit stands, on disk: one .safetensors file with its state as JSON, see `xreg.io.tensors`."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from xreg.errors import FileError, GaussianError
from xreg.io.tensors import load_tensors, save_tensors
from xreg.splat.adam import NAMES, Parameters
from xreg.splat.gaussians import Gaussians
from xreg.splat.settings import FitSettings

SCHEMA = "xreg.gaussian_fit/5"
GAIN = 0.01  # of the misfit of held-out rays, from one look to a later one
FREE = ("seconds", "iterations", "patience")  # settings that may change when a fit goes on


@dataclass
class Progress:
    """Steps done, looks taken, the best so far, and the order of what comes."""

    generator: torch.Generator
    step: int = 0
    order: list[int] = field(default_factory=list)
    history: list[tuple[int, int, float, float]] = field(default_factory=list)
    best: Gaussians | None = None
    least: float = float("inf")
    since: int = 0
    seconds_before: float = 0.0

    def next_views(self, views: int, count: int) -> list[int]:
        """Numbers of views for a step: each comes once before any comes again."""
        if len(self.order) < count:
            self.order = torch.randperm(views, generator=self.generator).tolist()
        picked, self.order = self.order[:count], self.order[count:]
        return picked

    def note(self, body: Gaussians, look: tuple[int, int, float, float]) -> None:
        """Take down a look, and the Gaussians where it is the best; below GAIN it is no gain."""
        self.history.append(look)
        self.since = 0 if look[3] < (1 - GAIN) * self.least else self.since + 1
        if look[3] < self.least:
            self.best, self.least = body, look[3]

    def worse_for(self, looks: int) -> bool:
        """Whether that many looks have passed without a gain."""
        return self.since >= looks


@dataclass
class Checkpoint:
    """What `read_checkpoint` found."""

    progress: Progress
    now: Gaussians
    moments: dict[str, tuple[Tensor, Tensor]]
    adam_steps: int
    state: dict[str, Any]
    first: Tensor | None = None

    def restore(self, parameters: Parameters) -> None:
        """Give Adam its moments back."""
        parameters.steps = self.adam_steps
        for name, pair in self.moments.items():
            parameters.moments[name] = tuple(m.to(parameters.values[name].device) for m in pair)


def write_checkpoint(
    path: str | PathLike,
    progress: Progress,
    parameters: Parameters,
    settings: FitSettings,
    state: dict[str, Any],
    *,
    first: Tensor | None = None,
) -> None:
    """Write where a fit stands; first: the volume that it began from.  Raises FileError."""
    tensors = {f"now.{n}": v.detach() for n, v in parameters.values.items()}
    for n, (mean, square) in parameters.moments.items():
        tensors |= {f"mean.{n}": mean, f"square.{n}": square}
    if progress.best is not None:
        tensors |= {f"best.{n}": v for n, v in progress.best.items()}
    if first is not None:
        tensors["first"] = first
    tensors["generator"] = progress.generator.get_state()
    about = {
        "settings": settings.to_dict(), "state": state, "step": progress.step, "order": progress.order,
        "history": progress.history, "least": progress.least, "since": progress.since,
        "adam_steps": parameters.steps,
    }  # fmt: skip
    save_tensors(path, tensors, about, schema=SCHEMA)


def read_checkpoint(path: str | PathLike, settings: FitSettings) -> Checkpoint:
    """Read where a fit stands.  FileError where the file is damaged; GaussianError for other settings."""
    remedy = "fit without resume"
    tensors, about = load_tensors(path, schema=SCHEMA, what="a fit's checkpoint", remedy=remedy)
    try:
        generator = torch.Generator()
        generator.set_state(tensors["generator"])
        now, best = (
            Gaussians(**{n: tensors[f"{word}.{n}"] for n in NAMES}) if f"{word}.mean" in tensors else None
            for word in ("now", "best")
        )
        moments = {n: (tensors[f"mean.{n}"], tensors[f"square.{n}"]) for n in NAMES}
        progress = Progress(
            generator, about["step"], about["order"], [tuple(h) for h in about["history"]], best,
            about["least"], about["since"], about["state"]["seconds"],
        )  # fmt: skip
        found = Checkpoint(progress, now, moments, about["adam_steps"], about["state"], tensors.get("first"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise FileError(f"{path}: is damaged or no checkpoint ({error}); {remedy}") from error
    mine = settings.to_dict()
    other = [n for n, v in about["settings"].items() if n not in FREE and mine.get(n) != v]
    if other:
        named = ", ".join(f"{n} was {about['settings'][n]!r}, now {mine.get(n)!r}" for n in other)
        raise GaussianError(
            f"{path}: belongs to a fit with other settings ({named}); use these, or begin anew"
        )
    return found
