"""Registration of one radiograph to one volume, from a given start."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from xreg.errors import ImageError, RegistrationError
from xreg.geometry import Camera, se3
from xreg.registration.gauss_newton import Limits, Progress, balance_of, refine
from xreg.registration.result import RegistrationResult, Step
from xreg.registration.settings import Level, Settings
from xreg.renderer import drr_with_jacobian, require_in_beam
from xreg.similarity import Evidence, evaluate
from xreg.volume import Volume

WORST_CONDITION = 2e3  # of the normal equations in balanced units


@dataclass(frozen=True)
class Target:
    """The film at one level: binned pixels, which of them count, and the camera that fits them."""

    film: Float[Tensor, "H W"]
    mask: Bool[Tensor, "H W"]
    camera: Camera
    fine: Camera  # renders are made here and averaged by `pool`, so that coarse pixels are areas
    pool: int
    bin: int


def register(
    volume: Volume,
    film: Any,
    camera: Camera | None = None,
    init: Any = None,
    *,
    mask: Any = None,
    settings: Settings = Settings(),
    on_step: Callable[[Step], None] | None = None,
) -> RegistrationResult:
    """Find where the volume is in a radiograph, starting from a pose that is roughly right.

    film: line integrals [H, W] (tensor or array; any gain and offset), or a `Radiograph`, which also
    brings its mask and, where camera is None, its camera.  init: world_from_body [4, 4] (default: where
    the CT's affine puts it).  mask [H, W]: true where the film can be trusted (collimator and tools out).
    on_step is called with each accepted `Step`.

    Coarse to fine, each level by damped Gauss-Newton on robust patch NCC of image and gradient.  ImageError
    for a film that does not fit the camera, GeometryError for a bad pose or a volume out of the beam,
    RegistrationError where there is nothing to compare.
    """
    began = time.perf_counter()
    film, mask, camera = _inputs(film, mask, camera)
    pose = torch.eye(4, dtype=torch.float64) if init is None else torch.as_tensor(init, dtype=torch.float64)
    se3.require_rigid(pose, "init")
    require_in_beam(volume, camera, pose)
    volume.quantised()  # once, and not on the first level's time
    search = Search(volume, settings, on_step)
    seconds = {"prepare": time.perf_counter() - began}
    for number, level in enumerate(settings.levels):
        start = time.perf_counter()
        search.descend(number, _target(film, mask, camera, level), pose)
        pose = search.last.pose
        seconds[f"level {number}"] = time.perf_counter() - start
    seconds["total"] = time.perf_counter() - began
    return _answer(search, seconds)


class Search:
    """The state of one registration: what has been tried, and where it stands."""

    def __init__(self, volume: Volume, settings: Settings, on_step: Callable[[Step], None] | None) -> None:
        self.volume, self.settings, self.on_step = volume, settings, on_step
        self.trajectory: list[Step] = []
        self.renders = 0
        self.last: Progress

    def center(self, pose: Tensor) -> Float[Tensor, " 3"]:
        """Where a pose puts the volume's middle, world mm."""
        return se3.apply(pose, self.volume.center.to(pose)[None])[0]

    def descend(self, number: int, target: Target, pose: Tensor) -> None:
        """Refine the pose on one level."""
        before, level = self.renders, self.settings.levels[number]

        def look(at: Tensor) -> Evidence:
            self.renders += 1
            return _look(self.volume, target, level, self.settings, at)

        def note(state: Progress) -> None:
            step = Step(number, target.bin, state.pose, state.evidence.score, before + state.renders)
            self.trajectory.append(step)
            if self.on_step is not None:
                self.on_step(step)

        start = (pose, look(pose))
        note(Progress(*start, 1))
        self.last = refine(look, start, self.center, _limits(target, level, self.settings), note)


def _inputs(film: Any, mask: Any, camera: Camera | None) -> tuple[Tensor, Tensor, Camera]:
    if hasattr(film, "line_integrals"):
        camera = film.camera if camera is None else camera
        mask = film.mask if mask is None else mask
        film = film.line_integrals
    if camera is None:
        raise RegistrationError("register needs a camera: pass one, or a radiograph whose header has one")
    if camera.batch_shape:
        raise RegistrationError(
            f"register takes one camera, got a batch of shape {tuple(camera.batch_shape)}"
        )
    film = torch.as_tensor(film).detach().float().cpu()
    if tuple(film.shape) != tuple(camera.size):
        raise ImageError(
            f"film must have the camera's size {tuple(camera.size)} (H, W), got {tuple(film.shape)}; crop or "
            "bin the camera along with the film (camera.crop, camera.bin)"
        )
    valid = torch.ones(film.shape, dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool().cpu()
    if valid.shape != film.shape:
        raise ImageError(f"mask must have the film's shape {tuple(film.shape)}, got {tuple(valid.shape)}")
    if not bool(torch.isfinite(film[valid]).all()):
        raise ImageError("film holds NaN or infinite pixels; mask them out or repair them")
    if not bool(valid.any()) or float(film[valid].std()) < 1e-12:
        raise ImageError("film has no contrast inside the mask: every valid pixel is the same")
    return torch.where(valid, film, film[valid].mean()), valid, camera


def _target(film: Tensor, mask: Tensor, camera: Camera, level: Level) -> Target:
    longest = max(camera.size)
    n = 1 if level.pixels is None else max(1, math.ceil(longest / level.pixels))
    pool = 2 if n % 2 == 0 and n >= 4 else 1
    height, width = (s // n * n for s in camera.size)
    film, mask, camera = film[:height, :width], mask[:height, :width], camera.crop(0, 0, height, width)
    small = F.avg_pool2d(film[None], n)[0]
    valid = F.avg_pool2d(mask.float()[None], n)[0] > 0.999
    return Target(small, valid, camera.bin(n), camera.bin(n // pool), pool, n)


def _look(volume: Volume, target: Target, level: Level, settings: Settings, pose: Tensor) -> Evidence:
    image, jacobian = drr_with_jacobian(volume, target.fine, pose, beam=settings.beam)
    both = torch.cat([image[None], jacobian]).cpu()
    if target.pool > 1:
        both = F.avg_pool2d(both, target.pool)
    return evaluate(both[0], both[1:], target.film, target.mask, level.terms)


def _limits(target: Target, level: Level, settings: Settings) -> Limits:
    pixel = float(target.camera.spacing.mean()) if target.camera.sdd is not None else 1.0
    turn, move = settings.step_limit
    return Limits(level.iterations, level.tolerance * pixel, math.radians(turn), move, settings.length_scale)


def _answer(search: Search, seconds: dict[str, float]) -> RegistrationResult:
    settings, evidence = search.settings, search.last.evidence
    balance = balance_of(settings.length_scale)
    balance = balance[:, None] * balance
    matrix = evidence.hessian * balance
    condition = float(torch.linalg.cond(matrix))
    inverse = torch.linalg.pinv(matrix, hermitian=True)
    covariance = inverse @ (evidence.scatter * balance) @ inverse * balance
    covariance = 0.5 * (covariance + covariance.T)
    found, needed = evidence.score, settings.accept_score
    accepted = condition < WORST_CONDITION and found >= needed
    if not condition < WORST_CONDITION:
        reason = f"the film does not determine the pose (condition number {condition:.1e})"
    elif not found >= needed:
        reason = f"the best score {found:.3f} is below {needed:.3f}: no match was found from this start"
    else:
        reason = f"score {found:.3f} (at least {needed:.3f} is needed), condition number {condition:.1e}"
    return RegistrationResult(
        search.last.pose,
        covariance,
        search.center(search.last.pose),
        found,
        accepted,
        reason,
        tuple(search.trajectory),
        search.renders,
        seconds,
    )
