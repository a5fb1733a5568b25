"""What many trials say together: a table of figures a method, and gates that must hold."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from xreg import metrics
from xreg.errors import XregError

WITHIN_MM = 2.0  # the tolerance of the verdict's model
Record = Mapping[str, Any]

# Every figure of a summary: what it is called in JSON and in gates, its unit, and what it means.
FIGURES: dict[str, tuple[str, str]] = {
    "trials": ("", "registrations, failed ones included"),
    "failed": ("", "of them ended with an error and no pose"),
    "success": ("share", "mTRE within the tolerance; an error is none"),
    "gross_failure": ("share", "mTRE beyond the gross threshold, or no pose"),
    "capture_range_mm": ("mm", "start mTRE up to which every bin succeeds at least 95 %"),
    "start_mtre_median_mm": ("mm", "mTRE of the starts, median"),
    "mtre_median_mm": ("mm", "mean distance of landmarks from their true place, median"),
    "mtre_mean_mm": ("mm", "the same, mean"),
    "mtre_p95_mm": ("mm", "the same, 95 % of the poses are better"),
    "mtre_max_mm": ("mm", "the same, worst"),
    "mpe_median_mm": ("mm", "mean distance of projections on the detector, median"),
    "mpe_median_px": ("px", "the same in pixels"),
    "mrpe_median_mm": ("mm", "mean distance of landmarks from the rays of their projections, median"),
    "rotation_median_deg": ("°", "angle between the poses, median"),
    "translation_median_mm": ("mm", "distance of the CT's middle from its true place, median"),
    "accepted": ("share", "of the poses that the method accepts"),
    "accepted_but_wrong": ("share", "of the accepted poses that are not within the tolerance"),
    "rejected_but_right": ("share", "of the rejected poses that are"),
    "auc": ("", "area under the ROC of the verdict's probability; 0.5 is chance"),
    "coverage95": (
        "share",
        "of the truths inside the 95 % ellipsoid, over poses not rejected; right is 95 %",
    ),
    "nees_median": ("", "normalised squared error of these, median; right is 5.35"),
    "renders_median": ("", "images rendered, median"),
    "seconds_median": ("s", "wall time of a registration, median"),
    "seconds_p95": ("s", "wall time, 95 %"),
}
_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Gate:
    """A condition on a figure; for one method, or for every one where `method` is empty."""

    method: str
    figure: str
    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.method + '.' if self.method else ''}{self.figure}{self.sign}{self.limit:g}"

    def holds(self, summaries: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether it does; a figure that could not be measured holds nothing."""
        chosen = [summaries[self.method]] if self.method else list(summaries.values())
        return all(
            s[self.figure] is not None and _OPERATORS[self.sign](s[self.figure], self.limit) for s in chosen
        )


def parse_gate(text: str, methods: Sequence[str]) -> Gate:
    """A gate such as "success>=0.9", "refine.mtre_median_mm<1" or "failed<=0".  Raises XregError."""
    found = re.fullmatch(r"\s*(?:([^\s.<>=]+)\.)?(\w+)\s*(>=|<=|>|<)\s*([^\s]+)\s*", text)
    try:
        limit = float(found.group(4)) if found else math.nan
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise XregError(f'a gate must read like "success>=0.9" (with >=, <=, > or <), got {text!r}')
    method, figure, sign = found.group(1) or "", found.group(2), found.group(3)
    if figure not in FIGURES:
        raise XregError(f"no figure is named {figure!r}; the figures are {', '.join(FIGURES)}")
    if method and method not in methods:
        raise XregError(f"the gate {text!r} is for a method that is not run; these are {', '.join(methods)}")
    return Gate(method, figure, sign, limit)


def summarise(
    records: Sequence[Record],
    *,
    within_mm: float = WITHIN_MM,
    gross_mm: float = metrics.GROSS_MM,
    bin_mm: float = 2.0,
) -> dict[str, dict[str, Any]]:
    """The FIGURES of each method, and the curves behind them under "curves"; None where nothing is known.

    within_mm: mTRE (mm) of a success.  gross_mm: mTRE of a gross failure.  bin_mm: bins of the capture range.
    Medians are over trials that have the figure; rates are over all.
    """
    methods = dict.fromkeys(r["method"] for r in records)
    return {
        method: _clean(_figures([r for r in records if r["method"] == method], within_mm, gross_mm, bin_mm))
        for method in methods
    }


def _figures(records: Sequence[Record], within: float, gross: float, bin_mm: float) -> dict[str, Any]:
    done = [r for r in records if r["status"] == "done"]
    ends = np.array([np.inf if r.get("mtre_mm") is None else r["mtre_mm"] for r in records])
    known = ends[np.isfinite(ends)]
    seconds = column(done, "seconds")
    starts, kept = _started(records, ends)
    figures = {
        "trials": len(records),
        "failed": len(records) - len(done),
        "success": metrics.success_rate(ends, within),
        "gross_failure": metrics.gross_failure_rate(ends, gross),
        "start_mtre_median_mm": _percentile(starts, 50),
        "mtre_median_mm": _percentile(known, 50),
        "mtre_mean_mm": float(known.mean()) if known.size else None,
        "mtre_p95_mm": _percentile(known, 95),
        "mtre_max_mm": _percentile(known, 100),
        **{
            figure: _percentile(column(done, name), 50)
            for figure, name in (
                ("mpe_median_mm", "mpe_mm"),
                ("mpe_median_px", "mpe_px"),
                ("mrpe_median_mm", "mrpe_mm"),
                ("rotation_median_deg", "rotation_deg"),
                ("translation_median_mm", "translation_mm"),
                ("renders_median", "renders"),
            )
        },
        "seconds_median": _percentile(seconds, 50),
        "seconds_p95": _percentile(seconds, 95),
    }
    curves: dict[str, Any] = {}
    if len(starts):
        capture = metrics.capture_range(starts, kept, threshold=within, bin_mm=bin_mm)
        figures["capture_range_mm"] = capture.range_mm
        curves["capture"] = {"edges": capture.edges, "counts": capture.counts, "rates": capture.rates}
    figures |= _verdicts(done, within, curves) | _covariances(done, curves)
    return {**{name: figures.get(name) for name in FIGURES}, "curves": curves}


