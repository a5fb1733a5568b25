"""What the iterative methods tell while they run, and when they stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from xreg.errors import GeometryError


@dataclass(frozen=True)
class Iteration:
    """One pass of an iterative method.

    number: from 1; of: how many there will be at most; seconds: since the method began.  residual: ‖Ax − b‖ /
    ‖b‖ of the volume before the pass (for several subsets, of each as it came).  change: ‖x − x_before‖ /
    ‖x‖.
    volume: the volume now, [D, H, W] in 1/mm; it is the method's own: copy it to keep it.
    """

    number: int
    of: int
    seconds: float
    residual: float
    change: float
    volume: Tensor


OnIteration = Callable[[Iteration], object]


class Watch:
    """Counts passes, tells the caller, and says when to stop.

    It stops where the callback returns True, the next pass would end after ``seconds``, or the change falls
    to ``tolerance``.
    """

    def __init__(
        self, of: int, on_iteration: OnIteration | None, seconds: float | None, tolerance: float
    ) -> None:
        if not isinstance(of, int) or of < 1:
            raise GeometryError(f"iterations must be a whole number of at least 1, got {of!r}")
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise GeometryError(f"seconds, the time budget, must be positive or None, got {seconds!r}")
        self._of, self._tell, self._budget, self._tolerance = of, on_iteration, seconds, tolerance
        self._start = time.perf_counter()
        self.number = 0

    def done(self, residual: float, change: float, volume: Tensor) -> bool:
        """Note the end of a pass; True where it was the last."""
        self.number += 1
        spent = time.perf_counter() - self._start
        asked = False
        if self._tell is not None:
            asked = self._tell(Iteration(self.number, self._of, spent, residual, change, volume)) is True
        late = self._budget is not None and spent * (1 + 1 / self.number) > self._budget
        return asked or late or self.number >= self._of or change <= self._tolerance


def relative(part: Tensor, whole: Tensor) -> float:
    """‖part‖ / ‖whole‖, 0 where both are zero."""
    size, against = float(part.norm()), float(whole.norm())
    return size / against if against > 0 else (0.0 if size == 0 else math.inf)
