"""A reconstruction as a folder: label map, doubt, surfaces, pictures, measures, and one page for people."""

from __future__ import annotations

import base64
import io
import itertools
import math
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from xreg.errors import FileError
from xreg.io import atomic_write, read_json, write_json, write_nifti
from xreg.io.grid import closest_axes
from xreg.io.labels import header_table
from xreg.pictures import PAPER, UNLIT, colour, enlarge, grey, panels, save_picture
from xreg.shape.annotate import ink, outline
from xreg.shape.meshes import SUFFIXES, save_mesh
from xreg.shape.patients import counted
from xreg.shape.reconstruction import FilmFit, Reconstruction
from xreg.shape.schemes import SCHEMES

SCHEMA = "xreg.reconstruction/1"
NOTICE = "Research use, not a medical device."
_WIDTH = 420  # px of a film in the picture
_ENDS = np.array([[70, 140, 255], [255, 96, 64]], dtype=np.float32)  # less and more than the bones explain
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em;
color: #1a1f28 }
h1 { margin-bottom: .1em } h2 { margin-top: 1.6em } img { max-width: 100% }
table { border-collapse: collapse } td, th { padding: .15em .9em .15em 0; text-align: left;
border-bottom: 1px solid #d8dde4; vertical-align: top } .warn { background: #fff1d6; border-left: 5px solid
#e09000; padding: .4em 1em } .bad { background: #ffe3de; border-left-color: #d03020 }
.faint { color: #69717d }
"""


FILES = {
    "labels": "labels.nii.gz", "names": "labels.json", "uncertainty": "uncertainty.nii.gz",
    "meshes": "meshes", "films": "films.png", "bones": "bones.png", "measures": "measures.json",
    "report": "report.html",
}  # fmt: skip


def save_reconstruction(
    folder: str | PathLike,
    found: Reconstruction,
    *,
    mesh_suffix: str = ".stl",
    facts: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Write a reconstruction into a folder, which is made; returns the names of the files by kind.

    labels.nii.gz (names in its header) and labels.json; uncertainty.nii.gz (entropy, nats); meshes/NAME.stl
    or .ply (RAS mm); films.png, bones.png; measures.json; report.html, which refers to no other file.  Each
    is written atomically, the page last.  facts: what else to keep (names of the films).  Raises FileError.
    """
    place = Path(folder)
    if mesh_suffix not in SUFFIXES:
        raise FileError(f"mesh_suffix must be one of {', '.join(SUFFIXES)}, got {mesh_suffix!r}")
    try:
        (place / "meshes").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{place}: cannot be made a folder: {error.strerror or error}") from error
    for name, suffix in itertools.product(_bones_before(place), SUFFIXES):
        (place / "meshes" / f"{name}{suffix}").unlink(missing_ok=True)
    for name in ("measures.json", "report.html"):  # which tell of what lies there
        (place / name).unlink(missing_ok=True)
    prediction, affine = found.prediction, found.prediction.grid.affine
    names = {n: prediction.scheme.names[n] for n in prediction.scheme.numbers}
    labels = prediction.labels.cpu().numpy()
    write_nifti(
        place / "labels.nii.gz", labels, affine, description="labels", extensions=[header_table(names)]
    )
    write_json(place / "labels.json", _labels_record(found, names))
    doubt = prediction.entropy.cpu().float().numpy()
    write_nifti(place / "uncertainty.nii.gz", doubt, affine, description="entropy of the labels, nats")
    for name, mesh in found.meshes.items():
        save_mesh(place / "meshes" / f"{name}{mesh_suffix}", mesh)
    pictures = {"films.png": films_picture(found), "bones.png": bones_picture(found)}
    for name, picture in pictures.items():
        save_picture(place / name, picture)
    write_json(place / "measures.json", record(found, facts))
    page = report_page(found, pictures, facts)
    with atomic_write(place / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return dict(FILES)


def _bones_before(place: Path) -> list[str]:
    """The bones of an earlier run into a folder, as its labels.json tells; none where there was none."""
    try:
        before = read_json(place / "labels.json")
    except FileError:
        return []
    if not isinstance(before, dict) or before.get("schema") != SCHEMA:
        return []
    known = dict.fromkeys(
        (*SCHEMES["all"].names, *(str(n) for n in dict(before.get("names") or {}).values()))
    )
    return [name for name in known if Path(name).name == name]


def record(found: Reconstruction, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a reconstruction says in numbers and words, as plain types."""
    return {
        "schema": SCHEMA,
        "notice": NOTICE,
        **(facts or {}),
        "rejected": list(found.rejected),
        "warnings": list(found.warnings),
        "level": found.level.to_json(),
        "mean_doubt_nats": mean_doubt(found),
        "measures": found.measures.to_json(),
        "films": [fit.to_json() for fit in found.fits],
        "agreement": [
            {"films": list(a.films), "correlation": a.correlation, "scale": a.scale} for a in found.agreement
        ],
        "model": {
            "source": found.source,
            "scheme": found.prediction.scheme.name,
            "patients": list(found.facts.get("patients", [])),
            "learned": list(found.facts.get("learned", [])),
        },
        "references": [one.to_json() for one in found.references],
        "refinement": None if found.refined is None else found.refined.to_json(),
        "grid": {**found.prediction.grid.to_dict(), "world": "RAS+ mm"},
    }


def films_picture(found: Reconstruction) -> UInt8[np.ndarray, "H W 3"]:
    """A row a film: the film with outlines of the bones, the bones rendered, what is left between both."""
    rows = []
    for number, fit in enumerate(found.fits):
        lines = _outlines(fit)
        film = _enlarged(colour(grey(fit.film.numpy())))
        bones = _enlarged(colour(grey(fit.thickness.numpy(), window=(0.0, _top(fit)))))
        rest = _enlarged(_difference(fit))
        for picture in (film, rest):
            for ink_, line in lines:
                picture[line] = ink_
        rows.append(
            [
                (f"film {number} with the bones found", film),
                ("these bones rendered (thickness)", bones),
                (f"left over, r {fit.correlation:.2f} (red: film has more)", rest),
            ]
        )
    return panels(rows, title="Films and reconstruction", footer=NOTICE)


def bones_picture(found: Reconstruction) -> UInt8[np.ndarray, "H W 3"]:
    """Bones from the patient's front and right, darker further away; and the greatest doubt on the way."""
    labels, pitch = _upright(found, found.prediction.labels.cpu().numpy())
    doubt, _ = _upright(found, found.prediction.entropy.cpu().numpy())
    window = (0.0, max(float(doubt.max()), 1e-6))
    seen, unsure = [], []
    for axis, name in ((1, "front"), (2, "right")):
        pixel = pitch[0], pitch[3 - axis]
        seen.append((f"bones from the {name}", _square(_first_hit(labels, axis), pixel)))
        darkest = doubt.max(axis)[::-1]
        shown = colour(grey(darkest if axis == 1 else darkest[:, ::-1], window=window))
        unsure.append((f"greatest doubt, from the {name}", _square(shown, pixel)))
    return panels([seen + unsure], title="Reconstruction", footer=NOTICE)


def report_page(
    found: Reconstruction,
    pictures: dict[str, UInt8[np.ndarray, "H W 3"]],
    facts: dict[str, Any] | None = None,
) -> str:
    """The page for people, UTF-8 HTML that needs no other file."""
    patients = found.facts.get("patients", [])
    bad = [f'<p class="warn bad"><b>Rejected by its own check:</b> {escape(t)}</p>' for t in found.rejected]
    warn = [f'<p class="warn"><b>Warning:</b> {escape(t)}</p>' for t in found.warnings]
    shown = "".join(
        f'<p><img alt="{escape(name)}" src="data:image/png;base64,{_png(picture)}"></p>'
        for name, picture in pictures.items()
    )
    films = ", ".join(str(f) for f in (facts or {}).get("films", []))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Bones from films</title><style>{_STYLE}</style></head>
<body>
<h1>Bones from films</h1><p class="faint"><b>{NOTICE}</b> {escape(films)}</p>
{"".join(bad)}{"".join(warn)}
<h2>Level of the vertebrae</h2><p>{escape(found.level.text)}</p>{_level_table(found)}
<h2>Pictures</h2>{shown}
<p class="faint">Left over: fine structure of the film that the bones do not explain. Labels with one
silhouette leave the same, so it does not judge names and levels. Doubt: entropy of the labels;
{doubt_text(found)}.</p>
<h2>Measures</h2>{_measures_table(found)}
<p class="faint">± is one standard deviation over shapes drawn from the network's own probabilities; what the
network is wrong about with certainty is not in it. Without ±: fewer than two of these shapes show it.</p>
<h2>Bones</h2>{_bones_table(found)}{_refined_text(found)}{_references_table(found)}
<h2>Model</h2><p>{escape(found.source)}, trained on {escape(counted(patients))}. Other anatomy than theirs,
and other kinds of films, are beyond what it has seen.</p>
</body></html>
"""


def _labels_record(found: Reconstruction, names: dict[int, str]) -> dict[str, Any]:
    volumes = found.prediction.expected_volumes()
    bones = [
        {"number": n, "name": name, "volume_mm3": volumes[name][0], "expected_mm3": volumes[name][1]}
        for n, name in names.items()
        if name in volumes
    ]
    return {
        "schema": SCHEMA,
        "scheme": found.prediction.scheme.name,
        "names": {str(n): name for n, name in names.items()},
        "found": bones,
    }


def _refined_text(found: Reconstruction) -> str:
    if found.refined is None:
        return ""
    patients = ", ".join(found.refined.patients)
    return f"<p>Shapes of {escape(patients)} were fitted: {escape(found.refined.text)}.</p>"


def _references_table(found: Reconstruction) -> str:
    if not found.references:
        return ""
    head = ("bone", "apart", "once moved", "shift", "turn")
    rows = [
        (
            f.name,
            f"{f.gap_mm:.1f} mm",
            f"{f.moved_gap_mm:.1f} mm",
            f"{f.shift_mm:.1f} mm",
            f"{f.turn_degrees:.1f}°",
        )
        for f in found.references
    ]
    return f"<h2>Against the references</h2>{_table(head, rows)}"


def _level_table(found: Reconstruction) -> str:
    rows = [
        (found.level.named(shift), f"{100 * share:.0f} %", "as in the label map" if shift == 0 else "")
        for shift, share in found.level.shares.items()
    ]
    return _table(("numbering", "share", ""), rows) if rows else ""


def _measures_table(found: Reconstruction) -> str:
    seen = [m for m in found.measures if m.value is not None]
    unseen = [m for m in found.measures if m.value is None]
    detail = {m.name: ", ".join(f"{k} {v}" for k, v in m.detail.items()) for m in seen}
    rows = [(m.name.replace("_", " "), m.text, detail[m.name]) for m in seen]
    hidden = _table(("measure", "why"), [(m.name.replace("_", " "), m.text) for m in unseen])
    missing = f"<details><summary>{len(unseen)} not in view</summary>{hidden}</details>"
    return _table(("measure", "value", ""), rows) + (missing if unseen else "")


def _bones_table(found: Reconstruction) -> str:
    rows = [
        (name, f"{labelled / 1000:.1f} ml", f"{expected / 1000:.1f} ml")
        for name, (labelled, expected) in found.prediction.expected_volumes().items()
    ]
    return _table(("bone", "volume", "sum of probabilities"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["".join(f"<th>{escape(text)}</th>" for text in head)]
    lines += ["".join(f"<td>{escape(text)}</td>" for text in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _png(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG")
    return base64.b64encode(data.getvalue()).decode("ascii")


def _top(fit: FilmFit) -> float:
    return max(float(fit.thickness.max()), 1.0)


def _enlarged(picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.array(enlarge(picture, max(_WIDTH, picture.shape[1])))


def _outlines(fit: FilmFit) -> list[tuple[tuple[int, int, int], np.ndarray]]:
    """Lines about each structure's shadow, in its colour, at the picture's size."""
    wide = max(_WIDTH, fit.film.shape[1])
    lines = []
    shadows = fit.shadows.numpy()
    for number in (int(n) for n in np.unique(shadows) if n):
        mask = np.repeat((shadows == number)[..., None], 3, 2).astype(np.uint8) * 255
        lines.append((ink(number), outline(enlarge(mask, wide)[..., 0] > 127)))
    return lines


def _difference(fit: FilmFit) -> UInt8[np.ndarray, "H W 3"]:
    """The residual: dark where there is none, blue below and red above it; flat away from the bones."""
    rest = fit.residual.numpy()
    known = np.isfinite(rest)
    scale = max(float(np.abs(fit.rendered.numpy()).max()), 1e-6)
    part = np.clip(np.where(known, rest, 0.0) / scale, -1, 1)[..., None]
    picture = np.abs(part) * np.where(part > 0, _ENDS[1], _ENDS[0])
    picture[~known] = UNLIT
    return picture.round().astype(np.uint8)


def _upright(found: Reconstruction, values: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    """Values with axes to the head, to the back and to the left, as near as the grid has them; mm a step."""
    grid = found.prediction.grid
    worlds, against = closest_axes(grid.affine)
    up, front, right = (worlds.index(world) for world in (2, 1, 0))  # index axes i, j, k
    values = values.transpose([2 - axis for axis in (up, front, right)])
    wrong = (against[up], not against[front], not against[right])
    spacing = tuple(grid.spacing[axis] for axis in (up, front, right))
    return np.flip(values, [axis for axis, flip in enumerate(wrong) if flip]), spacing


def _first_hit(labels: np.ndarray, axis: int) -> UInt8[np.ndarray, "h w 3"]:
    """Structures seen along an axis of upright labels: 1 from the front, 2 from the right; head up."""
    some = labels > 0
    first = some.argmax(axis)
    shown = np.take_along_axis(labels, np.expand_dims(first, axis), axis).squeeze(axis)
    hit = some.any(axis)
    near, far = (float(f(first[hit])) if hit.any() else 0.0 for f in (np.min, np.max))
    bright = 1.0 - 0.7 * (first - near) / max(far - near, 1.0)
    table = np.array([PAPER, *(ink(n) for n in range(1, int(labels.max()) + 1))], dtype=np.float32)
    picture = (table[shown] * np.where(hit, bright, 1.0)[..., None]).clip(0, 255).round().astype(np.uint8)
    return picture[::-1] if axis == 1 else picture[::-1, ::-1]  # columns to the left, or to the front


def _square(picture: np.ndarray, pitch: tuple[float, float]) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels repeated so that they are square, about 400 rows high."""
    rows = max(1, round(400 / picture.shape[0]))
    columns = max(1, round(rows * pitch[1] / pitch[0]))
    return np.ascontiguousarray(picture.repeat(rows, 0).repeat(columns, 1))


def doubt_text(found: Reconstruction) -> str:
    """How much the network doubts, for people."""
    nats = mean_doubt(found)
    return f"{nats:.2f} nats on average in bone, as an even choice between {math.exp(nats):.1f} labels"


def mean_doubt(found: Reconstruction) -> float:
    """Mean entropy (nats) over the voxels that are labelled as bone."""
    prediction = found.prediction
    return float(prediction.entropy[prediction.labels > 0].mean())
