"""How sure an answer is: its covariance, and whether to use it."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import RegistrationError
from xreg.registration.anatomy import anatomy_of
from xreg.registration.gauss_newton import newton_step, step_size
from xreg.registration.result import Verdict
from xreg.registration.settings import Settings
from xreg.registration.unknowns import Unknowns
from xreg.similarity import Evidence

MODEL = Path(__file__).with_name("trust.json")  # written by benchmarks/calibrate.py
WORST_CONDITION = 2e3  # of the normal equations in balanced units
SURE_UNSEEN = 0.9  # probability that an answer needs that is unlike those which the model was fitted on
SURE_VAGUE = 0.97  # the same where one standard deviation is above the tolerance: see docs/registration.md
FAR_MM = 1e3  # what stands for a distance that is as bad as can be
MOST_CONDITION = 1e18  # what stands for equations that are singular to the last bit; records hold no infinity
NOTHING = 1e-12  # part of the greatest eigenvalue, each unknown in its width, below which nothing is known


@cache
def model() -> dict:
    """What was fitted on simulated films: the covariance's scale, and the verdict's weights."""
    return json.loads(MODEL.read_text())


def rules() -> tuple[Any, ...]:
    """All that verdicts and covariances go by beside the settings."""
    return (model(), WORST_CONDITION, SURE_UNSEEN, SURE_VAGUE, FAR_MM, NOTHING)


def spread_of(evidence: Evidence, unknowns: Unknowns, settings: Settings) -> Float[Tensor, "N N"]:
    """Covariance of the unknowns: the sandwich of the normal equations, scaled by what simulation showed.

    A direction of which neither the films nor a prior say anything gets a deviation of `FAR_MM`.
    """
    balance = unknowns.balance(settings.length_scale)
    balance = balance[:, None] * balance
    matrix = evidence.hessian * balance
    inverse, unknown = inverse_of(matrix)
    covariance = inverse @ (evidence.scatter * balance) @ inverse
    voxels = torch.tensor(
        [anatomy_of(b.volume, settings.beam).detail_mm for b in unknowns.bodies], dtype=torch.float64
    )
    rest = voxels.mean().repeat(unknowns.count - 6 * len(voxels))
    voxels = torch.cat([voxels.repeat_interleave(6), rest])
    covariance = scaled(covariance, voxels, len(unknowns.cameras))
    if evidence.prior is not None:
        covariance = covariance + inverse @ (evidence.prior * balance) @ inverse
    covariance = (covariance + FAR_MM**2 * unknown @ unknown.T) * balance
    return 0.5 * (covariance + covariance.T)


def inverse_of(matrix: Float[Tensor, "N N"]) -> tuple[Float[Tensor, "N N"], Float[Tensor, "N K"]]:
    """A generalised inverse of normal equations, and unit vectors of what they leave open.

    Unknowns are counted in their own widths meanwhile: beside one that a narrow prior holds, all others would
    look as if nothing were known of them.
    """
    width = matrix.diagonal()
    width = torch.where(width > 0, width, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T) * width[:, None] * width)
    known = values > NOTHING * values[-1].clamp_min(0)
    seen = width[:, None] * vectors[:, known]
    return seen / values[known] @ seen.T, torch.linalg.qr(width[:, None] * vectors[:, ~known]).Q


def condition_of(matrix: Float[Tensor, "N N"], poses: int) -> float:
    """Condition number of the poses' part, the first 6 `poses` unknowns, whatever the views' are."""
    n = 6 * poses
    of_poses = matrix[:n, :n]
    if len(matrix) > n:  # what is free about the views has a prior each, so its part can be solved
        of_poses = of_poses - matrix[:n, n:] @ torch.linalg.solve(matrix[n:, n:], matrix[n:, :n])
    found = float(torch.linalg.cond(of_poses))
    return found if found < MOST_CONDITION else MOST_CONDITION


def scaled(covariance: Float[Tensor, "N N"], voxels: Float[Tensor, " N"], views: int) -> Float[Tensor, "N N"]:
    """What the normal equations say (in mm), made as large as errors are on simulated films.

    Films differ from renders by more than noise: anatomy inside a voxel, scatter, tools.  In simulation the
    errors grew with the voxels, by a power that is fitted, and did not become smaller where a second view
    said the same as the first: so the variance that the views share is counted once, not once a view.
    """
    known = model()["covariance"]
    grown = voxels ** (known["voxel_power"] / 2)
    return known["scale"] * views * covariance * grown[:, None] * grown


def unscaled(
    covariance: Float[Tensor, "N N"], voxels: Float[Tensor, " N"], views: int
) -> Float[Tensor, "N N"]:
    """The inverse of `scaled`, for fitting it anew."""
    return covariance / scaled(torch.ones_like(covariance), voxels, views)


def measured(
    evidence: Evidence, unknowns: Unknowns, covariance: Tensor, agreement: float | None, settings: Settings
) -> dict[str, float]:
    """What a verdict is judged by, by name."""
    balance = unknowns.balance(settings.length_scale)
    matrix = evidence.hessian * balance[:, None] * balance
    in_mm = (covariance / balance[:, None] / balance).diagonal()[: 6 * len(unknowns.bodies)]
    try:
        left = step_size(newton_step(evidence, balance), unknowns, settings.length_scale)
    except RegistrationError:  # no finite step: as bad as can be
        left = FAR_MM
    found = {
        "score": evidence.score,
        "least_term": min(evidence.terms) if evidence.terms else evidence.score,
        "step_left_mm": min(left, FAR_MM),
        "condition": condition_of(matrix, len(unknowns.bodies)),
        "deviation_mm": min(float(in_mm.clamp_min(0).amax().sqrt()), FAR_MM),
    }
    if len(evidence.parts) > 1:
        found["views_apart_mm"] = min(views_apart(evidence, unknowns, settings), FAR_MM)
    if agreement is not None:
        found["restarts_apart_mm"] = min(agreement, FAR_MM)
    return found


def views_apart(evidence: Evidence, unknowns: Unknowns, settings: Settings) -> float:
    """How far the views pull apart: the largest step that one alone would take, mm."""
    balance = unknowns.balance(settings.length_scale)
    steps = [newton_step(part, balance, 1e-2) for part in evidence.parts]
    return max(step_size(step, unknowns, settings.length_scale) for step in steps)


def probability_of(found: dict[str, float]) -> float:
    """That the pose is right, by the logistic model over the logarithms of what was measured."""
    weights = model()["verdict"]
    total = weights["bias"]
    for name, weight in weights["weights"].items():
        total += weight * counted(name, found.get(name), weights["typical"][name])
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, total))))


def counted(name: str, value: float | None, typical: float) -> float:
    """A measured quantity as the model sees it; what was not measured counts as typical of right answers.

    Distances that are smaller than typical earn nothing: searches about a wrong optimum can end closer
    together than about a right one.
    """
    if value is None:
        value = typical
    if name in ("score", "least_term"):
        return math.atanh(max(-0.999, min(0.999, value)))
    return math.log10(max(value, typical, 1e-4))


def verdict_of(
    evidence: Evidence, unknowns: Unknowns, covariance: Tensor, agreement: float | None, settings: Settings
) -> Verdict:
    """Accept or reject, and say why."""
    found = measured(evidence, unknowns, covariance, agreement, settings)
    probability = probability_of(found)
    vague = found["deviation_mm"] > model()["verdict"]["tolerance_mm"]
    confirmed = settings.confirmed or agreement is not None
    needed = needed_probability(settings, confirmed=confirmed, vague=vague)
    reason = _open_direction(found, unknowns)
    if reason is None and not found["score"] >= settings.accept_score:
        reason = (
            f"the best score {found['score']:.3f} is below {settings.accept_score:.3f}: no match was found "
            "from this start"
        )
    if reason is None and not probability >= needed:
        because = vague and settings.accept_probability is None
        where = f" where one standard deviation is {found['deviation_mm']:.3g} mm" if because else ""
        told, asked = _apart(probability, needed)
        reason = f"right with a probability of {told} only (needs {asked}{where}): {_weakest(found)}"
    accepted = reason is None
    if accepted:
        reason = f"score {found['score']:.3f}, right with a probability of {chance(probability)}"
    return Verdict(accepted, reason, probability, model()["verdict"]["tolerance_mm"], found)


def needed_probability(settings: Settings, *, confirmed: bool, vague: bool = False) -> float:
    """The probability that an answer needs.

    confirmed: whether restarts were made.  vague: whether one standard deviation is above the tolerance.  The
    model's own threshold was fitted on answers with restarts, on films of a whole trunk, which determine the
    pose to a millimetre.
    """
    if settings.accept_probability is not None:
        return settings.accept_probability
    needed = model()["verdict"]["threshold"]
    if vague:
        return max(needed, SURE_VAGUE)
    return needed if confirmed and settings.shadow is None else max(needed, SURE_UNSEEN)


def _open_direction(found: dict[str, float], unknowns: Unknowns) -> str | None:
    """Why the equations do not determine the pose, or None where they do.

    A prior may stand in for what the film does not show, but only where it is as tight as the tolerance.
    """
    if found["condition"] < WORST_CONDITION:
        return None
    number = f"(condition number {found['condition']:.1e})"
    if not unknowns.priors:
        return f"the film does not determine the pose {number}"
    if found["deviation_mm"] <= model()["verdict"]["tolerance_mm"]:
        return None
    return (
        f"film and priors determine the pose to {found['deviation_mm']:.3g} mm only, one standard deviation "
        f"{number}"
    )


def chance(probability: float) -> str:
    """A probability in words that claim no more than simulation can show."""
    return (
        "over 99 %"
        if probability > 0.99
        else "under 1 %"
        if probability < 0.01
        else f"{100 * probability:.0f} %"
    )


def _apart(less: float, more: float) -> tuple[str, str]:
    """Both in words; in tenths where they would read alike."""
    if chance(less) != chance(more):
        return chance(less), chance(more)
    return f"{math.floor(1000 * less) / 10:.1f} %", f"{100 * more:.1f} %"


def _weakest(found: dict[str, float]) -> str:
    """The quantity that speaks most against the answer, in words."""
    weights = model()["verdict"]
    words = {
        "score": "the score is low",
        "least_term": "image or gradients disagree",
        "step_left_mm": "the search had not settled",
        "condition": "the film hardly determines the pose",
        "deviation_mm": "the standard deviation is large",
        "views_apart_mm": "the views disagree",
        "restarts_apart_mm": "searches from beside it end elsewhere",
    }
    pulls = {
        name: weight * (counted(name, found[name], usual) - counted(name, None, usual))
        for name, weight in weights["weights"].items()
        if name in found
        for usual in [weights["typical"][name]]
    }
    worst = min(pulls, key=lambda name: pulls[name], default=None)
    if worst is None or pulls[worst] >= 0:
        return "the evidence is no better than usual"
    return f"{words[worst]} ({worst} {found[worst]:.3g}, usually {weights['typical'][worst]:.3g})"
