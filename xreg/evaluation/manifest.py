"""What a method is judged on: a JSON manifest of cases, read into records that say where everything lies.

Only the manifest is read here; the files that it names are opened case by case (`cases.py`), so that one
missing film costs one case.  Paths are relative to the manifest's folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from xreg.errors import FileError
from xreg.io import read_json

SCHEMA = "xreg.cases/1"
Matrix = tuple[tuple[float, ...], ...]
PoseSource = Matrix | Path

_CASE = ("name", "ct", "films", "rig", "truth", "landmarks", "starts", "deepfluoro")
_CT = (
    "path",
    "mask",
    "labels",
    "label_names",
    "units",
    "energy_kev",
    "ct_energy_kev",
    "rescale",
    "series_uid",
)
_FILM = ("path", "camera", "mask", "intensity", "sign", "frame", "geometry")
_RANDOM = ("mm", "degrees", "count", "seed")
_BROUGHT = ("ct", "films", "rig", "truth")  # what an entry about DeepFluoro has from its file
_DEEPFLUORO = ("path", "specimen", "projections", "half_voxel", "crop_px")


@dataclass(frozen=True)
class CtSource:
    """A CT: its path, a label map on its grid, the structures to keep of it; options: of `load_volume`."""

    path: Path
    mask: Path | None = None
    labels: tuple[int | str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class FilmSource:
    """A film: its path, its camera (a file, xreg's or another tool's; None: the film's header), and the rest.

    mask: image file that is not zero where the film is valid.  options: of `load_radiograph`.
    """

    path: Path
    camera: Path | None = None
    mask: Path | None = None
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class RandomStarts:
    """Starts about the truth: turned by up to `degrees`, moved by up to `mm`, both uniform in size."""

    mm: float = 20.0
    degrees: float = 10.0
    count: int = 1
    seed: int = 0


@dataclass(frozen=True)
class DeepFluoroSource:
    """One film of the DeepFluoro file; see `xreg.evaluation.deepfluoro`."""

    path: Path
    specimen: str
    projection: str
    half_voxel: bool = False
    crop_px: int = 50


@dataclass(frozen=True)
class CaseSpec:
    """One anatomy in one or more films of one moment, where it is, and where to start from.

    truth: world_from_body.  landmarks: body points (RAS mm), their file, or None for eight points of the
    grid.  starts: poses, or how to make them.  Either `deepfluoro` or ct, films and truth are there.
    """

    name: str
    ct: CtSource | None = None
    films: tuple[FilmSource, ...] = ()
    rig: Path | None = None
    truth: PoseSource | None = None
    landmarks: tuple[tuple[float, ...], ...] | Path | None = None
    starts: tuple[PoseSource, ...] | RandomStarts = RandomStarts()
    deepfluoro: DeepFluoroSource | None = None

    @property
    def start_count(self) -> int:
        """How many starts the case has."""
        return self.starts.count if isinstance(self.starts, RandomStarts) else len(self.starts)


@dataclass(frozen=True)
class Manifest:
    """The cases of a manifest, in its order."""

    path: Path
    cases: tuple[CaseSpec, ...]


def load_manifest(path: str | PathLike) -> Manifest:
    """Read a manifest, schema "xreg.cases/1": {"schema", "defaults": {…}, "cases": [{…}, …]}.

    `defaults` holds entries of a case that all cases share unless they have their own; a case with a
    `deepfluoro` of its own leaves out the ct, films, rig, truth and landmarks of them.  FileError names the
    manifest and the field, what was expected and what came.
    """
    file = Path(path)
    root = Field(file, "$", read_json(file, f"a manifest of cases (schema {SCHEMA})")).table(
        ("schema", "defaults", "cases", "about")
    )
    if root.get("schema") is None or root["schema"].value != SCHEMA:
        found = None if root.get("schema") is None else root["schema"].value
        raise FileError(f"{file}: expected a JSON object with schema {SCHEMA!r}, got {found!r}")
    shared = root["defaults"].table(_CASE) if "defaults" in root else {}
    if "name" in shared:
        raise shared["name"].wrong("no name, since each case has its own")
    if "cases" not in root:
        raise FileError(f"{file}: the field cases is missing; it lists the cases")
    cases = [spec for entry in root["cases"].items() for spec in _cases(_with_defaults(entry, shared), entry)]
    if not cases:
        raise root["cases"].wrong("one case or more")
    seen: set[str] = set()
    for spec in cases:
        if spec.name in seen:
            raise FileError(
                f"{file}: two cases are named {spec.name!r}; names must differ, results go by them"
            )
        seen.add(spec.name)
    return Manifest(file, tuple(cases))


@dataclass(frozen=True)
class Field:
    """A value of the manifest that knows its file and place, for messages."""

    file: Path
    where: str
    value: Any

    def wrong(self, expected: str) -> FileError:
        """The error that says what was expected here."""
        where = self.where.removeprefix("$.")
        return FileError(f"{self.file}: {where} must be {expected}, got {self.value!r:.120}")

    def table(self, names: tuple[str, ...]) -> dict[str, Field]:
        """The entries of an object that may hold only these names."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        if unknown := sorted(set(self.value) - set(names)):
            where = "" if self.where == "$" else f" of {self.where.removeprefix('$.')}"
            raise FileError(
                f"{self.file}: unknown field {unknown[0]!r}{where}; the fields are {', '.join(names)}"
            )
        return {k: Field(self.file, f"{self.where}.{k}", v) for k, v in self.value.items() if v is not None}

    def items(self) -> list[Field]:
        """The entries of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [Field(self.file, f"{self.where}[{i}]", v) for i, v in enumerate(self.value)]

    def path(self) -> Path:
        """A path, relative to the manifest."""
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong("a path")
        return self.file.parent / self.value

    def number(self, expected: str, good: Callable[[float], bool]) -> float:
        """A number for which ``good`` holds."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)) or not good(self.value):
            raise self.wrong(expected)
        return self.value

    def count(self, least: int = 0) -> int:
        """A whole number."""
        return int(self.number(f"a whole number, {least} or more", lambda v: v == int(v) and v >= least))

    def text(self, *allowed: Any) -> Any:
        """A string, or one of the values allowed."""
        if (allowed and self.value not in allowed) or (not allowed and not isinstance(self.value, str)):
            raise self.wrong(f"one of {', '.join(map(repr, allowed))}" if allowed else "a string")
        return self.value

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def rows(self, width: int, expected: str, count: int | None = None) -> Matrix:
        """Rows of so many numbers each."""
        rows = self.value if isinstance(self.value, list) else []
        good = [isinstance(r, list) and len(r) == width and all(_is_number(v) for v in r) for r in rows]
        if not rows or not all(good) or (count is not None and len(rows) != count):
            raise self.wrong(expected)
        return tuple(tuple(float(v) for v in row) for row in rows)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )


def _with_defaults(entry: Field, shared: dict[str, Field]) -> dict[str, Field]:
    """An entry with what it inherits; one about DeepFluoro inherits nothing that DeepFluoro brings."""
    own = entry.table(_CASE)
    if "deepfluoro" in own:
        shared = {name: field for name, field in shared.items() if name not in (*_BROUGHT, "landmarks")}
    return {**shared, **own}


def _cases(entry: dict[str, Field], whole: Field) -> list[CaseSpec]:
    """A case, or the cases that one entry about DeepFluoro stands for."""
    starts = _starts(entry["starts"]) if "starts" in entry else RandomStarts()
    points = _landmarks(entry["landmarks"]) if "landmarks" in entry else None
    if "deepfluoro" in entry:
        for name in _BROUGHT:
            if name in entry:
                raise entry[name].wrong("left out beside deepfluoro, which brings its own")
        return _deepfluoro(entry, starts, points)
    for name in ("name", "ct", "films", "truth"):
        if name not in entry:
            raise FileError(
                f"{whole.file}: the field {whole.where.removeprefix('$.')}.{name} is missing; a case needs "
                "name, ct, films and truth"
            )
    films = tuple(_film(film) for film in entry["films"].items())
    if not films:
        raise entry["films"].wrong("one film or more")
    rig = entry["rig"].path() if "rig" in entry else None
    if rig is not None and any(film.camera is not None for film in films):
        raise entry["rig"].wrong("left out where films name their own cameras")
    name = entry["name"].text()
    return [CaseSpec(name, _ct(entry["ct"]), films, rig, _pose(entry["truth"]), points, starts)]


