"""Registration of radiographs to volumes, from starts that are roughly right."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xreg.errors import GeometryError, RegistrationError
from xreg.geometry import se3
from xreg.registration.anatomy import Anatomy, anatomy_of
from xreg.registration.gauss_newton import Limits, Progress, refine
from xreg.registration.result import BodiesResult, RegistrationResult, Step
from xreg.registration.settings import Settings
from xreg.registration.trust import FAR_MM, spread_of, verdict_of
from xreg.registration.unknowns import Body, RelativePrior, State, Unknowns, ViewFreedom
from xreg.registration.views import Target, View, binning, check_views, in_shadow, look, pixel_at, target_of
from xreg.similarity import Evidence
from xreg.volume import Volume


def register(
    volume: Volume | Anatomy,
    film: Any,
    camera: Any = None,
    init: Any = None,
    *,
    mask: Any = None,
    settings: Settings = Settings(),
    on_step: Callable[[Step], None] | None = None,
) -> RegistrationResult:
    """Find where the volume is in one or more radiographs, starting from a pose that is roughly right.

    volume: voxels, or X-ray Gaussians (`xreg.splat.Gaussians`), which cast their radiographs by themselves.
    film: line integrals [H, W] (tensor or array; any gain and offset), or a `Radiograph`, which also
    brings its mask and, where camera is None, its camera.  Several views of one moment: a list of films, with
    a `Rig` or a list of cameras.  init: world_from_body [4, 4] (default: where the CT's affine puts it).
    mask [H, W], or one a film: true where the film can be trusted (collimator and tools out).  on_step is
    called with each accepted `Step`.

    Coarse to fine, each level by damped Gauss-Newton on robust patch NCC of image and gradient.  ImageError
    for a film that does not fit the camera, GeometryError for a bad pose or a volume out of the beam,
    RegistrationError where there is nothing to compare.
    """
    found = register_bodies([Body(volume, init)], film, camera, mask=mask, settings=settings, on_step=on_step)
    return found.bodies[0]


def register_bodies(
    bodies: Sequence[Body],
    film: Any,
    camera: Any = None,
    *,
    mask: Any = None,
    relations: Sequence[RelativePrior] = (),
    freedoms: Sequence[ViewFreedom] = (),
    settings: Settings = Settings(),
    on_step: Callable[[Step], None] | None = None,
) -> BodiesResult:
    """Find several rigid bodies in one or more radiographs, all in one system of equations.

    bodies: what is sought, each with its start and perhaps a prior.  Where bodies overlap in a film, their
    images add up.  relations: how bodies lie to each other.  freedoms: what may be wrong with the views'
    calibration.  film, camera, mask, settings, on_step: as in `register`.
    """
    began = time.perf_counter()
    views = check_views(film, mask, camera)
    unknowns = Unknowns(bodies, [v.camera for v in views], freedoms, relations)
    for body, pose in zip(unknowns.bodies, unknowns.start.poses, strict=True):
        anatomy_of(body.volume, settings.beam).require_in_beam([v.camera for v in views], pose)
    search = Search(unknowns, views, settings, on_step)
    seconds = {"prepare": time.perf_counter() - began}
    state = unknowns.start
    for number in range(len(settings.levels)):
        start = time.perf_counter()
        state = search.descend(number, state)
        seconds[f"level {number}"] = time.perf_counter() - start
    start = time.perf_counter()
    agreement = search.restart(state) if settings.restarts else None
    if agreement is not None:
        seconds["restarts"] = time.perf_counter() - start
    seconds["total"] = time.perf_counter() - began
    return _answer(search, agreement, seconds)


class Search:
    """The state of one registration: what has been tried, and where it stands."""

    def __init__(
        self,
        unknowns: Unknowns,
        views: Sequence[View],
        settings: Settings,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        self.unknowns, self.views, self.settings, self.on_step = unknowns, views, settings, on_step
        self.trajectory: list[Step] = []
        self.renders, self.checks = 0, 0
        self.last: Progress

    def targets(self, number: int, state: State) -> list[Target]:
        """The views at a level's resolution, as seen from a state."""
        targets = [target_of(view, self.settings.levels[number]) for view in self.views]
        margin = self.settings.shadow
        if margin is not None:
            targets = [
                in_shadow(t, self.unknowns, state, v, margin, self.settings) for v, t in enumerate(targets)
            ]
        device = anatomy_of(self.unknowns.bodies[0].volume, self.settings.beam).device
        return [target.to(device) for target in targets]

    def looker(
        self, number: int, targets: Sequence[Target], weight: float | None
    ) -> Callable[[State], Evidence]:
        """What `refine` calls with a state: the films' evidence at a level, and the priors at a weight."""
        level = self.settings.levels[number]

        def see(state: State) -> Evidence:
            self.renders += len(self.views) * len(self.unknowns.bodies)
            found = look(targets, self.unknowns, state, level, self.settings)
            return found if weight is None else with_priors(found, self.unknowns, state, weight)

        return see

    def descend(self, number: int, state: State) -> State:
        """Refine a state on one level, and remember how."""
        targets = self.targets(number, state)
        first = self.looker(number, targets, None)(state)
        weight = prior_weight(first)
        first = with_priors(first, self.unknowns, state, weight)

        def note(progress: Progress) -> None:
            poses, score = progress.state.poses, progress.evidence.score
            step = Step(number, targets[0].n, poses[0], score, self.renders, poses)
            self.trajectory.append(step)
            if self.on_step is not None:
                self.on_step(step)

        note(Progress(state, first, 1))
        see = self.looker(number, targets, weight)
        self.last = refine(
            see,
            (state, first),
            self.unknowns,
            limits_of(self.views, self.unknowns.center(state, 0), number, self.settings),
            note,
        )
        return self.last.state

    def restart(self, state: State) -> float:
        """How far (mm at the edge) searches from beside a state end from it, at most."""
        number, worst, before = max(0, len(self.settings.levels) - 2), 0.0, self.renders
        targets = self.targets(number, state)
        limits = limits_of(self.views, self.unknowns.center(state, 0), number, self.settings)
        see = self.looker(number, targets, prior_weight(self.last.evidence))
        home = refine(see, (state, see(state)), self.unknowns, limits, lambda _: None).state
        balance = self.unknowns.balance(self.settings.length_scale)
        for seed in range(self.settings.restarts):
            aside = torch.randn(
                self.unknowns.count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            aside[6 * len(self.unknowns.bodies) :] = 0
            aside = aside / aside.norm() * balance * self.settings.restart_mm
            try:
                start = self.unknowns.moved(state, aside)
                end = refine(see, (start, see(start)), self.unknowns, limits, lambda _: None).state
            except (GeometryError, RegistrationError):  # nothing to see from there: it does not confirm
                worst = FAR_MM
                continue
            worst = max(worst, apart(self.unknowns, home, end, self.settings.length_scale))
        self.renders, self.checks = before, self.renders - before
        return worst


def apart(unknowns: Unknowns, a: State, b: State, length_scale: float) -> float:
    """How far two states put the edge of a body from each other, mm, at most over bodies."""
    worst = 0.0
    for number, (one, other) in enumerate(zip(a.poses, b.poses, strict=True)):
        turn, shift = se3.geodesic_distance(one, other, unknowns.bodies[number].volume.center)
        worst = max(worst, float(turn) * length_scale + float(shift))
    return worst


def prior_weight(evidence: Evidence) -> float:
    """What one squared standard deviation is worth in units of the cost.

    The residual of a patch, 2 (1 - score), is taken as its noise, and a quarter of the patches as
    independent, since four share a pixel; where a film cannot be matched, priors gain weight.
    """
    return max(2 * (1 - evidence.score), 1e-3) / max(evidence.patches / 4, 1.0)


def with_priors(evidence: Evidence, unknowns: Unknowns, state: State, weight: float) -> Evidence:
    """The evidence with the priors' part of cost, gradient and matrix added."""
    cost, gradient, hessian = unknowns.penalty(state)
    return replace(
        evidence,
        cost=evidence.cost + weight * cost,
        gradient=evidence.gradient + weight * gradient,
        hessian=evidence.hessian + weight * hessian,
        prior=weight**2 * hessian,  # residuals of a prior have unit variance
    )


def limits_of(views: Sequence[View], center: Tensor, number: int, settings: Settings) -> Limits:
    """When a level ends; center: where the first body is, world mm."""
    level = settings.levels[number]
    pixel = pixel_at(views[0].camera, center) * binning(views[0], level)
    turn, move = settings.step_limit
    return Limits(level.iterations, level.tolerance * pixel, math.radians(turn), move, settings.length_scale)


def _answer(search: Search, agreement: float | None, seconds: dict[str, float]) -> BodiesResult:
    unknowns, settings, last = search.unknowns, search.settings, search.last
    covariance = spread_of(last.evidence, unknowns, settings)
    verdict = verdict_of(last.evidence, unknowns, covariance, agreement, settings)
    bodies = []
    for number, pose in enumerate(last.state.poses):
        at = slice(6 * number, 6 * number + 6)
        bodies.append(
            RegistrationResult(
                pose,
                covariance[at, at],
                unknowns.center(last.state, number),
                last.evidence.score,
                verdict.accepted,
                verdict.reason,
                tuple(search.trajectory),
                search.renders,
                seconds,
                verdict,
                search.checks,
            )
        )
    cameras = tuple(unknowns.camera(last.state, v) for v in range(len(unknowns.cameras)))
    return BodiesResult(tuple(bodies), covariance, cameras, verdict)
