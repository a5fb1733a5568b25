"""`xreg info`: explains a CT, a radiograph, a pose or a camera, value by value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xreg.cli.options import CT_NAMES, PATH, labelled_ct_options, load_ct, shared, split
from xreg.cli.terminal import Fact, Terminal
from xreg.cli.verb import given, verb

KINDS = ("auto", "ct", "labels", "film", "pose", "camera")
# What each is called, and the options that say how it is read.
_USES = {
    "ct": ("a CT", CT_NAMES),
    "labels": ("a label map", ("label_names",)),
    "film": ("a radiograph", ("frame",)),
    "pose": ("a pose", ()),
    "camera": ("a camera", ()),
}
_FILMS = (".png", ".tif", ".tiff", ".npy", ".jpg", ".jpeg", ".bmp")
_FEW_LABELS = 0.05  # of the numbers up to the largest must occur in a label map that nothing else gives away


@verb("info", "Explain a CT, a film, a pose or a camera.")
@click.argument("file", type=PATH)
@click.option(
    "--as", "kind", type=click.Choice(KINDS), default="auto", show_default=True, help="What FILE is."
)
@shared("frame", "Frame of a radiograph with several, from 0.")
@labelled_ct_options
def command(terminal: Terminal, file: Path, kind: str, frame: int, **options: Any) -> dict[str, Any]:
    """Explain FILE, value by value: what it is, where it comes from, and what was assumed.

    FILE is a CT (NIfTI, or a folder of DICOM slices), a label map (NIfTI), a radiograph (DICOM, PNG, TIFF,
    NPY, NIfTI), a pose (JSON, ITK .tfm) or a camera (JSON of xreg or another tool). The origin of a value is
    header or file (stated for this purpose), fallback (stated for another), voxels or computed, default
    (assumed), or argument (an option).
    """
    from xreg.cli.describe import file_facts

    ct, _ = split(options, CT_NAMES)
    kind = _tell(file) if kind == "auto" else kind
    _check_used(file, kind)
    with terminal.working(f"reading {file}"):
        title, facts = _explain(file, kind, frame, ct)
    facts = [*file_facts(file), *facts]
    terminal.facts(f"{title}: {file}", facts)
    return {"file": str(file), "kind": kind, "facts": {fact.name: fact.to_json() for fact in facts}}


def _check_used(file: Path, kind: str) -> None:
    """UsageError for an option that says nothing about a file of this kind."""
    what, used = _USES[kind]
    if wrong := given(*(name for name in ("frame", *CT_NAMES) if name not in used)):
        raise click.UsageError(
            f"{', '.join(wrong)}: not for {what}, as which {file} is read; leave that out, or give --as."
        )


def _tell(file: Path) -> str:
    """What a file is, from its name, its first bytes and its header."""
    from xreg.errors import FileError

    if not file.exists():
        raise FileError(f"{file}: no such file or folder; expected a CT, a radiograph, a pose or a camera")
    name = file.name.lower()
    if file.is_dir():
        return "ct"
    if name.endswith((".tfm", ".txt")):
        return "pose"
    if name.endswith(".json"):
        return _tell_json(file)
    if name.endswith((".nii", ".nii.gz")):
        return _tell_nifti(file)
    if name.endswith(_FILMS):
        return "film"
    return _tell_dicom(file)


def _tell_json(file: Path) -> str:
    from xreg.errors import FileError
    from xreg.io import read_json

    data = read_json(file, "a pose or a camera (JSON)")
    schema = str(data.get("schema", "")) if isinstance(data, dict) else ""
    if schema.startswith("xreg.pose/"):
        return "pose"
    if schema.startswith(("xreg.camera/", "xreg.rig/")) or (isinstance(data, dict) and "tool" in data):
        return "camera"
    raise FileError(f"{file}: is JSON, but neither a pose nor a camera: schema {schema or 'not stated'!r}")


def _tell_nifti(file: Path) -> str:
    """A film is flat; a label map has whole numbers, none negative, from few classes."""
    import numpy as np

    from xreg.io import read_nifti

    values = read_nifti(file, planes=True).values
    if values.shape[0] == 1:
        return "film"
    if values.dtype.kind == "f" and not bool((values == np.round(values)).all()):
        return "ct"
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 1000:
        return "ct"
    background = float((values == 0).mean())
    used = len(np.unique(values))
    return "labels" if background > 0.3 and used > _FEW_LABELS * high and (used < 128 or high > 255) else "ct"


def _tell_dicom(file: Path) -> str:
    from xreg.io.dicom import Header, is_dicom, read_dataset

    if file.stat().st_size and is_dicom(file):
        modality, _ = Header(read_dataset(file, pixels=False), file).text("Modality")
        return "ct" if modality == "CT" else "film"
    return "film"


def _explain(file: Path, kind: str, frame: int, ct: dict[str, Any]) -> tuple[str, list[Fact]]:
    from xreg.cli import describe

    if kind == "ct":
        return "CT", describe.volume_facts(load_ct(file, ct))
    if kind == "labels":
        from xreg.io import load_labels

        return "label map", describe.label_map_facts(load_labels(file, names=ct.get("label_names")))
    if kind == "film":
        from xreg.io import load_radiograph

        return "radiograph", describe.radiograph_facts(load_radiograph(file, frame=frame))
    if kind == "pose":
        return "pose", describe.pose_facts(_pose(file))
    return _explain_camera(file)


def _pose(file: Path) -> Any:
    from xreg.io import PoseRecord, load_pose, load_tfm

    if file.suffix.lower() in (".tfm", ".txt"):
        return PoseRecord(load_tfm(file), provenance={"format": "ITK text transform, LPS, output to input"})
    return load_pose(file)


def _explain_camera(file: Path) -> tuple[str, list[Fact]]:
    from xreg.cli import describe
    from xreg.cli.view import read_camera
    from xreg.io import load_rig, read_json

    data = read_json(file, "a camera (JSON)")
    if isinstance(data, dict) and str(data.get("schema", "")).startswith("xreg.rig/"):
        return "rig", describe.rig_facts(load_rig(file))
    camera = read_camera(file)
    if isinstance(data, dict) and "tool" in data:
        words = [
            Fact(name, value, origin="file", note=f"in the words of {data['tool']}")
            for name, value in data.items()
        ]
        return f"camera of {data['tool']}", [*words, *describe.camera_facts(camera)]
    return "camera", describe.camera_facts(camera, "file")
