"""Networks that turn films with cameras into labels on a grid."""

from xreg.shape.networks.backproject import Lattice
from xreg.shape.networks.make import count_parameters, make_network
from xreg.shape.networks.rays import RayNet
from xreg.shape.networks.settings import PRESETS, NetworkSettings, Output
from xreg.shape.networks.swin_x2s import SwinX2S
from xreg.shape.networks.views import Views

__all__ = [
    "PRESETS",
    "Lattice",
    "NetworkSettings",
    "Output",
    "RayNet",
    "SwinX2S",
    "Views",
    "count_parameters",
    "make_network",
]
