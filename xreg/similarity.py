"""How alike two radiographs are, as least squares.

With both images normalised patch by patch to zero mean and unit norm, NCC = 1 - ½‖r‖², r the
difference of the two; the same holds after a linear filter.  So the normal equations of a patch follow
from sums of products of the image, the film and the Jacobian images alone: one Gram matrix a patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from xreg.errors import RegistrationError

_PARTS = {"image": 1, "gradient": 2}  # how many images a filter makes of one
FILTERS = tuple(_PARTS)
KINDS = ("ncc", "ssd")
FLAT = 1e-3  # a film patch with less than this part of the typical contrast hardly counts
FLAT_IMAGE = 1e-8  # a rendered patch with less than this part of the greatest contrast does not
FEW_PATCHES = 24
ROBUST = 0.5


@dataclass(frozen=True)
class Term:
    """One part of a similarity.

    filter: 'image', or 'gradient' for Sobel derivatives along u and v.  window: side of the patches in px,
    even, half overlapping; None takes the whole image as one patch.  weight: its share in a sum of terms.
    kind: 'ncc' is blind to each patch's gain and offset; 'ssd' compares values, and is for films that hold
    calibrated line integrals.
    """

    filter: str = "image"
    window: int | None = None
    weight: float = 1.0
    kind: str = "ncc"

    def __post_init__(self) -> None:
        for name, value, known in (("filter", self.filter, FILTERS), ("kind", self.kind, KINDS)):
            if value not in known:
                raise RegistrationError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.window is not None and (self.window < 4 or self.window % 2):
            raise RegistrationError(
                f"window must be an even number of px, at least 4, or None; got {self.window}"
            )
        if not self.weight > 0:
            raise RegistrationError(f"weight must be positive, got {self.weight}")


@dataclass(frozen=True)
class Evidence:
    """What a set of terms says at one pose, or in general about N unknowns.

    score: weighted mean similarity, -1 to 1.  cost: robust sum that is minimised.  gradient [N] and hessian
    [N, N] (Gauss-Newton) of the cost; scatter [N, N]: covariance of the gradient under the residuals seen,
    for the sandwich covariance.  terms: similarity of each term.  patches: how many were compared.  parts:
    what it was combined from, where that is of interest.  prior: as scatter, of what was known beforehand.
    """

    score: float
    cost: float
    gradient: Float[Tensor, " N"]
    hessian: Float[Tensor, "N N"]
    scatter: Float[Tensor, "N N"]
    terms: tuple[float, ...]
    patches: int
    parts: tuple["Evidence", ...] = ()
    prior: Float[Tensor, "N N"] | None = None


@dataclass(frozen=True)
class Patches:
    """What P patches of each of M images say; those that do not count have no weight, and zeros.

    count [M]: of patches that count.  score [M, P].  residual [M, P]: 2 (1 - score); noise: that of a pixel.
    weight [M, P]: sums to 1 over the patches of an image; pull: weight times the derivative of the robust
    (Cauchy) loss.  gradient [M, P, N], hessian [M, P, N, N]: of ½ residual.
    """

    count: Tensor
    score: Tensor
    residual: Tensor
    noise: Tensor
    weight: Tensor
    pull: Tensor
    gradient: Tensor
    hessian: Tensor


def sobel(images: Float[Tensor, "*batch C H W"]) -> tuple[Tensor, Tensor]:
    """Derivatives along u and v by the 3×3 Sobel kernel, borders repeated; each [..., C, H, W]."""
    batch = images.shape[:-3]
    p = F.pad(images.reshape(-1, *images.shape[-3:]), (1, 1, 1, 1), mode="replicate")
    p = p.reshape(*batch, *p.shape[-3:])
    across, down = p[..., 2:] - p[..., :-2], p[..., 2:, :] - p[..., :-2, :]
    along_u = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    along_v = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return along_u / 8, along_v / 8


def shrink(mask: Bool[Tensor, "H W"], pixels: int = 1) -> Bool[Tensor, "H W"]:
    """The mask without the pixels that a filter of this reach would spoil, image border included."""
    outside = F.pad((~mask).float()[None], (pixels,) * 4, value=1.0)
    return F.max_pool2d(outside, 2 * pixels + 1, stride=1)[0] < 0.5


def _grams(
    stack: Float[Tensor, "*batch C H W"], mask: Float[Tensor, "H W"], window: int | None
) -> Float[Tensor, "*batch P C+1 C+1"]:
    """Sums of products over each patch of (1, channels), counting only valid pixels.

    A patch is two by two blocks, so that each pixel is multiplied once although patches overlap.
    """
    z = torch.cat([mask.expand_as(stack[..., :1, :, :]), stack * mask], -3)
    batch, (channels, height, width) = z.shape[:-3], z.shape[-3:]
    if window is None or window > min(height, width):
        flat = z.reshape(*batch, 1, channels, -1)
        return flat @ flat.transpose(-1, -2)
    side = window // 2
    rows, columns = height // side, width // side
    blocks = z[..., : rows * side, : columns * side].reshape(-1, channels, rows, side, columns, side)
    flat = blocks.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, side * side)
    sums = (flat @ flat.transpose(1, 2)).reshape(*batch, rows, columns, channels, channels)
    beside = sums[..., 1:, :, :] + sums[..., :-1, :, :]
    return (beside[..., 1:, :, :, :] + beside[..., :-1, :, :, :]).flatten(-4, -3)


def _usable(gram: Float[Tensor, "*batch P C C"], needed: Tensor | float) -> Bool[Tensor, "*batch P"]:
    """Patches with enough valid pixels in which the image is not flat."""
    count = gram[..., 0, 0]
    contrast = gram[..., 1, 1] - gram[..., 0, 1].square() / count.clamp_min(1.0)
    greatest = contrast.amax(-1, keepdim=True).clamp_min(0)
    return (count >= needed) & (count > 0) & (contrast > FLAT_IMAGE * greatest)


def _centred(gram: Float[Tensor, "*batch P C C"]) -> Float[Tensor, "*batch P C-1 C-1"]:
    """The Gram matrix of the channels without their mean in the patch."""
    count = gram[..., 0, 0].clamp_min(1.0)
    mean = gram[..., 0, 1:] / count[..., None]
    return gram[..., 1:, 1:] - count[..., None, None] * mean[..., :, None] * mean[..., None, :]


def _patch_ncc(gram: Float[Tensor, "*batch P C C"]):
    """NCC, gradient and Gauss-Newton matrix of ½‖r‖², and contrast of the film, for each patch."""
    c = _centred(gram)
    norm_i, norm_f = c[..., 0, 0].sqrt(), c[..., 1, 1].clamp_min(0).sqrt()
    safe_f = norm_f.clamp_min(1e-12)
    ncc = (c[..., 0, 1] / (norm_i * safe_f)).clamp(-1, 1)
    norm = norm_i[..., None]
    with_image, with_film = c[..., 0, 2:] / norm, c[..., 1, 2:] / safe_f[..., None]
    gradient = -(with_film - ncc[..., None] * with_image) / norm
    hessian = (c[..., 2:, 2:] - with_image[..., :, None] * with_image[..., None, :]) / norm[..., None] ** 2
    return ncc, gradient, hessian, norm_f


def _patch_ssd(gram: Float[Tensor, "*batch P C C"], scale: Float[Tensor, "*batch 1"]):
    """As `_patch_ncc` with r = (image - film) / (scale √count): 1 - ½‖r‖² is 1 where the two agree."""
    size = (gram[..., 0, 0] * scale).clamp_min(1e-30)
    away = gram[..., 1, 1] - 2 * gram[..., 1, 2] + gram[..., 2, 2]
    score = 1 - 0.5 * away.clamp_min(0) / size
    gradient = (gram[..., 1, 3:] - gram[..., 2, 3:]) / size[..., None]
    hessian = gram[..., 3:, 3:] / size[..., None, None]
    return score, gradient, hessian, gram[..., 0, 0].sqrt()


def _compared(gram: Float[Tensor, "*batch P C C"], usable: Bool[Tensor, "*batch P"], kind: str):
    """Score, its derivatives and the film's contrast of each patch, as its kind of term has them."""
    return _patch_ssd(gram, _film_scale(gram, usable)) if kind == "ssd" else _patch_ncc(gram)


