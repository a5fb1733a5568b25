"""Where a number of a radiograph came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SOURCES = ("header", "fallback", "default", "computed", "argument")


@dataclass(frozen=True)
class Provenance:
    """A value and its origin.

    source: "header" (stated for this purpose), "fallback" (stated for another), "computed" (from other
    values), "default" (assumed), "argument" (given by the caller).  ``note`` says how, ``tag`` is the DICOM
    tag(s).  ``value`` is None where nothing is known.
    """

    value: Any
    source: str
    note: str = ""
    tag: str = ""
