"""Adam on the four parameters of Gaussians, each with its own rate, through changes of their number."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xreg.splat.gaussians import Gaussians

NAMES = ("mean", "log_scale", "rotation", "density")
BETAS, TINY = (0.9, 0.99), 1e-15
LEAST, MOST = 0.35, 8.0  # sigmas in voxels: smaller ones fall between rays, larger ones blur


class Parameters:
    """The four tensors as leaves of autograd, and Adam's two moments of each.

    voxel: mm; peak: 1/mm.  They are the units of the rates for mean and density.  D. Kingma, J. Ba, ICLR
    2015; written out since splitting and pruning change the rows of the moments too.
    """

    def __init__(
        self, start: Gaussians, rates: tuple[float, float, float, float], *, voxel: float, peak: float
    ) -> None:
        self.values = {n: v.detach().clone().requires_grad_() for n, v in start.items()}
        self.moments = {n: (torch.zeros_like(v), torch.zeros_like(v)) for n, v in start.items()}
        self.rates = dict(zip(NAMES, (rates[0] * voxel, rates[1], rates[2], rates[3] * peak), strict=True))
        self.bounds = math.log(LEAST * voxel), math.log(MOST * voxel)
        self.about = {"energy_kev": start.energy_kev, "provenance": start.provenance}
        self.steps = 0

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mean, scale, rotation, density: what splat and voxelize take, with gradients."""
        v = self.values
        return v["mean"], v["log_scale"].exp(), v["rotation"], v["density"]

    def gaussians(self) -> Gaussians:
        """A copy of what they are now."""
        return Gaussians(**{n: v.detach().clone() for n, v in self.values.items()}, **self.about)

    def step(self, factor: float = 1.0, *, nonnegative: bool = False) -> None:
        """One step of Adam with all rates times ``factor``; gradients are used up."""
        self.steps += 1
        first, second = (1 - b**self.steps for b in BETAS)
        with torch.no_grad():
            for name, value in self.values.items():
                if value.grad is None:
                    continue
                mean, square = self.moments[name]
                mean.lerp_(value.grad, 1 - BETAS[0])
                square.lerp_(value.grad.square(), 1 - BETAS[1])
                size = (square / second).sqrt_().add_(TINY)
                value.sub_(mean / size, alpha=factor * self.rates[name] / first)
                value.grad = None
            self.values["log_scale"].clamp_(*self.bounds)
            if nonnegative:
                self.values["density"].clamp_(min=0)

    def set_density(self, density: Float[Tensor, " N"]) -> None:
        """Put densities that were solved for in place; their moments begin anew."""
        with torch.no_grad():
            self.values["density"].copy_(density)
        for moment in self.moments["density"]:
            moment.zero_()

    def replace(self, keep: Int[Tensor, " M"], more: dict[str, Tensor]) -> None:
        """Keep some rows, with their moments, and append others, which begin without."""
        for name, value in self.values.items():
            self.values[name] = torch.cat([value.detach()[keep], more[name]]).requires_grad_()
            self.moments[name] = tuple(
                torch.cat([m[keep], torch.zeros_like(more[name])]) for m in self.moments[name]
            )
