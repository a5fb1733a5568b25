"""From prepared patients to all that a reconstruction needs, in one go: the single trainings in turn."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from xreg.errors import FileError, ShapeError
from xreg.shape.atlas import Atlas, keep_atlas
from xreg.shape.checkpoint import FILES
from xreg.shape.networks.settings import PRESETS, NetworkSettings
from xreg.shape.population import Exposure
from xreg.shape.samples import Sample
from xreg.shape.sources import (
    POOL,
    AsTheyAre,
    Population,
    coarser,
    draw_pool,
    drawn_in,
    patients_without,
    pool_facts,
    read_prepared,
    require_apart,
    require_same_pool,
    split_patients,
)
from xreg.shape.spine_reading import SpineModel
from xreg.shape.spine_training import FILES as SPINE_FILES
from xreg.shape.spine_training import FOLDER as SPINE
from xreg.shape.spine_training import SpineCase, SpineReport, SpineTrainSettings, train_spine
from xreg.shape.train_settings import ShapeTrainSettings
from xreg.shape.training import Report, Trained, train
from xreg.training import MODEL, TRAINING, require_one_end, require_same

POOLS, COARSE = "pool", "coarse"  # in the network's folder


@dataclass(frozen=True)
class LearnSettings:
    """How a model is made of prepared patients.

    steps or minutes: what the trainings take in all; exactly one.  network: by default 'rays-light', or that
    of the model that is gone on with.

    near, turned: patients that are drawn, with views tilted by ``tilts`` (standard deviations, degrees) each;
    of the turned ones the part ``bodies`` has its bones in other patients' soft tissue.

    coarse: part of the trainings on films of about ``voxels`` pixels along the longest edge, where most is
    learned, as a step takes a third of the time; spine: part for what counts vertebrae.  The rest goes on
    with films as fine as the samples are.
    """

    steps: int | None = None
    minutes: float | None = None
    near: int = 120
    turned: int = 130
    tilts: tuple[float, float] = (3.0, 14.0)
    bodies: float = 0.75
    coarse: float = 0.4
    voxels: int = 80
    spine: float = 0.25
    seed: int = 0
    network: NetworkSettings | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tilts", tuple(float(tilt) for tilt in self.tilts))
        require_one_end(self.steps, self.minutes, ShapeError)
        if min(self.near, self.turned) < 0 or self.near + self.turned < 1 or min(self.tilts) < 0:
            raise ShapeError(
                "near and turned must be numbers of patients, at least one in all, and tilts not negative, "
                f"got {self.near}, {self.turned}, {self.tilts}"
            )
        if not (self.coarse > 0 and self.spine > 0 and self.coarse + self.spine < 1):
            raise ShapeError(
                "coarse and spine must be positive and leave a part for the rest, "
                f"got {self.coarse}, {self.spine}"
            )

    def part(self, share: float) -> dict[str, Any]:
        """What a training takes that has this share of all."""
        if self.minutes is not None:
            return {"minutes": share * self.minutes}
        return {"steps": max(1, round(share * self.steps))}


class Learning:
    """The steps from prepared patients to a model in ``folder``, to be taken in the order of the methods.

    prepared: folders that `xreg shape prepare` wrote, with the patients' CTs.  held_out: patients of whom
    nothing is learned, drawn or kept.  start: the folder of a model made before, to go on with: its network
    is begun with, the patients drawn for it are learned from too, and what counts vertebrae is taken over, so
    that its share of the trainings is the others'; so it is where no patient shows a spine, and nothing
    counts.  What a step finished is kept, and one that was stopped goes on when it is taken again with the
    same settings.  Raises ShapeError, FileError.
    """

    def __init__(
        self,
        prepared: Sequence[str | PathLike],
        settings: LearnSettings,
        folder: str | PathLike,
        *,
        held_out: Sequence[str] = (),
        start: str | PathLike | None = None,
        device: torch.device | str = "cpu",
        workers: int = 1,
    ) -> None:
        self.settings, self.folder, self.held_out = settings, Path(folder), tuple(held_out)
        self.device, self.workers = device, workers
        self.start = None if start is None else _Start.of(Path(start), self.folder, held_out)
        self.prepared = [*prepared, *(() if self.start is None else self.start.pools)]
        require_apart(self.prepared, held_out)
        self._require_other_seed()
        self.network = self._network()
        samples, patients = read_prepared(prepared)
        self.patients = patients_without(patients, held_out)
        learned = [s for s in samples if s.patient not in held_out]
        self.counts = any(SpineCase.of(s) is not None for s in learned)
        self._require_same_recipe()
        self._require_same_pools(len(learned))

    @property
    def count(self) -> int:
        """How many patients are drawn."""
        return self.settings.near + self.settings.turned

    def draw(self, on_done: Callable[[int], None] | None = None) -> int:
        """Draw new patients; how many were drawn now.  on_done is told how many there are."""
        drawn = before = 0
        for pool, count, source in self._pools():
            told = None if on_done is None else lambda n, before=before: on_done(before + n)
            drawn += draw_pool(source, pool, count, seed=self._seed(pool), on_done=told)
            before += count
        return drawn

    def keep_bones(self) -> int:
        """Write the atlas of the patients' bones; how many it has, 0 where no patient shows a whole one.

        A model that is gone on with brings its own bones too.
        """
        before = None if self.start is None else self.start.folder
        return keep_atlas(Population(self.patients).members, self.folder, before=before)

    def read_coarse(self, on_report: Callable[[Report], None] | None = None) -> Trained:
        """Train the network of labels on coarse films, in a folder of its own."""
        start = None if self.start is None else self.start.folder
        return self._train(self.folder / COARSE, self._shares[0], self.settings.voxels, start, on_report)

    def read_fine(self, on_report: Callable[[Report], None] | None = None) -> Trained:
        """Train it on, on films as fine as the samples are."""
        return self._train(self.folder, self._shares[1], None, self.folder / COARSE, on_report)

    def count_vertebrae(
        self, on_report: Callable[[SpineReport], None] | None = None
    ) -> dict[str, Any] | None:
        """Train what counts vertebrae, or take over that of the model begun with; its facts.

        None where no patient shows two whole vertebrae.
        """
        if self._takes_over:
            _taken_over(self.start.folder / SPINE, self.folder / SPINE)
            return self.start.reader
        if not self.counts:
            return None
        source, _ = self._samples(None)
        known = {"held_out": self.held_out, "resume": _begun(self.folder / SPINE), "on_report": on_report}
        return train_spine(source.samples, self._spine_settings, self.folder, **known)

    @property
    def _takes_over(self) -> bool:
        """Whether there is something that counts vertebrae to take over."""
        return self.start is not None and self.start.reader is not None

    @property
    def _spine_settings(self) -> SpineTrainSettings:
        return SpineTrainSettings(**self.settings.part(self.settings.spine), seed=self.settings.seed)

    @property
    def _shares(self) -> tuple[float, float]:
        """Parts of the trainings on coarse films and on fine ones."""
        coarse, rest = self.settings.coarse, 1 - self.settings.spine
        if self._takes_over or not self.counts:
            return coarse / rest, 1 - coarse / rest
        return coarse, rest - coarse

    def _pools(self) -> list[tuple[Path, int, Population]]:
        known = self.settings
        turned = Population(self.patients, bodies=known.bodies)
        each = [("near", known.near, Population(self.patients)), ("turned", known.turned, turned)]
        return [
            (self.folder / POOLS / name, count, replace(source, exposure=Exposure(tilt_degrees=tilt)))
            for (name, count, source), tilt in zip(each, known.tilts, strict=True)
            if count
        ]

    def _seed(self, pool: Path) -> int:
        return self.settings.seed + ("near", "turned").index(pool.name) + 1

    def _require_other_seed(self) -> None:
        """ShapeError where the patients to draw are those of the model that is begun with."""
        for pool in () if self.start is None else self.start.pools:
            if pool_facts(pool / POOL).get("seed") == self._seed(pool):
                raise ShapeError(
                    f"{pool}: the same patients would be drawn again by the seed {self.settings.seed}; "
                    "choose another"
                )

    def _samples(self, voxels: int | None) -> tuple[AsTheyAre, list[Sample]]:
        """All samples to learn from, prepared and drawn, and those held out."""
        drawn = [pool / f"{n:05d}" for pool, count, _ in self._pools() for n in range(count)]
        samples, _ = read_prepared([*self.prepared, *drawn])  # a pool may hold more, of another command
        samples = samples if voxels is None else coarser(samples, voxels)
        return split_patients(samples, (), self.held_out, plain=True)

    def _train_settings(self, share: float) -> ShapeTrainSettings:
        known = self.settings
        return ShapeTrainSettings(**known.part(share), network=self.network, seed=known.seed)

    def _network(self) -> NetworkSettings:
        """What is trained; ShapeError where another one is asked for than is gone on with."""
        wanted, begun = self.settings.network, None if self.start is None else self.start.network
        if wanted is not None and begun is not None and wanted != begun:
            raise ShapeError(
                f"{self.start.folder}: its network has other layers than the one asked for; leave that out"
            )
        return wanted or begun or PRESETS["rays-light"]

    def _require_same_recipe(self) -> None:
        """FileError, before anything is drawn, for a folder that another recipe was begun in."""
        own = (self.folder / COARSE, self.folder)
        if _begun(own[1]) and not _begun(own[0]):
            raise FileError(f"{own[1]}: holds a network that was trained otherwise; choose another folder")
        trainings = [
            (folder, self._train_settings(share).to_dict(), FILES)
            for folder, share in zip(own, self._shares, strict=True)
        ]
        if not self._takes_over:
            trainings.append((self.folder / SPINE, asdict(self._spine_settings), SPINE_FILES))
        for folder, settings, files in trainings:
            if _begun(folder):
                file = folder / TRAINING
                require_same(files.load(file)[1], {"settings": settings}, ("settings",), file)

    def _require_same_pools(self, prepared: int) -> None:
        """FileError, before anything is drawn, where its pools are others than those that were begun here.

        prepared: how many samples are learned from beside those drawn here.  Before a training began there
        may be more patients than there were.
        """
        pools = self._pools()
        for pool, _, source in pools:
            require_same_pool(pool, source, self._seed(pool))
        if not _begun(self.folder / COARSE):
            return
        begun = FILES.load(self.folder / COARSE / TRAINING)[1].get("cases", {}).get("samples")
        before = () if self.start is None else self.start.pools
        count = prepared + sum(map(drawn_in, before)) + self.count
        kept = (self.folder / POOLS).is_dir()  # else the same are drawn again
        if begun != count or (kept and any(wanted > drawn_in(pool) for pool, wanted, _ in pools)):
            there = {name: drawn_in(self.folder / POOLS / name) for name in ("near", "turned")}
            raise FileError(
                f"{self.folder}: cannot be gone on with, since its training began with {begun} samples, new "
                f"patients included ({there['near']} near and {there['turned']} turned are there); "
                f"near={self.settings.near} and turned={self.settings.turned} make it {count}. Give the same "
                "numbers, or another folder"
            )

    def _train(
        self,
        folder: Path,
        share: float,
        voxels: int | None,
        start: Path | None,
        on_report: Callable[[Report], None] | None,
    ) -> Trained:
        source, held_out = self._samples(voxels)
        resume = _begun(folder)
        return train(
            source,
            self._train_settings(share),
            folder,
            held_out=held_out,
            start=None if resume else start,
            resume=resume,
            device=self.device,
            workers=self.workers,
            on_report=on_report,
        )


@dataclass(frozen=True)
class _Start:
    """A model to go on with: folder, pools drawn for it, what counts vertebrae (facts or None), layers."""

    folder: Path
    pools: tuple[Path, ...]
    reader: dict[str, Any] | None
    network: NetworkSettings

    @classmethod
    def of(cls, folder: Path, out: Path, held_out: Sequence[str]) -> _Start:
        """ShapeError where it learned from patients that shall be held out, FileError where there is none."""
        if folder.resolve() == out.resolve():
            raise ShapeError(f"{folder}: a model cannot begin with itself; write to another folder")
        _, network = FILES.load(folder / MODEL)
        reader = SpineModel.beside(folder)
        atlas = Atlas.beside(folder)
        known = [network.get("patients", ())]
        known += [] if reader is None else [reader.facts["patients"]]
        known += [] if atlas is None else [atlas.patients]
        for patients in known:
            if both := sorted(set(patients) & set(held_out)):
                raise ShapeError(f"{folder}: learned from {', '.join(both)}, which shall be held out")
        pools = tuple(file.parent for file in sorted(folder.glob(f"{POOLS}/*/{POOL}")))
        layers = NetworkSettings.from_dict(network["settings"]["network"])
        return cls(folder, pools, None if reader is None else reader.facts, layers)


def _taken_over(folder: Path, target: Path) -> None:
    """A copy of a folder, whole or not at all."""
    part = target.with_name(f".{target.name}")
    for old in (part, target):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(folder, part)
    part.rename(target)


def _begun(folder: Path) -> bool:
    return (folder / TRAINING).is_file()
