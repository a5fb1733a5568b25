"""What a network of labels is trained by in space; in films see `xreg.shape.film_losses`.

Annotations are partial: a file of vertebrae says nothing about ribs.  A voxel that it leaves empty is
background or something that it does not know, and counts as either (the marginal loss of G. Shi et al.,
"Marginal loss and exclusion loss for partially supervised multi-organ segmentation", Medical Image Analysis
70, 2021); overlaps are taken over the labels that it knows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from xreg.shape.networks.orders import Rows

_SMOOTH = 1e-3  # part of the voxels


def marginal_log_probability(
    logits: Float[Tensor, "B L N"], known: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L N"]:
    """Log-probabilities in which the background takes in all labels that the annotation does not know."""
    total = torch.logsumexp(logits, 1, keepdim=True)
    empty = ~known
    empty[:, 0] = True
    whole = torch.logsumexp(logits.masked_fill(~empty[:, :, None], -torch.inf), 1, keepdim=True)
    return torch.cat([whole, logits[:, 1:]], 1) - total


def segmentation_loss(
    logits: Float[Tensor, "B L N"],
    labels: Int64[Tensor, "B N"],
    known: Bool[Tensor, "B L"],
    balance: float = 0.0,
    weight: Float[Tensor, "B N"] | None = None,
) -> dict[str, Tensor]:
    """Cross entropy of all voxels, and 1 - soft Dice averaged over the labels present.

    balance: power of a label's rarity by which its voxels weigh more in the entropy, 0 to 1.  weight: how
    many voxels each stands for; by default one.
    """
    weight = torch.ones_like(labels, dtype=torch.float32) if weight is None else weight
    found = marginal_log_probability(logits.float(), known)
    entropy = F.nll_loss(found, labels, reduction="none")
    counts = weight.new_zeros(logits.shape[:2]).scatter_add(1, labels, weight).clamp_min(1)
    share = weight * counts.pow(-balance).gather(1, labels)
    entropy = (entropy * share / share.sum(1, keepdim=True)).sum(1).mean()
    return {"entropy": entropy, "dice": dice_loss(found.exp(), labels, known, weight)}


def dice_loss(
    probability: Float[Tensor, "B L N"],
    labels: Int64[Tensor, "B N"],
    known: Bool[Tensor, "B L"],
    weight: Float[Tensor, "B N"] | None = None,
) -> Tensor:
    """1 - Dice (V-Net's, with squares; Milletari et al. 2016), mean over the labels that a case shows.

    A label that is known to be absent counts through the cross entropy alone: its Dice has no slope.
    weight: how many voxels each stands for; by default one.
    """
    weight = torch.ones_like(probability[:, 0]) if weight is None else weight
    batch, count, _ = probability.shape
    own = probability.gather(1, labels[:, None])[:, 0]
    zeros = probability.new_zeros(batch, count)
    overlap = zeros.scatter_add(1, labels, own * weight)
    there = zeros.scatter_add(1, labels, weight)
    size = (probability.square() * weight[:, None]).sum(2) + there
    smooth = _SMOOTH * weight.sum(1, keepdim=True) / count
    dice = (2 * overlap + smooth) / (size + smooth)
    counted = (there > 0) & known
    counted[:, 0] = False
    if not bool(counted.any()):
        return 0.0 * dice.sum()
    return 1 - dice[counted].mean()


def mutual_loss(logits: tuple[Float[Tensor, "B L N"], ...]) -> Tensor:
    """Divergence of each branch's probabilities from every other's, as Swin-X2S adds it."""
    logs = [F.log_softmax(x.float().transpose(1, 2).flatten(0, 1), 1) for x in logits]
    pairs = [(a, b) for n, a in enumerate(logs) for m, b in enumerate(logs) if n != m]
    return sum(F.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in pairs) / len(logits)


def order_loss(levels: Float[Tensor, "B R N"], labels: Int64[Tensor, "B N"], rows: Rows) -> Tensor:
    """How many bones each row's number is off, at the voxels of that row's bones; far ones count less."""
    total, count = levels.sum() * 0.0, 0
    for number, groups in enumerate(rows):
        place = torch.full((int(labels.max()) + 1,), -1.0, device=labels.device)
        for group in groups:
            there = [(n, label) for n, label in enumerate(group) if label < len(place)]
            for n, label in there:
                place[label] = float(n)
        wanted = place[labels]
        off = (levels[:, number].float() - wanted).abs()[wanted >= 0]
        total, count = total + torch.log1p(off).sum(), count + off.numel()
    return total / max(1, count)


def masked_mean(values: Float[Tensor, "*some"], counted: Bool[Tensor, "*some"]) -> Float[Tensor, ""]:
    """Mean over what counts, 0 where nothing does."""
    weight = counted.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp_min(1)
