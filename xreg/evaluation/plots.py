"""An evaluation as one picture: errors, capture range, calibration, ROC and time.  Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from xreg.errors import BackendError
from xreg.evaluation.summary import column
from xreg.io import atomic_write

_SMALLEST = 1e-3  # mm: an error below is drawn here, since the axis is logarithmic


def require_matplotlib() -> None:
    """Raise BackendError, naming the extra, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "the pictures of an evaluation need the package matplotlib: pip install 'xreg[evaluate]', or "
            "do without them (--no-plots)"
        ) from error


def save_plots(
    path: str | PathLike,
    summaries: Mapping[str, Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    *,
    within_mm: float,
    gross_mm: float,
) -> None:
    """Write the six panels as PNG, atomically.

    summaries, records: of `summarise` and `run`.  within_mm, gross_mm: mTRE of a success and of a gross
    failure, drawn as lines.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # and not pyplot, which has global state and looks for a screen

    figure = Figure(figsize=(15, 9), dpi=100, layout="constrained")
    axes = figure.subplots(2, 3)
    ends = {m: column([r for r in records if r["method"] == m], "mtre_mm") for m in summaries}
    _histogram(axes[0, 0], ends, within_mm, gross_mm)
    _cumulative(axes[0, 1], ends, summaries, within_mm, gross_mm)
    _capture(axes[0, 2], summaries, within_mm)
    _calibration(axes[1, 0], summaries)
    _roc(axes[1, 1], summaries)
    _time(axes[1, 2], {m: column([r for r in records if r["method"] == m], "seconds") for m in summaries})
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _histogram(axis: Any, ends: Mapping[str, np.ndarray], within: float, gross: float) -> None:
    known = np.concatenate([np.maximum(e, _SMALLEST) for e in ends.values()])
    if len(known):
        low, high = np.log10(known.min()) - 0.1, np.log10(known.max()) + 0.1
        bins = np.logspace(low, high, 31)
        for method, values in ends.items():
            axis.hist(np.maximum(values, _SMALLEST), bins=bins, alpha=0.6, label=method)
        axis.set_xscale("log")
    _limits(axis, within, gross)
    _words(axis, "Errors", "mTRE, mm", "registrations", len(known))


def _cumulative(
    axis: Any,
    ends: Mapping[str, np.ndarray],
    summaries: Mapping[str, Mapping[str, Any]],
    within: float,
    gross: float,
) -> None:
    for method, values in ends.items():
        if len(values):
            x = np.sort(np.maximum(values, _SMALLEST))
            # Over all trials: the curve of a method that gave no pose somewhere ends below one.
            axis.step(x, np.arange(1, len(x) + 1) / summaries[method]["trials"], where="post", label=method)
            axis.set_xscale("log")
    _limits(axis, within, gross)
    axis.set_ylim(0, 1.02)
    _words(axis, "Share of registrations within", "mTRE, mm", "share", sum(map(len, ends.values())))


def _capture(axis: Any, summaries: Mapping[str, Mapping[str, Any]], within: float) -> None:
    drawn = 0
    for method, summary in summaries.items():
        curve = summary["curves"].get("capture")
        if curve is None:
            continue
        edges = np.array(curve["edges"])
        rates = np.array([np.nan if r is None else r for r in curve["rates"]])
        has = np.isfinite(rates)
        label = f"{method}: {summary['capture_range_mm']:g} mm"
        axis.plot(((edges[1:] + edges[:-1]) / 2)[has], rates[has], "o-", label=label)
        drawn += int(has.sum())
    axis.axhline(0.95, color="grey", linewidth=0.8, linestyle=":")
    axis.set_ylim(0, 1.02)
    _words(axis, "Capture range", "mTRE of the start, mm", f"share within {within:g} mm", drawn)


def _calibration(axis: Any, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    drawn = 0
    for method, summary in summaries.items():
        curve = summary["curves"].get("calibration")
        if curve is not None:
            axis.plot(curve["expected"], curve["observed"], "o-", markersize=3, label=method)
            drawn += 1
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    _words(axis, "Covariance: truths inside its ellipsoid", "expected share", "observed share", drawn)


def _roc(axis: Any, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    drawn = 0
    for method, summary in summaries.items():
        curve = summary["curves"].get("roc")
        if curve is not None:
            label = f"{method}: area {summary['auc']:.3f}"
            axis.plot(curve["false_positive"], curve["true_positive"], label=label)
            drawn += 1
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    _words(
        axis,
        "The verdict's probability (ROC)",
        "wrong answers let through",
        "right answers let through",
        drawn,
    )


def _time(axis: Any, seconds: Mapping[str, np.ndarray]) -> None:
    known = {m: s for m, s in seconds.items() if len(s)}
    if known:
        axis.boxplot(list(known.values()))
        axis.set_xticks(range(1, len(known) + 1), list(known))
    axis.set_ylim(bottom=0)
    _words(axis, "Time", "", "seconds a registration", len(known))


def _limits(axis: Any, within: float, gross: float) -> None:
    axis.axvline(within, color="green", linewidth=0.8, linestyle=":")
    axis.axvline(gross, color="red", linewidth=0.8, linestyle=":")


def _words(axis: Any, title: str, x: str, y: str, drawn: int) -> None:
    axis.set(title=title, xlabel=x, ylabel=y)
    axis.grid(alpha=0.2)
    if not drawn:
        axis.text(
            0.5, 0.5, "nothing to show", ha="center", va="center", transform=axis.transAxes, color="grey"
        )
    elif axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small")
