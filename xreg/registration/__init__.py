"""Where is the anatomy: 2D/3D registration by second-order refinement of poses."""

from xreg.registration.register import register, register_bodies
from xreg.registration.result import BodiesResult, RegistrationResult, Step, Verdict
from xreg.registration.search import SearchBox, SearchSettings, locate, register_anywhere, register_best
from xreg.registration.settings import Level, Settings
from xreg.registration.track import Frame, Tracker
from xreg.registration.unknowns import Body, RelativePrior, ViewFreedom

__all__ = [
    "BodiesResult",
    "Body",
    "Frame",
    "Level",
    "RegistrationResult",
    "RelativePrior",
    "SearchBox",
    "SearchSettings",
    "Settings",
    "Step",
    "Tracker",
    "Verdict",
    "ViewFreedom",
    "locate",
    "register",
    "register_anywhere",
    "register_best",
    "register_bodies",
]
