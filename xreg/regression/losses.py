"""What a pose network is trained on: errors of the pose, its own uncertainty, and what poses project to."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.geometry import se3
from xreg.regression.network import ERROR_UNIT, Prediction


def tangent(
    prediction: Prediction, rotation: Float[Tensor, "B 3 3"], place: Float[Tensor, "B 3"]
) -> Float[Tensor, "B 6"]:
    """Errors ξ = (rad, mm) along the camera's axes about the body's middle: what turns and moves it to truth.

    To first order the ξ of `se3.retract(prediction, ξ, middle)`.  Gradients flow to the prediction.
    """
    turn = se3.so3_log(rotation @ prediction.rotation.transpose(-1, -2))
    return torch.cat([turn, place - prediction.place], -1)


def in_units(error: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 6"]:
    """Tangent errors in units of ERROR_UNIT."""
    return error / error.new_tensor([ERROR_UNIT[0]] * 3 + [ERROR_UNIT[1]] * 3)


def gaussian_nll(
    error: Float[Tensor, "B 6"], log_variance: Float[Tensor, "B 6"], beta: float
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of errors (in units), each weighted by its variance to the power β.

    β = 0 is the plain likelihood, which lets a network give up on what it does badly; β = 1 gives the error
    the gradient of least squares.  Source: M. Seitzer et al., "On the pitfalls of heteroscedastic uncertainty
    estimation with probabilistic neural networks" (ICLR 2022).
    """
    nll = 0.5 * (error.square() * torch.exp(-log_variance) + log_variance)
    return (nll * torch.exp(beta * log_variance.detach())).mean()


def double_geodesic(error: Float[Tensor, "B 6"]) -> Float[Tensor, ""]:
    """Mean length of errors (in units), rotation and translation each by its own norm and both together.

    Norms, unlike squares, do not let a few films that cannot be told apart rule the rest.  As in xvr
    (V. Gopalakrishnan et al.); at zero the derivative is zero.
    """
    turn, shift = error[:, :3].square().sum(-1), error[:, 3:].square().sum(-1)
    return sum((x + 1e-6).sqrt().mean() for x in (turn, shift, turn + shift)) / 3


def dissimilarity(image: Float[Tensor, "B H W"], target: Float[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Mean of 1 - NCC over pairs of images; a pair without contrast counts 1."""
    a, b = (x - x.mean((-1, -2), keepdim=True) for x in (image, target))
    norm = (a.square().sum((-1, -2)) * b.square().sum((-1, -2)) + 1e-12).sqrt()
    return (1 - (a * b).sum((-1, -2)) / norm).mean()


def soft_dice(labels: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Mean of 1 - soft Dice between projected structures (channel 0, what has no label, left out).

    A structure's line integral becomes a soft silhouette 1 - exp(-I/I₀), I₀ its mean where it is seen.
    Structures that the target does not show do not count.  Squares in the denominator, as in V-Net (F.
    Milletari et al., 3DV 2016), make it zero where soft silhouettes are equal.
    """
    labels, target = labels[:, 1:], target[:, 1:]
    seen = (target > 0).sum((-1, -2), keepdim=True)
    scale = (target.sum((-1, -2), keepdim=True) / seen.clamp_min(1)).clamp_min(1e-4)
    a, b = (1 - torch.exp(-x / scale) for x in (labels, target))
    sums = a.square().sum((-1, -2)) + b.square().sum((-1, -2))
    known = (seen[..., 0, 0] > 0).to(sums)
    score = 1 - 2 * (a * b).sum((-1, -2)) / sums.clamp_min(1e-6)
    return (score * known).sum() / known.sum().clamp_min(1)
