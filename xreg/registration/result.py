"""What a registration answers."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from xreg.geometry import Camera


@dataclass(frozen=True)
class Step:
    """One accepted pose on the way: level, how much the film was binned, score there, renders so far.

    world_from_body: of the first body; poses: of all.
    """

    level: int
    bin: int
    world_from_body: Float[Tensor, "4 4"]
    score: float
    renders: int
    poses: tuple[Float[Tensor, "4 4"], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether to trust an answer, why, and what that was judged by.

    probability: that the pose is within `tolerance_mm` (mean over the anatomy), by a model fitted on
    simulated films.  evidence: the measured quantities that went into it, by name.
    """

    accepted: bool
    reason: str
    probability: float
    tolerance_mm: float
    evidence: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RegistrationResult:
    """A pose, how sure it is, and whether to use it.

    world_from_body [4, 4] float64, RAS mm.  covariance [6, 6] of the tangent (rad, mm) of
    `se3.retract(world_from_body, ξ, center)`, from the normal equations at the last level and from how its
    patches disagree, scaled as simulated films ask.  center: world mm.  score: weighted mean NCC of the last
    level, -1 to 1.  accepted: whether the evidence suffices; reason: in words; verdict: what they rest on.
    trajectory: accepted steps, the start first.  renders: images rendered to find it, each with its Jacobian;
    checks: those rendered to judge it.  seconds: wall time a stage.
    """

    world_from_body: Float[Tensor, "4 4"]
    covariance: Float[Tensor, "6 6"]
    center: Float[Tensor, "3"]
    score: float
    accepted: bool
    reason: str
    trajectory: tuple[Step, ...]
    renders: int
    seconds: dict[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None
    checks: int = 0


@dataclass(frozen=True)
class BodiesResult:
    """Several bodies found together.

    bodies: a result each, in the order given.  covariance [N, N]: of all unknowns together (six a body, then
    what was free about the views).  cameras: the views' cameras with what was free about them changed.
    """

    bodies: tuple[RegistrationResult, ...]
    covariance: Float[Tensor, "N N"]
    cameras: tuple[Camera, ...]
    verdict: Verdict
