"""A network from its settings, with weights from a seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xreg.shape.networks.rays import RayNet
from xreg.shape.networks.settings import NetworkSettings
from xreg.shape.networks.swin_x2s import SwinX2S
from xreg.shape.schemes import Scheme

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d)


def make_network(settings: NetworkSettings, names: Scheme, seed: int = 0) -> RayNet | SwinX2S:
    """A network for the labels of a scheme; the global random state is as before."""
    with torch.random.fork_rng(devices=[]):  # modules draw from it when they are made; drawn anew below
        net = (RayNet if settings.kind == "rays" else SwinX2S)(settings, names)
    generator = torch.Generator().manual_seed(seed)
    inside = {id(p) for m in net.modules() if isinstance(m, _CONVOLUTIONS) for p in m.parameters()}
    for module in net.modules():
        if isinstance(module, _CONVOLUTIONS):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for parameter in net.parameters():
        if parameter.ndim > 1 and id(parameter) not in inside:
            _draw(parameter, generator)
    net.start()
    return net


def _draw(parameter: Tensor, generator: torch.Generator) -> None:
    """Weights of linear maps and position tables, as Swin transformers begin (Liu et al. 2021)."""
    nn.init.trunc_normal_(parameter, std=0.02, generator=generator)


def count_parameters(net: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(p.numel() for p in net.parameters())
