"""What a registration may be told."""

from dataclasses import dataclass, field

from xreg.errors import RegistrationError
from xreg.renderer import Beam
from xreg.similarity import Term

COARSE = (Term("image", None, 0.5), Term("gradient", None, 0.5))
FINE = (Term("image", 12, 0.5), Term("gradient", 12, 0.5))


@dataclass(frozen=True)
class Level:
    """One resolution of the search.

    pixels: the film is binned until its longer side is at most this; None: as it is.  terms: the similarity.
    iterations: renders that may be spent at most.  tolerance: stop when a step moves the anatomy's edge by
    less than this part of a pixel.
    """

    pixels: int | None
    terms: tuple[Term, ...] = FINE
    iterations: int = 12
    tolerance: float = 0.05


@dataclass(frozen=True)
class Settings:
    """Everything that `register` can be told beyond its data.

    levels: coarse to fine.  beam: how renders are integrated; Joseph's derivative is that of its image, where
    a march in fixed steps has one that is off by percents, and ends two to three times further away.
    length_scale (mm) balances rotation against translation: how far from the centre the anatomy that matters
    reaches.  step_limit: (degrees, mm) that one step may turn and move.  accept_score: score below which a
    result is not accepted.  accept_probability: probability that an answer needs to be accepted; None: as
    simulation showed, and more where there are no restarts, there is a shadow, or one standard deviation is
    above the verdict's tolerance.  confirmed: something else stands in for restarts, so that as little is
    asked as with them.  robust: squared residual of
    a patch, 2 (1 - NCC), beyond which it counts less and less; large: every patch counts alike.  shadow:
    None, or count only pixels within this distance (mm) of the volume's shadow at the level's start, for a
    single bone in a film of a whole wrist.  restarts: how many searches from beside the answer (restart_mm at
    the anatomy's edge) shall confirm it, for the verdict.
    """

    levels: tuple[Level, ...] = field(
        default_factory=lambda: (
            Level(32, COARSE, 8, 0.3),
            Level(32, FINE, 12, 0.1),
            Level(64, FINE, 12, 0.1),
            Level(256, FINE, 6, 0.05),
        )
    )
    beam: Beam = field(default_factory=lambda: Beam("joseph"))
    length_scale: float = 100.0
    step_limit: tuple[float, float] = (8.0, 30.0)
    accept_score: float = 0.25
    robust: float = 0.5
    shadow: float | None = None
    restarts: int = 2
    restart_mm: float = 6.0
    accept_probability: float | None = None
    confirmed: bool = False

    def __post_init__(self) -> None:
        if not self.levels:
            raise RegistrationError("levels must hold at least one Level")
        if not self.length_scale > 0:
            raise RegistrationError(f"length_scale must be positive (mm), got {self.length_scale}")
        if self.accept_probability is not None and not 0 <= self.accept_probability <= 1:
            raise RegistrationError(
                f"accept_probability must lie within 0 and 1, or be None, got {self.accept_probability}"
            )
