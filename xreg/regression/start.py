"""From a film to a registered pose without a start: guess, refine, look again where the verdict is unsure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xreg.errors import GeometryError, ImageError, RegistrationError
from xreg.geometry import Camera
from xreg.metrics import nees, tangent_error
from xreg.registration import (
    Body,
    RegistrationResult,
    SearchBox,
    SearchSettings,
    Settings,
    locate,
    register_best,
    register_bodies,
)
from xreg.regression.regressor import PoseGuess, Regressor
from xreg.volume import Volume

MOST_SIGMAS = 6.0  # between an answer and the guess: beyond it one of them is wrong
LEAST_PRIOR = (2.0, 5.0)  # degrees, mm: no guess is held to be surer than this
BOX_SIGMAS = 3.0
SETTINGS = Settings()
SEARCH = SearchSettings(samples=1024, heat=12)  # its box is small
LEAST_BOX, MOST_BOX = (10.0, 20.0), (60.0, 120.0)  # degrees, mm of the search about a guess


@dataclass(frozen=True)
class Guessed:
    """A registration that a network started: the answer, the guess nearest to it, and how it was found.

    how: 'guess', 'variants' or 'search'.  sigmas: how far the answer lies from that guess, in standard
    deviations of their difference.  problems: the stages that gave no answer, and why, each in one line.
    """

    result: RegistrationResult
    guess: PoseGuess
    how: str
    sigmas: float
    problems: tuple[str, ...] = ()


def register_guessed(
    regressor: Regressor,
    volume: Volume,
    film: Any,
    camera: Any = None,
    *,
    mask: Any = None,
    settings: Settings = SETTINGS,
    search: SearchSettings | None = SEARCH,
    on_step: Callable[[Any], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Guessed:
    """Register a volume to one film or several of one moment, from the guess of its network.

    The guess is a start and, with its own deviations, a prior on the coarsest level.  There it keeps a film
    that says little from leading far away; on finer ones it is let go, since a prior counts in units of what
    cannot be matched, and on films that match well it held answers at guesses that were wrong.

    An answer that is not accepted, or lies more than MOST_SIGMAS from the guess, is followed by the guess's
    variants (the film turned, the body from behind), and these by a search of the box that the network's own
    uncertainty spans; None leaves out the search.  film, camera, mask, settings, on_step: as in `register`.
    on_stage is told what begins.  What a stage failed of is in the answer's problems.
    VolumeError where the network was trained on another CT.  RegistrationError where films, cameras and masks
    are not as many, or no stage has an answer; it names the reasons.
    """
    regressor.require(volume)
    views = views_of(film, camera, mask)
    tell = on_stage or (lambda _: None)
    tell("guess")
    problems: list[str] = []
    guess, best = _surest(regressor, volume, views, problems)
    known: dict[str, Any] = {"mask": mask, "settings": settings, "on_step": on_step}
    found = _refined(volume, guess, film, camera, known, problems)
    if _sure(found):
        return replace(found, problems=tuple(problems))
    tell("variants")
    guesses = regressor.guesses(*views[best], center=volume.center)
    starts = [variant.world_from_body for variant in guesses[1:]]
    found = _better(found, _tried(volume, guesses, (film, camera, "variants"), starts, known, problems))
    if not _sure(found) and search is not None:
        tell("search")
        box = box_of(guess, _camera_of(*views[best][:2]))
        starts = _searched(volume, guess, (film, camera, mask), box, search, problems)
        found = _better(found, _tried(volume, guesses, (film, camera, "search"), starts, known, problems))
    if found is None:
        raise RegistrationError(
            "neither the network's guess nor its variants, nor a search about them, show the volume in the "
            "film: check the camera, the mask, and that the film lies in the range of the network "
            f"({'; '.join(problems)})"
        )
    return replace(found, problems=tuple(problems))


def views_of(film: Any, camera: Any = None, mask: Any = None) -> list[tuple[Any, Any, Any]]:
    """(film, camera, mask) of each film, from what `register` takes.

    RegistrationError where several films come with another number of cameras or masks.
    """
    films = list(film) if isinstance(film, (list, tuple)) else [film]
    cameras, masks = _each(camera, len(films)), _each(mask, len(films))
    if not films or not len(films) == len(cameras) == len(masks):
        raise RegistrationError(
            f"several films need as many cameras and masks, got {len(films)} films, {len(cameras)} cameras "
            f"and {len(masks)} masks; give lists of equal length, with None for a film without a mask"
        )
    return list(zip(films, cameras, masks, strict=True))


def surest(
    regressor: Regressor, volume: Volume, views: Sequence[tuple[Any, Any, Any]]
) -> tuple[PoseGuess, int]:
    """The guess with the least uncertainty among those of several films, and the number of its film.

    Films that the network cannot look at are left out; the last one's error is raised where all are.
    """
    return _surest(regressor, volume, views, [])


def _surest(
    regressor: Regressor, volume: Volume, views: Sequence[tuple[Any, Any, Any]], problems: list[str]
) -> tuple[PoseGuess, int]:
    guesses, problem = [], None
    for number, (film, camera, mask) in enumerate(views):
        try:
            guess = regressor.guess(film, camera, mask, center=volume.center)
        except (GeometryError, ImageError) as error:
            problem = error
            problems.append(f"guess from film {number + 1}: {error}")
            continue
        guesses.append((float(torch.logdet(guess.covariance)), number, guess))
    if not guesses:
        raise problem or RegistrationError("a guess needs at least one film")
    _, number, guess = min(guesses, key=lambda g: g[:2])
    return guess, number


def prior_of(guess: PoseGuess) -> tuple[float, float]:
    """The guess's deviations as a prior of `Body`: the largest of each kind (degrees, mm)."""
    turn, shift = math.degrees(float(guess.sigma[:3].max())), float(guess.sigma[3:].max())
    return max(turn, LEAST_PRIOR[0]), max(shift, LEAST_PRIOR[1])


