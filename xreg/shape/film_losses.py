"""What a network is trained by in single films: where each bone covers them, how thick, which level, whether.

Of all structures in all films most are not there, and of many an annotation says nothing.  So the losses of
masks and thickness are worked out structure by structure, in pieces that stay in a processor's cache, with
their slopes beside them: a third of the time that whole maps take, one operation after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from xreg.shape.losses import masked_mean
from xreg.shape.networks.heads import FilmMaps, centroids

if TYPE_CHECKING:
    from xreg.shape.film_cases import FilmBatch

_THICK = 0.02  # of 50 mm: a ray that runs further than this in a structure is covered by it
_EVERYWHERE = 8.0  # what thickness counts at all pixels, against 1 for its overlap where a bone is
_MASK = 5.0  # the same for the cross entropy of masks: most pixels hold nothing
_BETA = 0.1  # of 50 mm: up to where an error of thickness counts by its square
_PIECE = 1 << 17  # pixels that are worked on at once


def film_losses(
    maps: FilmMaps, films: FilmBatch, vertebrae: list[int], balance: float = 0.0
) -> dict[str, Float[Tensor, ""]]:
    """Losses of what is predicted in the films, over the labels that each case's annotation knows.

    mask: cross entropy of pixels, and 1 - Dice of the structures that a film shows; thickness: smooth L1 at
    all pixels, and of structures that are there the sum of what differs over the sum of both; centroid: how
    far their middles are apart, in parts of the film; presence: cross entropy; level: how far from that of
    the vertebrae on the ray.  vertebrae: numbers of the spine's labels, from the first to the last; their
    place in this list is what ``level`` tells.  balance: power of a structure's rarity in its film by which
    its pixels weigh more.  Gradients flow to the maps, once.
    """
    thickness, known = films.thickness, films.known[:, 1:]
    present = (thickness > _THICK).flatten(2).any(2)
    masks, told, level, said = (
        part.to(thickness) for part in (maps.masks, maps.thickness, maps.level, maps.presence)
    )
    each = _Structures.apply(masks, told, thickness, known, present, balance)
    presence = F.binary_cross_entropy_with_logits(said, present.to(said), reduction="none")
    return {
        **dict(zip(("mask", "thickness", "centroid"), each, strict=True)),
        "presence": masked_mean(presence, known),
        "level": _level_loss(level, thickness, vertebrae),
    }


def _level_loss(level: Tensor, thickness: Tensor, vertebrae: list[int]) -> Float[Tensor, ""]:
    """How far the level is from that of the vertebrae on the ray, where there are any."""
    spine = thickness[:, [n - 1 for n in vertebrae]]
    total = spine.sum(1)
    steps = torch.linspace(0, 1, len(vertebrae), device=level.device)
    wanted = torch.einsum("nkhw,k->nhw", spine, steps.to(spine)) / total.clamp_min(1e-6)
    return masked_mean((level - wanted).abs(), total > _THICK)


class _Structures(torch.autograd.Function):
    """Losses of masks, thickness and centroids of structures that are known, with slopes in closed form."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        masks: Float[Tensor, "N K H W"],
        told: Float[Tensor, "N K H W"],
        thickness: Float[Tensor, "N K H W"],
        known: Bool[Tensor, "N K"],
        present: Bool[Tensor, "N K"],
        balance: float,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        size = masks.shape[-2:]
        there = present & known
        every, shown = (max(1, int(some.sum())) for some in (known, there))
        slopes = [masks.new_zeros(masks.shape) for _ in range(2)]
        middles = masks.new_zeros(
            *known.shape, 3
        )  # slope of the centroids' loss: by column, by row, and none
        sums = masks.new_zeros(3)
        for rows, is_there in ((there, True), (known & ~present, False)):
            for films, labels in _pieces(rows, size.numel()):
                at = films, labels
                piece = _Piece(*(maps[at].flatten(1) for maps in (masks, told, thickness)), size)
                found = piece.there(every, shown, balance) if is_there else piece.absent(every)
                for slope, own in zip(slopes, found.slopes, strict=True):
                    slope[at] = own.unflatten(1, size)
                sums += found.sums
                if found.middles is not None:
                    middles[at] = found.middles
        ctx.save_for_backward(*slopes, middles)
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, by_mask: Tensor, by_thickness: Tensor, by_centroid: Tensor
    ) -> tuple[Tensor | None, ...]:
        masks, told, middles = ctx.saved_tensors
        told = told * by_thickness
        height, width = told.shape[-2:]
        u, v = ((torch.arange(n, device=told.device) + 0.5) / n for n in (width, height))
        at = middles.any(-1).nonzero(as_tuple=True)
        by_column, by_row, none = (by_centroid * middles[at])[:, :, None].unbind(1)
        told[at] += (by_row * v + none)[:, :, None] + (by_column * u)[:, None]
        return masks * by_mask, told, None, None, None, None


