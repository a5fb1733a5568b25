"""Registrations that may go wrong: degraded films, far starts, several views, and films of somebody else.

Shared by `calibrate.py`, which fits the trust model on some of them, and `trust.py`, which tests it on
others.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from common import PHANTOM, find_ct, load_ct
from films import bone_points, make_case, random_look, take
from torch import Tensor

from xreg import metrics
from xreg.errors import GeometryError, RegistrationError, XregError
from xreg.geometry import Camera, se3
from xreg.registration import RegistrationResult, SearchBox, Settings, register, register_anywhere
from xreg.registration.anatomy import anatomy_of
from xreg.registration.trust import scaled, unscaled
from xreg.volume import Volume

NEAR, ASIDE, FAR = (20.0, 10.0), (45.0, 18.0), (60.0, 30.0)  # mm, degrees on each axis
MIDDLE = (0.45, 0.7)  # part of the film's sides that a narrow one shows, least and most
SECOND_VIEW = 70.0  # degrees of primary angle from the first
NO_TRUTH = 1e3  # mm: the error of any answer about a film of somebody else


@dataclass
class Trial:
    """One registration: what kind it was, how wrong it ended, and what it said of itself."""

    kind: str
    body: str
    seed: int
    start_mm: float
    error_mm: float
    seconds: float
    accepted: bool = False
    probability: float = 0.0
    score: float = -1.0
    evidence: dict = field(default_factory=dict)
    tangent: list = field(default_factory=list)  # of the truth about the answer, in balanced units (mm)
    raw: list = field(default_factory=list)  # covariance by the normal equations, balanced, [6, 6]
    voxel: float = 1.0  # mm
    views: int = 1
    note: str = ""


def files_of(chest: str | None, pelvis: str | None) -> dict[str, str]:
    """The CT of each body: chest always, pelvis where its file is given."""
    return {"chest": find_ct(chest)} | ({"pelvis": pelvis} if pelvis else {})


def load_bodies(chest: str | None, pelvis: str | None) -> dict[str, Volume]:
    """The volumes of `files_of`."""
    return {name: load_ct(path) for name, path in files_of(chest, pelvis).items()}


def kinds_of(bodies: dict[str, Volume]) -> list[tuple[str, str]]:
    """(kind, body) in turn, so that any number of trials is a fair mixture."""
    kinds = []
    for name in bodies:
        kinds += [("near", name), ("far", name), ("near, two views", name), ("far, searched", name)]
        kinds += [("mirrored", name), ("two moments", name)]
    return kinds + ([("somebody else", n) for n in bodies] if len(bodies) > 1 else [])


def all_kinds(bodies: dict[str, Volume]) -> list[tuple[str, str]]:
    """`kinds_of`, and films of which only the middle is shown: nothing is fitted on these.

    The phantom is among them, whose halves are alike, so that its wrong answers look more right than a
    patient's.
    """
    patients = {name: volume for name, volume in bodies.items() if name != PHANTOM}
    return kinds_of(patients) + [("narrow", name) for name in bodies]


def run_trial(bodies: dict[str, Volume], kind: str, body: str, seed: int, settings: Settings) -> Trial:
    """Make the films of a seed and register them."""
    volume = bodies[body]
    filmed = volume if kind != "somebody else" else next(v for n, v in bodies.items() if n != body)
    offset = FAR if kind.startswith("far") else ASIDE if kind == "narrow" else NEAR
    case = make_case(filmed, 256, seed, offset, look=random_look(seed))
    films, masks, cameras, start = [case.film], [case.mask], [case.camera], case.start
    if kind in ("near, two views", "two moments"):
        camera = second_view(case.camera, case.primary, filmed)
        pose = case.truth if kind == "near, two views" else elsewhere(case.truth, filmed, seed)
        film, mask = take(filmed, camera, pose, seed + 500_000, random_look(seed + 500_000))
        films, masks, cameras = [case.film, film], [case.mask, mask], [case.camera, camera]
    if kind == "narrow":
        masks = [case.mask & middle_of(case.mask, seed)]
    if kind == "mirrored":
        films, masks = [case.film.flip(-1)], [case.mask.flip(-1)]
    if filmed is not volume:
        start = se3.from_translation(filmed.center - volume.center) @ start
    points = bone_points(volume) if filmed is volume else None
    right = points is not None and kind not in ("mirrored", "two moments")
    before = metrics.mtre(case.start, case.truth, points) if right else NO_TRUTH
    began = time.perf_counter()
    try:
        how = register_or_search if kind == "far, searched" else register
        out = how(volume, films, cameras, start, mask=masks, settings=settings)
    except XregError as error:
        return Trial(kind, body, seed, before, NO_TRUTH, time.perf_counter() - began, note=str(error))
    seconds = time.perf_counter() - began
    error = metrics.mtre(out.world_from_body, case.truth, points) if right else NO_TRUTH
    tangent, raw = balanced(out, case.truth, volume, len(films), settings.length_scale) if right else ([], [])
    return Trial(
        kind, body, seed, before, error, seconds, out.accepted, out.verdict.probability, out.score,
        out.verdict.evidence, tangent, raw, detail_of(volume), len(films),
    )  # fmt: skip


def register_or_search(volume, film, camera, start, *, mask, settings: Settings) -> RegistrationResult:
    """What a careful script does: register, and search about the start where the answer is not accepted."""
    try:
        out = register(volume, film, camera, start, mask=mask, settings=settings)
    except (GeometryError, RegistrationError):
        out = None
    if out is not None and out.accepted:
        return out
    box = SearchBox((FAR[1],) * 3, (FAR[0],) * 3)
    found = register_anywhere(volume, film, camera, start, mask=mask, box=box, settings=settings)
    return found if out is None or found.score >= out.score else out


def middle_of(film: Tensor, seed: int) -> Tensor:
    """[H, W], true in the middle of a film."""
    share = np.random.default_rng(20_000 + seed).uniform(*MIDDLE)
    v, u = (torch.linspace(-1, 1, n).abs() < share for n in film.shape)
    return v[:, None] & u


_bodies: dict[str, Volume] = {}  # of a worker


def run_trials(
    chest: str | None, pelvis: str | None, seeds: Sequence[int], jobs: int, *, narrow: bool = False
) -> Iterator[Trial]:
    """Trials of `kinds_of`, or of `all_kinds`, in the order of their seeds; each process uses one thread."""
    context, known = multiprocessing.get_context("spawn"), (chest, pelvis, narrow)
    with ProcessPoolExecutor(jobs, context, initializer=_prepare, initargs=known) as pool:
        yield from pool.map(_one_trial, range(len(seeds)), seeds)


def _prepare(chest: str | None, pelvis: str | None, narrow: bool) -> None:
    torch.set_num_threads(1)
    _bodies.update(load_bodies(chest, pelvis))
    if narrow:
        _bodies[PHANTOM] = load_ct(PHANTOM)


def _one_trial(number: int, seed: int) -> Trial:
    kinds = all_kinds(_bodies) if PHANTOM in _bodies else kinds_of(_bodies)
    return run_trial(_bodies, *kinds[number % len(kinds)], seed, Settings())


def elsewhere(pose: Tensor, volume: Volume, seed: int) -> Tensor:
    """A pose 15 mm and 7° away, as if the patient had moved between two films."""
    step = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    step = torch.cat([0.12 * step[:3] / step[:3].norm(), 15 * step[3:] / step[3:].norm()])
    return se3.retract(pose, step, se3.apply(pose, volume.center[None])[0])


def second_view(first: Camera, primary: float, volume: Volume) -> Camera:
    """A view across the first."""
    from films import FIELD_MM, SDD, SOD

    angle = primary + (SECOND_VIEW if primary < 0 else -SECOND_VIEW)
    size = first.size
    return Camera.c_arm(
        sdd=SDD, sod=SOD, primary=angle, secondary=0, size=size, spacing=FIELD_MM / size[0],
        isocenter=volume.center,
    )  # fmt: skip


def detail_of(volume: Volume) -> float:
    """A voxel's size, mm, as the registration sees it."""
    return anatomy_of(volume, Settings().beam).detail_mm


def balanced(out: RegistrationResult, truth: Tensor, volume: Volume, views: int, length: float) -> tuple:
    """The truth as a tangent about the answer, and the unscaled covariance, in mm at the anatomy's edge."""
    scale = torch.tensor([length] * 3 + [1.0] * 3, dtype=torch.float64)
    xi = metrics.tangent_error(out.world_from_body, truth, out.center) * scale
    voxels = torch.full((6,), detail_of(volume), dtype=torch.float64)
    return xi.tolist(), unscaled(out.covariance * scale[:, None] * scale, voxels, views).tolist()


def nees(trial: Trial) -> float:
    """Squared error in standard deviations, which should follow chi-squared with six degrees of freedom."""
    voxels = torch.full((6,), trial.voxel, dtype=torch.float64)
    covariance = scaled(torch.tensor(trial.raw, dtype=torch.float64), voxels, trial.views)
    return metrics.nees(torch.tensor(trial.tangent, dtype=torch.float64), covariance)


def as_dicts(trials: list[Trial]) -> list[dict]:
    """Plain values, without the matrices."""
    return [{k: v for k, v in asdict(t).items() if k not in ("tangent", "raw")} for t in trials]
