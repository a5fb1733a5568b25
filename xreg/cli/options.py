"""Options that several verbs share, and what they stand for: a CT, a camera, a pose."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from xreg.errors import XregError
    from xreg.io import ProjectionSet, VoxelGrid
    from xreg.volume import Volume

INTEGRATORS = ("trilinear", "joseph", "siddon", "exact")
PATH = click.Path(path_type=Path)


class _Finite(click.types.FloatParamType):
    """A number; neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Number(click.FloatRange, _Finite):
    """A number within a range, as click says it; neither NaN nor infinite."""


NUMBER = _Finite()
POSITIVE = Number(min=0, min_open=True)
SEED = click.IntRange(0, 2**32 - 1)


class _Device(click.ParamType):
    """Where torch works: cpu, cuda or cuda:N, which must be there."""

    name = "device"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "cpu":  # torch takes long to import
            return value
        import torch

        kind, _, number = value.partition(":")
        if kind != "cuda" or not (number.isdigit() or value == "cuda"):
            self.fail(f"{value!r} is none of cpu, cuda, cuda:0, cuda:1 …", param, ctx)
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= there:
            cards = f"finds {there} card(s)" if there else "finds no CUDA card"
            self.fail(f"{value}: torch {torch.__version__} {cards}; use cpu, or see xreg doctor", param, ctx)
        return value


# What click is told of each option; `shared` makes the option.
_LABELS: dict[str, dict[str, Any]] = {
    "mask": {"type": PATH, "help": "Label map (NIfTI) on the grid of the CT."},
    "label_names": {"type": PATH, "help": "Names of the labels (CSV or JSON)."},
}
_CT: dict[str, dict[str, Any]] = {
    "energy": {
        "type": NUMBER,
        "default": 70.0,
        "show_default": True,
        "help": "Effective energy of the beam, keV.",
    },
    "ct_energy": {
        "type": NUMBER,
        "default": 70.0,
        "show_default": True,
        "help": "Effective energy of the CT, keV.",
    },
    "units": {
        "type": click.Choice(["hu", "mu", "auto"]),
        "default": "hu",
        "show_default": True,
        "help": "What a NIfTI CT holds: CT numbers, attenuation in 1/mm, or told from the range.",
    },
    "rescale": {
        "type": NUMBER,
        "nargs": 2,
        "metavar": "SLOPE INTERCEPT",
        "help": "Turn stored values into CT numbers, for 8-bit exports.",
    },
    "series": {"help": "SeriesInstanceUID, where a DICOM folder holds several."},
}
_VIEW: dict[str, dict[str, Any]] = {
    "camera": {"type": PATH, "help": "Camera: JSON of xreg, or of another tool (see convert)."},
    "sdd": {"type": NUMBER, "metavar": "MM", "help": "Source to detector."},
    "sod": {"type": NUMBER, "metavar": "MM", "help": "Source to isocentre."},
    "primary": {"type": NUMBER, "metavar": "DEG", "help": "C-arm angle, + is LAO.  [default: 0]"},
    "secondary": {"type": NUMBER, "metavar": "DEG", "help": "C-arm angle, + is cranial.  [default: 0]"},
    "roll": {"type": NUMBER, "metavar": "DEG", "help": "Turn in the image plane.  [default: 0]"},
    "size": {"type": int, "nargs": 2, "metavar": "H W", "help": "Rows and columns of the image."},
    "spacing": {
        "type": NUMBER,
        "nargs": 2,
        "metavar": "ROW COL",
        "help": "Pixel spacing at the detector, mm.",
    },
    "isocenter": {
        "type": NUMBER,
        "nargs": 3,
        "metavar": "X Y Z",
        "help": "World point, RAS mm.  [default: the middle of the CT]",
    },
    "principal_point": {
        "type": NUMBER,
        "nargs": 2,
        "metavar": "U V",
        "help": "Pixel.  [default: the middle of the image]",
    },
    "mirrored": {
        "flags": ("--mirrored/--not-mirrored",),
        "default": None,
        "help": "The image is seen from the detector's side.  [default: not mirrored; a DICOM film says]",
    },
}
_OTHERS: dict[str, dict[str, Any]] = {
    "output": {"flags": ("-o", "--output"), "type": PATH},
    "device": {"type": _Device(), "default": "cpu", "show_default": True, "help": "cpu, cuda, cuda:1."},
    "frame": {"type": int, "default": 0, "show_default": True},
    "binning": {
        "flags": ("--bin", "binning"),
        "type": click.IntRange(min=1),
        "help": "Mean of n×n pixels first.  [default: what leaves 1.3 pixels a voxel]",
    },
}
CT_NAMES = (*_LABELS, *_CT)
C_ARM_WORDS = tuple(name for name in _VIEW if name not in ("camera", "isocenter"))


