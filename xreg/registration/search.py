"""Starts where none is known: coarse renders over a box of poses, evolution, and a race of refinements."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import BackendError, GeometryError, InputWarning, RegistrationError
from xreg.geometry import se3
from xreg.geometry.c_arm import half_turns
from xreg.registration.register import Search, register_bodies
from xreg.registration.result import RegistrationResult
from xreg.registration.settings import COARSE, FINE, Level, Settings
from xreg.registration.unknowns import Body, Unknowns, middle_of
from xreg.registration.views import Target, View, check_views, target_of
from xreg.renderer import drr
from xreg.similarity import Term, scores
from xreg.volume import Volume

COARSE_LEVEL = Level(32, (*COARSE, Term("gradient", 12, 0.5)), 8, 0.3)
RACE = (Level(32, COARSE, 8, 0.3), Level(32, FINE, 12, 0.1))
SECOND_HEAT = (Level(64, FINE, 12, 0.1),)


@dataclass(frozen=True)
class SearchBox:
    """Where to look, about a nominal pose, as a C-arm moves.

    degrees: ± about the detector's v axis (primary), its u axis (secondary) and the beam (roll), through the
    body's middle.  mm: ± along u, v and the beam, at the body.
    """

    degrees: tuple[float, float, float] = (45.0, 30.0, 15.0)
    mm: tuple[float, float, float] = (60.0, 60.0, 80.0)

    def __post_init__(self) -> None:
        reach = (*self.degrees, *self.mm)
        if len(self.degrees) != 3 or len(self.mm) != 3 or not all(0 <= x < math.inf for x in reach):
            raise RegistrationError(
                f"a SearchBox needs three angles and three distances, finite and not negative, got {self}"
            )

    @property
    def reach(self) -> Float[Tensor, " 6"]:
        """Half the box, (rad, mm), about and along (v, u, beam) and (u, v, beam)."""
        return torch.tensor([*(math.radians(d) for d in self.degrees), *self.mm], dtype=torch.float64)


@dataclass(frozen=True)
class SearchSettings:
    """How hard to look.

    samples: coarse renders over the box.  heat: how many of the best are refined.  finalists: how many of
    these at double resolution.  grid_mm: voxels of the coarse volume.  antipode: also try the best from
    behind.  evolution: generations of CMA-ES where the race ended below `convincing`, 0 for none; without the
    package cmaes the search ends there, with a warning.
    """

    samples: int = 4096
    heat: int = 24
    finalists: int = 4
    grid_mm: float = 4.0
    antipode: bool = True
    evolution: int = 40
    population: int = 32
    convincing: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"samples": 1, "heat": 1, "finalists": 1, "evolution": 0, "population": 2}
        for name, low in least.items():
            value = getattr(self, name)
            if int(value) != value or value < low:
                raise RegistrationError(
                    f"{name} of a search must be a whole number, at least {low}, got {value!r}"
                )
        if not 0 < self.grid_mm < math.inf:
            raise RegistrationError(f"grid_mm of a search must be a length in mm, got {self.grid_mm}")


def locate(
    volume: Volume,
    film: Any,
    camera: Any = None,
    init: Any = None,
    *,
    mask: Any = None,
    box: SearchBox = SearchBox(),
    search: SearchSettings = SearchSettings(),
) -> list[tuple[Float[Tensor, "4 4"], float]]:
    """Poses from which `register` may start, with their coarse scores, the best first.

    The box lies about init (default: where the CT's affine puts it).  Several films of one moment are scored
    together.  Deterministic for a given seed.  film, camera, mask: as in `register`.
    """
    if not isinstance(volume, Volume):
        raise RegistrationError(
            f"a search without a start needs a Volume, which it coarsens, got {type(volume).__name__}; "
            "Gaussians become one with gaussians.to_volume(grid)"
        )
    views = check_views(film, mask, camera)
    nominal = Unknowns([Body(volume, init)], [v.camera for v in views]).start.poses[0]
    scout = Scout(volume, views, nominal, box, search)
    starts = scout.best(scout.sobol(), search.heat)
    found = scout.race(starts, RACE, search.heat)
    if search.antipode:
        behind = [p for pose, _ in found[:2] for p in scout.antipodes(pose)]
        found = _sorted([*found, *scout.race(behind, RACE, len(behind))])
    if search.evolution and (not found or found[0][1] < search.convincing):
        found = _sorted([*found, *scout.race(_evolved(scout, found[0][0] if found else nominal), RACE, 1)])
    if not found:
        raise RegistrationError(
            "no pose in the search box shows the volume in the film: check the camera, the box and the mask"
        )
    return _sorted(
        scout.race(
            apart_poses([p for p, _ in found], search.finalists, volume.center), SECOND_HEAT, search.finalists
        )
    )


def _evolved(scout: Scout, start: Tensor) -> list[Tensor]:
    """What evolution finds from a start; nothing, with a warning, where its package is missing."""
    try:
        return [scout.evolve(start)]
    except BackendError as error:
        # What sampling and the race found is kept: evolution is only their last resort.
        warnings.warn(f"nothing convincing was found, and {error}", InputWarning, stacklevel=3)
        return []


def register_anywhere(
    volume: Volume,
    film: Any,
    camera: Any = None,
    init: Any = None,
    *,
    mask: Any = None,
    box: SearchBox = SearchBox(),
    search: SearchSettings = SearchSettings(),
    settings: Settings = Settings(),
    on_step: Any = None,
) -> RegistrationResult:
    """Register without a start: `locate`, then refine the best; arguments as in these two."""
    starts = locate(volume, film, camera, init, mask=mask, box=box, search=search)
    return register_best(
        volume, film, camera, [pose for pose, _ in starts[:1]], mask=mask, settings=settings, on_step=on_step
    )


def register_best(
    volume: Volume,
    film: Any,
    camera: Any,
    starts: Sequence[Any],
    *,
    mask: Any = None,
    settings: Settings = Settings(),
    on_step: Any = None,
) -> RegistrationResult:
    """Register from each of several starts and keep the answer of the best score."""
    if not len(starts):
        raise RegistrationError("register_best needs at least one start")
    best, problem = None, None
    for start in starts:
        try:
            found = register_bodies(
                [Body(volume, start)], film, camera, mask=mask, settings=settings, on_step=on_step
            ).bodies[0]
        except (GeometryError, RegistrationError) as error:
            problem = error
            continue
        if best is None or (found.accepted, found.score) > (best.accepted, best.score):
            best = found
    if best is None:
        raise problem or RegistrationError("no start could be registered")
    return best


class Scout:
    """Looks for starts with a coarse copy of the volume."""

    def __init__(
        self, volume: Volume, views: Sequence[View], nominal: Tensor, box: SearchBox, search: SearchSettings
    ) -> None:
        coarse = tuple(max(search.grid_mm, s) for s in volume.spacing)
        self.volume = volume.resample(coarse)
        self.views, self.nominal, self.box, self.search = views, nominal, box, search
        device = self.volume.mu.device
        self.targets: list[Target] = [target_of(view, COARSE_LEVEL).to(device) for view in views]
        self.cameras = [t.fine(v.camera) for t, v in zip(self.targets, views, strict=True)]
        self.axes = views[0].camera.world_from_camera[:3, :3].T  # rows: u, v, beam
        self.center = middle_of(self.volume, nominal)

    def pose(self, x: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 4 4"]:
        """The pose at a point of the box: (about v, about u, about the beam; along u, v, beam)."""
        about = se3.exp(_turn(self.axes[1], x[..., 0])) @ se3.exp(_turn(self.axes[0], x[..., 1]))
        about = about @ se3.exp(_turn(self.axes[2], x[..., 2]))
        turned = se3.about(about, self.center) @ self.nominal
        return se3.from_translation(x[..., 3:] @ self.axes) @ turned

    def sobol(self) -> Float[Tensor, "N 4 4"]:
        """Poses spread evenly over the box, the nominal one first."""
        engine = torch.quasirandom.SobolEngine(6, scramble=True, seed=self.search.seed)
        x = (2 * engine.draw(self.search.samples, dtype=torch.float64) - 1) * self.box.reach
        x[0] = 0
        return self.pose(x)

    def score(self, poses: Float[Tensor, "N 4 4"]) -> Float[Tensor, " N"]:
        """Coarse score of each pose, the mean over views."""
        total = torch.zeros(len(poses))
        for target, camera in zip(self.targets, self.cameras, strict=True):
            for part in torch.arange(len(poses)).split(256):
                try:
                    images = target.average(drr(self.volume, camera, poses[part], integrator="joseph"))
                except GeometryError:  # none of them is in the beam
                    total[part] -= 1
                    continue
                total[part] += scores(images, target.film, target.mask, COARSE_LEVEL.terms).cpu()
        return total / len(self.targets)

    def best(self, poses: Float[Tensor, "N 4 4"], count: int) -> list[Tensor]:
        """The best poses by their coarse score, without near repeats."""
        order = self.score(poses).argsort(descending=True)[: 4 * count]
        return apart_poses([poses[i] for i in order], count, self.volume.center)

    def race(
        self, starts: Sequence[Tensor], levels: tuple[Level, ...], keep: int
    ) -> list[tuple[Tensor, float]]:
        """Refine each start on coarse levels; the best first."""
        settings, found = Settings(levels=levels), []
        cameras = [v.camera for v in self.views]
        for start in starts:
            unknowns = Unknowns([Body(self.volume, start)], cameras)
            runner, state = Search(unknowns, self.views, settings), unknowns.start
            try:
                for number in range(len(levels)):
                    state = runner.descend(number, state)
            except (GeometryError, RegistrationError):
                continue
            found.append((state.poses[0], runner.last.evidence.score))
        return _sorted(found)[:keep]

    def antipodes(self, pose: Tensor) -> list[Tensor]:
        """The pose seen from behind: turned half about the detector's two axes."""
        center = middle_of(self.volume, pose)
        return [se3.about(turn, center) @ pose for turn in half_turns(self.axes.T)]

    def about(self, start: Tensor) -> Scout:
        """The same scout with its box about another pose."""
        near = copy.copy(self)
        near.nominal, near.center = start, middle_of(self.volume, start)
        return near

    def evolve(self, start: Tensor) -> Tensor:
        """The best pose that CMA-ES finds from a start, within the box's reach of it.

        BackendError without the package cmaes.
        """
        try:
            from cmaes import CMA
        except ImportError as error:
            raise BackendError(
                "the search by evolution needs the package cmaes: pip install 'xreg[search]', or evolution=0"
            ) from error
        reach, near = self.box.reach, self.about(start)
        optimiser = CMA(
            mean=np.zeros(6), sigma=0.4, seed=self.search.seed, population_size=self.search.population,
            bounds=np.array([[-1.5, 1.5]] * 6),
        )  # fmt: skip
        best, value = start, -2.0
        for _ in range(self.search.evolution):
            asked = [optimiser.ask() for _ in range(optimiser.population_size)]
            poses = near.pose(torch.from_numpy(np.stack(asked)) * reach)
            found = self.score(poses)
            optimiser.tell([(x, -float(s)) for x, s in zip(asked, found, strict=True)])
            if float(found.max()) > value:
                value, best = float(found.max()), poses[int(found.argmax())]
            if optimiser.should_stop():
                break
        return best


def _turn(axis: Tensor, angle: Tensor) -> Float[Tensor, "*b 6"]:
    turn = angle[..., None] * axis
    return torch.cat([turn, torch.zeros_like(turn)], -1)


def _sorted(found: list[tuple[Tensor, float]]) -> list[tuple[Tensor, float]]:
    return sorted(found, key=lambda pair: -pair[1])


def apart_poses(
    poses: Sequence[Tensor], count: int, center: Tensor, degrees: float = 4.0, mm: float = 8.0
) -> list[Tensor]:
    """The first poses of a list that are not near an earlier one; center: the body's middle, in its frame."""
    kept: list[Tensor] = []
    for pose in poses:
        away = (se3.geodesic_distance(pose, other, center) for other in kept)
        if not any(float(turn) < math.radians(degrees) and float(shift) < mm for turn, shift in away):
            kept.append(pose)
        if len(kept) == count:
            break
    return kept
