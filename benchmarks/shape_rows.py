"""What the rows of shape benchmarks hold of a case's scores, and how it is written for people."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import torch

FIGURES = (
    "dice", "dice_shifted", "shifts", "dice_foreground", "hd95_mm", "assd_mm", "centroid_mm", "missed",
    "invented", "identification",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """When a benchmark ran, and on how much."""
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return {"when": when, "threads": torch.get_num_threads(), "cores": os.cpu_count()}


def figures(scores: Mapping[str, Any]) -> dict[str, Any]:
    """How many bones the annotation holds, and the figures over them; null for what is not finite."""
    classes = sum(1 for label in scores["labels"] if label["reference_voxels"])
    return {"classes": classes, **{name: _rounded(scores[name]) for name in FIGURES}}


def distances(row: Mapping[str, Any]) -> str:
    """HD95 / ASSD."""
    return " / ".join("-" if row[name] is None else f"{row[name]:.1f}" for name in ("hd95_mm", "assd_mm"))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, dict) else value
