"""Levenberg-Marquardt on one level: each trial costs one render a body and view, with its Jacobian."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError, RegistrationError
from xreg.registration.unknowns import State, Unknowns
from xreg.similarity import Evidence

GROW, SHRINK = 6.0, 0.25  # of the damping, after a step that failed or held
DAMPING = (1e-3, 1e-7, 1e4)  # at the start, least, most
MOST_SIGMAS = 3.0  # that a step may change a view's calibration


@dataclass(frozen=True)
class Limits:
    """When a level ends: trials, the smallest step worth taking (mm at the anatomy's edge), step bounds."""

    trials: int
    smallest: float
    turn: float  # rad
    move: float  # mm
    length_scale: float  # mm


@dataclass
class Progress:
    """Where a level stands."""

    state: State
    evidence: Evidence
    trials: int = 0
    converged: bool = False


def refine(
    look: Callable[[State], Evidence],
    start: tuple[State, Evidence],
    unknowns: Unknowns,
    limits: Limits,
    accepted: Callable[[Progress], None],
) -> Progress:
    """Move a state downhill until a step is too small to matter.

    look renders a state and returns the evidence there; start is a state with its evidence.  accepted is
    told of each step that held.  A step is bounded, damped, and taken only when it lowers the cost; a trial
    that cannot be looked at (the volume left the beam) counts as one that failed.
    """
    progress = Progress(*start, 1)
    damping = DAMPING[0]
    balance = unknowns.balance(limits.length_scale)
    while progress.trials < limits.trials and not progress.converged:
        step = newton_step(progress.evidence, balance, damping)
        step = step / _excess(step, unknowns, limits)
        if step_size(step, unknowns, limits.length_scale) < limits.smallest:
            progress.converged = True
            break
        trial = unknowns.moved(progress.state, step)
        progress.trials += 1
        try:
            evidence = look(trial)
        except (GeometryError, RegistrationError):
            evidence = None
        if evidence is not None and evidence.cost < progress.evidence.cost:
            progress.state, progress.evidence = trial, evidence
            damping = max(DAMPING[1], damping * SHRINK)
            accepted(progress)
        else:
            damping *= GROW
            if damping > DAMPING[2]:
                progress.converged = True
    return progress


def newton_step(
    evidence: Evidence, balance: Float[Tensor, " N"], damping: float = 0.0
) -> Float[Tensor, " N"]:
    """The damped Gauss-Newton step; RegistrationError where the equations have no finite solution."""
    matrix = evidence.hessian * balance[:, None] * balance
    diagonal = torch.diagonal(matrix)
    floor = diagonal.amax().clamp_min(1e-30) * 1e-9
    damped = matrix + torch.diag(damping * diagonal + floor)
    solved, _ = torch.linalg.solve_ex(damped, evidence.gradient * balance)
    step = -solved * balance
    if not bool(torch.isfinite(step).all()):
        raise RegistrationError(
            "the normal equations have no finite solution: the film and the render share no contrast. Check "
            "that the film holds line integrals and that the start shows the anatomy"
        )
    return step


def step_size(step: Float[Tensor, " N"], unknowns: Unknowns, length_scale: float) -> float:
    """How far a step moves the edge of the body that it moves most, mm; a view's sigma counts as one."""
    tangents = step[: 6 * len(unknowns.bodies)].reshape(-1, 6)
    moves = tangents[:, :3].norm(dim=-1) * length_scale + tangents[:, 3:].norm(dim=-1)
    return max(float(moves.max()), _sigmas(step, unknowns))


def _sigmas(step: Tensor, unknowns: Unknowns) -> float:
    changes = step[6 * len(unknowns.bodies) :]
    return float((changes / unknowns.sigmas).abs().max()) if len(changes) else 0.0


def _excess(step: Tensor, unknowns: Unknowns, limits: Limits) -> float:
    """By how much a step breaks its bounds; 1 where it does not."""
    tangents = step[: 6 * len(unknowns.bodies)].reshape(-1, 6)
    turn, move = float(tangents[:, :3].norm(dim=-1).max()), float(tangents[:, 3:].norm(dim=-1).max())
    found = max(turn / limits.turn, move / limits.move, _sigmas(step, unknowns) / MOST_SIGMAS, 1.0)
    return found if math.isfinite(found) else 1.0
