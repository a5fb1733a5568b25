"""Label maps and the names of their structures: tables (CSV, JSON) and NIfTI headers that carry them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
import torch
from jaxtyping import Float64, Integer
from torch import Tensor

from ..errors import FileError, VolumeError
from .files import read_json, require_file
from .nifti import NiftiGrid, read_nifti

_NUMBER_COLUMNS = ("id", "label", "label_id", "index", "value", "number", "key")
_NAME_COLUMNS = ("structure", "name", "label_name", "anatomy", "text", "description")
_SAME_GRID = 0.05  # of a voxel


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Structure numbers [D, H, W] (0 is background), the affine (index to RAS mm), and names by number."""

    labels: Integer[Tensor, "D H W"]
    affine: Float64[Tensor, "4 4"]
    names: dict[int, str]
    notes: dict[str, Any]


def load_labels(path: str | PathLike, *, names: Mapping[int, str] | str | PathLike | None = None) -> LabelMap:
    """Read a label map from NIfTI.

    ``names``: a mapping number to name, a CSV or JSON table, or None for what the header carries (the label
    table that TotalSegmentator and Connectome Workbench write).  Raises FileError, and VolumeError where a
    value is not a whole number, negative or not finite.
    """
    grid = read_nifti(path)
    values = grid.values
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.round(values))
        if not whole.all():
            k, j, i = np.argwhere(~whole)[0].tolist()
            raise VolumeError(
                f"{path}: a label map must hold whole numbers, got {values[k, j, i]} at voxel (i, j, k) = "
                f"{i, j, k}, {int((~whole).sum())} such in all; was it resampled linearly? use nearest"
            )
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise VolumeError(
            f"{path}: labels must lie between 0 and {np.iinfo(np.int32).max}, got {low} to {high}"
        )
    labels = torch.from_numpy(values.astype(np.uint8 if high <= 255 else np.int32, copy=False))
    return LabelMap(labels, grid.affine, label_names(names, grid), grid.notes)


def label_names(
    names: Mapping[int, str] | str | PathLike | None, grid: NiftiGrid | None = None
) -> dict[int, str]:
    """Names by number from a mapping, a CSV or JSON file, or (None) the header of a label map."""
    if names is None:
        return {} if grid is None else _header_names(grid.extensions)
    if isinstance(names, Mapping):
        return _from_mapping(names, "label_names")
    file = require_file(names, "a table of label names (.csv or .json)")
    if file.suffix.lower() == ".json":
        return _from_json(file)
    return _from_csv(file)


def same_grid(shape: Iterable[int], affine: Tensor, other_shape: Iterable[int], other: Tensor) -> bool:
    """Whether two grids [D, H, W] have one shape and place their corners within 1/20 voxel of each other."""
    shape = tuple(shape)
    if shape != tuple(other_shape):
        return False
    depth, height, width = shape
    ends = torch.tensor([[0, n - 1] for n in (width, height, depth)], dtype=torch.float64)
    corners = torch.cartesian_prod(*ends)
    apart = corners @ (affine - other)[:3, :3].T + (affine - other)[:3, 3]
    voxel = torch.linalg.vector_norm(affine[:3, :3], dim=0).min()
    return bool(torch.linalg.vector_norm(apart, dim=1).max() <= _SAME_GRID * voxel)


def require_same_grid(label_map: LabelMap, shape: Iterable[int], affine: Tensor, mask: Any, ct: Any) -> None:
    """Raise VolumeError, naming both grids, where a label map does not lie on the grid of a CT."""
    if same_grid(shape, affine, label_map.labels.shape, label_map.affine):
        return
    own = _grid_text(label_map.labels.shape, label_map.affine)
    raise VolumeError(
        f"the label map {mask} is not on the grid of the CT {ct}: labels {own}; "
        f"CT {_grid_text(shape, affine)}; resample the labels to the CT (nearest neighbour)"
    )


def header_table(names: Mapping[int, str]) -> bytes:
    """A label table for a NIfTI header extension, as Connectome Workbench and TotalSegmentator read it."""
    rows = "\n".join(
        f'<Label Key="{number}" Red="1" Green="1" Blue="1" Alpha="1">{escape(name)}</Label>'
        for number, name in sorted(names.items())
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><CaretExtension><VolumeInformation Index="0"><LabelTable>\n'
        f"{rows}\n</LabelTable><VolumeType>Label</VolumeType></VolumeInformation></CaretExtension>"
    ).encode()


def _grid_text(shape: Iterable[int], affine: Tensor) -> str:
    size = "×".join(str(n) for n in reversed(tuple(shape)))
    rows = "; ".join(" ".join(f"{v:.4g}" for v in row) for row in affine[:3].tolist())
    return f"{size} voxels (i×j×k), affine [{rows}]"


def _header_names(extensions: Iterable[bytes]) -> dict[int, str]:
    for content in extensions:
        if b"<LabelTable" not in content:
            continue
        text = content.decode("utf-8", "replace").strip("\0 \r\n\t")
        table = re.search(r"<LabelTable.*?</LabelTable>", text, flags=re.DOTALL)
        try:
            root = ElementTree.fromstring(table.group(0)) if table else None
        except ElementTree.ParseError:
            root = None
        if root is not None:
            keys = ((label.get("Key", ""), (label.text or "").strip()) for label in root.iter("Label"))
            return {int(key): name for key, name in keys if key.lstrip("-").isdigit() and name}
    return {}


def _from_mapping(table: Mapping[Any, Any], source: str) -> dict[int, str]:
    """Number to name; a table of name to number (as nnU-Net writes it) is turned round."""
    turned = all(isinstance(v, int) and not isinstance(v, bool) for v in table.values())
    pairs = [(v, k) for k, v in table.items()] if turned else list(table.items())
    names: dict[int, str] = {}
    for number, name in pairs:
        if not str(number).strip().isdigit():
            raise FileError(
                f"{source}: label numbers must be whole and not negative, got {number!r} for {name!r}"
            )
        if names.setdefault(int(number), str(name)) != str(name):
            raise FileError(f"{source}: label {number} has two names, {names[int(number)]!r} and {name!r}")
    return names


def _from_json(file: Path) -> dict[int, str]:
    table = read_json(file, "a table of label names")
    if isinstance(table, Mapping) and isinstance(table.get("labels"), Mapping):
        table = table["labels"]
    if not isinstance(table, Mapping) or not table:
        raise FileError(f'{file}: expected an object such as {{"1": "sacrum"}}, got {type(table).__name__}')
    return _from_mapping(table, str(file))


def _from_csv(file: Path) -> dict[int, str]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{file}: is not a CSV table of label names ({error})") from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    number = next((header.index(c) for c in _NUMBER_COLUMNS if c in header), None)
    name = next((header.index(c) for c in _NAME_COLUMNS if c in header), None)
    if number is None or name is None:
        if not header or len(header) < 2 or not header[0].isdigit():
            raise FileError(
                f"{file}: expected a column named one of {', '.join(_NUMBER_COLUMNS)} and one named one of "
                f"{', '.join(_NAME_COLUMNS)} (or two columns, number and name), got {header}"
            )
        number, name, body = 0, 1, rows
    else:
        body = rows[1:]
    short = [row for row in body if len(row) <= max(number, name)]
    if short:
        raise FileError(
            f"{file}: a row has {len(short[0])} columns, too few for a number and a name: {short[0]}"
        )
    table: dict[int, str] = {}
    for row in body:
        table.update(_from_mapping({row[number].strip(): row[name].strip()}, str(file)))
    return table
