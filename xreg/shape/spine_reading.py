"""What a trained reader says of the spine in films, along a line (`xreg.shape.spine_training` trains one)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.geometry import Camera
from xreg.shape.networks.spine_reader import PARTS, SpineReader
from xreg.shape.networks.views import averaged
from xreg.shape.spine_training import FILES, FOLDER
from xreg.shape.strips import SACRUM, STEP_MM, resampled, straighten
from xreg.training import MODEL, load_weights, require

_BEYOND_MM = 60.0  # that is read before and after a line, since what is there tells levels too
_PIXEL_MM = 2.5  # to which films are averaged
_NEAR_MM = 3.0  # about a point of the line, over which rows are averaged


@dataclass(frozen=True, eq=False)
class LevelShares:
    """Logarithms of what lies at each of n points: parts [n, 8] of a vertebra, from the middle of the disc
    above it to that of the disc below; numbers [n, 26] of the level, C1 first, the last the sacrum's."""

    parts: Float[Tensor, "n 8"]
    numbers: Float[Tensor, "n 26"]

    def at(self, levels: Float[Tensor, " K"]) -> Float[Tensor, "n K"]:
        """How likely each of these levels is at each point, as logarithms."""
        place = (levels + 0.5) % 1 * PARTS - 0.5
        low = place.floor()
        both = [self.parts[:, (low.long() + n) % PARTS] for n in (0, 1)]
        number = levels.round().long().clamp(0, SACRUM - 1)
        return torch.lerp(*both, (place - low).expand_as(both[0])) + self.numbers[:, number]

    def weighed(self, parts: float, numbers: float | Float[Tensor, "n 1"]) -> LevelShares:
        """The logarithms times what each counts."""
        return LevelShares(parts * self.parts, numbers * self.numbers)

    @property
    def sacrum(self) -> Float[Tensor, " n"]:
        """How likely it is the sacrum, as logarithms.

        It has no parts: it gets what a vertebra of the parts that are told would get on average.
        """
        return self.numbers[:, SACRUM] + (self.parts.softmax(1) * self.parts).sum(1)


class SpineModel:
    """A reader with what it was trained on."""

    def __init__(self, net: SpineReader, facts: dict[str, Any], source: str) -> None:
        self.net, self.facts, self.source = net.eval(), facts, source

    @classmethod
    def beside(cls, folder: str | PathLike) -> SpineModel | None:
        """The reader in the folder of a network of labels, or None.  FileError where it is damaged."""
        file = Path(folder) / FOLDER / MODEL
        return cls.load(file) if file.is_file() else None

    @classmethod
    def load(cls, file: str | PathLike) -> SpineModel:
        """What `train_spine` wrote.  FileError where it is missing or damaged."""
        tensors, facts = FILES.load(file)
        require(facts, ("patients", "settings"), file)
        require(facts["settings"], ("width",), file)
        net = SpineReader(int(facts["settings"]["width"]))
        load_weights(net, tensors, Path(file))
        return cls(net, facts, str(file))

    @torch.no_grad()
    def read(
        self, films: Float[Tensor, "V H W"], cameras: Sequence[Camera], line: Float[Tensor, "n 3"]
    ) -> LevelShares:
        """What lies at the points of a line (world mm, from the head), by films 0 to 1; on the host."""
        films, cameras = averaged(films, cameras, _PIXEL_MM, line.mean(0).double())
        length = float((line[1:] - line[:-1]).norm(dim=1).sum())
        count = int((length + 2 * _BEYOND_MM) / STEP_MM) + 1
        points, place = resampled(line, STEP_MM, start=-_BEYOND_MM, count=count)
        strips = straighten(films, cameras, points)
        parts, numbers = self.net(strips.values[None], strips.across[None])
        steps = (torch.arange(len(line))[:, None] - place).abs() * length / max(1, len(line) - 1)
        near = torch.softmax(-0.5 * (steps / _NEAR_MM).square(), 1)
        return LevelShares(*(near @ part[0].log_softmax(0).T for part in (parts, numbers)))
