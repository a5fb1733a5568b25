"""What training cases come from: samples as they are, or new patients made of the old."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from xreg.errors import FileError, ShapeError
from xreg.io import VoxelGrid, write_json
from xreg.shape import patients as patient_files
from xreg.shape import samples as sample_files
from xreg.shape.patients import Patient
from xreg.shape.population import Exposure, Variation, draw_sample
from xreg.shape.samples import Sample
from xreg.shape.tissue import covers
from xreg.training import hand_back_memory, step_generator, step_seed

POOL = "pool.json"
T = TypeVar("T")


class Member(NamedTuple):
    """Who is in a source: a patient, and its labels in the numbers of a scheme, on a grid.

    hu: CT numbers on that grid, None where there is no CT.
    """

    patient: str
    scheme: str
    labels: Int16[Tensor, "D H W"] | None
    grid: VoxelGrid
    hu: Float[Tensor, "D H W"] | None = None


class Source(Protocol):
    """Where the cases of a training come from."""

    @property
    def members(self) -> tuple[Member, ...]:
        """The patients that cases are made of."""

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same for a training to go on, beside the patients."""

    def sample(self, seed: int) -> Sample:
        """A labelled case; the same seed gives the same one."""


@dataclass(frozen=True)
class AsTheyAre:
    """Samples without any change, drawn at random."""

    samples: Sequence[Sample]

    @property
    def members(self) -> tuple[Member, ...]:
        """One a sample."""
        return tuple(Member(s.patient, s.scheme, s.labels, s.grid) for s in self.samples)

    @property
    def facts(self) -> dict[str, Any]:
        """How many samples."""
        return {"samples": len(self.samples)}

    def sample(self, seed: int) -> Sample:
        """One of them."""
        return _pick(self.samples, torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Population:
    """New patients by `xreg.shape.population`, among them, now and then, samples as they are.

    Old patients are taken in proportion to the bones that they show, so that bones are seen alike often.
    toward: chance that a new patient goes a part of the way to another's bones.  bodies: chance that its
    bones are put in the body of another that is large enough.  as_they_are: share of the samples; their
    patients must be among ``patients``.
    """

    patients: Sequence[Patient]
    samples: Sequence[Sample] = ()
    variation: Variation = field(default_factory=Variation)
    exposure: Exposure = field(default_factory=Exposure)
    toward: float = 0.4
    bodies: float = 0.0
    as_they_are: float = 0.1

    @property
    def members(self) -> tuple[Member, ...]:
        """One a patient."""
        return tuple(Member(p.name, p.scheme, p.labels, p.grid, p.hu) for p in self.patients)

    @property
    def facts(self) -> dict[str, Any]:
        """How many patients are drawn from, how many samples there are beside, and how views are tilted."""
        known = {"tilt": self.exposure.tilt_degrees, "bodies": self.bodies}
        return {"drawn_from": len(self.patients), "samples": len(self.samples), **known}

    @cached_property
    def _shares(self) -> Tensor:
        return torch.tensor([float((p.labels.unique() > 0).sum()) + 0.5 for p in self.patients])

    def sample(self, seed: int) -> Sample:
        """A new patient's films and labels."""
        generator = torch.Generator().manual_seed(seed)
        plain, near = torch.rand(2, generator=generator).tolist()
        if self.samples and plain < self.as_they_are:
            return _pick(self.samples, generator)
        patient = self.patients[int(torch.multinomial(self._shares, 1, generator=generator))]
        others = [p for p in self.patients if p is not patient]
        toward = _pick(others, generator) if others and near < self.toward else None
        return draw_sample(
            patient, generator, self.variation, self.exposure,
            toward=toward, body=self._body(patient, others, generator),
        )  # fmt: skip

    def _body(
        self, patient: Patient, others: Sequence[Patient], generator: torch.Generator
    ) -> Patient | None:
        """In whose soft tissue the bones are put; None for the patient's own."""
        if not self.bodies or float(torch.rand((), generator=generator)) >= self.bodies:
            return None
        large = [p for p in others if covers(p, patient.grid)]
        return _pick(large, generator) if large else None


def case_of(source: Source, seed: int, step: int, number: int) -> tuple[Sample, torch.Generator]:
    """A source's case for a place in the batch of a step, and the random numbers of that place."""
    sample = source.sample(step_seed(seed, step, 2 * number + 1))
    return sample, step_generator(seed, step, 2 * number)


def draw_pool(
    source: Population,
    folder: str | PathLike,
    count: int,
    *,
    seed: int = 0,
    on_done: Callable[[int], None] | None = None,
) -> int:
    """Draw new patients once and keep them as samples, which many trainings can use; how many were drawn.

    Sample n comes from (seed, n) alone, and one that is there already is kept: so a stopped draw goes on.
    on_done is told how many there are.  Raises ShapeError for patients of several schemes, FileError where
    another pool was begun in the folder.
    """
    drawn = 0
    fresh = replace(source, as_they_are=0.0)
    if len(schemes := {p.scheme for p in source.patients}) > 1:
        raise ShapeError(f"patients of a pool must share a scheme, got {', '.join(sorted(schemes))}")
    require_same_pool(folder, source, seed)
    if not (file := Path(folder) / POOL).is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, _facts_of(source, seed))
    for n in range(count):
        place = file.parent / f"{n:05d}"
        if not (place / sample_files.TENSORS).is_file():
            fresh.sample(step_seed(seed, n, 0)).save(place)
            drawn += 1
        if on_done is not None:
            on_done(n + 1)
    return drawn


