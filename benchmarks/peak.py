"""How much resident memory a piece of work adds at its height."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


class Peak:
    """`with Peak() as p:` leaves in `p.mb` how far resident memory rose above where it stood, in MB (1e6).

    On Linux the kernel's high-water mark is reset first; elsewhere only what exceeds the highest mark so far
    is seen, and `exact` is False.
    """

    mb: float = 0.0
    exact: bool = True

    def __enter__(self) -> Peak:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.before = _status("VmRSS")
        except OSError:
            self.exact = False
            self.before = _highest()
        return self

    def __exit__(self, *_: object) -> None:
        self.mb = ((_status("VmHWM") if self.exact else _highest()) - self.before) / 1e6


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