def weigh_patches(
    gram: Float[Tensor, "M P C C"],
    needed: Float[Tensor, "*M 1"] | float,
    *,
    kind: str = "ncc",
    robust: float = ROBUST,
) -> Patches:
    """Compare image and film patch by patch, from the sums of products of (1, image, film, derivatives).

    needed: how many pixels make a patch count.  No size here depends on values, and nothing waits for a
    card.
    """
    usable = _usable(gram, needed)
    score, gradient, hessian, contrast = _compared(gram, usable, kind)
    weight = _patch_weights(contrast, usable)
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-12)
    score = torch.where(usable, score, 0.0)
    residual = 2 * (1 - score)
    return Patches(
        usable.sum(-1),
        score,
        residual,
        residual / gram[..., 0, 0].clamp_min(1.0),
        weight,
        weight / (1 + residual / robust),
        torch.where(usable[..., None], gradient, 0.0),
        torch.where(usable[..., None, None], hessian, 0.0),
    )


def evaluate(
    image: Float[Tensor, "H W"],
    jacobian: Float[Tensor, "N H W"],
    film: Float[Tensor, "H W"],
    mask: Bool[Tensor, "H W"],
    terms: tuple[Term, ...],
    *,
    robust: float = ROBUST,
) -> Evidence:
    """Score a rendered image against a film and build the normal equations of what it depends on.

    jacobian: derivative of the image along N unknowns.  mask: pixels that count.  robust: scale of the
    Cauchy weight on a patch's squared residual 2(1 - NCC); large turns it off.  RegistrationError if no
    patch has both contrast and enough valid pixels.
    """
    stack = torch.cat([image[None], film[None], jacobian]).float()
    alike: dict[tuple[int | None, str], list[int]] = {}
    for number, term in enumerate(terms):
        alike.setdefault((term.window, term.kind), []).append(number)
    sums, of = [], []
    for (window, kind), numbers in alike.items():
        compared = _filtered(stack, mask, [terms[n] for n in numbers])
        gram = torch.stack([_grams(part, valid, window) for part, valid in compared])
        needed = torch.stack([_needed(valid, window) for _, valid in compared])
        patches = weigh_patches(gram, needed[:, None], kind=kind, robust=robust)
        sums.append(_sums(patches, robust, each_pixel=window is None))
        of += [n for n in numbers for _ in range(_PARTS[terms[n].filter])]
    rows = torch.cat(sums).cpu().double()  # a card is waited for here, and nowhere else
    found = [_evidence(row, len(jacobian)) for row in rows]
    total = sum(t.weight for t in terms)
    shares = [terms[n].weight / total / _PARTS[terms[n].filter] for n in of]
    each = tuple(
        sum(p.score for p, m in zip(found, of, strict=True) if m == n) / _PARTS[term.filter]
        for n, term in enumerate(terms)
    )
    return combine(found, shares, terms=each)


