"""`xreg shape prepare`: CTs with label maps to samples that `xreg shape train` takes."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import NUMBER, PATH, Number, check_beside, check_folder, shared
from xreg.cli.terminal import Terminal
from xreg.cli.verb import given, verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from xreg.shape.patients import Patient
    from xreg.shape.prepare import Preparation
    from xreg.shape.samples import Sample

_NOT_SHIPPED = ("rescale", "fine", "view", "sdd", "sod", "size", "film", "sides")
DATASETS = ("totalsegmentator", "ctpelvic1k", "ctspine1k", "verse", "ribseg", "swinx2s", "plain")


def _layouts() -> str:
    """Where each data set keeps its files, and what becomes of them."""
    from xreg.shape.datasets import LAYOUTS

    wrap = textwrap.TextWrapper(102, subsequent_indent=" " * 20, break_on_hyphens=False)
    lines = [wrap.fill(f"  {name:<18}{LAYOUTS[name]}") for name in DATASETS]
    return "\n".join(
        [
            "\b\nWhere the files lie in FOLDER:",
            *lines,
            "OUT/NAME then holds sample.safetensors (films, cameras, labels), sample.json (for people) and",
            "patient.safetensors (CT and labels, from which a training draws new patients).",
        ]
    )


@verb("prepare", "Make training samples of CTs with label maps.", epilog=_layouts)
@click.argument("folder", type=PATH)
@shared("output", "Folder for the samples.", required=True)
@click.option(
    "--dataset", type=click.Choice(DATASETS), required=True, help="How FOLDER is laid out, see below."
)
@click.option("--scheme", help="Labels of a plain folder: all, spine, verse, totalsegmentator …")
@click.option("--names", type=PATH, metavar="TABLE", help="Names of the labels (CSV or JSON), for plain.")
@click.option("--rescale", type=NUMBER, nargs=2, metavar="SLOPE INTERCEPT", help="Stored CT values to HU.")
@click.option(
    "--shape",
    type=click.IntRange(8),
    nargs=3,
    default=(80, 64, 64),
    show_default=True,
    metavar="D H W",
    help="Voxels of the labels' grid: head to feet, front to back, side to side.",
)
@click.option("--voxel", type=Number(0.1), metavar="MM", help="Their edge.  [default: the CT fits in]")
@click.option(
    "--fine",
    type=click.IntRange(1, 4),
    default=2,
    show_default=True,
    help="How much finer the CT is kept of which films are made.",
)
@click.option(
    "--view",
    type=NUMBER,
    nargs=2,
    multiple=True,
    metavar="ROUND UP",
    help="Degrees from the view from the front, once a film.  [default: 0 0 and -90 0]",
)
@click.option("--sdd", type=NUMBER, metavar="MM", help="Source to detector, for perspective films.")
@click.option("--sod", type=NUMBER, metavar="MM", help="Source to the middle of the grid.")
@click.option("--size", type=click.IntRange(8), nargs=2, metavar="H W", help="Pixels of the films.")
@click.option(
    "--film",
    type=click.Choice(["threshold", "physics"]),
    default="threshold",
    show_default=True,
    help="Integrals of max(HU, 0) in 8 bit as Swin-X2S has them, or of attenuation.",
)
@click.option(
    "--sides",
    type=click.Choice(["check", "swap", "trust"]),
    default="check",
    show_default=True,
    help="Label maps with left bones on the right of their affine: refuse (of RibSeg: exchange), exchange, "
    "or take.",
)
def command(terminal: Terminal, folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Turn the patients in FOLDER into samples: films, cameras, and labels of 54 bones on an upright grid.

    \b
        xreg shape prepare Totalsegmentator_dataset -o samples --dataset totalsegmentator
        xreg shape prepare swinx2s -o samples --dataset swinx2s

    A patient that cannot be used is named with the reason and left out; the exit code is then 3.
    """  # fmt: skip
    if options["dataset"] == "swinx2s":
        _check_shipped()
    if (options["sdd"] is None) != (options["sod"] is None):
        raise click.UsageError("Perspective films need both --sdd and --sod, parallel ones neither.")
    if options["dataset"] != "plain" and (options["scheme"] or options["names"]):
        raise click.UsageError("--scheme and --names are for --dataset plain; the others have their own.")
    check_folder(output)
    check_beside(output, [folder])
    cases = _cases(folder, options)
    made, failed = _run(terminal, cases, output)
    terminal.lines([(case["patient"], _line(case)) for case in made])
    for case in failed:
        terminal.note(f"left out: {case['why']}")
    if not made:
        raise _none_made(folder, failed)
    return {
        "status": "rejected" if failed else "done",
        "output": str(output),
        "samples": made,
        "left_out": failed,
    }


