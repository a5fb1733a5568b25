"""Following a body through a sequence of films."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError, RegistrationError
from xreg.geometry import se3
from xreg.registration.register import register
from xreg.registration.result import RegistrationResult
from xreg.registration.search import SearchBox, SearchSettings, locate
from xreg.registration.settings import FINE, Level, Settings
from xreg.volume import Volume

NEAR = SearchBox((20.0, 20.0, 20.0), (40.0, 40.0, 40.0))
QUICK = SearchSettings(samples=1024, heat=8, finalists=2, antipode=False, evolution=0)


def tracking_settings() -> Settings:
    """Two levels that start near the answer: enough from one frame to the next.

    No restarts: they would take as long as the answer, and a jump is judged by `Tracker` itself.
    """
    return Settings(levels=(Level(64, FINE, 8, 0.1), Level(128, FINE, 6, 0.05)), restarts=0)


@dataclass(frozen=True)
class Frame:
    """One film of a sequence: its answer, where it was expected, and what had to be done.

    result: None where the body was lost and not found again.  world_from_body: the answer, or where the body
    was last seen.  lost: no answer was accepted.  recovered: found by search after the expected place failed.
    seconds: from film to answer.
    """

    number: int
    result: RegistrationResult | None
    world_from_body: Float[Tensor, "4 4"]
    expected: Float[Tensor, "4 4"]
    lost: bool
    recovered: bool
    seconds: float


@dataclass
class Tracker:
    """Follows a body from film to film, and says when it has lost it.

    volume, camera: as in `register` (a `Rig` or a list for several views).  init: where the body is in the
    first film.  Each film starts from the place that the last two answers lead to at constant velocity.
    Where the answer is rejected, or jumps by more than `jump` (degrees, mm), the body is sought in `box`
    about where it was last seen; where that fails too the frame says `lost`, and the next one seeks again.
    accepts: whether an answer is good enough (default: its verdict).
    """

    volume: Volume
    camera: Any
    init: Any = None
    settings: Settings = field(default_factory=tracking_settings)
    box: SearchBox = NEAR
    search: SearchSettings = QUICK
    jump: tuple[float, float] = (15.0, 30.0)
    accepts: Callable[[RegistrationResult], bool] = lambda found: found.accepted
    frames: list[Frame] = field(default_factory=list)
    _seen: list[Tensor] = field(default_factory=list)

    def update(self, film: Any, mask: Any = None) -> Frame:
        """Find the body in the next film (or films, one a view); mask as in `register`."""
        began = time.perf_counter()
        expected = self._expected()
        found = None if self._is_lost else self._try(film, mask, expected)
        recovered = False
        if found is None or not self._plausible(found, expected):
            found, recovered = self._seek(film, mask, expected), True
        lost = found is None
        pose = expected if lost else found.world_from_body
        if not lost:
            # After a gap the last step says nothing about the speed.
            self._seen = [pose] if recovered else [*self._seen, pose][-2:]
        frame = Frame(
            len(self.frames), found, pose, expected, lost, recovered and not lost, time.perf_counter() - began
        )
        self.frames.append(frame)
        return frame

    def run(self, films: Sequence[Any], masks: Sequence[Any] | None = None) -> list[Frame]:
        """`update` for each film of a sequence."""
        return [self.update(f, None if masks is None else masks[n]) for n, f in enumerate(films)]

    @property
    def _is_lost(self) -> bool:
        return bool(self.frames) and self.frames[-1].lost

    def _expected(self) -> Float[Tensor, "4 4"]:
        if not self._seen:
            return (
                torch.eye(4, dtype=torch.float64)
                if self.init is None
                else torch.as_tensor(self.init).double()
            )
        if len(self._seen) < 2 or self._is_lost:
            return self._seen[-1]
        before, last = self._seen[-2:]
        return se3.nearest_rigid(last @ se3.inverse(before) @ last)

    def _try(self, film: Any, mask: Any, start: Tensor) -> RegistrationResult | None:
        try:
            return register(self.volume, film, self.camera, start, mask=mask, settings=self.settings)
        except (GeometryError, RegistrationError):
            return None

    def _plausible(self, found: RegistrationResult, expected: Tensor) -> bool:
        if not self.accepts(found):
            return False
        turn, shift = se3.geodesic_distance(found.world_from_body, expected, self.volume.center)
        return math.degrees(float(turn)) <= self.jump[0] and float(shift) <= self.jump[1]

    def _seek(self, film: Any, mask: Any, about: Tensor) -> RegistrationResult | None:
        try:
            starts = locate(
                self.volume, film, self.camera, about, mask=mask, box=self.box, search=self.search
            )
        except (GeometryError, RegistrationError):
            return None
        found = self._try(film, mask, starts[0][0]) if starts else None
        return found if found is not None and self.accepts(found) else None
