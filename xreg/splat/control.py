"""How many Gaussians there are: the ones that pull are split, the ones that show nothing are dropped."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.splat.adam import Parameters

# Of the axis along which a Gaussian is split, as in 3D Gaussian Splatting (B. Kerbl et al., 2023).
SHRINK = 1.6


def strength(parameters: Parameters) -> Float[Tensor, " N"]:
    """|density| times the mean sigma: what the ray through the middle sees of each, without √(2π)."""
    v = parameters.values
    return (v["density"].detach().abs() * v["log_scale"].detach().mean(1).exp()).clamp_min(0)


def split_and_prune(
    parameters: Parameters, pull: Float[Tensor, " N"], *, most: int, share: float, prune: float
) -> tuple[int, int]:
    """Drop the weak, and split those of the largest pull along their longest axis; (dropped, split).

    pull: sum of the norms of each mean's gradients since the last call.  Dropped: strength below ``prune`` of
    the largest.  Split: at most ``share`` of what is left, and no more than ``most`` in the end.  The halves
    stand one sigma apart, SHRINK times narrower along the axis, with densities that keep the sum's integral.
    Deterministic.
    """
    strong = strength(parameters)
    kept = (strong >= prune * strong.max()).nonzero()[:, 0]
    count = max(0, min(int(share * len(kept)), most - len(kept)))
    order = torch.sort(pull[kept], descending=True, stable=True).indices[:count]
    split = kept[order]
    alone = torch.ones(len(pull), dtype=torch.bool, device=pull.device)
    alone[split] = False
    keep = kept[alone[kept]]
    parameters.replace(keep, _halves(parameters, split))
    return len(pull) - len(kept), count


def _halves(parameters: Parameters, split: Tensor) -> dict[str, Tensor]:
    import roma  # imported here: it costs a second, and few fits split

    v = {name: value.detach()[split] for name, value in parameters.values.items()}
    longest = v["log_scale"].argmax(1)
    axis = torch.nn.functional.one_hot(longest, 3).to(v["mean"])
    sigma = v["log_scale"].gather(1, longest[:, None]).exp()
    away = 0.5 * sigma * roma.quat_action(v["rotation"], axis)  # (x, y, z, w) of any norm
    scale = v["log_scale"] - math.log(SHRINK) * axis
    density = 0.5 * SHRINK * v["density"]
    return {
        "mean": torch.cat([v["mean"] + away, v["mean"] - away]),
        "log_scale": scale.repeat(2, 1),
        "rotation": v["rotation"].repeat(2, 1),
        "density": density.repeat(2),
    }