def _sums(patches: Patches, robust: float, *, each_pixel: bool) -> Float[Tensor, "M K"]:
    """Over the patches of each image: count, score, robust cost, gradient, hessian and scatter, in a row.

    The scatter is the covariance of the summed gradient.  With many patches, from how they disagree
    (cluster-robust: what is wrong with a patch is one error and not one a pixel).  With few, or each_pixel,
    from the noise of single pixels, which is a lower bound.
    """
    p, pulled = patches, patches.pull[..., None] * patches.gradient
    hessians = p.hessian.flatten(-2)
    scatter = (p.pull.square() * p.noise)[:, None] @ hessians
    if not each_pixel:
        many = 4 * (pulled.mT @ pulled).flatten(-2)  # four patches share a pixel
        scatter = torch.where((p.count < FEW_PATCHES)[:, None], scatter[:, 0], many)[:, None]
    score = (p.weight * p.score).sum(-1)
    cost = 0.5 * robust * (p.weight * torch.log1p(p.residual / robust)).sum(-1)
    first = torch.stack([p.count.to(score), score, cost], -1)
    return torch.cat([first, pulled.sum(-2), (p.pull[:, None] @ hessians)[:, 0], scatter[:, 0]], -1)


def _evidence(numbers: Float[Tensor, " K"], unknowns: int) -> Evidence:
    """What `_sums` says of one image, on the host."""
    count, score, cost = numbers[:3].tolist()
    if not count:
        raise RegistrationError(
            "no part of the film can be compared: its valid pixels are too few, or the volume does not "
            "reach them. Check the mask, the camera and the starting pose"
        )
    gradient, *square = numbers[3:].split([unknowns, unknowns**2, unknowns**2])
    hessian, scatter = (x.reshape(unknowns, unknowns) for x in square)
    return Evidence(score, cost, gradient, hessian, scatter, (), int(count))


