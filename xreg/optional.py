"""Packages that only some jobs need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from xreg.errors import BackendError


def optional(module: str, otherwise: str) -> Any:
    """A module of an optional package; BackendError, with what to say of it, where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise BackendError(otherwise) from error
