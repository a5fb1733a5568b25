"""Where X-rays go: rigid motions, cameras, C-arms, rigs of views, and the conventions of other tools."""

from typing import Any

from xreg.geometry import se3
from xreg.geometry.camera import Camera
from xreg.geometry.rig import Rig

__all__ = ["CONVENTIONS", "Camera", "Rig", "se3"]


def __getattr__(name: str) -> Any:
    if name == "CONVENTIONS":  # a dozen small modules that only a conversion needs
        from xreg.geometry.conventions import CONVENTIONS

        return CONVENTIONS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
