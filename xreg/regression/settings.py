"""What a training may be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from xreg.errors import RegistrationError
from xreg.regression.network import NetworkSettings
from xreg.training import require_one_end
from xreg.xray import AugmentSettings


@dataclass(frozen=True)
class Weights:
    """How much each part of the loss counts.

    geodesic: length of the pose's error.  nll: likelihood of the error under the network's own uncertainty.
    image: 1 - NCC of the film's ideal image with one rendered from the answer.  dice: 1 - soft Dice of
    structures rendered from the answer; needs labels.  The last two cost renders, and act on `rendered`
    films of a batch, at half resolution.
    """

    geodesic: float = 1.0
    nll: float = 0.2
    beta: float = 0.5
    image: float = 0.0
    dice: float = 0.0
    rendered: int = 8

    def __post_init__(self) -> None:
        if min(self.geodesic, self.nll, self.image, self.dice, self.beta) < 0 or self.rendered < 1:
            raise RegistrationError(f"weights of a loss must not be negative, got {self}")
        if not self.geodesic + self.nll > 0:
            raise RegistrationError("a pose network needs geodesic or nll above zero, got none")


@dataclass(frozen=True)
class TrainSettings:
    """Everything that a training can be told beyond its volumes and range.

    size: rows and columns of the films that the network sees.  batch: films a step, of all processes
    together.  steps or minutes: when to end; exactly one.  rate: greatest learning rate, reached after the
    part `warm_up` of the training and brought to zero by a cosine; clip: greatest norm of the gradient.
    average: decay of the running average of the weights, which is what is used.  grid_mm: voxels that
    training films are rendered from.  contrast: least and greatest factor on what bone attenuates beyond soft
    tissue; bone_hu: where it begins; groups: how many contrasts a batch holds.  cut: share of films that show
    only a part of the field.  held_out: films for validation; validations: how often, evenly over the
    training; patience: how many of these may pass without a better one.  labels: structures for the Dice
    term.  augment: how training films are made to look (see `xreg.xray`).
    """

    size: int = 128
    batch: int = 32
    steps: int | None = None
    minutes: float | None = None
    rate: float = 2e-3
    warm_up: float = 0.03
    clip: float = 5.0
    decay: float = 1e-4
    average: float = 0.998
    grid_mm: float = 4.0
    contrast: tuple[float, float] = (0.75, 4.0)
    bone_hu: float = 150.0
    groups: int = 4
    cut: float = 0.5
    held_out: int = 128
    validations: int = 16
    patience: int = 8
    seed: int = 0
    labels: tuple[int | str, ...] = ()
    weights: Weights = field(default_factory=Weights)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "contrast", tuple(float(c) for c in self.contrast))
        object.__setattr__(self, "labels", tuple(self.labels))
        require_one_end(self.steps, self.minutes, RegistrationError)
        whole = {"batch": self.batch, "groups": self.groups, "held_out": self.held_out}
        whole |= {"validations": self.validations, "patience": self.patience}
        for name, value in whole.items():
            if int(value) != value or value < 1:
                raise RegistrationError(f"{name} must be a positive whole number, got {value!r}")
        if self.size < 32 or self.size % 32:
            raise RegistrationError(f"size must be a multiple of 32 px, at least 32, got {self.size}")
        for name in ("clip", "rate", "grid_mm"):
            if not 0 < getattr(self, name) < math.inf:
                raise RegistrationError(f"{name} must be a positive number, got {getattr(self, name)!r}")
        for name in ("cut", "warm_up", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise RegistrationError(f"{name} must be a number from 0 to 1, got {getattr(self, name)!r}")
        low, high = self.contrast
        if not (0 < low <= high and 0 <= self.average < 1):
            raise RegistrationError(
                f"contrast needs two positive factors, low first, and average must lie in [0, 1), got {self}"
            )
        if self.weights.dice > 0 and not self.labels:
            raise RegistrationError("a Dice term needs labels: name the structures that it shall compare")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `from_dict` reads them."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**plain, "network": self.network.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainSettings:
        """Read what `to_dict` wrote."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != known:
            raise RegistrationError(f"settings of a training need the entries {sorted(known)}, got {data!r}")
        looks = {k: tuple(v) if isinstance(v, list) else v for k, v in data["augment"].items()}
        parts = {
            "weights": Weights(**data["weights"]),
            "network": NetworkSettings.from_dict(data["network"]),
            "augment": AugmentSettings(**looks),
        }
        return cls(**{**data, **parts})
