"""Numbers from outside, checked and turned into float64 tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xreg.errors import GeometryError


def tensor64(value: Any, name: str, *, device: torch.device | None = None, rows: bool = False) -> Tensor:
    """Return a tensor, array, list or number as float64; a tensor keeps its graph, others are copied.

    A list of tensors holds the entries of a vector, each with the batch's axes, which are stacked along the
    last axis; rows: it holds the rows of a matrix, or poses, which are stacked along the first.
    """
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise GeometryError(f"{name} must hold real numbers, got {value.dtype}")
        return value.to(dtype=torch.float64, device=device)
    if isinstance(value, Sequence) and any(isinstance(v, Tensor) for v in value):
        parts = torch.broadcast_tensors(*(tensor64(v, name, device=device, rows=rows) for v in value))
        return torch.stack(parts, dim=0 if rows else -1)
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GeometryError(f"{name} must be numbers in a regular array, got {value!r:.80}") from error
    return torch.from_numpy(array).to(device=device)


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """As torch's own, whose first call imports a symbolic algebra package, half a second of it."""
    return torch.broadcast_tensors(*(torch.empty(()).expand(tuple(shape)) for shape in shapes))[0].shape


def require_finite(value: Tensor, name: str) -> Tensor:
    """Return ``value`` or raise GeometryError if it holds NaN or infinity."""
    if not bool(torch.isfinite(value.detach()).all()):
        raise GeometryError(f"{name} must be finite, but holds NaN or infinity; check what produced it")
    return value


def require_positive(value: Tensor, name: str, unit: str) -> Tensor:
    """Return ``value`` or raise GeometryError if an entry is zero, negative or not finite."""
    require_finite(value, name)
    if not bool((value.detach() > 0).all()):
        raise GeometryError(f"{name} must be positive ({unit}), got {float(value.detach().min()):g}")
    return value


def image_size(size: Any, name: str = "size") -> tuple[int, int]:
    """Return (height, width) as two positive Python integers, or raise GeometryError."""
    try:
        values = [int(v) for v in size]
        whole = all(float(v) == i for v, i in zip(size, values, strict=True))
    except (TypeError, ValueError) as error:
        raise GeometryError(f"{name} must be two integers (height, width), got {size!r}") from error
    if len(values) != 2 or not whole or min(values) < 1:
        raise GeometryError(f"{name} must be two positive integers (height, width) in pixels, got {size!r}")
    return values[0], values[1]


def as_tensor(value: Any, **known: Any) -> Tensor:
    """What `torch.as_tensor` gives, of any NumPy array too: views that run backwards, foreign byte orders.

    known: dtype and device, as there; a list of decimals is exact only with ``dtype=torch.float64``.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(value, **known)
