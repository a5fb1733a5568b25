"""How alike two radiographs are, as least squares.

With both images normalised patch by patch to zero mean and unit norm, NCC = 1 - ½‖r‖², r the
difference of the two; the same holds after a linear filter.  So the normal equations of a patch follow
from sums of products of the image, the film and the Jacobian images alone: one Gram matrix a patch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from xreg.errors import RegistrationError

FILTERS = ("image", "gradient")
FLAT = 1e-3  # a film patch with less than this part of the typical contrast hardly counts
FLAT_IMAGE = 1e-8  # a rendered patch with less than this part of the greatest contrast does not
FEW_PATCHES = 24


@dataclass(frozen=True)
class Term:
    """One part of a similarity: NCC of the images or of their Sobel gradients.

    window: side of the patches in px, even, half overlapping; None takes the whole image as one patch.
    weight: its share in a sum of terms.
    """

    filter: str = "image"
    window: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise RegistrationError(f"filter must be one of {', '.join(FILTERS)}, got {self.filter!r}")
        if self.window is not None and (self.window < 4 or self.window % 2):
            raise RegistrationError(
                f"window must be an even number of px, at least 4, or None; got {self.window}"
            )


@dataclass(frozen=True)
class Evidence:
    """What a set of terms says at one pose.

    score: weighted mean NCC, -1 to 1.  cost: robust sum that is minimised.  gradient [6] and hessian
    [6, 6] (Gauss-Newton) of the cost; scatter [6, 6]: covariance of the gradient under the residuals seen,
    for the sandwich covariance.  terms: NCC of each term.
    """

    score: float
    cost: float
    gradient: Float[Tensor, "6"]
    hessian: Float[Tensor, "6 6"]
    scatter: Float[Tensor, "6 6"]
    terms: tuple[float, ...]


def sobel(images: Float[Tensor, "C H W"]) -> tuple[Float[Tensor, "C H W"], Float[Tensor, "C H W"]]:
    """Derivatives along u and v by the 3×3 Sobel kernel, borders repeated."""
    p = F.pad(images[None], (1, 1, 1, 1), mode="replicate")[0]
    across, down = p[:, :, 2:] - p[:, :, :-2], p[:, 2:] - p[:, :-2]
    along_u = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    along_v = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return along_u / 8, along_v / 8


def shrink(mask: Bool[Tensor, "H W"], pixels: int = 1) -> Bool[Tensor, "H W"]:
    """The mask without the pixels that a filter of this reach would spoil, image border included."""
    outside = F.pad((~mask).float()[None], (pixels,) * 4, value=1.0)
    return F.max_pool2d(outside, 2 * pixels + 1, stride=1)[0] < 0.5


def _grams(
    stack: Float[Tensor, "C H W"], mask: Float[Tensor, "H W"], window: int | None
) -> Float[Tensor, "P C C"]:
    """Sums of products over each patch of (1, channels), counting only valid pixels.

    A patch is two by two blocks, so that each pixel is multiplied once although patches overlap.
    """
    z = torch.cat([mask[None], stack * mask], 0)
    channels, height, width = z.shape
    if window is None or window > min(height, width):
        flat = z.reshape(1, channels, -1)
        return flat @ flat.transpose(1, 2)
    side = window // 2
    rows, columns = height // side, width // side
    blocks = z[:, : rows * side, : columns * side].reshape(channels, rows, side, columns, side)
    flat = blocks.permute(1, 3, 0, 2, 4).reshape(rows * columns, channels, side * side)
    sums = (flat @ flat.transpose(1, 2)).reshape(rows, columns, channels, channels)
    beside = sums[:, 1:] + sums[:, :-1]
    return (beside[1:] + beside[:-1]).reshape(-1, channels, channels)


def _usable(gram: Float[Tensor, "P C C"], needed: Tensor | float) -> Bool[Tensor, "P"]:
    """Patches with enough valid pixels in which the image is not flat."""
    count = gram[:, 0, 0]
    contrast = gram[:, 1, 1] - gram[:, 0, 1].square() / count.clamp_min(1.0)
    return (count >= needed) & (count > 0) & (contrast > FLAT_IMAGE * contrast.max().clamp_min(0))


def _patch_equations(gram: Float[Tensor, "P C C"]):
    """NCC, gradient and Gauss-Newton matrix of ½‖r‖² for each patch, from its Gram matrix."""
    count = gram[:, 0, 0]
    mean = gram[:, 0, 1:] / count[:, None]
    c = gram[:, 1:, 1:] - count[:, None, None] * mean[:, :, None] * mean[:, None, :]
    norm_i, norm_f = c[:, 0, 0].sqrt(), c[:, 1, 1].clamp_min(0).sqrt()
    safe_f = norm_f.clamp_min(1e-12)
    ncc = (c[:, 0, 1] / (norm_i * safe_f)).clamp(-1, 1)
    with_image, with_film = c[:, 0, 2:] / norm_i[:, None], c[:, 1, 2:] / safe_f[:, None]
    gradient = -(with_film - ncc[:, None] * with_image) / norm_i[:, None]
    hessian = (c[:, 2:, 2:] - with_image[:, :, None] * with_image[:, None, :]) / norm_i[:, None, None] ** 2
    return ncc, gradient, hessian, norm_f, count


def evaluate(
    image: Float[Tensor, "H W"],
    jacobian: Float[Tensor, "6 H W"],
    film: Float[Tensor, "H W"],
    mask: Bool[Tensor, "H W"],
    terms: tuple[Term, ...],
    *,
    robust: float = 0.5,
) -> Evidence:
    """Score a rendered image against a film and build the normal equations of its pose.

    jacobian: derivative of the image along six pose directions.  mask: pixels that count.  robust: scale
    of the Cauchy weight on a patch's squared residual 2(1 - NCC); large turns it off.  RegistrationError
    if no patch has both contrast and enough valid pixels.
    """
    stack = torch.cat([image[None], film[None], jacobian]).float()
    total = sum(t.weight for t in terms)
    score = cost = 0.0
    gradient, hessian = torch.zeros(6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64)
    scatter = torch.zeros(6, 6, dtype=torch.float64)
    each = []
    for term in terms:
        filtered = sobel(stack) if term.filter == "gradient" else (stack,)
        valid = (shrink(mask) if term.filter == "gradient" else mask).to(stack)
        values = []
        for part in filtered:
            one = _evaluate_part(part, valid, term.window, robust)
            share = term.weight / total / len(filtered)
            values.append(one[0])
            score += share * one[0]
            cost += share * one[1]
            gradient += share * one[2]
            hessian += share * one[3]
            scatter += share * share * one[4]
        each.append(sum(values) / len(values))
    return Evidence(score, cost, gradient, hessian, scatter, tuple(each))


def _evaluate_part(stack: Tensor, valid: Tensor, window: int | None, robust: float):
    gram = _grams(stack, valid, window)
    gram = gram[_usable(gram, 0.5 * (window * window if window else valid.sum()))]
    if not len(gram):
        raise RegistrationError(
            "no part of the film can be compared: its valid pixels are too few, or the volume does not "
            "reach them. Check the mask, the camera and the starting pose"
        )
    ncc, gradient, hessian, norm_f, count = _patch_equations(gram)
    weight = norm_f.square() / (norm_f.square() + FLAT * norm_f.square().mean() + 1e-20)
    weight = weight / weight.sum().clamp_min(1e-12)
    residual = 2 * (1 - ncc)
    pull = weight / (1 + residual / robust)  # derivative of the Cauchy loss
    cost = 0.5 * robust * (weight * torch.log1p(residual / robust)).sum()
    pulled = pull[:, None] * gradient
    return (
        float((weight * ncc).sum()),
        float(cost),
        pulled.sum(0).double().cpu(),
        (pull[:, None, None] * hessian).sum(0).double().cpu(),
        _scatter(pulled, pull, hessian, residual / count, window).double().cpu(),
    )


def _scatter(pulled: Tensor, pull: Tensor, hessian: Tensor, noise: Tensor, window: int | None) -> Tensor:
    """Covariance of the summed gradient.

    With many patches, from how they disagree (cluster-robust: what is wrong with a patch is one error and
    not one a pixel).  With few, from the noise of single pixels, which is a lower bound.
    """
    if len(pulled) < FEW_PATCHES or window is None:
        return ((pull.square() * noise)[:, None, None] * hessian).sum(0)
    return 4 * pulled.T @ pulled  # four patches share a pixel