def box_of(guess: PoseGuess, camera: Camera) -> SearchBox:
    """The box of a search about a guess, three of its standard deviations wide each way."""
    sigma = BOX_SIGMAS * guess.along(camera)
    turn = [min(max(math.degrees(float(s)), LEAST_BOX[0]), MOST_BOX[0]) for s in sigma[[1, 0, 2]]]
    shift = [min(max(float(s), LEAST_BOX[1]), MOST_BOX[1]) for s in sigma[3:]]
    return SearchBox(tuple(turn), tuple(shift))


def sigmas_apart(guess: PoseGuess, result: RegistrationResult) -> float:
    """How far an answer lies from the guess, in standard deviations of their difference (Mahalanobis)."""
    error = tangent_error(guess.world_from_body, result.world_from_body, guess.center)
    return math.sqrt(nees(error, guess.covariance + result.covariance))


def judged(guesses: Sequence[PoseGuess], result: RegistrationResult, how: str) -> Guessed:
    """An answer whose verdict knows how far it lies from the nearest guess, and rejects it where too far.

    guesses: those that were tried so far; a body may well lie as a variant says.
    """
    sigmas, number = min((sigmas_apart(guess, result), n) for n, guess in enumerate(guesses))
    verdict = result.verdict
    if verdict is not None:
        verdict = replace(verdict, evidence={**verdict.evidence, "guess_sigmas": sigmas})
    result = replace(result, verdict=verdict)
    if sigmas > MOST_SIGMAS and result.accepted:
        reason = (
            f"lies {sigmas:.1f} standard deviations from the network's guess (at most {MOST_SIGMAS:g} pass)"
        )
        if verdict is not None:
            verdict = replace(verdict, accepted=False, reason=reason)
        result = replace(result, accepted=False, reason=reason, verdict=verdict)
    return Guessed(result, guesses[number], how, sigmas)


@contextmanager
def _noting(problems: list[str], stage: str) -> Iterator[None]:
    """Go on after a stage from whose poses nothing of the volume shows in the film, and keep what it said."""
    try:
        yield
    except (GeometryError, RegistrationError) as error:
        problems.append(f"{stage}: {error}")


def _refined(
    volume: Volume, guess: PoseGuess, film: Any, camera: Any, known: dict[str, Any], problems: list[str]
) -> Guessed | None:
    settings = known["settings"]
    held = Body(volume, guess.world_from_body, prior_of(guess))
    coarse = replace(settings, levels=settings.levels[:1], restarts=0)
    with _noting(problems, "guess"):
        near = register_bodies([held], film, camera, **{**known, "settings": coarse}).bodies[0]
        free = Body(volume, near.world_from_body)
        result = register_bodies([free], film, camera, **known).bodies[0]
        return judged([guess], replace(result, renders=near.renders + result.renders), "guess")
    return None


def _tried(
    volume: Volume,
    guesses: Sequence[PoseGuess],
    stage: tuple[Any, Any, str],
    starts: Sequence[Tensor],
    known: dict[str, Any],
    problems: list[str],
) -> Guessed | None:
    """The best answer from some starts; stage: film, camera, and what it is called."""
    film, camera, how = stage
    if not starts:
        return None
    with _noting(problems, how):
        return judged(guesses, register_best(volume, film, camera, starts, **known), how)
    return None


def _searched(
    volume: Volume,
    guess: PoseGuess,
    films: tuple[Any, Any, Any],
    box: SearchBox,
    search: SearchSettings,
    problems: list[str],
) -> list[Tensor]:
    """The best starts within the box that the guess's uncertainty spans."""
    film, cameras, mask = films
    with _noting(problems, "search"):
        found = locate(volume, film, cameras, guess.world_from_body, mask=mask, box=box, search=search)
        return [pose for pose, _ in found[:2]]
    return []


def _sure(found: Guessed | None) -> bool:
    return found is not None and found.result.accepted


def _better(first: Guessed | None, second: Guessed | None) -> Guessed | None:
    """The answer that is accepted, or else of the higher score."""
    if first is None or second is None:
        return first or second
    return max(first, second, key=lambda g: (g.result.accepted, g.result.score))


def _each(value: Any, count: int) -> list[Any]:
    """One value a film: of a list, of a rig, the one of a single film, or none."""
    if value is None:
        return [None] * count
    if isinstance(value, Camera) or (count == 1 and not isinstance(value, (list, tuple))):
        return [value] * count
    return [value] if getattr(value, "ndim", 3) == 2 else list(value)  # rows of one mask are no masks


def _camera_of(film: Any, camera: Camera | None) -> Camera:
    return film.camera if camera is None else camera
