"""A volume from projections: FDK, SIRT and OS-SART, CGLS, FISTA-TV on the project's own projector.

Projections are line integrals of attenuation [V, H, W] (no unit), cameras any list of views of one size, and
volumes attenuation in 1/mm on a `VoxelGrid`.
"""

from xreg.io.voxel_grid import VoxelGrid
from xreg.tomography.backproject import usual_binning
from xreg.tomography.fdk import Filter, fdk
from xreg.tomography.iterative import cgls, os_sart, sirt
from xreg.tomography.noise import noise_growth, noise_of, ray_weights
from xreg.tomography.orbit import Orbit, orbit_of
from xreg.tomography.progress import Iteration
from xreg.tomography.projector import Projector
from xreg.tomography.simulate import Protocol, Simulation, density_cube, simulate
from xreg.tomography.tv import USUAL_PASSES, fista_tv, tv_prox, tv_value, tv_weight, usual_subsets

__all__ = [
    "USUAL_PASSES",
    "Filter",
    "Iteration",
    "Orbit",
    "Projector",
    "Protocol",
    "Simulation",
    "VoxelGrid",
    "cgls",
    "density_cube",
    "fdk",
    "fista_tv",
    "noise_growth",
    "noise_of",
    "orbit_of",
    "os_sart",
    "ray_weights",
    "simulate",
    "sirt",
    "tv_prox",
    "tv_value",
    "tv_weight",
    "usual_binning",
    "usual_subsets",
]
