"""Where is the anatomy: 2D/3D registration by second-order refinement of poses."""

from xreg.registration.landmarks import LandmarkPose, pose_from_landmarks
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
    "LandmarkPose",
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
    "pose_from_landmarks",
    "register",
    "register_anywhere",
    "register_best",
    "register_bodies",
]
