"""Our network: films are read in 2D, carried into space along their own rays, and decided there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from xreg.shape.networks.backproject import CERTAIN, Lattice, Places, fuse, hull, look_up, stride
from xreg.shape.networks.closer import read_closer
from xreg.shape.networks.decoder import PointHead, SpaceDecoder, sample_space
from xreg.shape.networks.encoder import FilmEncoder
from xreg.shape.networks.heads import FilmHeads, FilmMaps
from xreg.shape.networks.settings import NetworkSettings, Output
from xreg.shape.networks.views import Views
from xreg.shape.schemes import Scheme
from xreg.shape.shares import Shares

_STEPS = (4, 2, 1)  # voxels between those that are asked, pass by pass
_READERS = ("encoder", "heads")
_UNLIKELY = 0.1  # of the doubt: a label that has less everywhere is not asked about again


@dataclass(frozen=True, eq=False)
class Encoded:
    """What `RayNet.encode` makes of films, from which any voxel can be asked for.

    features, space: None where the films' masks alone shall say what is where.
    """

    views: Views
    features: Float[Tensor, "N C H W"] | None
    maps: FilmMaps
    space: Float[Tensor, "B W d h w"] | None
    lattice: Lattice


class RayNet(nn.Module):
    """Any number of films of any cameras to labels at any voxels."""

    def __init__(self, settings: NetworkSettings, names: Scheme) -> None:
        super().__init__()
        self.settings, self.names = settings, names
        features, fused = settings.features, 3 * settings.features + 1
        self.encoder = FilmEncoder(settings.film_widths, features)
        self.heads = FilmHeads(features, settings.film_widths[-1], names, orders=settings.orders)
        self.decoder = SpaceDecoder(fused, settings.space_widths)
        self.points = PointHead(
            settings.space_widths[0], fused, settings.hidden, names, orders=settings.orders
        )

    def start(self) -> None:
        """First values of what is not drawn at random."""
        self.heads.start()
        self.points.start()

    def learn(self, *, films: bool) -> None:
        """Let gradients flow to what reads films, or to what decides in space; the rest stays as it is."""
        for name, part in self.named_children():
            part.requires_grad_((name in _READERS) == films)

    def read(self, inputs: Float[Tensor, "N 13 H W"]) -> tuple[Float[Tensor, "N C H W"], FilmMaps]:
        """Features of films, and what is on them."""
        features, summary = self.encoder(inputs)
        return features, self.heads(features, summary)

    def encode(self, views: Views, *, hulls: bool = False, finest_mm: float | None = None) -> Encoded:
        """Read the films, and work out the features of space, unless hulls shall do.

        finest_mm: for hulls, films are read in enlarged parts too (`closer`).
        """
        lattice = Lattice.coarse(views.shape, stride(views.shape, self.settings.cells))
        if hulls:
            return Encoded(views, None, self._maps(views, finest_mm), None, lattice)
        features, maps = self.read(views.inputs())
        index = lattice.index(features.device).expand(len(views.films), -1, -1)
        fused = fuse(*look_up(features, views, index))
        place = index @ views.place[:, :, :3].transpose(1, 2) + views.place[:, None, :, 3]
        return Encoded(views, features, maps, self.decoder(fused, place, lattice), lattice)

    def _maps(self, views: Views, finest_mm: float | None) -> FilmMaps:
        """What is on the films, read in enlarged parts too where there is a finest_mm."""
        if finest_mm is None:
            return self.read(views.inputs())[1]
        films, rays = views.films.flatten(0, 1), views.rays.flatten(0, 1)
        return read_closer(lambda inputs: self.read(inputs)[1], films, rays, finest_mm)

    def at(
        self, encoded: Encoded, index: Float[Tensor, "B N 3"], labels: Int64[Tensor, " L"] | None = None
    ) -> tuple[Float[Tensor, "B L N"], Float[Tensor, "B R N"]]:
        """Label logits at voxels (i, j, k), and the numbers along rows of bones.

        labels: those that are asked for, the background first; by default all.
        """
        masks = encoded.maps.masks if labels is None else encoded.maps.masks[:, labels[1:] - 1]
        if encoded.space is None:
            return _hull_logits(*look_up(masks, encoded.views, index)), index[:, :, :0].mT
        maps = torch.cat([encoded.features, masks.to(encoded.features.dtype)], 1)
        found, seen = look_up(maps, encoded.views, index)
        values, masks = found[:, :, : self.settings.features], found[:, :, self.settings.features :]
        space = sample_space(encoded.space, encoded.lattice, index)
        return self.points(space, fuse(values, seen), F.logsigmoid(hull(masks, seen)), labels)

    def forward(self, views: Views, places: Places | None = None, *, hulls: bool = False) -> Output:
        """Logits [B, L, …] at voxels of the grid, by default at all of them; hulls: as in `probabilities`."""
        places = Lattice(views.shape) if places is None else places
        encoded = self.encode(views, hulls=hulls)
        index = places.index(views.films.device).expand(len(views.films), -1, -1)
        logits, levels = (x.unflatten(-1, places.counts) for x in self.at(encoded, index))
        return Output((logits,), encoded.maps, levels)

    @torch.no_grad()
    def probabilities(
        self,
        views: Views,
        doubt: float,
        *,
        hulls: bool = False,
        finest_mm: float | None = None,
        chunk: int = 1 << 16,
    ) -> tuple[Shares, FilmMaps | None]:
        """Voxels of one case that may hold bone, their probabilities, and what is on the films.

        Every fourth voxel along each axis is asked first, then every second and then all, each time only
        about those whose background has less than 1 - doubt, and about labels that got more than a tenth of
        that anywhere.  hulls: let the films' masks alone say what is where: a structure's odds are the least
        of those that it covers the voxel's pixel, and where fewer than two films see there is nothing.
        finest_mm: as in `encode`.  Returns what those voxels may be, and the films' maps.
        """
        encoded = self.encode(views, hulls=hulls, finest_mm=finest_mm)
        maybe = torch.ones(Lattice.coarse(views.shape, _STEPS[0]).counts, dtype=torch.bool)
        maybe = maybe.to(views.films.device)
        labels = torch.arange(len(self.names), device=maybe.device)
        for step in _STEPS:
            lattice = Lattice.coarse(views.shape, step)
            flat = maybe.reshape(-1).nonzero()[:, 0]
            found = self._ask(encoded, lattice.index_at(flat), labels, chunk)
            if step > 1:
                likely = found.amax(0) > _UNLIKELY * doubt if len(found) else labels < 0
                maybe = maybe.clone().reshape(-1)
                maybe[flat] = found[:, 0] < 1 - doubt
                finer = Lattice.coarse(views.shape, step // 2).counts
                maybe = _finer(maybe.reshape(lattice.counts), finer)
                likely[0] = True
                labels = labels[likely]
        return Shares(flat, labels, found).likely(doubt), encoded.maps

    def _ask(
        self, encoded: Encoded, index: Float[Tensor, "N 3"], labels: Int64[Tensor, " L"], chunk: int
    ) -> Float[Tensor, "N L"]:
        if not len(index):
            return index.new_zeros(0, len(labels))
        made = index.new_empty(len(index), len(labels))
        for part, values in zip(index.split(chunk), made.split(chunk), strict=True):
            values.copy_(self.at(encoded, part[None], labels)[0][0].float().softmax(0).T)
        return made


def _hull_logits(masks: Float[Tensor, "B V K N"], seen: Bool[Tensor, "B V N"]) -> Float[Tensor, "B L N"]:
    """Logits whose odds against the background are those of each structure's visual hull."""
    least = hull(masks, seen).masked_fill((seen.sum(1) < 2)[:, None], -CERTAIN)
    return F.pad(least, (0, 0, 1, 0))


def _finer(maybe: Bool[Tensor, "d h w"], counts: tuple[int, int, int]) -> Bool[Tensor, "D H W"]:
    """Cells and their neighbours, on a lattice of twice as many."""
    near = nn.functional.max_pool3d(maybe[None, None].float(), 3, 1, 1)[0, 0] > 0
    for axis in range(3):
        near = near.repeat_interleave(2, axis)
    depth, height, width = counts
    return near[:depth, :height, :width].contiguous()