def _ct(entry: Field) -> CtSource:
    if isinstance(entry.value, str):
        return CtSource(entry.path())
    table = entry.table(_CT)
    if "path" not in table:
        raise entry.wrong("an object with a path, or a path")
    options: dict[str, Any] = {}
    if "label_names" in table:
        options["label_names"] = table["label_names"].path()
    if "units" in table:
        options["units"] = table["units"].text("hu", "mu", "auto")
    for name in ("energy_kev", "ct_energy_kev"):
        if name in table:
            options[name] = table[name].number("an energy in keV", lambda v: v > 0)
    if "rescale" in table:
        options["rescale"] = Field(entry.file, table["rescale"].where, [table["rescale"].value]).rows(
            2, "a slope and an intercept"
        )[0]
    if "series_uid" in table:
        options["series_uid"] = table["series_uid"].text()
    mask = table["mask"].path() if "mask" in table else None
    labels = tuple(_label(v) for v in table["labels"].items()) if "labels" in table else ()
    if labels and mask is None:
        raise table["labels"].wrong("left out, or accompanied by mask, the label map that it speaks of")
    return CtSource(table["path"].path(), mask, labels, tuple(options.items()))


def _label(entry: Field) -> int | str:
    if isinstance(entry.value, bool) or not isinstance(entry.value, (int, str)):
        raise entry.wrong("a label's number or name")
    return entry.value


def _film(entry: Field) -> FilmSource:
    if isinstance(entry.value, str):
        return FilmSource(entry.path())
    table = entry.table(_FILM)
    if "path" not in table:
        raise entry.wrong("an object with a path, or a path")
    options: dict[str, Any] = {}
    if "intensity" in table:
        options["intensity"] = table["intensity"].text("auto", "linear", "log", "line_integral")
    if "sign" in table:
        options["sign"] = table["sign"].text("auto", 1, -1)
    if "frame" in table:
        options["frame"] = table["frame"].count()
    if "geometry" in table:
        if not isinstance(table["geometry"].value, Mapping):
            raise table["geometry"].wrong("an object of C-arm words, such as sdd and sod")
        options |= {"geometry": tuple(table["geometry"].value.items())}
    camera, mask = (table[name].path() if name in table else None for name in ("camera", "mask"))
    if camera is not None and "geometry" in options:
        raise table["geometry"].wrong("left out beside camera, which says all about the view")
    return FilmSource(table["path"].path(), camera, mask, tuple(options.items()))


def _pose(entry: Field) -> PoseSource:
    if isinstance(entry.value, str):
        return entry.path()
    return entry.rows(4, "world_from_body [4, 4] (RAS mm), or the path of a pose (.json, .tfm)", 4)


def _landmarks(entry: Field) -> tuple[tuple[float, ...], ...] | Path:
    if isinstance(entry.value, str):
        return entry.path()
    return entry.rows(3, "a list of points [x, y, z] (RAS mm, in the CT), or the path of a landmark file")


def _starts(entry: Field) -> tuple[PoseSource, ...] | RandomStarts:
    if isinstance(entry.value, Mapping):
        table = entry.table(("random",))
        if "random" not in table:
            raise entry.wrong('a list of poses, or {"random": {…}}')
        known = table["random"].table(_RANDOM)
        values: dict[str, Any] = {}
        for name, most in (("mm", 1e4), ("degrees", 180.0)):
            if name in known:
                within = f"from 0 to {most:g} ({name})"
                values[name] = float(known[name].number(within, lambda v, most=most: 0 <= v <= most))
        values |= {n: known[n].count(least) for n, least in (("count", 1), ("seed", 0)) if n in known}
        return RandomStarts(**values)
    poses = tuple(_pose(start) for start in entry.items())
    if not poses:
        raise entry.wrong("one start or more")
    return poses


def _deepfluoro(
    entry: dict[str, Field], starts: tuple[PoseSource, ...] | RandomStarts, points: Any
) -> list[CaseSpec]:
    table = entry["deepfluoro"].table(_DEEPFLUORO)
    for name in ("path", "specimen", "projections"):
        if name not in table:
            raise entry["deepfluoro"].wrong("an object with path, specimen and projections")
    specimen, prefix = table["specimen"].text(), entry["name"].text() if "name" in entry else ""
    known: dict[str, Any] = {}
    if "half_voxel" in table:
        known["half_voxel"] = table["half_voxel"].flag()
    if "crop_px" in table:
        known["crop_px"] = table["crop_px"].count()
    numbers = [f"{item.count():03d}" for item in table["projections"].items()]
    return [
        CaseSpec(
            f"{prefix or specimen}/{number}",
            landmarks=points,
            starts=starts,
            deepfluoro=DeepFluoroSource(table["path"].path(), specimen, number, **known),
        )
        for number in numbers
    ]
