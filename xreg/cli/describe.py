"""Explains what a file holds, value by value: where each comes from, and what it means."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xreg.cli.terminal import Fact

if TYPE_CHECKING:
    from xreg.geometry import Camera, Rig
    from xreg.io import LabelMap, PoseRecord, Radiograph
    from xreg.volume import Volume

_CODES = {0: "unknown", 1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI"}
_UNITS = {"spacing": "mm", "sdd": "mm", "sod": "mm", "isocenter": "mm", "principal_point": "px"}
_UNITS |= {"primary": "°", "secondary": "°", "roll": "°"}
_MEANING = {
    "spacing": "row, column; at the detector",
    "sdd": "source to detector",
    "sod": "source to isocentre",
    "primary": "+ is LAO",
    "secondary": "+ is cranial",
    "relationship": "what pixel values mean",
    "sign": "1: a higher value means more beam",
    "mirrored": "seen from the detector's side",
}
_SHOWN_LABELS = 200
# what other facts say already
_TOLD = ("file", "format", "affine_from", "sform_code", "qform_code", "units", "rescale", "ct_energy_kev")
_TOLD += ("mask", "shape_ijk", "steps")


def volume_facts(volume: Volume) -> list[Fact]:
    """What a CT is, and where it lies."""
    notes = volume.provenance
    extent = "×".join(f"{e:.1f}" for e in volume.extent) + " mm"
    ways = "which way i, j, k grow: " + _ways(volume.axis_codes)
    facts = [
        Fact("format", notes.get("format", ""), origin="computed", note="told from name and first bytes"),
        *_grid_facts(volume.size, volume.spacing, volume.affine, notes),
        Fact("extent", list(volume.extent), "mm", "computed", "outer faces of the voxels", extent),
        Fact("orientation", volume.axis_codes, origin="computed", note=ways),
        Fact("centre", volume.center.tolist(), "mm", "computed", "world RAS; the default isocentre"),
        *_value_facts(volume),
    ]
    if volume.labels is not None:
        voxel, source = math.prod(volume.spacing), str(notes.get("mask"))
        facts += label_facts(volume.labels, volume.label_names, voxel, source)
    said = {n: v for n, v in notes.items() if n not in _TOLD and v not in (None, "", {}, ())}
    return facts + [Fact(name, value, origin="header") for name, value in said.items()]


def _grid_facts(size: Any, spacing: Any, affine: Any, notes: Any) -> list[Fact]:
    """Where the voxels of a CT or a label map lie."""
    size, spacing = list(size), list(spacing)
    steps = "×".join(f"{s:.5g}" for s in spacing) + " mm"
    matrix = {"origin": _affine_origin(notes), "note": "index (i, j, k) to world RAS mm"}
    return [
        Fact("voxels", size, origin="header", note="along i, j, k", text="×".join(map(str, size))),
        Fact("spacing", spacing, "mm", "header", "along i, j, k", steps),
        Fact("affine", affine.tolist(), **matrix),
    ]


def _value_facts(volume: Volume) -> list[Fact]:
    notes = volume.provenance
    low, high = (float(v) for v in volume.mu.aminmax())
    said = "argument" if notes.get("rescale") or notes.get("units") == "mu" else "default"
    facts = [
        Fact(
            "stored values",
            notes.get("units", ""),
            origin=said,
            note="hu: CT numbers, mu: attenuation in 1/mm",
        )
    ]
    if notes.get("rescale"):
        facts.append(
            Fact("rescale", list(notes["rescale"]), origin="argument", note="slope, intercept to CT numbers")
        )
    if notes.get("units") == "hu":
        hu = volume.hu
        facts.append(
            Fact(
                "CT numbers",
                [float(hu.min()), float(hu.max())],
                "HU",
                "computed",
                "least is cut at air, −1000",
            )
        )
    energy = f"at {volume.energy_kev:g} keV; of the CT {volume.ct_energy_kev:g} keV (--energy, --ct-energy)"
    facts.append(Fact("attenuation", [low, high], "1/mm", "computed", energy))
    air = float((volume.mu <= volume.mu.new_tensor(0.002)).float().mean())
    facts.append(
        Fact("air", air, origin="computed", note="share of voxels below 0.002 /mm", text=f"{100 * air:.0f} %")
    )
    return facts


def label_facts(labels: Any, names: Any, voxel_mm3: float, source: str) -> list[Fact]:
    """Which structures a label map has, with their volumes."""
    import torch

    counts = torch.bincount(labels.flatten().long())
    present = [(n, int(c)) for n, c in enumerate(counts.tolist()) if c and n]
    facts = [Fact("structures", len(present), origin=source, note=f"{len(names)} names known")]
    for number, count in present[:_SHOWN_LABELS]:
        about = {
            "number": number,
            "name": names.get(number),
            "voxels": count,
            "ml": count * voxel_mm3 / 1000.0,
        }
        text = f"{names.get(number, 'without name')}, {about['ml']:.1f} ml"
        facts.append(Fact(f"label {number}", about, text=text))
    return facts


def label_map_facts(label_map: LabelMap) -> list[Fact]:
    """A label map without its CT."""
    spacing = label_map.affine[:3, :3].norm(dim=0).tolist()
    depth, height, width = label_map.labels.shape
    facts = _grid_facts((width, height, depth), spacing, label_map.affine, label_map.notes)
    return facts + label_facts(label_map.labels, label_map.names, math.prod(spacing), "voxels")


def radiograph_facts(film: Radiograph) -> list[Fact]:
    """A radiograph: pixels, what they mean, and the geometry, each with its origin."""
    height, width = film.size
    low, high = (float(v) for v in film.image.aminmax())
    valid = float(film.mask.float().mean())
    found = film.provenance
    facts = [
        Fact("size", [height, width], "px", "header", "height, width", f"{height}×{width} px"),
        Fact("stored values", [low, high], origin="computed", note="least, greatest"),
        Fact(
            "valid",
            valid,
            origin=found["mask"].source if "mask" in found else "",
            note="share of pixels in the beam",
            text=f"{100 * valid:.1f} %",
        ),
    ]
    for name, known in found.items():
        if name == "mask":
            continue
        note = "; ".join(part for part in (_MEANING.get(name, ""), known.note) if part)
        origin = f"{known.source} {known.tag}".strip()
        facts.append(
            Fact(name, known.value, _UNITS.get(name, "") if known.value is not None else "", origin, note)
        )
    p = film.line_integrals[film.mask]
    ends = [float(p.min()), float(p.max())]
    facts.append(
        Fact("line integrals", ends, origin="computed", note="−ln(I/I0), I0 from the brightest pixels")
    )
    if film.camera is None:
        missing = [n for n in ("spacing", "sdd", "sod") if getattr(film, n) is None]
        facts.append(
            Fact(
                "camera",
                None,
                origin="default",
                note=f"needs {', '.join(missing)}: register takes --camera, or these",
                text="not known",
            )
        )
    else:
        facts += camera_facts(film.camera)
    return facts


def camera_facts(camera: Camera, origin: str = "computed") -> list[Fact]:
    """A view: intrinsics, place, and the same in the words of a C-arm."""
    height, width = camera.size
    kind = "parallel beam" if camera.parallel else "pinhole"
    angles = [float(a) for a in camera.angles]
    middle = f"u, v in the stored image; its middle is {(width - 1) / 2:g}, {(height - 1) / 2:g}"
    pixels = "intrinsics of the pinhole image; pixel centres at integers"
    pose = camera.camera_from_world.tolist()
    facts = [
        Fact("beam", kind, origin=origin),
        Fact("image", [height, width], "px", origin, "height, width", f"{height}×{width} px"),
        Fact("K", camera.K.tolist(), "px", origin, pixels),
        Fact("principal point", camera.principal_point.tolist(), "px", "computed", middle),
        Fact("camera_from_world", pose, origin=origin, note="OpenCV camera from RAS mm"),
        Fact("source", camera.source.tolist(), "mm", "computed", "world RAS"),
        Fact("angles", angles, "°", "computed", "primary (+ LAO), secondary (+ cranial), roll"),
        Fact("mirrored image", camera.mirrored, origin=origin, note="columns reversed against the pinhole's"),
    ]
    if camera.sdd is None:
        note = "a calibration without it; rays end behind the CT"
        return [*facts, Fact("source to detector", None, origin="default", note=note)]
    facts.append(Fact("source to detector", float(camera.sdd), "mm", origin))
    spacing = camera.spacing.tolist()
    return [*facts, Fact("pixel spacing", spacing, "mm", "computed", "row, column; at the detector")]


def rig_facts(rig: Rig) -> list[Fact]:
    """Several views, one after the other."""
    facts = [Fact("views", len(rig), origin="file")]
    for n, camera in enumerate(rig):
        for fact in camera_facts(camera, "file"):
            facts.append(
                Fact(f"view {n} {fact.name}", fact.value, fact.unit, fact.origin, fact.note, fact.text)
            )
    return facts


def pose_facts(record: PoseRecord, origin: str = "file") -> list[Fact]:
    """A pose: the matrix, how far it is from none, its uncertainty and verdict, and its camera."""
    import torch

    from xreg.geometry import se3

    pose = record.world_from_body
    eye = torch.eye(4, dtype=torch.float64)
    turn = math.degrees(float(se3.geodesic_distance(eye, pose)[0]))
    frames = f"{record.world} from {record.body}"
    facts = [
        Fact("frames", [record.body, record.world], origin=origin, note="both RAS mm", text=frames),
        Fact("matrix", pose.tolist(), origin=origin, note="world_from_body, column vectors, mm"),
        Fact("rotation", turn, "°", "computed", "angle of the whole turn"),
        Fact("translation", pose[:3, 3].tolist(), "mm", origin, "of the body's origin"),
        Fact("moves the origin by", float(pose[:3, 3].norm()), "mm", "computed"),
        *_tangent_facts(record, origin),
    ]
    for name in ("score", "accepted", "reason"):
        if getattr(record, name) is not None:
            facts.append(Fact(name, getattr(record, name), origin=origin))
    facts += [Fact(f"provenance: {n}", v, origin=origin) for n, v in record.provenance.items()]
    return facts + (camera_facts(record.camera, origin) if record.camera is not None else [])


def _tangent_facts(record: PoseRecord, origin: str) -> list[Fact]:
    """The centre that a pose turns about, and how sure the pose is there."""
    import torch

    from xreg.geometry import se3

    if record.center is None:
        return []
    home = se3.apply(se3.inverse(record.world_from_body), record.center[None])[0]
    facts = [
        Fact("centre", record.center.tolist(), "mm", origin, "world RAS; the tangent turns about it"),
        Fact("came to the centre by", float((record.center - home).norm()), "mm", "computed"),
    ]
    if record.covariance is None:
        return facts
    deviation = record.covariance.diagonal().sqrt()
    turns, moves = torch.rad2deg(deviation[:3]).tolist(), deviation[3:].tolist()
    facts.append(Fact("± rotation", turns, "°", origin, "one standard deviation about x, y, z"))
    facts.append(Fact("± translation", moves, "mm", origin, "one standard deviation along x, y, z"))
    return facts


def file_facts(path: Path) -> list[Fact]:
    """The file or folder itself."""
    if path.is_dir():
        files = [f for f in path.rglob("*") if f.is_file()]
        size = sum(f.stat().st_size for f in files)
        return [Fact("folder", str(path), note=f"{len(files)} files, {_size(size)}")]
    return [Fact("file", str(path), note=_size(path.stat().st_size))]


def _size(count: int) -> str:
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"


def _affine_origin(notes: Any) -> str:
    name = notes.get("affine_from")
    if name is None:
        return "header"
    code = notes.get(f"{name}_code")
    return f"header {name}" + (f" (code {code}, {_CODES.get(code, 'other')})" if code is not None else "")


def _ways(codes: str) -> str:
    words = {"R": "right", "L": "left", "A": "front", "P": "back", "S": "head", "I": "feet"}
    return "to the patient's " + ", ".join(words[c] for c in codes)
