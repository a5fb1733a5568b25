"""Gaussians on disk: .safetensors with metadata, and the .ply of 3D Gaussian splatting.

The .ply holds what the reference implementation of B. Kerbl et al. (3D Gaussian Splatting, 2023) writes, as
far as a viewer needs it: x y z, nx ny nz, f_dc_0..2, opacity, scale_0..2, rot_0..3; and `density` after them.
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from xreg.errors import FileError, GaussianError
from xreg.io.files import atomic_write, require_file
from xreg.splat.gaussians import Gaussians

SCHEMA = "xreg.gaussians/1"
UNITS = {"frame": "RAS+", "mean": "mm", "log_scale": "ln mm", "rotation": "x y z w", "density": "1/mm"}
NAMES = ("mean", "log_scale", "rotation", "density")
DC = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + DC * f_dc
TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
POSITION, SCALE = ("x", "y", "z"), ("scale_0", "scale_1", "scale_2")
TURN = ("rot_0", "rot_1", "rot_2", "rot_3")  # w, x, y, z
COLOUR = ("f_dc_0", "f_dc_1", "f_dc_2")
COLUMNS = (*POSITION, "nx", "ny", "nz", *COLOUR, "opacity", *SCALE, *TURN, "density")
LONGEST_HEADER = 1 << 16


def save(path: str | PathLike, gaussians: Gaussians) -> None:
    """Write .safetensors or .ply, by the suffix.  Raises FileError for another."""
    suffix = Path(path).suffix.lower()
    if suffix == ".ply":
        return write_ply(path, gaussians)
    if suffix != ".safetensors":
        raise FileError(f"{path}: Gaussians are written as .safetensors or .ply, got the suffix {suffix!r}")
    tensors = {name: value.detach().cpu().contiguous() for name, value in gaussians.items()}
    notes = {"energy_kev": gaussians.energy_kev, "provenance": dict(gaussians.provenance)}
    metadata = {"schema": SCHEMA, "units": json.dumps(UNITS), "notes": json.dumps(notes, default=str)}
    data = safetensors.torch.save(tensors, metadata)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return None


def load(path: str | PathLike) -> Gaussians:
    """Read .safetensors or .ply.  Raises FileError where it is missing, cut off, or holds something else."""
    if Path(path).suffix.lower() == ".ply":
        return read_ply(path)
    what = f"Gaussians (.safetensors, schema {SCHEMA!r})"
    file = require_file(path, what)
    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata() or {}
            found = set(opened.keys())
            if metadata.get("schema") != SCHEMA or not found.issuperset(NAMES):
                raise FileError(
                    f"{file}: expected {what} with {', '.join(NAMES)}, got schema "
                    f"{metadata.get('schema')!r} with {', '.join(sorted(found)) or 'no tensor'}"
                )
            tensors = {name: opened.get_tensor(name) for name in NAMES}
        if json.loads(metadata.get("units", "null")) != UNITS:
            raise FileError(f"{file}: expected the units {UNITS}, got {metadata.get('units')}")
        notes = json.loads(metadata.get("notes", "{}"))
        return Gaussians(
            **tensors, energy_kev=notes.get("energy_kev"), provenance=notes.get("provenance", {})
        )
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise FileError(f"{file}: is damaged or no safetensors file ({error}); expected {what}") from error
    except GaussianError as error:
        raise FileError(f"{file}: {error}") from error


def write_ply(path: str | PathLike, gaussians: Gaussians) -> None:
    """Write a binary little-endian .ply in float32, atomically; positions stay in RAS mm.

    ``density`` is exact.  Viewers, which know no attenuation, get the opacity 1 − exp(−line integral through
    the middle), and a grey that is brighter where the density is higher.
    """
    numbers = {name: value.detach().cpu().double().numpy() for name, value in gaussians.items()}
    rotation = numbers["rotation"]
    rotation = rotation / np.linalg.norm(rotation, axis=1, keepdims=True)
    density, log_scale = numbers["density"], numbers["log_scale"]
    through = density * np.sqrt(2 * np.pi) * np.exp(log_scale.mean(1))
    alpha = np.clip(-np.expm1(-through), 1e-4, 1 - 1e-4)
    top = float(density.max()) if len(density) else 0.0
    grey = 0.2 + 0.8 * np.clip(density / top, 0, 1) if top > 0 else np.full_like(density, 0.2)
    columns = {
        **dict(zip(POSITION, numbers["mean"].T, strict=True)),
        **dict.fromkeys(COLOUR, (grey - 0.5) / DC),
        "opacity": np.log(alpha / (1 - alpha)),
        **dict(zip(SCALE, log_scale.T, strict=True)),
        **dict(zip(TURN, rotation.T[[3, 0, 1, 2]], strict=True)),
        "density": density,
    }
    table = np.zeros(len(density), dtype=[(name, "<f4") for name in COLUMNS])
    for name, column in columns.items():
        table[name] = column
    lines = [
        "ply", "format binary_little_endian 1.0", "comment xreg: X-ray Gaussians, RAS+ mm, density in 1/mm",
        f"element vertex {len(table)}", *(f"property float {name}" for name in COLUMNS), "end_header",
    ]  # fmt: skip
    with atomic_write(path) as temporary:
        temporary.write_bytes(("\n".join(lines) + "\n").encode("ascii") + table.tobytes())


def read_ply(path: str | PathLike) -> Gaussians:
    """Read a .ply of Gaussians, float32: properties in any order and of any type, binary or ascii.

    Positions and scales are taken as RAS mm.  Where there is no ``density``, it follows from the opacity as
    ``write_ply`` has it.  Raises FileError, naming what is missing or where the file is cut off.
    """
    file = require_file(path, "a .ply of Gaussians")
    data = file.read_bytes()
    order, count, kinds, start = _header(data, file)
    table = _table(data[start:], order, count, kinds, file)
    missing = [n for n in (*POSITION, *SCALE, *TURN) if n not in kinds]
    if missing or not {"density", "opacity"} & set(kinds):
        missing += [] if {"density", "opacity"} & set(kinds) else ["density (or opacity)"]
        raise FileError(
            f"{file}: a .ply of Gaussians needs the vertex properties {', '.join(missing)}; it has "
            f"{', '.join(kinds) or 'none'}"
        )
    pick = lambda names: np.stack([table[n].astype(np.float64) for n in names], 1)  # noqa: E731
    log_scale = pick(SCALE)
    if "density" in kinds:
        density = table["density"].astype(np.float64)
    else:  # -ln(1 - sigmoid(opacity)) = ln(1 + exp(opacity))
        through = np.logaddexp(0.0, table["opacity"].astype(np.float64))
        density = through / (np.sqrt(2 * np.pi) * np.exp(log_scale.mean(1)))
    parts = (pick(POSITION), log_scale, pick(TURN)[:, [1, 2, 3, 0]], density)
    try:
        return Gaussians(
            *(torch.from_numpy(p.astype(np.float32)) for p in parts), provenance={"file": file.name}
        )
    except GaussianError as error:
        raise FileError(f"{file}: {error}") from error


def _header(data: bytes, file: Path) -> tuple[str, int, dict[str, str], int]:
    """(format, number of vertices, type of each of their properties, where the data begin)."""
    end = data.find(b"end_header", 0, LONGEST_HEADER)
    if not data.startswith(b"ply") or end < 0:
        raise FileError(
            f"{file}: is no .ply file (no 'ply' at its start, or no 'end_header'); expected Gaussians"
        )
    start = data.find(b"\n", end) + 1 or len(data)
    order, count, kinds, element = "", None, {}, ""
    for line in data[:end].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format":
            order = words[1] if len(words) > 1 else ""
        elif words[0] == "element" and len(words) == 3:
            if count is None and words[1] != "vertex":
                raise FileError(
                    f"{file}: its first element is {words[1]!r}, where Gaussians begin with vertices"
                )
            element = words[1]
            if element == "vertex":
                count = int(words[2]) if words[2].isdigit() else None
        elif words[0] == "property" and element == "vertex":
            if len(words) != 3 or words[1] not in TYPES:
                raise FileError(f"{file}: a vertex has the property {line!r}, which Gaussians do not have")
            kinds[words[2]] = TYPES[words[1]]
    if count is None or order not in (*ORDERS, "ascii"):
        raise FileError(f"{file}: its header has no vertex count or an unknown format {order!r}")
    return order, count, kinds, start


def _table(body: bytes, order: str, count: int, kinds: dict[str, str], file: Path) -> Any:
    """The vertices, one column a property."""
    if order == "ascii":
        rows = body.split(b"\n")[:count]
        try:
            numbers = np.array([[float(w) for w in row.split()] for row in rows], dtype=np.float64)
            return dict(zip(kinds, numbers.reshape(count, len(kinds)).T, strict=True))
        except ValueError as error:
            raise FileError(f"{file}: expected {count} rows of {len(kinds)} numbers ({error})") from error
    layout = np.dtype([(name, ORDERS[order] + kind) for name, kind in kinds.items()])
    needed = count * layout.itemsize
    if len(body) < needed:
        raise FileError(
            f"{file}: is cut off: {count} vertices need {needed} bytes, got {len(body)}; copy it again"
        )
    return np.frombuffer(body, layout, count)
