"""X-ray Gaussians: a body as a sum of Gaussians, whose radiographs have a closed form."""

from xreg.splat.gaussians import Gaussians

__all__ = ["Gaussians"]
