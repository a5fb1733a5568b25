"""A measure: its value with unit and doubt, or why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...errors import ShapeError

NOT_IN_VIEW = "not in view"
_LEAST = 2  # samples for a standard deviation


@dataclass(frozen=True)
class Measure:
    """One figure.  value in ``unit``; None where it cannot be told, and then ``reason`` says why.

    sd: standard deviation over samples of the shape, in the same unit; None without samples.  detail: what
    belongs to it (levels of a curve, a grade), plain types only.
    """

    name: str
    unit: str
    value: float | None
    sd: float | None = None
    reason: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The figure for people: "41.2 ± 1.3 °", or the reason."""
        if self.value is None:
            return self.reason
        doubt = "" if self.sd is None else f" ± {self.sd:.1f}"
        return f"{self.value:.1f}{doubt} {self.unit}"

    def to_json(self) -> dict[str, Any]:
        """Plain types; an empty reason or detail is left out."""
        plain = {"name": self.name, "unit": self.unit, "value": self.value, "sd": self.sd}
        more = {"reason": self.reason, "detail": dict(self.detail)}
        return {**plain, **{name: value for name, value in more.items() if value}}


@dataclass(frozen=True)
class Measures:
    """Measures by name, in the order of the body."""

    items: tuple[Measure, ...]

    def __iter__(self) -> Iterator[Measure]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, name: object) -> bool:
        return any(item.name == name for item in self.items)

    def __getitem__(self, name: str) -> Measure:
        for item in self.items:
            if item.name == name:
                return item
        raise ShapeError(f"there is no measure {name!r}; there are {', '.join(i.name for i in self.items)}")

    def with_spread(self, others: list[Measures]) -> Measures:
        """The same values, with the standard deviation of the ``others``' as doubt."""
        return Measures(tuple(_spread(item, [other[item.name] for other in others]) for item in self.items))

    def to_json(self) -> list[dict[str, Any]]:
        """A list of all."""
        return [item.to_json() for item in self.items]


def absent(name: str, unit: str, why: str) -> Measure:
    """A measure that the picture does not show."""
    return Measure(name, unit, None, reason=f"{NOT_IN_VIEW}: {why}")


def _spread(item: Measure, others: list[Measure]) -> Measure:
    values = [other.value for other in others if other.value is not None]
    if item.value is None or len(values) < _LEAST:
        return item
    detail = {**item.detail, "samples": len(others), "samples_in_view": len(values)}
    return replace(item, sd=float(np.std(values, ddof=1)), detail=detail)
