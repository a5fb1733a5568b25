"""Single films with their bones, changed so that few patients teach more than themselves.

Seven patients are seven sizes, fields of view and exposures, and a network learns which is which.  A film can
be zoomed, turned, bent and exposed anew together with the bones on it, in milliseconds; a volume cannot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from xreg.errors import ShapeError
from xreg.shape.films import label_thickness
from xreg.shape.networks.heads import THICKNESS_MM
from xreg.shape.networks.views import TOWARDS, USUAL_MM, film_inputs
from xreg.shape.samples import Sample
from xreg.shape.schemes import scheme
from xreg.shape.sources import Source, case_of
from xreg.shape.targets import labelled_views

if TYPE_CHECKING:
    from xreg.shape.train_settings import ShapeTrainSettings

_SEEN = 0.004  # of 50 mm of bone, from which a film shows it
_BRIGHT = 0.995  # quantile that becomes the brightest
_VOXELS = 160  # along the longest edge of the grids that pixel_mm is for
_AROUND = 15  # px over which a film's local mean is taken


@dataclass(frozen=True)
class FilmVariation:
    """How films are changed; ranges are even, in logarithms for what multiplies.

    pixel_mm: least and most of the size to which pixels are brought, by a zoom within zoom, for grids of 160
    voxels along the longest edge; coarser grids have larger pixels.  aspect: greatest
    log of the stretch.  degrees: standard deviation of a turn, at most twice that.  bend: size of smooth
    shifts, in parts of half the film.  body: standard deviation of the log by which patient and machine are
    larger together.  density: standard deviation of what 50 mm of bone add to a film or take from it, of all
    bones, and half of it of each.  gamma: greatest power of grey values.  shade, veil: of smooth factors
    (log) and of what is added.  sharpness: greatest gain of local contrast; at 0 films are not blurred
    either.  noise: greatest standard deviation.
    """

    pixel_mm: tuple[float, float] = (1.9, 4.2)
    zoom: tuple[float, float] = (0.5, 1.9)
    aspect: float = 0.07
    degrees: float = 7.0
    bend: float = 0.018
    body: float = 0.1
    density: float = 0.12
    gamma: float = 1.65
    shade: float = 0.22
    veil: float = 0.06
    sharpness: float = 1.0
    noise: float = 0.04

    def __post_init__(self) -> None:
        for name in ("pixel_mm", "zoom"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (float(low), float(high)))
            if not 0 < low <= high:
                raise ShapeError(f"{name} must be two positive numbers, the smaller first, got {low}, {high}")
        names = ("aspect", "degrees", "bend", "body", "density", "shade", "veil", "sharpness", "noise")
        if min(getattr(self, name) for name in names) < 0 or self.gamma < 1:
            raise ShapeError(f"film variations must not be negative and gamma at least 1, got {self}")

    def on_grids_of(self, voxels: int) -> FilmVariation:
        """The same for grids of so many voxels along the longest edge."""
        return replace(self, pixel_mm=tuple(edge * _VOXELS / voxels for edge in self.pixel_mm))

    def zoom_of(self, pixel_mm: float, generator: torch.Generator) -> float:
        """How much larger a film becomes whose pixels have this size."""
        low, high = (math.log(x) for x in self.pixel_mm)
        return min(max(pixel_mm / math.exp(uniform(generator, low, high)), self.zoom[0]), self.zoom[1])


@dataclass(frozen=True, eq=False)
class BoneFilm:
    """A film [H, W] the way round that networks take it, its ten numbers (`Views.rays`), and what is on it.

    numbers [k]: labels that it shows.  thickness [k, H, W], float16: theirs, in units of 50 mm.  known [L].
    """

    film: Float[Tensor, "H W"]
    rays: Float[Tensor, " 10"]
    numbers: Int64[Tensor, " k"]
    thickness: Float[Tensor, "k H W"]
    known: Bool[Tensor, " L"]
    scheme: str

    @classmethod
    def of(cls, sample: Sample) -> tuple[BoneFilm, ...]:
        """Each film of a sample; ShapeError for one without labels."""
        views, cameras, known = labelled_views(sample)
        maps = [label_thickness(sample.labels, sample.grid, camera, len(known)) for camera in cameras]
        made = []
        maps = views.turned(torch.stack(maps)[None])[0] / THICKNESS_MM
        for film, rays, thickness in zip(views.films[0], views.rays[0], maps, strict=True):
            there = (thickness[1:].amax((1, 2)) > _SEEN).nonzero()[:, 0] + 1
            made.append(cls(film, rays, there, thickness[there].half(), known, sample.scheme))
        return tuple(made)

    def mirrored(self) -> BoneFilm:
        """The same film of the patient with left and right exchanged."""
        swap = scheme(self.scheme).mirror
        rays = self.rays.clone()
        rays[:9:3] *= -1
        parts = {"film": self.film, "thickness": self.thickness}
        if float(rays[3:6] @ rays.new_tensor(TOWARDS)) < 0:  # columns run the usual way again
            rays[3:6] *= -1
            parts = {name: part.flip(-1) for name, part in parts.items()}
        return replace(self, rays=rays, numbers=swap[self.numbers], known=self.known[swap], **parts)

    def varied(
        self, how: FilmVariation, generator: torch.Generator, size: tuple[int, int] | None = None
    ) -> BoneFilm:
        """Zoomed, turned, shifted, bent and exposed anew, on a film of ``size`` (H, W)."""
        size = tuple(self.film.shape) if size is None else size
        zoom = how.zoom_of(USUAL_MM * math.exp(float(self.rays[9])), generator)
        angle = math.radians(how.degrees) * float(torch.randn((), generator=generator).clamp(-2, 2))
        at = _places(self.film.shape, size, zoom, angle, how, generator)
        whole = torch.cat([self.film[None], self.thickness.float()])[None]
        film, thickness = F.grid_sample(whole, at, align_corners=False)[0].split([1, len(self.numbers)])
        body = math.exp(how.body * float(torch.randn((), generator=generator)))
        rays = self.rays.clone()
        rays[9] += math.log(body / zoom)
        columns, rows = rays[3:6].clone(), rays[6:9].clone()
        rays[3:6] = math.cos(angle) * columns + math.sin(angle) * rows
        rays[6:9] = math.cos(angle) * rows - math.sin(angle) * columns
        film = exposed_anew(_denser(film, thickness, how.density, generator), how, generator)[0]
        return replace(self, film=film, rays=rays, thickness=body * thickness)


@dataclass(frozen=True, eq=False)
class FilmBatch:
    """Films to learn from: inputs [N, 13, H, W], thickness [N, L-1, H, W] in units of 50 mm, known [N, L]."""

    inputs: Float[Tensor, "N 13 H W"]
    thickness: Float[Tensor, "N K H W"]
    known: Bool[Tensor, "N L"]

    @classmethod
    def of(cls, films: Sequence[BoneFilm]) -> FilmBatch:
        """Films of one size."""
        known = torch.stack([film.known for film in films])
        thickness = torch.zeros(len(films), known.shape[1] - 1, *films[0].film.shape)
        for whole, film in zip(thickness, films, strict=True):
            whole[film.numbers - 1] = film.thickness.float()
        seen, rays = (torch.stack([getattr(film, name) for film in films]) for name in ("film", "rays"))
        return cls(film_inputs(seen, rays), thickness, known)

    def to(self, device: torch.device | str) -> FilmBatch:
        """All of it on another device."""
        return FilmBatch(*(part.to(device) for part in (self.inputs, self.thickness, self.known)))


def exposed_anew(
    films: Float[Tensor, "V H W"], how: FilmVariation, generator: torch.Generator
) -> Float[Tensor, "V H W"]:
    """Films 0 to 1 with other range, contrast, shading, sharpness and noise, each film its own."""
    return torch.stack([_exposed(film, how, generator) for film in films])


def _denser(
    film: Float[Tensor, "1 H W"], thickness: Float[Tensor, "k H W"], size: float, generator: torch.Generator
) -> Float[Tensor, "1 H W"]:
    """The film with its bones denser or less so; what is black stays."""
    gain = size * (
        torch.randn((), generator=generator) + 0.5 * torch.randn(len(thickness), generator=generator)
    )
    return (film + torch.einsum("k,khw->hw", gain, thickness)).clamp_min(0) * (film > 0)


def _exposed(film: Float[Tensor, "H W"], how: FilmVariation, generator: torch.Generator) -> Tensor:
    lit = film[film > 0]
    if len(lit):
        film = (film / torch.quantile(lit[::4], _BRIGHT).clamp_min(0.2)).clamp(0, 1)
    power = math.exp(uniform(generator, -math.log(how.gamma), math.log(how.gamma)))
    lit = film > 0
    film = film.clamp_min(1e-4) ** power
    shade, veil = _smooth((2, *film.shape), (4, 4), generator)
    film = (film * torch.exp(how.shade * shade) + how.veil * veil) * lit
    choice = uniform(generator, 0, 1)
    if choice < 0.35:  # more or less local contrast
        around = F.avg_pool2d(film[None, None], _AROUND, 1, _AROUND // 2)[0, 0]
        film = film + how.sharpness * uniform(generator, -0.3, 1.0) * (film - around)
    elif choice < 0.5 and how.sharpness:
        film = F.avg_pool2d(film[None, None], 3, 1, 1)[0, 0]
    grain = torch.randn(film.shape, generator=generator)
    return (film + uniform(generator, 0, how.noise) * grain).clamp(0, 1)


def _places(
    source: Sequence[int],
    size: tuple[int, int],
    zoom: float,
    angle: float,
    how: FilmVariation,
    generator: torch.Generator,
) -> Float[Tensor, "1 h w 2"]:
    """Where the pixels of the new film lie in the old one, in grid_sample's coordinates."""
    stretch = math.exp(uniform(generator, -how.aspect, how.aspect))
    free = 0.12 + max(0.0, 1 - 1 / zoom) if zoom >= 1 else 0.7 * (1 / zoom - 1 + 0.1)
    shift = [uniform(generator, -free, free) for _ in range(2)]
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    (height, width), (rows, columns) = size, source
    change = torch.tensor(
        [
            [cos / stretch * width / columns, -sin * height / columns, shift[0]],
            [sin * width / rows, cos * stretch * height / rows, shift[1]],
        ]
    )
    at = F.affine_grid(change[None], [1, 1, *size], align_corners=False)
    bent = _smooth((2, *size), (6, 5), generator) * how.bend / math.sqrt(zoom)
    return at + bent.permute(1, 2, 0)


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """An even number between two."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def _smooth(
    shape: tuple[int, int, int], knots: tuple[int, int], generator: torch.Generator
) -> Float[Tensor, "C H W"]:
    """Smooth noise of about unit variance at its knots."""
    field = torch.randn(1, shape[0], *knots, generator=generator)
    return F.interpolate(field, shape[1:], mode="bicubic", align_corners=True)[0]


class FilmDraws:
    """Batches of changed films from a source of samples; the same (seed, step) gives the same films."""

    def __init__(self, source: Source, settings: ShapeTrainSettings) -> None:
        self.source, self.settings = source, settings
        self._known: WeakKeyDictionary[Sample, tuple[BoneFilm, ...]] = WeakKeyDictionary()

    def batch(self, step: int) -> FilmBatch:
        """The films of a step, of the first one's size."""
        films: list[BoneFilm] = []
        number = 0
        while len(films) < self.settings.film_batch:
            sample, generator = case_of(self.source, self.settings.seed, step, number)
            for film in self._films(sample)[: self.settings.film_batch - len(films)]:
                if self.settings.mirror and uniform(generator, 0, 1) < 0.5:
                    film = film.mirrored()
                size = tuple(films[0].film.shape) if films else None
                films.append(film.varied(self.settings.variation, generator, size))
            number += 1
        return FilmBatch.of(films)

    def _films(self, sample: Sample) -> tuple[BoneFilm, ...]:
        """A sample's films; its bones are projected once as long as it is kept."""
        if sample not in self._known:
            self._known[sample] = BoneFilm.of(sample)
        return self._known[sample]