def _check_shipped() -> None:
    """UsageError for options that say how films are made, or CTs read: those of swinx2s are as they are."""
    if wrong := given(*_NOT_SHIPPED):
        raise click.UsageError(
            f"{', '.join(wrong)}: not for --dataset swinx2s, whose patients have films and CTs of their own; "
            "leave that out."
        )


def _cases(folder: Path, options: dict[str, Any]) -> list[tuple[str, Callable[[], tuple[Sample, Patient]]]]:
    """Each patient's name, and what makes its sample."""
    from xreg.shape import datasets, prepare, shipped

    how = _preparation(options)
    if options["dataset"] == "swinx2s":
        return [
            (place.name, lambda place=place: prepare.prepare_shipped(place, how))
            for place in shipped.shipped_patients(folder)
        ]
    known = {"source": _source(options), "rescale": options["rescale"], "check_sides": how.sides}
    return [
        (case.name, lambda case=case: prepare.prepare(prepare.read_patient(case, **known), how))
        for case in datasets.find_cases(folder, options["dataset"])
    ]


def _preparation(options: dict[str, Any]) -> Preparation:
    from xreg.shape.films import FilmLook
    from xreg.shape.prepare import Preparation

    names = ("shape", "fine", "sdd", "sod", "size", "sides")
    known = {name: options[name] for name in names}
    if options["view"]:
        known["views"] = tuple(options["view"])
    return Preparation(voxel_mm=options["voxel"], look=FilmLook(kind=options["film"]), **known)


def _source(options: dict[str, Any]) -> Any:
    from xreg.io.labels import label_names
    from xreg.shape.schemes import Scheme, scheme

    if options["names"]:
        return Scheme.of_table(options["names"].stem, label_names(options["names"]))
    return scheme(options["scheme"]) if options["scheme"] else None


def _run(terminal: Terminal, cases: list[Any], output: Path) -> tuple[list[dict], list[dict]]:
    from xreg.errors import XregError
    from xreg.shape.prepare import write

    made, failed = [], []
    with terminal.working("preparing") as tell:
        for number, (name, make) in enumerate(cases):
            tell(name, key=name, done=number, total=len(cases))
            try:
                sample, patient = make()
                place = write(output, sample, patient)
            except XregError as error:
                why = str(error)
                failed.append({"patient": name, "why": why if name in why else f"{name}: {why}"})
                continue
            present = [sample.names[n] for n in sample.labels.unique().tolist() if n]
            made.append(
                {
                    "patient": name,
                    "folder": str(place),
                    "films": list(sample.films.shape),
                    "grid": list(sample.grid.shape),
                    "voxel_mm": sample.grid.spacing[0],
                    "labels": present,
                }
            )
    return made, failed


def _line(case: dict[str, Any]) -> str:
    films, grid = ("×".join(str(n) for n in case[key]) for key in ("films", "grid"))
    return f"films {films}, grid {grid} of {case['voxel_mm']:.3g} mm, {len(case['labels'])} bones"


def _none_made(folder: Path, failed: list[dict]) -> Exception:
    from xreg.errors import ShapeError

    return ShapeError(f"{folder}: no patient could be used; the first: {failed[0]['why']}")
