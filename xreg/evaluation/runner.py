"""Registers every case from every start by every method, and loses nothing when it is stopped.

A finished trial is one line of OUT/trials.jsonl, on the disk before the next begins; a run that is started
again goes on where it stopped, and trials of other methods and cases stay.  A case that fails is a result
like any other.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xreg import __version__, metrics
from xreg.errors import FileError, XregError
from xreg.evaluation.cases import Case, Shelf
from xreg.evaluation.fingerprint import Fingerprints
from xreg.evaluation.manifest import CaseSpec, Manifest
from xreg.geometry import Rig, se3
from xreg.geometry._numbers import tensor64
from xreg.io import atomic_write

SCHEMA = "xreg.trials/1"
TRIALS = "trials.jsonl"
Method = Callable[..., Any]  # as xreg.register: (volume, film, camera, init) to a result or a pose
Record = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One case, from one of its starts, by one method.

    digest: of the case's entry, the contents of its files, and what is known of the method.
    """

    case: str
    method: str
    start: int
    digest: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What names a trial."""
        return self.case, self.method, self.start


def run(
    manifest: Manifest,
    methods: Mapping[str, Method],
    output: str | PathLike,
    *,
    fingerprints: Mapping[str, str] | None = None,
    jobs: int = 1,
    retry: bool = False,
    on_trial: Callable[[int, int, Record | None], None] | None = None,
) -> list[Record]:
    """Run what has not been run yet, and return the records of all trials in the manifest's order.

    methods: by name, callables like `xreg.register`: (volume, film, camera, init) to a result with
    world_from_body (and, where it has them, covariance, center, score, accepted, verdict, renders), or to a
    bare pose [4, 4] (tensor, array or rows).  One film comes as a `Radiograph`, several as a list with a
    `Rig`.
    output: folder (made) for trials.jsonl; records there of other methods and cases are kept, and not
    returned.  fingerprints: by method, what its name does not say (settings, a network's checksum); a trial
    is run anew where this, its entry in the manifest, or the contents of a file that it names has changed.
    jobs: cases worked on at a time, in threads.  retry: run trials that failed before again.  on_trial: told
    (done, total, record) after each trial, and (done, total, None) at the start.

    An exception in a method or a reader is the record of its trial, with status "failed".
    """
    if not methods:
        raise XregError("methods must name at least one method, got none")
    if jobs < 1:
        raise XregError(f"jobs must be one or more, got {jobs}")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    known = {record_key(r): r for r in read_trials(folder / TRIALS)}
    plan = _plan(manifest, {name: (fingerprints or {}).get(name, "") for name in methods})
    wanted = {trial.key: trial for trials in plan.values() for trial in trials}
    done = {
        key: r
        for key, r in known.items()
        if key in wanted and r.get("digest") == wanted[key].digest and (r["status"] == "done" or not retry)
    }
    kept = [r for key, r in known.items() if key in done or key not in wanted]
    with Journal(folder / TRIALS, kept) as journal:
        tell = _Teller(journal, done, len(wanted), on_trial)
        shelf = Shelf()
        work = [
            (spec, left)
            for spec in manifest.cases
            if (left := [t for t in plan[spec.name] if t.key not in done])
        ]
        if jobs == 1:
            for spec, left in work:
                _run_case(shelf, spec, left, methods, tell)
        else:
            tasks = [lambda s=s, t=t: _run_case(shelf, s, t, methods, tell) for s, t in work]
            _in_threads(jobs, tasks, tell.stopped)
    return [done[key] for key in wanted]


def _plan(manifest: Manifest, methods: Mapping[str, str]) -> dict[str, list[Trial]]:
    """The trials of each case; methods: by name, with what else is known of them."""
    folder, files = manifest.path.parent, Fingerprints()
    return {spec.name: trials_of(spec, methods, folder, files) for spec in manifest.cases}


def trials_of(spec: CaseSpec, methods: Mapping[str, str], folder: Path, files: Fingerprints) -> list[Trial]:
    """The trials of a case: its starts by each method.  folder: the manifest's, so that it may move."""
    text = json.dumps(asdict(spec), sort_keys=True, default=lambda path: os.path.relpath(path, folder))
    found = []
    for method, about in methods.items():
        words = json.dumps([text, files.of_all(spec), about])
        digest = hashlib.sha256(words.encode()).hexdigest()[:16]
        found += [Trial(spec.name, method, n, digest) for n in range(spec.start_count)]
    return found


def record_key(record: Mapping[str, Any]) -> tuple[str, str, int]:
    """What names the trial of a record."""
    return record["case"], record["method"], record["start"]


# ---- the journal ----


def read_trials(path: str | PathLike) -> list[Record]:
    """The records of a journal; a last line that was cut off while it was written is left out."""
    file = Path(path)
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            ok = record["schema"] == SCHEMA
            record_key(record)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # no newline after it: its writer was stopped
                break
            raise FileError(
                f"{file}: line {number} is no record of a trial ({error}); move the file away"
            ) from error
        if not ok:
            raise FileError(f"{file}: line {number} has schema {record['schema']!r}, expected {SCHEMA!r}")
        records.append(record)
    return records


class Journal:
    """Appends records, each flushed to the disk; begins with the records that are kept."""

    def __init__(self, path: Path, kept: Any) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("".join(_line(r) for r in kept), encoding="utf-8")
        self._stream = path.open("a", encoding="utf-8")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()

    def add(self, record: Record) -> None:
        """Write a record, and come back when it is on the disk."""
        self._stream.write(_line(record))
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


class _Teller:
    """Files finished trials, one at a time."""

    def __init__(self, journal: Journal, done: dict, total: int, on_trial: Any) -> None:
        self._journal, self._done, self._total, self._on_trial = journal, done, total, on_trial
        self._lock = threading.Lock()
        self.stopped = threading.Event()
        self._say(None)

    def __call__(self, record: Record) -> None:
        with self._lock:
            self._journal.add(record)
            self._done[record_key(record)] = record
            self._say(record)

    def _say(self, record: Record | None) -> None:
        if self._on_trial is not None:
            self._on_trial(len(self._done), self._total, record)


def _in_threads(jobs: int, tasks: Sequence[Callable[[], None]], stopped: threading.Event) -> None:
    """Run tasks; when one raises, or the user stops it, the others end after the trial that they are at."""
    with ThreadPoolExecutor(jobs) as pool:
        left = {pool.submit(task) for task in tasks}
        try:
            while left:
                ready, left = wait(left, return_when=FIRST_COMPLETED)
                for future in ready:
                    future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# ---- one case ----


def _run_case(
    shelf: Shelf, spec: CaseSpec, trials: Sequence[Trial], methods: Mapping[str, Method], tell: _Teller
) -> None:
    try:
        case = shelf.open(spec)
    except Exception as error:  # the files of one case must not cost the others
        for trial in trials:
            tell(_failed(trial, error, 0.0))
        return
    for trial in trials:
        if tell.stopped.is_set():
            return
        tell(_run_trial(case, trial, methods[trial.method]))


def _run_trial(case: Case, trial: Trial, method: Method) -> Record:
    start, began = case.starts[trial.start], time.perf_counter()
    several = len(case.films) > 1
    film = list(case.films) if several else case.films[0]
    camera = Rig(case.cameras) if several else case.cameras[0]
    before: Record = {}
    try:
        before = {"start_mtre_mm": metrics.mtre(start, case.truth, case.landmarks)}
        found = method(case.volume, film, camera, start)
        seconds = time.perf_counter() - began
        record = {**_header(trial, "done", seconds), **before, **judged(found, case)}
        _line(record)  # what cannot be written is the fault of this trial, and must not end the others
        return record
    except Exception as error:  # a method that fails is a result
        return {**_failed(trial, error, time.perf_counter() - began), **before}


def judged(found: Any, case: Case) -> Record:
    """What a record says of an answer: its errors against the truth, and what the method said of itself."""
    pose = _pose_of(found)
    truth, points, middle = case.truth, case.landmarks, case.volume.center
    seen = [(camera, pose, truth, points) for camera in case.cameras]
    errors = {
        "mtre_mm": metrics.mtre(pose, truth, points),
        "max_tre_mm": float(metrics.target_errors(pose, truth, points).max()),
        "mpe_mm": _mean(metrics.mpe(*s) if s[0].sdd is not None else math.nan for s in seen),
        "mpe_px": _mean(metrics.mpe(*s, unit="px") for s in seen),
        "mrpe_mm": _mean(metrics.mrpe(*s) for s in seen),
        "rotation_deg": metrics.rotation_error(pose, truth),
        "translation_mm": metrics.translation_error(pose, truth, middle),
    }
    return {
        **{k: _finite(v) for k, v in errors.items()},
        **_own_words(found, pose, case),
        "pose": pose.tolist(),
    }


def _pose_of(found: Any) -> Tensor:
    """The pose of an answer, float64: its world_from_body, or all of what has none.  Raises XregError."""
    value = getattr(found, "world_from_body", found)
    try:
        pose = _plain(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise XregError(
            f"the method answered no pose [4, 4], but {value!r:.80} ({type(value).__name__}); answer a pose, "
            "or an object with world_from_body"
        ) from error
    if pose.shape != (4, 4) or not bool(torch.isfinite(pose).all()):
        raise XregError(
            f"the method answered no pose [4, 4] of finite numbers, but shape {tuple(pose.shape)}"
        )
    return pose


def _own_words(found: Any, pose: Tensor, case: Case) -> Record:
    """What the method says of its answer, where it says anything, as plain values.  Raises XregError."""
    verdict = getattr(found, "verdict", None)
    words: Record = {
        "score": _word(found, "score", _number),
        "accepted": _word(found, "accepted", bool),
        "reason": _word(found, "reason", str),
        "probability": _word(verdict, "probability", _number),
        "renders": _word(found, "renders", int),
        "nees": None,
    }
    covariance = _word(found, "covariance", _plain)
    if covariance is not None:
        center = _word(found, "center", _plain)
        if center is None:
            center = se3.apply(pose, case.volume.center.to(pose)[None])[0]
        xi = metrics.tangent_error(pose, case.truth, center)
        value = metrics.nees(xi, covariance)
        words |= {"nees": _finite(value), "nees_infinite": math.isinf(value), "tangent_error": xi.tolist()}
    return words


def _header(trial: Trial, status: str, seconds: float) -> Record:
    return {
        "schema": SCHEMA,
        "xreg": __version__,
        "case": trial.case,
        "method": trial.method,
        "start": trial.start,
        "digest": trial.digest,
        "status": status,
        "seconds": seconds,
    }


def _failed(trial: Trial, error: Exception, seconds: float) -> Record:
    known = {"type": type(error).__name__, "message": str(error)}
    if not isinstance(error, XregError):  # not raised on purpose, so where it came from matters
        place = traceback.extract_tb(error.__traceback__)[-1]
        known["place"] = f"{Path(place.filename).name}:{place.lineno}"
    return {**_header(trial, "failed", seconds), "error": known}


def _mean(values: Iterator[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: Any) -> float | None:
    return _finite(float(value))


def _plain(value: Any) -> Tensor:
    return tensor64(value, "the answer", rows=True).detach().cpu()


def _word(found: Any, name: str, read: Callable[[Any], Any]) -> Any:
    """An attribute of an answer in a plain type, None where it is missing.  XregError where it is another."""
    value = getattr(found, name, None)
    try:
        return None if value is None else read(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise XregError(f"the method's {name} cannot be read, got {value!r:.80}: {error}") from error