def _pieces(rows: Bool[Tensor, "N K"], pixels: int) -> list[tuple[Int64[Tensor, " r"], Int64[Tensor, " r"]]]:
    """Films and labels of the rows, in pieces of about `_PIECE` pixels; all at once on a card."""
    films, labels = rows.nonzero(as_tuple=True)
    count = max(1, _PIECE // pixels) if rows.device.type == "cpu" else max(1, len(films))
    return list(zip(films.split(count), labels.split(count), strict=True)) if len(films) else []


@dataclass(frozen=True, eq=False)
class _Found:
    """Of some structures: what they add to the three losses, and slopes of the first two.

    middles: slopes of the third by thickness, by column, by row, and what neither changes.
    """

    sums: Float[Tensor, " 3"]
    slopes: tuple[Float[Tensor, "r P"], Float[Tensor, "r P"]]
    middles: Float[Tensor, "r 3"] | None = None


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some structures in their films: logits of masks, thickness as told and true, of P pixels each."""

    logits: Float[Tensor, "r P"]
    told: Float[Tensor, "r P"]
    true: Float[Tensor, "r P"]
    size: torch.Size

    def absent(self, every: int) -> _Found:
        """Of structures that the films do not show; every: how many are known in all."""
        inside, part = self.logits.sigmoid(), 1 / (every * self.logits.shape[1])
        off, slope = self._off()
        sums = [
            _MASK * part * F.softplus(self.logits).sum(),
            _EVERYWHERE * part * off.sum(),
            off.new_zeros(()),
        ]
        return _Found(torch.stack(sums), (_MASK * part * inside, _EVERYWHERE * part * slope))

    def there(self, every: int, shown: int, balance: float) -> _Found:
        """Of structures that they show; shown: how many they are in all."""
        part = 1 / (every * self.logits.shape[1])
        covered = (self.true > _THICK).to(self.true)
        weight = _pixel_weights(covered, balance)
        entropy, dice, slope = self._masks(covered)
        slope = _MASK * part * weight * (slope[0] - covered) + slope[1] / shown
        off, off_slope = self._off()
        apart, apart_slope = self._apart()
        middle, middles = self._middles()
        sums = [
            _MASK * part * (weight * entropy).sum() + dice.sum() / shown,
            _EVERYWHERE * part * (weight * off).sum() + apart.sum() / shown,
            middle.sum() / shown,
        ]
        told = _EVERYWHERE * part * weight * off_slope + apart_slope / shown
        return _Found(torch.stack(sums), (slope, told), middles / shown)

    def _masks(
        self, covered: Float[Tensor, "r P"]
    ) -> tuple[Float[Tensor, "r P"], Float[Tensor, " r"], tuple[Float[Tensor, "r P"], Float[Tensor, "r P"]]]:
        """Cross entropy of pixels, 1 - Dice (V-Net's, with squares), the sigmoid, and Dice's slope."""
        inside = self.logits.sigmoid()
        entropy = F.softplus(self.logits) - covered * self.logits
        both = 2 * (inside * covered).sum(1, keepdim=True) + 1
        size = (inside.square() + covered).sum(1, keepdim=True) + 1
        slope = (2 * both / size.square() * inside - 2 / size * covered) * inside * (1 - inside)
        return entropy, 1 - (both / size)[:, 0], (inside, slope)

    def _off(self) -> tuple[Float[Tensor, "r P"], Float[Tensor, "r P"]]:
        """Smooth L1 of the thickness, and its slope."""
        off = self.told - self.true
        near = off.clamp(-_BETA, _BETA)
        return near * (off - 0.5 * near) / _BETA, near / _BETA

    def _apart(self) -> tuple[Float[Tensor, " r"], Float[Tensor, "r P"]]:
        """What differs of the thickness, over the sum of both and a pixel; and its slope."""
        off = self.told - self.true
        whole = (self.told + self.true).sum(1, keepdim=True) + 1
        share = off.abs().sum(1, keepdim=True) / whole
        return share[:, 0], (off.sign() - share) / whole

    def _middles(self) -> tuple[Float[Tensor, " r"], Float[Tensor, "r 3"]]:
        """How far middles are apart, columns and rows together; slopes by column, by row, and neither."""
        told, true = (centroids(maps.unflatten(1, self.size)[None])[0] for maps in (self.told, self.true))
        off = told - true
        total = self.told.sum(1, keepdim=True).clamp_min(1e-6)
        ways = torch.where(total > 1e-5, off.sign() / total, 0.0)
        return off.abs().sum(1), torch.cat([ways, -(ways * told).sum(1, keepdim=True)], 1)


def _pixel_weights(covered: Float[Tensor, "r P"], balance: float) -> Float[Tensor, "r P"] | float:
    """Of a structure's own pixels more than of others', one on average."""
    if not balance:
        return 1.0
    share = covered.mean(1, keepdim=True)
    own, others = ((part.clamp_min(1e-4)).pow(-balance) for part in (share, 1 - share))
    whole = share * own + (1 - share) * others
    return torch.lerp(others / whole, own / whole, covered)
