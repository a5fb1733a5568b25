"""Networks for many patients, on the machines of a Ray cluster or the cores of this one."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from xreg.errors import FileError, XregError
from xreg.optional import optional
from xreg.regression import checkpoint
from xreg.regression.ranges import PRESETS, PoseRange, parse_range
from xreg.regression.settings import TrainSettings
from xreg.regression.train import train
from xreg.volume import Volume

COLUMNS = ("name", "ct", "mask", "preset", "range", "from")


@dataclass(frozen=True)
class Job:
    """One network to train: its folder's name, CT and label map, its range, and what it begins from."""

    name: str
    ct: str
    box: PoseRange
    mask: str | None = None
    start: str | None = None


@dataclass(frozen=True)
class Done:
    """What became of a job: its validation, or the error that ended it."""

    name: str
    seconds: float
    steps: int = 0
    validation: dict[str, Any] | None = None
    error: str | None = None


def read_jobs(path: str | PathLike, preset: str = "chest") -> list[Job]:
    """Jobs of a CSV table with the columns name and ct, and mask, preset, range and from where wanted.

    range holds words such as 'primary=-30:30 depth=-60:60'; paths are relative to the table; preset is that
    of rows without one.  FileError for a table without these columns, a row without a CT that exists, or a
    name that is empty, repeated or no name of a folder.
    """
    file = Path(path)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{file}: cannot be read as a CSV table of trainings ({error})") from error
    found = [name for name in (rows[0] if rows else []) if name is not None]
    unknown = set(found) - set(COLUMNS)
    if not rows or not {"name", "ct"} <= set(found) or unknown:
        raise FileError(
            f"{file}: expected a header with name and ct, and perhaps {', '.join(COLUMNS[2:])}, and a row "
            f"below it; got {found or 'no row'}"
        )
    jobs = [_job(file, number, row, preset) for number, row in enumerate(rows, 2)]
    names = [job.name for job in jobs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise FileError(f"{file}: the names of trainings must differ, but {', '.join(repeated)} is repeated")
    return jobs


def _job(file: Path, number: int, row: dict[str, Any], preset: str) -> Job:
    known = {key: (row.get(key) or "").strip() for key in COLUMNS}
    place = f"{file}, line {number}"
    name, chosen = known["name"], known["preset"] or preset
    if not name or Path(name).name != name or name in (".", ".."):
        raise FileError(f"{place}: name must be the name of a folder, got {name!r}")
    if chosen not in PRESETS:
        raise FileError(f"{place}: preset must be one of {', '.join(PRESETS)}, got {chosen!r}")
    paths = {key: str(file.parent / known[key]) if known[key] else None for key in ("ct", "mask", "from")}
    for key, path in paths.items():
        if (path is None and key == "ct") or (path is not None and not Path(path).exists()):
            raise FileError(f"{place}: {key} must be a file or folder that exists, got {known[key]!r}")
    try:
        box = parse_range(PRESETS[chosen], known["range"].split())
    except XregError as error:
        raise FileError(f"{place}: {error}") from error
    return Job(name, paths["ct"], box, paths["mask"], paths["from"])


def run_job(job: Job, settings: TrainSettings, folder: str, device: str = "cpu") -> Done:
    """Train one network into its folder, or go on with it; errors of the input become part of the answer."""
    began, own = time.perf_counter(), Path(folder) / job.name
    resume = (own / checkpoint.TRAINING).is_file()
    try:
        volume = Volume.load(job.ct, mask=job.mask)
        start = None if resume else job.start
        out = train([volume], job.box, settings, own, start=start, resume=resume, device=device)
    except XregError as error:
        return Done(job.name, time.perf_counter() - began, error=f"{type(error).__name__}: {error}")
    last = out.validations[-1]["validation"] if out.validations else None
    return Done(job.name, time.perf_counter() - began, out.steps, last)


def train_many(
    jobs: Sequence[Job],
    settings: TrainSettings,
    folder: str | PathLike,
    *,
    address: str | None = None,
    workers: int = 2,
    gpus: float = 0.0,
    on_done: Callable[[Done], None] | None = None,
) -> list[Done]:
    """Train a network a job, each in its folder, as Ray has room for them; the answers in the jobs' order.

    address: of a Ray cluster whose machines share this file system ('auto' finds it); None starts Ray on this
    machine with as many workers.  gpus: that a job takes; above 0 it trains on 'cuda'.  A job that fails ends
    no other, and one that was stopped goes on where it was.  A worker that dies is an error of its job.
    """
    ray = _ray()
    own = not ray.is_initialized()
    if own:
        here = {"num_cpus": workers} if address is None else {"address": address}
        ray.init(**here, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=1)(run_job)
        device, place = "cuda" if gpus else "cpu", str(Path(folder).resolve())
        waiting = {task.remote(_absolute(job), settings, place, device): job for job in jobs}
        found: dict[str, Done] = {}
        while waiting:
            ready, _ = ray.wait(list(waiting))
            job = waiting.pop(ready[0])
            found[job.name] = _answer(ray, ready[0], job)
            if on_done is not None:
                on_done(found[job.name])
    finally:
        if own:
            ray.shutdown()
    return [found[job.name] for job in jobs]


def _absolute(job: Job) -> Job:
    """The job with paths that hold wherever a worker runs."""
    ct, mask, start = (None if p is None else str(Path(p).resolve()) for p in (job.ct, job.mask, job.start))
    return replace(job, ct=ct, mask=mask, start=start)


def _answer(ray: Any, reference: Any, job: Job) -> Done:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return Done(job.name, 0.0, error=f"the worker failed: {str(error).splitlines()[0]}")


def _ray() -> Any:
    return optional(
        "ray",
        "training many networks needs the package ray: pip install 'xreg[cluster]'; xreg train makes one at "
        "a time without it",
    )