def shared(name: str, about: str = "", **words: Any) -> Callable[..., Any]:
    """An option that several verbs have; ``about`` says what it is for in this one, where that differs."""
    known = {**(_LABELS | _CT | _VIEW | _OTHERS)[name], **({"help": about} if about else {}), **words}
    return click.option(*known.pop("flags", ("--" + name.replace("_", "-"),)), **known)


def ct_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say how a CT is read."""
    return _with(_CT, function)


def labelled_ct_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, for verbs that do something with its label map."""
    return _with(_LABELS, ct_options(function))


def c_arm_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that give a view: a camera file, or a C-arm in DICOM's words."""
    return _with(_VIEW, function)


def views_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that give one view or several: camera files or a rig, or a C-arm in DICOM's words."""
    camera = "Camera: JSON of xreg, or of another tool (see convert). Once a film, or one rig of them all."
    words = _with([name for name in _VIEW if name != "camera"], function)
    return shared("camera", camera, multiple=True)(words)


def _with(names: Iterable[str], function: Callable[..., Any]) -> Callable[..., Any]:
    for name in reversed(list(names)):
        function = shared(name)(function)
    return function


def binned(scan: ProjectionSet, grid: VoxelGrid | None, binning: int | None) -> tuple[ProjectionSet, int]:
    """A set of projections with blocks of so many pixels averaged, by default the usual ones; and how many.

    grid: the volume to be, by which the usual ones are told; where there is none, one.
    """
    from xreg.tomography import usual_binning

    n = binning or (1 if grid is None else usual_binning(tuple(scan.cameras), grid))
    return (scan.binned(n) if n > 1 else scan), n


def said_of(scan: ProjectionSet, binning: int) -> str:
    """How many views there are, of which size."""
    size = "×".join(map(str, scan.images.shape[1:]))
    return f"{len(scan)} views of {size} px" + (f", means of {binning}×{binning}" if binning > 1 else "")


def per_film(values: tuple[Any, ...], count: int, flag: str, *, spread: bool = False) -> list[Any]:
    """One value a film of an option that may be repeated: None where it was left out.

    spread: one value may stand for all films.  UsageError where there are neither none nor one a film.
    """
    if not values:
        return [None] * count
    if len(values) == 1 and spread:
        return list(values) * count
    if len(values) != count:
        films = "1 film" if count == 1 else f"{count} films"
        raise click.UsageError(
            f"{flag} was given {len(values)} times for {films}; give it once a film, in their order."
        )
    return list(values)