def combine(
    parts: Sequence[Evidence], shares: Sequence[float], *, terms: tuple[float, ...] | None = None
) -> Evidence:
    """The weighted sum of several evidences about the same unknowns; their residuals count as independent."""

    def add(name: str, power: int = 1):
        return sum(s**power * getattr(p, name) for s, p in zip(shares, parts, strict=True))

    terms = tuple(p.score for p in parts) if terms is None else terms
    patches = sum(p.patches for p in parts)
    return Evidence(
        float(add("score")),
        float(add("cost")),
        add("gradient"),
        add("hessian"),
        add("scatter", 2),
        terms,
        patches,
    )


def scores(
    images: Float[Tensor, "B H W"],
    film: Float[Tensor, "H W"],
    mask: Bool[Tensor, "H W"],
    terms: tuple[Term, ...],
) -> Float[Tensor, " B"]:
    """The score of each of many images, without derivatives; -1 where nothing can be compared."""
    stack = torch.stack([images, film.expand_as(images)], 1).float()
    total = torch.zeros(len(images), device=images.device)
    weight = sum(t.weight for t in terms)
    for term in terms:
        parts = _filtered(stack, mask, [term])
        for part, valid in parts:
            total += term.weight / weight / len(parts) * _batch_score(part, valid, term)
    return total


def _batch_score(stack: Float[Tensor, "B 2 H W"], valid: Tensor, term: Term) -> Float[Tensor, " B"]:
    gram = _grams(stack, valid, term.window)
    usable = _usable(gram, _needed(valid, term.window))
    score, _, _, contrast = _compared(gram, usable, term.kind)
    weight, score = _patch_weights(contrast, usable), torch.nan_to_num(score, nan=-1.0)
    whole = weight.sum(-1)
    return torch.where(whole > 0, (weight * score).sum(-1) / whole.clamp_min(1e-12), -1.0)


def _filtered(stack: Tensor, mask: Tensor, terms: Sequence[Term]) -> list[tuple[Tensor, Tensor]]:
    """The images that terms compare, one after the other, each with the pixels that count [H, W]."""
    parts = []
    for term in terms:
        if term.filter == "image":
            parts.append((stack, mask.to(stack)))
        else:
            valid = shrink(mask).to(stack)
            parts += [(part, valid) for part in sobel(stack)]
    return parts


def _needed(valid: Float[Tensor, "H W"], window: int | None) -> Float[Tensor, ""]:
    """How many valid pixels make a patch count: half of it, or of all where the image is one patch."""
    whole = window is None or window > min(valid.shape)
    return 0.5 * (valid.sum() if whole else valid.new_full((), window * window))


def _film_scale(gram: Float[Tensor, "*batch P C C"], usable: Bool[Tensor, "*batch P"]) -> Tensor:
    """Variance of the film over the usable patches, the unit of squared differences; [..., 1]."""
    within, count = _centred(gram)[..., 1, 1] * usable, gram[..., 0, 0] * usable
    return (within.sum(-1, keepdim=True) / count.sum(-1, keepdim=True).clamp_min(1.0)).clamp_min(1e-12)


def _patch_weights(
    contrast: Float[Tensor, "*batch P"], usable: Bool[Tensor, "*batch P"]
) -> Float[Tensor, "*batch P"]:
    """Near 1 where the film has contrast, near 0 where it is flat, and 0 where a patch does not count."""
    square = torch.where(usable, contrast.square(), 0.0)
    mean = square.sum(-1, keepdim=True) / usable.sum(-1, keepdim=True).clamp_min(1)
    return square / (square + FLAT * mean + 1e-20)
