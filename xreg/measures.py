"""How alike two radiographs are, where there is no residual form: for searches without derivatives.

Each compares a batch of images with one film over the film's valid pixels; larger is more alike.
`xreg.similarity.scores` does the same for the NCC family and squared differences.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xreg.errors import RegistrationError
from xreg.similarity import shrink, sobel


def mutual_information(
    images: Float[Tensor, "*batch H W"],
    film: Float[Tensor, "H W"],
    mask: Bool[Tensor, "H W"],
    *,
    bins: int = 32,
    normalised: bool = True,
) -> Float[Tensor, "*batch"]:
    """Mutual information of grey values, from a joint histogram with linear sharing between bins.

    normalised: (H(A) + H(B)) / H(A, B), 1 to 2 (C. Studholme, D. Hill, D. Hawkes, "An overlap invariant
    entropy measure of 3D medical image alignment", Pattern Recognition 32 (1999)); else in nats.  Blind to
    any curve between the two images.  RegistrationError without contrast or valid pixels.
    """
    flat = images.reshape(-1, *images.shape[-2:])[:, mask]
    other = _positions(_valid(film, mask)[None], bins)[0]
    own = _positions(flat, bins)
    found = []
    for one in own:
        joint = _joint(one, other, bins)
        a, b, both = _entropy(joint.sum(1)), _entropy(joint.sum(0)), _entropy(joint.flatten())
        found.append((a + b) / both.clamp_min(1e-12) if normalised else a + b - both)
    return torch.stack(found).reshape(images.shape[:-2])


def gradient_difference(
    images: Float[Tensor, "*batch H W"], film: Float[Tensor, "H W"], mask: Bool[Tensor, "H W"]
) -> Float[Tensor, "*batch"]:
    """Gradient difference, 0 to 1 (1: the same gradients), with the best gain of the image along each axis.

    Σ v / (v + d²), d the difference of the Sobel gradients and v the variance of the film's: G. Penney and
    others, "A comparison of similarity measures for use in 2-D-3-D medical image registration", IEEE TMI 17
    (1998); the gain is least squares instead of searched for.
    """
    _valid(film, mask)
    inside = shrink(mask)
    if not bool(inside.any()):
        raise RegistrationError("no pixel of the mask has valid neighbours: nothing can be compared")
    stack = torch.cat([film[None], images.reshape(-1, *images.shape[-2:])])
    total = torch.zeros(len(stack) - 1, dtype=stack.dtype, device=stack.device)
    for part in sobel(stack):
        target, own = part[0][inside], part[1:, inside]
        variance = target.var().clamp_min(1e-20)
        gain = (own @ target) / own.square().sum(1).clamp_min(1e-20)
        away = target - gain[:, None] * own
        total += (variance / (variance + away.square())).mean(1)
    return (total / 2).reshape(images.shape[:-2])


def _valid(film: Tensor, mask: Tensor) -> Tensor:
    values = film[mask]
    if not len(values) or float(values.std(unbiased=False)) < 1e-12:
        raise RegistrationError("the film has no contrast inside the mask: nothing can be compared")
    return values


def _positions(values: Float[Tensor, "B N"], bins: int) -> Float[Tensor, "B N"]:
    """Where values lie on the axis of bins, 0 to bins - 1, between the least and the greatest."""
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    return (values - low) / (high - low).clamp_min(1e-20) * (bins - 1)


def _joint(a: Float[Tensor, " N"], b: Float[Tensor, " N"], bins: int) -> Float[Tensor, "bins bins"]:
    """Joint probability of two sets of positions, each value shared between its two nearest bins."""
    total = torch.zeros(bins * bins, dtype=torch.float64, device=a.device)
    low_a, low_b = a.floor().clamp(0, bins - 2), b.floor().clamp(0, bins - 2)
    for i in (0, 1):
        for j in (0, 1):
            share_a = (a - low_a) if i else 1 - (a - low_a)
            share_b = (b - low_b) if j else 1 - (b - low_b)
            at = (low_a + i) * bins + low_b + j
            total.index_add_(0, at.long(), (share_a * share_b).double())
    return (total / len(a)).reshape(bins, bins)


def _entropy(p: Float[Tensor, " N"]) -> Tensor:
    return -(p * p.clamp_min(1e-300).log()).sum()