def split(known: dict[str, Any], names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options by these names that were given, and the rest."""
    mine = {n: known[n] for n in names if known.get(n) is not None}
    return mine, {n: v for n, v in known.items() if n not in names}


def load_ct(path: Path, ct: Mapping[str, Any]) -> Volume:
    """The CT at ``path``, read as the options of ``ct_options`` say; UsageError for one without a use."""
    from xreg.volume import Volume

    if ct.get("label_names") is not None and ct.get("mask") is None:
        raise click.UsageError("--label-names names what is in a label map; give that as --mask.")
    return Volume.load(
        path,
        mask=ct.get("mask"),
        label_names=ct.get("label_names"),
        energy_kev=ct.get("energy", 70.0),
        ct_energy_kev=ct.get("ct_energy", 70.0),
        units=ct.get("units", "hu"),
        rescale=ct.get("rescale"),
        series_uid=ct.get("series"),
    )


def ct_text(volume: Volume, path: Path | str) -> str:
    """A CT on one line."""
    size = "×".join(str(n) for n in volume.size)
    spacing = "×".join(f"{s:.4g}" for s in volume.spacing)
    energy = f", µ at {volume.energy_kev:g} keV" if volume.energy_kev is not None else ""
    return f"{path}: {size} voxels of {spacing} mm, {volume.axis_codes}{energy}"


def check_file(path: Path) -> None:
    """Raise FileError, before any work, where the file ``path`` cannot be written."""
    from xreg.io.files import require_place

    check_folder(require_place(path).parent)


def check_apart(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """UsageError where one file would be written twice, or written over what is read; by option."""
    taken = {path.resolve(): f"{name} reads" for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        if other := taken.get(path.resolve()):
            raise click.UsageError(f"{name} would write over {path}, which {other}; choose another name.")
        taken[path.resolve()] = f"{name} writes"


def inputs_of(options: Mapping[str, Any], **named: Path | Sequence[Path]) -> dict[str, Path]:
    """The paths that a verb reads, by the words that gave them; named: its arguments, as FILM=films."""
    values = {**named, **{"--" + name.replace("_", "-"): value for name, value in options.items()}}
    found = {}
    for word, value in values.items():
        for path in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(path, Path):
                found[f"{word} {path}" if word in found else word] = path
    return found


def check_unread(folder: Path, names: Iterable[str], inputs: Mapping[str, Path]) -> None:
    """UsageError where files of these names in a folder would be written over what is read."""
    outputs = {(folder / name).resolve(): name for name in names}
    for word, path in inputs.items():
        if name := outputs.get(path.resolve()):
            raise click.UsageError(
                f"-o {folder} would write its {name} over {path}, which {word} reads; choose another folder."
            )


def check_beside(output: Path, folders: Iterable[Path]) -> None:
    """UsageError where a folder to write into is one that is read."""
    if output.resolve() in {folder.resolve() for folder in folders}:
        raise click.UsageError(f"-o {output} is read too, and would be mixed up; choose another folder.")


def check_budget(options: Mapping[str, Any]) -> None:
    """Refuse --minutes together with --steps."""
    if options["minutes"] and options["steps"]:
        raise click.UsageError("--minutes and --steps exclude each other: give one.")


def check_beginning(options: Mapping[str, Any]) -> None:
    """Refuse --resume together with --from."""
    if options["resume"] and options["start"]:
        raise click.UsageError("--resume goes on with OUT; --from begins anew: give one.")


def check_training(folder: Path, options: Mapping[str, Any]) -> None:
    """`check_output` of a folder that a network is trained into."""
    from xreg.errors import FileError
    from xreg.training import NAMES

    check_output(folder, options, NAMES, what="a training", error=FileError)


def check_output(
    folder: Path, options: Mapping[str, Any], names: tuple[str, ...], *, what: str, error: type[XregError]
) -> None:
    """Before any work: what a folder holds is not lost without a word, and what shall go on is there.

    names: of its files; the first is what --resume needs, without which ``error`` is raised.  UsageError
    where something would be lost.
    """
    if options["resume"] and options["overwrite"]:
        raise click.UsageError(f"--resume goes on with {folder}; --overwrite begins anew: give one.")
    if options["resume"] and not (folder / names[0]).is_file():
        raise error(f"{folder / names[0]}: is not there, so there is nothing to resume; leave --resume out")
    there = [name for name in names if (folder / name).exists()]
    if there and not (options["resume"] or options["overwrite"]):
        words = "--resume to go on with it, " if names[0] in there else ""
        raise click.UsageError(
            f"{folder} holds {what} ({', '.join(there)}): give {words}another folder, or --overwrite."
        )


def check_folder(path: Path) -> None:
    """Raise FileError, before any work, where a result cannot be put into the folder ``path``."""
    from xreg.errors import FileError

    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise FileError(f"{path}: cannot be a folder, since {existing} is a file; choose another name")
    if not os.access(existing, os.W_OK):
        raise FileError(f"{path}: the folder {existing} is not writable; choose another place")