def _started(records: Sequence[Record], ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mTRE of starts and ends (inf: none) of the trials whose start is known."""
    has = np.array([r.get("start_mtre_mm") is not None for r in records], dtype=bool)
    return column(records, "start_mtre_mm"), ends[has]


def _verdicts(done: Sequence[Record], within: float, curves: dict[str, Any]) -> dict[str, Any]:
    judged = [r for r in done if r.get("accepted") is not None]
    figures: dict[str, Any] = {}
    if judged:
        accepted = np.array([r["accepted"] for r in judged])
        right = np.array([r["mtre_mm"] <= within for r in judged])
        figures["accepted"] = accepted.mean()
        figures["accepted_but_wrong"] = (~right[accepted]).mean() if accepted.any() else None
        figures["rejected_but_right"] = right[~accepted].mean() if (~accepted).any() else None
    scored = [r for r in done if r.get("probability") is not None]
    if scored:
        found = metrics.roc(column(scored, "probability"), [r["mtre_mm"] <= within for r in scored])
        figures["auc"] = found.auc
        if math.isfinite(found.auc):
            curves["roc"] = {"false_positive": found.false_positive, "true_positive": found.true_positive}
    return figures


def _covariances(done: Sequence[Record], curves: dict[str, Any]) -> dict[str, Any]:
    """Over the poses with a covariance that are not rejected: it speaks of the place that was found.

    One that claims to be certain holds no truth.
    """
    with_it = [
        r
        for r in done
        if r.get("accepted") is not False and (r.get("nees") is not None or r.get("nees_infinite"))
    ]
    if not with_it:
        return {}
    values = np.array([np.inf if r["nees"] is None else r["nees"] for r in with_it])
    expected, observed = metrics.calibration_curve(values)
    curves["calibration"] = {"expected": expected, "observed": observed}
    return {"coverage95": metrics.coverage(values), "nees_median": float(np.median(values))}


def column(records: Sequence[Record], name: str) -> Float[np.ndarray, " N"]:
    """The values of a field, of the records that have one."""
    return np.array([r[name] for r in records if r.get(name) is not None], dtype=np.float64)


def _percentile(values: np.ndarray, share: float) -> float | None:
    return float(np.percentile(values, share)) if len(values) else None


def _clean(value: Any) -> Any:
    """JSON's values: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return [_clean(v) for v in value.tolist()]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


# ---- the report in words ----


def markdown(
    summaries: Mapping[str, Mapping[str, Any]],
    records: Sequence[Record],
    *,
    title: str,
    about: Sequence[str] = (),
    picture: str | None = None,
    gates: Mapping[str, bool] | None = None,
) -> str:
    """The report as text: a table of the figures, the worst trials, and what went wrong."""
    lines = [f"# {title}", "", *about, ""]
    if picture:
        lines += [f"![Errors, capture range, calibration, ROC and time]({picture})", ""]
    lines += [
        f"| figure | {' | '.join(map(_cell, summaries))} | meaning |",
        f"| --- |{' ---: |' * len(summaries)} --- |",
    ]
    for name, (unit, meaning) in FIGURES.items():
        values = [s[name] for s in summaries.values()]
        if any(v is not None for v in values):
            shown = " | ".join(shown_value(v, unit) for v in values)
            lines.append(f"| `{name}` | {shown} | {meaning} |")
    if gates:
        lines += ["", "## Required", ""]
        lines += [f"- {'held' if held else '**failed**'}: `{gate}`" for gate, held in gates.items()]
    lines += _worst(records) + _errors(records)
    return "\n".join(lines) + "\n"


def shown_value(value: float | None, unit: str) -> str:
    """A figure as people read it."""
    if value is None:
        return "–"
    if unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.4g}{'' if unit in ('', '°') else ' '}{unit}"


def _worst(records: Sequence[Record], count: int = 10) -> list[str]:
    found = [r for r in records if r.get("mtre_mm") is not None]
    found = sorted(found, key=lambda r: -r["mtre_mm"])[:count]
    if not found:
        return []
    lines = ["", "## The worst", "", "| case | method | start | mTRE before | mTRE | accepted |"]
    lines.append("| --- | --- | ---: | ---: | ---: | --- |")
    for r in found:
        accepted = {True: "yes", False: "no", None: "–"}[r.get("accepted")]
        before = shown_value(r.get("start_mtre_mm"), "mm")
        lines.append(
            f"| {_cell(r['case'])} | {_cell(r['method'])} | {r['start']} | {before} | "
            f"{shown_value(r['mtre_mm'], 'mm')} | {accepted} |"
        )
    return lines


def _errors(records: Sequence[Record]) -> list[str]:
    failed = [r for r in records if r["status"] == "failed"]
    if not failed:
        return []
    lines = ["", "## Errors", ""]
    for r in failed:
        place = f" ({r['error']['place']})" if "place" in r["error"] else ""
        message = r["error"]["message"].replace("\n", " ")
        lines.append(
            f"- {r['case']}, {r['method']}, start {r['start']}: {r['error']['type']}: {message}{place}"
        )
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
