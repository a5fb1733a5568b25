"""3D Slicer's point lists: markups as JSON (.mrk.json) and as a table (.fcsv).  LPS there, RAS mm here."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import FileError

_SCHEMA = (  # the name of the format, not an address: Slicer compares it as text
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
SIGNS = {"RAS": (1.0, 1.0, 1.0), "LPS": (-1.0, -1.0, 1.0)}
_NUMBERED = {"0": "RAS", "1": "LPS"}  # as Slicer wrote them until 4.10
_FCSV = (
    "id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label", "desc", "associatedNodeID",
)  # fmt: skip
_STATUS_DEFINED = "2"  # of an fcsv row's optional fifteenth entry
_SPACE = {3: "x y z in mm", 2: "u v in px"}

Row = tuple[str, list[float]]


def is_markups(data: Any) -> bool:
    """Whether JSON is a markups file."""
    return isinstance(data, dict) and isinstance(data.get("markups"), list)


def read_markups(data: Mapping[str, Any], file: Path) -> list[Row]:
    """Points of all lists of a markups file, RAS mm."""
    rows = []
    for number, markup in enumerate(data["markups"]):
        where = f"{file}: markups[{number}]"
        if not isinstance(markup, dict):
            raise FileError(f"{where} must be an object, got {markup!r}")
        signs = SIGNS[_system(markup.get("coordinateSystem", "LPS"), where)]
        unit = markup.get("coordinateUnits", "mm")
        unit = unit[0] if isinstance(unit, list) and unit else unit
        if unit not in ("mm", "um"):
            raise FileError(f"{where}: coordinateUnits must be mm or um, got {unit!r}")
        scale = 1.0 if unit == "mm" else 1e-3
        for place, point in enumerate(markup.get("controlPoints") or []):
            entry = f"{where}.controlPoints[{place}]"
            if not isinstance(point, dict):
                raise FileError(f"{entry} must be an object, got {point!r}")
            if point.get("positionStatus", "defined") != "defined":
                continue  # a point of a template that nobody has placed: its position means nothing
            position = floats(point.get("position"), 3, entry)
            name = str(point.get("label") or point.get("id") or "").strip()
            rows.append((name, [s * scale * p for s, p in zip(signs, position, strict=True)]))
    return rows


def _system(value: Any, where: str) -> str:
    name = _NUMBERED.get(str(value).strip(), str(value).strip().upper())
    if name not in SIGNS:
        raise FileError(f"{where}: the coordinate system must be RAS or LPS, got {value!r}; export it as LPS")
    return name


def markups_json(names: Sequence[str], lps: list[list[float]]) -> dict[str, Any]:
    """The markups file of named points, LPS mm."""
    points = [
        {
            "id": str(number + 1),
            "label": name,
            "description": "",
            "associatedNodeID": "",
            "position": position,
            "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
            "selected": True,
            "locked": False,
            "visibility": True,
            "positionStatus": "defined",
        }
        for number, (name, position) in enumerate(zip(names, lps, strict=True))
    ]
    listed = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(points),
        "controlPoints": points,
        "measurements": [],
    }
    return {"@schema": _SCHEMA, "markups": [listed]}


def read_fcsv(file: Path) -> list[Row]:
    """Points of a Slicer 4 point list, RAS mm."""
    columns, system, rows = _FCSV, None, []
    for number, line in enumerate(text_of(file).splitlines(), 1):
        where = f"{file}: line {number}"
        if line.startswith("#"):
            key, _, value = line.lstrip("# ").partition("=")
            if key.strip() == "CoordinateSystem":
                system = _system(value, where)
            elif key.strip() == "columns":
                columns = [word.strip().rstrip(")") for word in value.split(",")]
            continue
        if not line.strip():
            continue
        if system is None:
            raise FileError(
                f'{file}: does not say whether it is RAS or LPS; add the line "# CoordinateSystem = LPS" (or '
                "RAS) above the points, or save it again from a newer 3D Slicer"
            )
        if not {"x", "y", "z", "label"} <= set(columns):
            raise FileError(f"{file}: the columns must hold x, y, z and label, got {columns}")
        cells = next(csv.reader([line]))
        if len(cells) > 14 and cells[14].strip() not in ("", _STATUS_DEFINED):
            continue
        known = dict(zip(columns, cells, strict=False))
        position = floats([known.get(axis, "") for axis in ("x", "y", "z")], 3, where)
        name = (known.get("label") or known.get("id") or "").strip()
        rows.append((name, [s * p for s, p in zip(SIGNS[system], position, strict=True)]))
    return rows


def fcsv_text(names: Sequence[str], lps: list[list[float]]) -> str:
    """The Slicer 4 point list of named points, LPS mm."""
    text = io.StringIO()
    text.write("# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n")
    text.write(f"# columns = {','.join(_FCSV)}\n")
    writer = csv.writer(text, lineterminator="\n")
    for number, (name, position) in enumerate(zip(names, lps, strict=True)):
        numbers = [repr(v) for v in position]
        writer.writerow([number + 1, *numbers, 0, 0, 0, 1, 1, 1, 0, name, "", ""])
    return text.getvalue()


def text_of(file: Path) -> str:
    """The text of a table (UTF-8, with a byte order mark or without)."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{file}: is not text; expected a table of landmarks") from error


def floats(values: Any, count: int, where: str) -> list[float]:
    """So many finite numbers, from numbers or texts; FileError names where they are."""
    try:
        found = [float(v) for v in values]
    except (TypeError, ValueError):
        found = []
    if len(found) != count or isinstance(values, str) or not all(math.isfinite(v) for v in found):
        raise FileError(f"{where}: needs {count} finite numbers ({_SPACE[count]}), got {values!r}")
    return found
