"""Following a body through a sequence of films."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError, RegistrationError
from xreg.geometry import Camera, Rig, se3
from xreg.registration.anatomy import Anatomy, anatomy_of
from xreg.registration.register import register
from xreg.registration.result import RegistrationResult
from xreg.registration.search import SearchBox, SearchSettings, locate
from xreg.registration.settings import FINE, Level, Settings
from xreg.registration.unknowns import Body, starting_pose
from xreg.registration.views import check_views
from xreg.volume import Volume

NEAR = SearchBox((20.0, 20.0, 20.0), (40.0, 40.0, 40.0))
QUICK = SearchSettings(samples=1024, heat=8, finalists=2, antipode=False, evolution=0)


def tracking_settings() -> Settings:
    """Two levels that start near the answer: enough from one frame to the next.

    No restarts: they would take as long as the answer.  A jump is judged by `Tracker` itself, and speaks as
    well as they do: so no more is asked of an answer than where they confirm it.
    """
    return Settings(
        levels=(Level(64, FINE, 8, 0.1), Level(128, FINE, 6, 0.05)),
        restarts=0,
        confirmed=True,
    )


@dataclass(frozen=True)
class Frame:
    """One film of a sequence: its answer, where it was expected, and what had to be done.

    result: None where the body was lost and not found again.  world_from_body: the answer, or where the body
    was last seen (`init` where it never was).  lost: no answer was accepted.  recovered: found by search
    after the expected place failed.  seconds: from film to answer.
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

    volume, camera: as in `register` (a `Rig` or a list for several views; None: each film is a `Radiograph`
    that has its own).  init: where the body is in the first film.  Each film starts from the place that the
    last two answers lead to at constant velocity.  Where the answer is rejected, or jumps by more than `jump`
    (degrees, mm), the body is sought in `box` about that place; where that fails too the frame says `lost`,
    and the next one seeks about where it was last seen.  X-ray Gaussians cannot be sought in a box: they are
    tried from that place only.  accepts: whether an answer is good enough (default: its verdict).

    Only what a film shows can make a frame lost: a volume, camera, pose, film or mask that cannot be used
    raises RegistrationError, GeometryError or ImageError, as in `register`.
    """

    volume: Volume | Anatomy
    camera: Any
    init: Any = None
    settings: Settings = field(default_factory=tracking_settings)
    box: SearchBox = NEAR
    search: SearchSettings = QUICK
    jump: tuple[float, float] = (15.0, 30.0)
    accepts: Callable[[RegistrationResult], bool] = lambda found: found.accepted
    frames: list[Frame] = field(default_factory=list)
    _seen: list[Tensor] = field(default_factory=list)
    _home: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        anatomy_of(self.volume, self.settings.beam)
        self._home = starting_pose(Body(self.volume, self.init))
        _check_camera(self.camera)

    def update(self, film: Any, mask: Any = None) -> Frame:
        """Find the body in the next film (or films, one a view); mask as in `register`."""
        began = time.perf_counter()
        check_views(film, mask, self.camera)  # before errors count as a body that is not seen
        expected = self._expected()
        found = None if self._is_lost else self._try(film, mask, expected)
        recovered = False
        if found is None or not self._plausible(found, expected):
            found, recovered = self._seek(film, mask, expected), True
        lost = found is None
        pose = self._last_seen if lost else found.world_from_body
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

    @property
    def _last_seen(self) -> Float[Tensor, "4 4"]:
        return self._seen[-1] if self._seen else self._home

    def _expected(self) -> Float[Tensor, "4 4"]:
        if len(self._seen) < 2 or self._is_lost:
            return self._last_seen
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
        if not isinstance(self.volume, Volume):
            found = self._try(film, mask, self._last_seen)
            return found if found is not None and self.accepts(found) else None
        try:
            starts = locate(
                self.volume, film, self.camera, about, mask=mask, box=self.box, search=self.search
            )
        except (GeometryError, RegistrationError):
            return None
        found = self._try(film, mask, starts[0][0]) if starts else None
        return found if found is not None and self.accepts(found) else None


def _check_camera(camera: Any) -> None:
    """RegistrationError for what no film can be looked at with."""
    several = isinstance(camera, (list, tuple, Rig))
    for one in camera if several else [camera]:
        if one is None:  # the film brings its own
            continue
        if not isinstance(one, Camera):
            got = type(one).__name__
        elif one.batch_shape:
            got = f"a batch of shape {tuple(one.batch_shape)}"
        else:
            continue
        raise RegistrationError(
            "a Tracker takes one Camera, or a Rig or a list of cameras (one a view), without batches; or "
            f"None, where the films are radiographs that have their own. Got {got}"
        )
