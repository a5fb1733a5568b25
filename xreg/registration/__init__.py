"""Where is the anatomy: 2D/3D registration by second-order refinement of a pose."""

from xreg.registration.register import register
from xreg.registration.result import RegistrationResult, Step
from xreg.registration.settings import Level, Settings

__all__ = ["Level", "RegistrationResult", "Settings", "Step", "register"]
