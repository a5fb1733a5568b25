"""Landmarks by name: points of the anatomy (3D Slicer's markups, tables) and where a film shows them.

In here points are RAS+ mm; Slicer's files are mostly LPS and say so, and this module is where the two meet.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ..errors import FileError, GeometryError
from .files import atomic_write, read_json, require_file, write_json
from .markups import SIGNS, Row, fcsv_text, floats, is_markups, markups_json, read_fcsv, read_markups, text_of

TABLES = (".csv", ".tsv", ".txt")  # files of rows and columns, one point a row
_NAMES = ("name", "label", "landmark")
_OFF_FILM_MM = 0.5  # how far from the film's own plane a markup placed on it may lie
_SPACE = {3: "x y z in RAS mm", 2: "u v in px"}


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Named points of a body: names, each once, and points float64 [N, 3] in its RAS mm."""

    names: tuple[str, ...]
    points: Float64[Tensor, "N 3"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        object.__setattr__(self, "points", _numbers(self.points, self.names, 3))

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class PixelLandmarks:
    """Where one film shows named points: names, each once, and pixels (u, v) float64 [N, 2].

    u counts columns and v rows of the image as stored; whole numbers are pixel centres.
    """

    names: tuple[str, ...]
    pixels: Float64[Tensor, "N 2"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        object.__setattr__(self, "pixels", _numbers(self.pixels, self.names, 2))

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class MatchedLandmarks:
    """Points that at least one film shows, as ``xreg.registration.landmarks.pose_from_landmarks`` takes them.

    points: [N, 3] RAS mm of the body.  pixels: [views, N, 2], NaN where a film does not show the point, and
    seen: [views, N], False there.  left_out: names of points that no film shows.
    """

    names: tuple[str, ...]
    points: Float64[Tensor, "N 3"]
    pixels: Float64[Tensor, "views N 2"]
    seen: Bool[Tensor, "views N"]
    left_out: tuple[str, ...] = ()


def load_landmarks(path: str | PathLike) -> Landmarks:
    """Read named points.

    ``.mrk.json`` (or any JSON with "markups"): 3D Slicer's markups, LPS or RAS as each list says (LPS where
    it does not), mm or µm; points that are not placed yet are skipped.  ``.fcsv``: Slicer's list with its
    header lines.  ``.csv``: name, x, y, z in RAS mm, with a header line or without; a header r, a, s or
    l, p, s (as Slicer's table of control points has) is understood, and rows that it calls not defined are
    skipped.  Other ``.json``: RAS mm, as {"name": [x, y, z], ...} or a list of {"name", "x", "y", "z"}.
    Raises FileError, which names the entry.
    """
    file = require_file(path, "landmarks (.mrk.json, .fcsv, .csv or .json)")
    kind = file.suffix.lower()
    if kind == ".fcsv":
        rows = read_fcsv(file)
    elif kind == ".json":
        data = read_json(file, "landmarks (JSON)")
        rows = read_markups(data, file) if is_markups(data) else _plain_json(data, file, ("x", "y", "z"))
    elif kind in TABLES:
        rows = _read_table(file, (("x", "y", "z"), ("r", "a", "s"), ("l", "p", "s")))
    else:
        raise FileError(
            f"{file}: landmarks are read from .mrk.json, .fcsv, .csv or .json; export them as one of these"
        )
    return Landmarks(*_columns(rows, file, 3))


def save_landmarks(path: str | PathLike, landmarks: Landmarks) -> None:
    """Write named points for 3D Slicer as ``.mrk.json`` or ``.fcsv``, both LPS; atomic, and no digit is lost.

    Raises FileError for another ending or a place that cannot be written.
    """
    file = Path(path)
    lps = (landmarks.points * torch.tensor(SIGNS["LPS"], dtype=torch.float64)).tolist()
    if file.name.lower().endswith(".mrk.json"):
        write_json(file, markups_json(landmarks.names, lps))
    elif file.suffix.lower() == ".fcsv":
        with atomic_write(file) as temporary:
            temporary.write_text(fcsv_text(landmarks.names, lps), encoding="utf-8")
    else:
        raise FileError(f"{file}: landmarks are written as .mrk.json or .fcsv; choose such a name")


def load_pixels(path: str | PathLike, *, spacing: Sequence[float] | None = None) -> PixelLandmarks:
    """Read where one film shows named points.

    ``.csv``: name, u, v, with a header line or without.  ``.json``: {"name": [u, v], ...} or a list of
    {"name", "u", "v"}.  ``.mrk.json``: markups placed in 3D Slicer on the film itself.  Slicer puts a PNG or
    TIFF without a place of its own at the origin, one pixel a millimetre, in LPS: then u = x and v = y of the
    point in LPS mm, and z = 0.  Where Slicer knows a pixel spacing (DICOM), give it as ``spacing``
    (row, column) in mm, and u = x / column, v = y / row; the other files need none.

    u counts columns and v rows of the image as stored; whole numbers are pixel centres.  Raises FileError.
    """
    file = require_file(path, "pixels of landmarks (.csv, .json or .mrk.json)")
    kind = file.suffix.lower()
    data = read_json(file, "pixels of landmarks (JSON)") if kind == ".json" else None
    if data is not None and is_markups(data):
        rows = [_on_film(row, file, spacing) for row in read_markups(data, file)]
    elif spacing is not None and kind in (".json", *TABLES):
        raise FileError(f"{file}: holds pixels, which need no spacing; that is for .mrk.json of 3D Slicer")
    elif kind == ".json":
        rows = _plain_json(data, file, ("u", "v"))
    elif kind in TABLES:
        rows = _read_table(file, (("u", "v"),))
    else:
        raise FileError(f"{file}: pixels of landmarks are read from .csv, .json or .mrk.json")
    return PixelLandmarks(*_columns(rows, file, 2))


def match_landmarks(landmarks: Landmarks, *films: PixelLandmarks) -> MatchedLandmarks:
    """Pair the points of a body with their pixels in each film, by name.

    A point need not be in every film, or in any.  Raises FileError where a film names a point that the body
    does not have (a typing error would otherwise go unseen), or where nothing is left.
    """
    known = {name: n for n, name in enumerate(landmarks.names)}
    for number, film in enumerate(films):
        unknown = [name for name in film.names if name not in known]
        if unknown:
            unused = [name for name in landmarks.names if name not in film.names]
            where = f" of film {number + 1}" if len(films) > 1 else ""
            raise FileError(
                f"the pixels{where} name points that the landmarks do not have: {_listed(unknown)}; "
                f"landmarks without a pixel there: {_listed(unused)}. Names must agree letter by letter"
            )
    shown = {name for film in films for name in film.names}
    names = tuple(name for name in landmarks.names if name in shown)
    if not names:
        raise FileError(f"no film shows any of the landmarks {_listed(landmarks.names)}")
    pixels = torch.full((len(films), len(names), 2), torch.nan, dtype=torch.float64)
    for view, film in enumerate(films):
        for name, pixel in zip(film.names, film.pixels, strict=True):
            pixels[view, names.index(name)] = pixel
    points = landmarks.points[[known[name] for name in names]]
    left_out = tuple(name for name in landmarks.names if name not in shown)
    return MatchedLandmarks(names, points, pixels, torch.isfinite(pixels).all(-1), left_out)


def _on_film(row: Row, file: Path, spacing: Sequence[float] | None) -> Row:
    """The pixel of a markup that was placed on the film: RAS mm to (u, v)."""
    name, (x, y, z) = row
    down, across = (1.0, 1.0) if spacing is None else (float(v) for v in spacing)
    if not (down > 0 and across > 0):
        raise FileError(f"spacing must be positive (row, column) in mm, got ({down}, {across})")
    u, v = -x / across, -y / down
    if abs(z) > _OFF_FILM_MM or min(u, v) < -1.0:
        raise FileError(
            f"{file}: the markup {name!r} is at ({-x:g}, {-y:g}, {z:g}) LPS mm, which is not on a film that "
            "begins at the origin and lies in the plane z = 0; place the points on the film's own image "
            "file, or write name,u,v in pixels as CSV"
        )
    return name, [u, v]


# ---- tables and plain JSON ----


def _read_table(file: Path, headers: Sequence[Sequence[str]]) -> list[Row]:
    """Rows of a CSV by the header line that names the columns; without one, the name comes first."""
    text = text_of(file)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    lines = [
        (number, [cell.strip() for cell in cells])
        for number, cells in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1)
        if any(cell.strip() for cell in cells) and not cells[0].lstrip().startswith("#")
    ]
    if not lines:
        return []
    first = [cell.lower() for cell in lines[0][1]]
    axes = next((h for h in headers if set(h) <= set(first)), None)
    name = next((n for n in _NAMES if n in first), None)
    count = len(headers[0])
    if axes is not None and name is not None:
        at, place, lines = [first.index(axis) for axis in axes], first.index(name), lines[1:]
    elif len(first) == count + 1 and _is_number(first[1]):
        at, place, axes = list(range(1, count + 1)), 0, headers[0]
    else:
        raise FileError(
            f"{file}: the first line must name the columns name,{','.join(headers[0])}, or be a row of "
            f"these; got {','.join(lines[0][1])!r}"
        )
    signs = SIGNS["LPS" if tuple(axes) == ("l", "p", "s") else "RAS"]
    rows, placed = [], first.index("defined") if "defined" in first else None
    for number, cells in lines:
        if placed is not None and cells[placed : placed + 1] == ["0"]:  # of a template, not placed yet
            continue
        if len(cells) <= max(*at, place):
            raise FileError(f"{file}: line {number} has {len(cells)} entries and needs {max(*at, place) + 1}")
        values = floats([cells[k] for k in at], count, f"{file}: line {number}")
        rows.append((cells[place], [s * v for s, v in zip(signs, values, strict=False)]))
    return rows


def _plain_json(data: Any, file: Path, axes: Sequence[str]) -> list[Row]:
    entries: Iterable[tuple[Any, Any]]
    if isinstance(data, dict):
        entries = data.items()
    elif isinstance(data, list) and all(isinstance(d, dict) for d in data):
        entries = [(next((d[n] for n in _NAMES if n in d), ""), [d.get(axis) for axis in axes]) for d in data]
    else:
        raise FileError(
            f'{file}: expected {{"name": [{", ".join(axes)}], ...}} or a list of objects with name, '
            f"{', '.join(axes)}"
        )
    return [
        (str(name).strip(), floats(values, len(axes), f"{file}: the entry {name!r}"))
        for name, values in entries
    ]


# ---- checks ----


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _columns(rows: Sequence[Row], file: Path, count: int) -> tuple[tuple[str, ...], Tensor]:
    """Names and numbers of rows from a file; FileError where a name is missing or comes twice."""
    names = tuple(name for name, _ in rows)
    if not rows:
        raise FileError(f"{file}: holds no placed point; place the landmarks and save it again")
    if "" in names:
        raise FileError(f"{file}: point {names.index('') + 1} has no name; points are matched by name")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FileError(f"{file}: the names {_listed(twice)} come more than once; each point needs its own")
    return names, torch.tensor([values for _, values in rows], dtype=torch.float64).reshape(-1, count)


def _numbers(values: Any, names: Sequence[str], width: int) -> Tensor:
    from ..geometry._numbers import tensor64

    found = tensor64(values, "landmarks", rows=True).detach().cpu()
    if tuple(found.shape) != (len(names), width) or len(set(names)) != len(names):
        raise GeometryError(
            f"landmarks need names, each once, and as many rows of {_SPACE[width]}; got {len(names)} names "
            f"({len(set(names))} different) and shape {list(found.shape)}"
        )
    if not bool(torch.isfinite(found).all()):
        raise GeometryError("landmarks must be finite, but hold NaN or infinity; leave out what is not known")
    return found


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(repr(name) for name in names[:most]) + more) if names else "none"
