"""What a training of a network of labels may be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from xreg.errors import ShapeError
from xreg.shape.film_cases import FilmVariation
from xreg.shape.networks.settings import PRESETS, NetworkSettings
from xreg.training import require_one_end


@dataclass(frozen=True)
class Weights:
    """How much each part of the loss counts; see `xreg.shape.losses`."""

    entropy: float = 1.0
    dice: float = 1.0
    mutual: float = 1.0
    mask: float = 1.0
    thickness: float = 1.0
    level: float = 0.5
    order: float = 0.5
    presence: float = 0.1
    centroid: float = 0.5

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 0 or self.entropy + self.dice <= 0:
            raise ShapeError(f"weights must not be negative, nor entropy and dice both zero, got {self}")


@dataclass(frozen=True)
class ShapeTrainSettings:
    """Everything that a training can be told beyond its patients.

    A network of kind 'rays' first learns to read films, for the part ``film_share`` of the training:
    ``film_batch`` films a step, at most at ``film_rate``.  Then that half of it is kept as it is, and the
    half in space learns.  Others have the second part alone.  hulls: whether, where films cross, bones shall
    be where the masks of all films agree; the half in space is then for single films alone.  film_share: None
    for .9 with hulls, else .6.

    steps or minutes: when to end; exactly one.  batch: cases a step.  rate: greatest learning rate, reached
    after the part ``warm_up`` of the training and brought to zero by a cosine; clip: greatest norm of the
    gradient.  average: decay of the running average of the weights, which is what is used.  points:
    voxels of each label that are compared in a step, at most (`xreg.shape.points`).  mirror: whether
    half of the cases have left and right exchanged.  variation: how films are changed.
    balance: power of a label's rarity by which its voxels and pixels weigh more at the start, so that small
    bones are learned sooner; it falls to nothing by the middle of each part.  validations: how often held-out
    patients are looked at, evenly over the training.  precision: 'float32', or 'bfloat16' for the network's
    inner work.
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int = 1
    rate: float = 8e-4
    warm_up: float = 0.05
    clip: float = 5.0
    decay: float = 1e-3
    average: float = 0.995
    points: int = 128
    mirror: bool = True
    hulls: bool = True
    film_share: float | None = None
    film_batch: int = 4
    film_rate: float = 1.5e-3
    variation: FilmVariation = field(default_factory=FilmVariation)
    balance: float = 0.5
    validations: int = 10
    precision: str = "float32"
    seed: int = 0
    weights: Weights = field(default_factory=Weights)
    network: NetworkSettings = field(default_factory=lambda: PRESETS["rays-light"])

    def __post_init__(self) -> None:
        if self.film_share is None:
            object.__setattr__(self, "film_share", 0.9 if self.hulls else 0.6)
        require_one_end(self.steps, self.minutes, ShapeError)
        names = ("batch", "points", "validations", "film_batch")
        whole = {name: getattr(self, name) for name in names}
        for name, value in whole.items():
            if int(value) != value or value < 1:
                raise ShapeError(f"{name} must be a positive whole number, got {value!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ShapeError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        if not (min(self.rate, self.film_rate) > 0 and 0 <= self.average < 1 and 0 <= self.film_share < 1):
            raise ShapeError(
                "rate and film_rate must be positive, average and film_share in [0, 1), got "
                f"{self.rate}, {self.film_rate}, {self.average}, {self.film_share}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `from_dict` reads them."""
        return {**asdict(self), "network": self.network.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ShapeTrainSettings:
        """Read what `to_dict` wrote."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != known:
            raise ShapeError(f"settings of a training need the entries {sorted(known)}, got {data!r}")
        parts = {
            "weights": Weights(**data["weights"]),
            "variation": FilmVariation(**data["variation"]),
            "network": NetworkSettings.from_dict(data["network"]),
        }
        return cls(**{**data, **parts})
