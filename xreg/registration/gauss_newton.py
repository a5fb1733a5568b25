"""Levenberg-Marquardt on one level: each trial pose costs one render with its Jacobian."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError, RegistrationError
from xreg.geometry import se3
from xreg.similarity import Evidence

GROW, SHRINK = 6.0, 0.25  # of the damping, after a step that failed or held
DAMPING = (1e-3, 1e-7, 1e4)  # at the start, least, most


@dataclass(frozen=True)
class Limits:
    """When a level ends: renders, the smallest step worth taking (mm at the anatomy's edge), step bounds."""

    renders: int
    smallest: float
    turn: float  # rad
    move: float  # mm
    length_scale: float  # mm


@dataclass
class Progress:
    """Where a level stands."""

    pose: Float[Tensor, "4 4"]
    evidence: Evidence
    renders: int = 0
    converged: bool = False


def refine(
    look: Callable[[Float[Tensor, "4 4"]], Evidence],
    start: tuple[Float[Tensor, "4 4"], Evidence],
    center_of: Callable[[Float[Tensor, "4 4"]], Float[Tensor, "3"]],
    limits: Limits,
    accepted: Callable[[Progress], None],
) -> Progress:
    """Move a pose downhill until a step is too small to matter.

    look renders at a pose and returns the evidence there; start is a pose with its evidence.  accepted is
    told of each step that held.  A step is bounded, damped, and taken only when it lowers the cost; a trial
    that cannot be looked at (the volume left the beam) counts as one that failed.
    """
    state = Progress(*start, 1)
    damping = DAMPING[0]
    while state.renders < limits.renders and not state.converged:
        step = _step(state.evidence, damping, limits)
        size = _size(step, limits)
        if size < limits.smallest:
            state.converged = True
            break
        trial = se3.retract(state.pose, step, center_of(state.pose))  # float64: a rotation to 1e-15
        state.renders += 1
        try:
            evidence = look(trial)
        except (GeometryError, RegistrationError):
            evidence = None
        if evidence is not None and evidence.cost < state.evidence.cost:
            state.pose, state.evidence = trial, evidence
            damping = max(DAMPING[1], damping * SHRINK)
            accepted(state)
        else:
            damping *= GROW
            if damping > DAMPING[2]:
                state.converged = True
    return state


def balance_of(length_scale: float) -> Float[Tensor, " 6"]:
    """What turns a tangent in mm at the anatomy's edge into (rad, mm)."""
    return torch.tensor([1 / length_scale] * 3 + [1.0] * 3, dtype=torch.float64)


def _step(evidence: Evidence, damping: float, limits: Limits) -> Float[Tensor, "6"]:
    balance = balance_of(limits.length_scale)
    matrix = evidence.hessian * balance[:, None] * balance
    diagonal = torch.diagonal(matrix)
    floor = diagonal.amax().clamp_min(1e-30) * 1e-9
    damped = matrix + torch.diag(damping * diagonal + floor)
    step = -torch.linalg.solve(damped, evidence.gradient * balance) * balance
    turn, move = float(step[:3].norm()), float(step[3:].norm())
    excess = max(turn / limits.turn, move / limits.move, 1.0)
    if not math.isfinite(excess):
        raise RegistrationError(
            "the normal equations have no finite solution: the film and the render share no contrast. Check "
            "that the film holds line integrals and that the start shows the anatomy"
        )
    return step / excess


def _size(step: Float[Tensor, "6"], limits: Limits) -> float:
    return float(step[:3].norm()) * limits.length_scale + float(step[3:].norm())
