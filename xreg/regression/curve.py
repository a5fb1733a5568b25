"""A training's curve as a picture.  Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from xreg.errors import BackendError
from xreg.io import atomic_write

_SHOWN = (("degrees", "turn (°)"), ("in_plane_mm", "across the beam (mm)"), ("depth_mm", "along it (mm)"))


def draw_curve(log: Sequence[Mapping[str, Any]], path: str | PathLike) -> None:
    """Write the held-out medians against minutes as PNG, atomically; log: the lines of `read_log`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError("the picture of a curve needs matplotlib: pip install 'xreg[docs]'") from error
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    minutes = [line["seconds"] / 60 for line in log]
    for name, text in _SHOWN:
        axes.plot(minutes, [line["validation"][name] for line in log], marker=".", label=text)
    axes.set(xlabel="minutes of training", ylabel="median error of held-out films", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
