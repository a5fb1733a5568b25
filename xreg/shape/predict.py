"""Labels from films by a trained network, with what it doubts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int16
from torch import Tensor

from xreg.errors import FileError, InputWarning, ShapeError, XregError
from xreg.geometry import Camera
from xreg.io.voxel_grid import VoxelGrid
from xreg.shape import checkpoint
from xreg.shape.centroids import points_of
from xreg.shape.film_cases import FilmVariation
from xreg.shape.films import normalise
from xreg.shape.networks import Lattice, NetworkSettings, RayNet, SwinX2S, Views, make_network
from xreg.shape.networks.heads import THICKNESS_MM, FilmMaps
from xreg.shape.networks.views import fitted
from xreg.shape.schemes import SCHEMES, Scheme, scheme
from xreg.shape.shares import Shares, aligned, mean
from xreg.shape.spine import SpineSettings, count_vertebrae, renumbered, renumbered_maps
from xreg.shape.spine_reading import SpineModel
from xreg.training import MODEL, load_weights, require

DOUBT = 0.05  # of not being background, from which a voxel is looked at and kept
_POWERS = (1.0, 0.85, 1.18, 0.93, 1.08)  # of grey values: the variants of a film
_CROSSED = 0.5  # sine of the angle between two beams from which hulls are bodies
_LEAST_SEEN = 0.3  # part of the grid that a film should show


@dataclass(frozen=True, eq=False)
class ShapePrediction:
    """What a network makes of films, on a grid.

    labels [D, H, W] int16 in the numbers of ``scheme``.  entropy [D, H, W], nats: of the probabilities at
    each voxel, at most log of the count of labels.  disagreement [D, H, W], nats: the part of it that comes
    from the variants of the films (their mutual information), None without variants.  shares: what the voxels
    that may be bone may be.  thickness [V, L, H, W]: of each structure along the rays of the films as the
    network read them, mm, where the network tells it; told: the cameras of these films, averaged as they are
    for it (`xreg.shape.networks.views.fitted`).  warnings: what was also warned of.  uncounted: the shares as
    the network gave them, where its vertebrae were counted anew.  numberings: what a reader of the spine says
    of the levels, had they been shifted (`SpineLine`).
    """

    labels: Int16[Tensor, "D H W"]
    entropy: Float[Tensor, "D H W"]
    disagreement: Float[Tensor, "D H W"] | None
    shares: Shares
    grid: VoxelGrid
    scheme: Scheme
    warnings: tuple[str, ...] = ()
    thickness: Float[Tensor, "V L H W"] | None = None
    told: tuple[Camera, ...] = ()
    uncounted: Shares | None = None
    numberings: Float[Tensor, " 5"] | None = None

    def probability(self, label: int | str) -> Float[Tensor, "D H W"]:
        """How likely each voxel is of a structure, by number or name."""
        number = self.scheme.index(label) if isinstance(label, str) else int(label)
        elsewhere = 1.0 if number == 0 else 0.0
        return _dense(self.shares.of_label(number), self.shares.voxels, self.grid, elsewhere)

    def expected_volumes(self) -> dict[str, tuple[float, float]]:
        """Volume of each structure found, mm³: what is labelled, and the sum of its probabilities."""
        voxel, found = self.grid.voxel_mm3, {}
        counts = torch.bincount(self.labels.flatten().long(), minlength=len(self.scheme))
        sums = self.shares.sums()
        for number in self.scheme.numbers:
            if counts[number]:
                found[self.scheme.names[number]] = (
                    float(counts[number]) * voxel,
                    sums.get(number, 0.0) * voxel,
                )
        return found


class ShapeModel:
    """A network with what it was trained for."""

    def __init__(
        self,
        net: RayNet | SwinX2S,
        facts: dict[str, Any],
        source: str,
        device: torch.device,
        spine: SpineModel | None = None,
    ) -> None:
        self.spine = spine
        self.net, self.facts, self.source, self.device = net.eval(), facts, source, device
        self.scheme = scheme(facts["scheme"])
        self.learned = torch.tensor([n in facts["learned"] for n in self.scheme.names], device=device)
        self.learned[0] = True
        self.hulls = bool(facts["settings"].get("hulls", False))
        self.finest_mm = _finest_mm(facts)

    @classmethod
    def load(
        cls,
        folder: str | PathLike,
        *,
        scheme: str | Scheme | None = None,
        labels: Iterable[str] = (),
        device: torch.device | str = "cpu",
    ) -> ShapeModel:
        """The network that `train` left in a folder.

        scheme, labels: what it must speak of; ShapeError for a network of another scheme, or one that never
        saw such a structure.  FileError where it is missing or damaged.
        """
        file = Path(folder)
        file = file / MODEL if file.is_dir() or not file.suffix else file
        tensors, facts = checkpoint.load(file)
        require(facts, ("scheme", "names", "learned", "patients", "settings"), file)
        if facts["scheme"] not in SCHEMES or list(SCHEMES[facts["scheme"]].names) != facts["names"]:
            raise FileError(f"{file}: its label scheme {facts['scheme']!r} is not this version's; train anew")
        try:
            settings = NetworkSettings.from_dict(facts["settings"]["network"])
            net = make_network(settings, SCHEMES[facts["scheme"]])
        except (XregError, KeyError, TypeError) as error:
            raise FileError(f"{file}: is not a network that this xreg can make ({error})") from error
        load_weights(net, tensors, file)
        device = torch.device(device)
        spine = SpineModel.beside(file.parent)
        if spine is not None:
            facts = {**facts, "patients": list(dict.fromkeys((*facts["patients"], *spine.facts["patients"])))}
        model = cls(net.to(device), facts, str(file), device, spine)
        model.require(scheme, labels)
        return model

    def require(self, wanted: str | Scheme | None = None, labels: Iterable[str] = ()) -> None:
        """ShapeError unless this network speaks this scheme and has learned these structures."""
        if wanted is not None and scheme(wanted).name != self.scheme.name:
            raise ShapeError(
                f"{self.source}: its labels are of the scheme {self.scheme.name!r}, and "
                f"{scheme(wanted).name!r} was asked for; take another model, or map its labels with "
                "xreg.shape.relabel"
            )
        missing = [n for n in labels if not bool(self.learned[self.scheme.index(n)])]
        if missing:
            learned, count = ", ".join(self.facts["learned"]), len(self.facts["patients"])
            raise ShapeError(
                f"{self.source}: was never shown {', '.join(missing)}; it learned {learned} from {count} "
                "patients. Take a model for this anatomy"
            )

    @torch.no_grad()
    def predict(
        self,
        films: Float[Tensor, "V H W"],
        cameras: Sequence[Camera],
        grid: VoxelGrid,
        *,
        variants: int = 1,
        normalised: bool = False,
        count: bool = True,
        hulls: bool | None = None,
    ) -> ShapePrediction:
        """Labels on a grid from films and their cameras.

        films: bright where attenuation is high, of any range unless ``normalised``.  variants: how many
        looks of the films are averaged, 1 to 5, each a network run.  count: whether vertebrae are counted
        along the spine (`xreg.shape.spine`).  hulls: whether bones are where the masks of all films agree, or
        where the network's half in space puts them; None for what its training was told, and for the latter
        where no two beams cross at 30° or more.  One film works, with an InputWarning.
        Raises ImageError and ShapeError for films, cameras and grids that do not fit.
        """
        if not 1 <= variants <= len(_POWERS):
            raise ShapeError(f"variants must be 1 to {len(_POWERS)}, got {variants}")
        films = torch.as_tensor(films)
        films = films.float() if normalised else normalise(films)
        whole = films, tuple(cameras)
        films, cameras = fitted(films, cameras, self._own_grid(grid))
        views = Views.of(films, cameras, grid).to(self.device)
        said = self._look(views)
        hulls = self.hulls and views.crossing > _CROSSED if hulls is None else hulls
        known = {"hulls": hulls, "finest_mm": self.finest_mm} if isinstance(self.net, RayNet) else {}
        runs, maps = [], []
        for power in _POWERS[:variants]:
            one = views if power == 1.0 else views.with_films(views.films**power)
            found, seen = self.net.probabilities(one, DOUBT, **known)
            maps += [] if seen is None else [seen.to("cpu")]
            # what no annotation ever showed was learned as "perhaps background"
            runs.append(found.only(self.learned).to("cpu"))
        runs = aligned(runs)
        if not maps:
            return prediction_of(runs, grid, self.scheme, said)
        seen, views = FilmMaps.mean(maps), views.to("cpu")
        thickness = F.pad(views.turned(seen.thickness[None] * THICKNESS_MM)[0], (0, 0, 0, 0, 1, 0))
        uncounted = numberings = None
        if count:
            points, told = points_of(grid, runs[0].voxels), mean(runs)
            read = None if self.spine is None else partial(self.spine.read, *whole)
            line = count_vertebrae(points, told, grid, self.scheme, seen, views, read=read)
            if line is not None:
                uncounted, numberings = told, line.numberings
                keep = SpineSettings().keep if read is None else 0.0
                runs = aligned([renumbered(points, run, self.scheme, line, keep) for run in runs])
                if read is not None:
                    thickness = renumbered_maps(thickness, cameras, self.scheme, line)
        made = prediction_of(runs, grid, self.scheme, said)
        return replace(made, thickness=thickness, told=cameras, uncounted=uncounted, numberings=numberings)

    def _own_grid(self, grid: VoxelGrid) -> VoxelGrid:
        """A grid as coarse as those of the training, by whose voxels films are averaged."""
        n = round(max(grid.shape) / self.facts.get("voxels", max(grid.shape)))
        return grid.binned(n) if n > 1 and isinstance(self.net, RayNet) else grid

    def _look(self, views: Views) -> tuple[str, ...]:
        """What a user should know of these films; ShapeError where one shows nothing of the grid."""
        said = []
        index = Lattice.coarse(views.shape, max(1, min(views.shape) // 8)).index(self.device)[None]
        for number, part in enumerate(views.pixels(index)[1][0].float().mean(-1).tolist()):
            if part == 0:
                raise ShapeError(
                    f"film {number} shows no part of the grid: its camera faces elsewhere, or the grid lies "
                    "in another place (RAS mm)"
                )
            if part < _LEAST_SEEN:
                said.append(f"film {number} shows only {100 * part:.0f} % of the grid; the rest is guessed")
        if views.films.shape[1] == 1:
            said.append("one film only: depth along its rays is a guess, and more voxels are in doubt")
        for text in said:
            warnings.warn(text, InputWarning, stacklevel=3)
        return tuple(said)


def _finest_mm(facts: dict[str, Any]) -> float | None:
    """The least size of the training's pixels, mm."""
    pixels, voxels = facts["settings"].get("variation", {}).get("pixel_mm"), facts.get("voxels")
    return FilmVariation(pixel_mm=pixels).on_grids_of(voxels).pixel_mm[0] if pixels and voxels else None


def prediction_of(
    runs: Sequence[Shares], grid: VoxelGrid, names: Scheme, said: tuple[str, ...] = ()
) -> ShapePrediction:
    """The prediction of one or several aligned opinions on the voxels that may be bone, on the host."""
    whole = mean(runs)
    total = whole.entropy()
    labels = _dense(whole.best().to(torch.int16), whole.voxels, grid, 0)
    doubt = None
    if len(runs) > 1:
        apart = total - torch.stack([run.entropy() for run in runs]).mean(0)
        doubt = _dense(apart.clamp_min(0), whole.voxels, grid, 0.0)
    return ShapePrediction(labels, _dense(total, whole.voxels, grid, 0.0), doubt, whole, grid, names, said)


def _dense(values: Tensor, voxels: Tensor, grid: VoxelGrid, elsewhere: float) -> Float[Tensor, "D H W"]:
    """Values at some voxels on the whole grid."""
    whole = values.new_full((math.prod(grid.shape),), elsewhere)
    whole[voxels] = values
    return whole.reshape(grid.shape)