def drawn_in(folder: str | PathLike) -> int:
    """How many samples a pool holds."""
    return len(list(Path(folder).glob(f"*/{sample_files.TENSORS}")))


def _facts_of(source: Population, seed: int) -> dict[str, Any]:
    """What a pool is drawn from."""
    return {
        "patients": [p.name for p in source.patients],
        "seed": seed,
        "tilt": source.exposure.tilt_degrees,
        "bodies": source.bodies,
    }


def require_same_pool(folder: str | PathLike, source: Population, seed: int) -> None:
    """FileError where another pool than that of a source and a seed was begun in the folder."""
    file, facts = Path(folder) / POOL, _facts_of(source, seed)
    if not file.is_file():
        return
    if different := sorted(name for name, value in pool_facts(file).items() if facts.get(name) != value):
        raise FileError(
            f"{file.parent}: holds a pool with other {', '.join(different)}; go on with the same, or choose "
            "another folder"
        )


def pool_facts(file: Path) -> dict[str, Any]:
    """What a pool was drawn from: patients, seed, tilt, bodies.  FileError where it cannot be read."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(facts["patients"], list):
            raise TypeError("its patients are no list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{file}: cannot be read ({error}); draw the pool again") from error
    return facts


def require_apart(folders: Sequence[str | PathLike], held_out: Sequence[str]) -> None:
    """ShapeError for a pool in whose patients there is something of those to hold out.

    A new patient may have gone a part of the way to the bones of another than the one that it is named by.
    """
    for file in (Path(folder) / POOL for folder in folders):
        if not file.is_file():
            continue
        if shared := sorted(set(pool_facts(file)["patients"]) & set(held_out)):
            raise ShapeError(
                f"{file.parent}: was drawn from {', '.join(shared)} too, which shall be held out; draw a "
                "pool with --hold-out"
            )


def read_prepared(folders: Sequence[str | PathLike]) -> tuple[list[Sample], list[Patient]]:
    """Samples and patients in folders that `xreg shape prepare` wrote, or in folders of such folders.

    A sample whose patient lies beside it with finer labels gets these: new patients are drawn on that grid,
    and a network is trained and looked at on one.  FileError for a folder that holds neither.
    """
    samples, patients = [], []
    for folder in map(Path, folders):
        names = (sample_files.TENSORS, patient_files.FILE)
        files = [sorted({*folder.glob(name), *folder.glob(f"*/{name}")}) for name in names]
        if not any(files):
            raise FileError(f"{folder}: holds no sample and no patient; make them with xreg shape prepare")
        made = {file.parent: Patient.load(file.parent) for file in files[1]}
        for file in files[0]:
            samples.append(_finer(Sample.load(file.parent), made.get(file.parent)))
            hand_back_memory(len(samples))
        patients += made.values()
    return samples, patients


def coarser(items: Sequence[T], voxels: int) -> list[T]:
    """Samples or patients on grids of about so many voxels along the longest edge, where theirs are finer."""
    blocks = [max(1, round(max(item.grid.shape) / voxels)) for item in items]
    return [item if n == 1 else item.binned(n) for item, n in zip(items, blocks, strict=True)]


def _finer(sample: Sample, patient: Patient | None) -> Sample:
    if patient is None or max(patient.grid.shape) <= max(sample.grid.shape):
        return sample
    if (patient.name, patient.scheme) != (sample.patient, sample.scheme):
        return sample
    return replace(sample, labels=patient.labels, grid=patient.grid, known=patient.known)


def split_patients(
    samples: Sequence[Sample], patients: Sequence[Patient], held_out: Sequence[str], *, plain: bool = False
) -> tuple[Source, list[Sample]]:
    """The source of a training, and the samples of patients that it must not see.

    plain: samples as they are, even where there are patients to vary.  ShapeError where nothing is left, or a
    patient to hold out is not there or has no sample.
    """
    _require_there(held_out, [s.patient for s in samples], "sample")
    kept = [s for s in samples if s.patient in held_out]
    used = [s for s in samples if s.patient not in held_out]
    learned = [p for p in patients if p.name not in held_out]
    if plain or not learned:
        return AsTheyAre(used), kept
    names = {p.name for p in learned}
    if alone := sorted({s.patient for s in used} - names):
        raise ShapeError(
            f"patients {', '.join(alone)} have films but no CT to make new patients of; prepare them with "
            "their CT, or train on samples as they are (--as-they-are)"
        )
    return Population(learned, used), kept


def patients_without(patients: Sequence[Patient], held_out: Sequence[str]) -> list[Patient]:
    """The patients to draw new ones from; ShapeError where none is left, or one to hold out is not there."""
    _require_there(held_out, [p.name for p in patients], "CT")
    kept = [p for p in patients if p.name not in held_out]
    if not kept:
        raise ShapeError("no patient with a CT is left to draw from; prepare more, or hold out fewer")
    return kept


def scanned_members(
    source: Source, patients: Sequence[Patient], held_out: Sequence[str]
) -> tuple[Member, ...]:
    """Those of a training's patients that were scanned, not drawn; the source's where no scan is at hand."""
    scanned = [p for p in patients if p.name not in held_out]
    return Population(scanned).members if scanned else source.members


def _require_there(held_out: Sequence[str], there: Sequence[str], what: str) -> None:
    if missing := sorted(set(held_out) - set(there)):
        known = ", ".join(sorted(set(there))) or "none"
        raise ShapeError(f"no {what} is of the patients to hold out {', '.join(missing)}; there are {known}")


def _pick(items: Sequence[T], generator: torch.Generator) -> T:
    return items[int(torch.randint(len(items), (1,), generator=generator))]
