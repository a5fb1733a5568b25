"""What a registration answers."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One accepted pose on the way: level, how much the film was binned, score there, renders so far."""

    level: int
    bin: int
    world_from_body: Float[Tensor, "4 4"]
    score: float
    renders: int


@dataclass(frozen=True)
class RegistrationResult:
    """A pose, how sure it is, and whether to use it.

    world_from_body [4, 4] float64, RAS mm.  covariance [6, 6] of the tangent (rad, mm) of
    `se3.retract(world_from_body, ξ, center)`, from the normal equations at the last level and from how its
    patches disagree; not calibrated, and blind to what is wrong in all patches alike.  center: world mm.
    score: weighted mean NCC of the last level, -1 to 1.  accepted: whether the evidence suffices; reason: in
    words.  trajectory: accepted steps, the start first.  renders: images rendered, each with its Jacobian.
    seconds: wall time a stage.
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
