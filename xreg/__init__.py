"""xreg: 2D/3D registration, biplanar reconstruction and X-ray rendering on one differentiable projector.

World is RAS+ in millimetres, cameras are OpenCV's, sample centres sit at integer indices.
Names load on first use, so `import xreg` is quick, builds nothing and touches no GPU.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Beam": "xreg.renderer",
    "Body": "xreg.registration",
    "Camera": "xreg.geometry",
    "Radiograph": "xreg.io",
    "RegistrationResult": "xreg.registration",
    "Rig": "xreg.geometry",
    "SearchBox": "xreg.registration",
    "Tracker": "xreg.registration",
    "Volume": "xreg.volume",
    "drr": "xreg.renderer",
    "drr_with_jacobian": "xreg.renderer",
    "load_pose": "xreg.io",
    "load_radiograph": "xreg.io",
    "locate": "xreg.registration",
    "register": "xreg.registration",
    "register_anywhere": "xreg.registration",
    "register_best": "xreg.registration",
    "register_bodies": "xreg.registration",
    "save_pose": "xreg.io",
    "se3": "xreg.geometry",
}
__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from xreg.geometry import Camera, Rig, se3
    from xreg.io import Radiograph, load_pose, load_radiograph, save_pose
    from xreg.registration import (
        Body,
        RegistrationResult,
        SearchBox,
        Tracker,
        locate,
        register,
        register_anywhere,
        register_best,
        register_bodies,
    )
    from xreg.renderer import Beam, drr, drr_with_jacobian
    from xreg.volume import Volume


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'xreg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
