"""X-ray Gaussians: a body as a sum of Gaussians, whose radiographs have a closed form."""

from xreg.splat.drawn import view_psnr
from xreg.splat.fitting import FitResult, fit
from xreg.splat.gaussians import Gaussians
from xreg.splat.settings import FitSettings
from xreg.splat.voxel_fit import fit_to_volume

__all__ = ["FitResult", "FitSettings", "Gaussians", "fit", "fit_to_volume", "view_psnr"]
