"""`xreg reconstruct`: films and their cameras to labelled bones, with a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import NUMBER, PATH, POSITIVE, Number, check_folder, check_unread, inputs_of, shared
from xreg.cli.terminal import Clock, Terminal
from xreg.cli.verb import verb
from xreg.cli.view import read_cameras

if TYPE_CHECKING:
    from xreg.geometry import Camera
    from xreg.shape.reconstruction import Reconstruction
    from xreg.shape.schemes import Scheme

_FILES = """\b
What -o OUT holds afterwards:
  report.html           one page with pictures, measures and warnings
  labels.nii.gz, .json  the bones by number, and their names      uncertainty.nii.gz  entropy, nats
  meshes/               a closed surface a bone, RAS mm           measures.json       all in numbers
  films.png, bones.png  films against the bones; the bones

\b
Exit code 3: done, but the vertebral level is not certain, or a film does not show the bones found."""


@verb("reconstruct", "Reconstruct labelled bones from films and their cameras.", epilog=_FILES)
@click.argument("films", type=PATH, nargs=-1, required=True, metavar="FILM [FILM ...]")
@click.option(
    "--cameras", type=PATH, multiple=True, help="A rig (JSON) of all films, or a camera a film.  [DICOM says]"
)
@click.option("--model", type=PATH, required=True, help="Folder that xreg shape train wrote.")
@shared("output", "Folder for the result; see below.", required=True)
@click.option("--expect", metavar="NAMES", help="Bones that the model must have learned: L1,L2,sacrum.")
@click.option("--like", type=PATH, help="NIfTI whose grid the labels get.  [default: what all films show]")
@click.option("--voxel", type=POSITIVE, metavar="MM",
              help="Edge of a voxel.  [default: about 160 along the longest edge]")  # fmt: skip
@click.option("--center", type=NUMBER, nargs=3, metavar="X Y Z", help="Middle of the grid, RAS mm.")
@click.option(
    "--intensity",
    type=click.Choice(["auto", "linear", "log", "line_integral"]),
    default="auto",
    show_default=True,
    help="What pixel values are; line_integral: attenuation, as in rendered films.",
)
@click.option("--sign", type=click.Choice(["auto", "1", "-1"]), default="auto", show_default=True,
              help="-1: a higher value means less beam.")  # fmt: skip
@click.option("--refine/--no-refine", default=None,
              help="Fit the model's atlas of bones to the films.  [default: where it has one]")  # fmt: skip
@click.option("--reference", type=PATH, metavar="FOLDER",
              help="Surfaces (NAME.stl, .ply; RAS mm) to compare with; needs Open3D.")  # fmt: skip
@click.option("--variants", type=click.IntRange(1, 5), default=1, show_default=True,
              help="Looks of the films that are averaged.")  # fmt: skip
@click.option("--draws", type=click.IntRange(min=2), default=8, show_default=True,
              help="Shapes from which measures get their ±.")  # fmt: skip
@click.option("--smooth", type=Number(min=0), default=2.0, show_default=True, metavar="MM",
              help="Smoothing of surfaces.")  # fmt: skip
@click.option("--meshes", type=click.Choice(["stl", "ply"]), default="stl", show_default=True)
@shared("device")
def command(
    terminal: Terminal, films: tuple[Path, ...], model: Path, output: Path, **options: Any
) -> dict[str, Any]:
    """Reconstruct the bones that FILMs of one patient show, each with its camera in one world.

    \b
        xreg reconstruct ap.dcm lateral.dcm --cameras rig.json --model net/ -o out

    One film works, with more doubt. Research use, not a medical device.
    """
    if options["like"] and (options["voxel"] or options["center"]):
        raise click.UsageError("--like gives the whole grid: leave out --voxel and --center.")
    check_folder(output)
    _check_unread(output, films, options)
    if options["reference"] is not None and options["reference"].resolve() == (output / "meshes").resolve():
        raise click.UsageError("--reference is where the new surfaces would go; choose another -o.")
    clock = Clock()
    from xreg.shape.predict import ShapeModel
    from xreg.shape.reconstruction import ReconstructSettings, reconstruct
    from xreg.shape.report import save_reconstruction

    expected = [name.strip() for name in (options["expect"] or "").split(",") if name.strip()]
    with terminal.working(f"reading {len(films)} films and {model}"), clock.part("read"):
        images, cameras = _read_films(films, options)
        network = ShapeModel.load(model, labels=expected, device=options["device"])
        atlas = _atlas_of(model, options["refine"])
        references = _references_in(options["reference"], network.scheme)
        grid = None if options["like"] is None else _grid_of(options["like"])
    settings = ReconstructSettings(options["voxel"], options["variants"], options["draws"], options["smooth"])
    with terminal.working("reconstructing") as tell, clock.part("reconstruct"):
        found = reconstruct(
            images,
            cameras,
            network,
            grid=grid,
            center=options["center"] or None,
            atlas=atlas,
            references=references,
            settings=settings,
            tell=lambda text: tell(text, key=text),
        )
    with clock.part("write"):
        facts = {"films": [str(film) for film in films]}
        files = save_reconstruction(output, found, mesh_suffix=f".{options['meshes']}", facts=facts)
    terminal.lines(_lines(found, output, files))
    return _result(found, output, files, clock)


def _check_unread(output: Path, films: tuple[Path, ...], options: dict[str, Any]) -> None:
    from xreg.shape.report import FILES

    check_unread(output, FILES.values(), inputs_of(options, FILMS=films))


def _read_films(paths: tuple[Path, ...], options: dict[str, Any]) -> tuple[list[Any], list[Camera]]:
    """Attenuation in each film, and its camera: from the files given, or from a DICOM header."""
    from xreg.errors import FileError, ImageError
    from xreg.io import load_radiograph

    sign = options["sign"] if options["sign"] == "auto" else int(options["sign"])
    films = [load_radiograph(p, intensity=options["intensity"], sign=sign) for p in paths]
    given = read_cameras(options["cameras"], len(paths), "--cameras")
    cameras = [film.camera if camera is None else camera for film, camera in zip(films, given, strict=True)]
    for path, film, camera in zip(paths, films, cameras, strict=True):
        if camera is None:
            raise FileError(f"{path}: does not say its geometry; give --cameras, a rig of all films")
        if tuple(camera.size) != tuple(film.size):
            raise ImageError(
                f"{path}: has {'×'.join(map(str, film.size))} px (H×W), and its camera "
                f"{'×'.join(map(str, camera.size))}; are the cameras in the order of the films?"
            )
    return [_attenuation(film) for film in films], cameras


def _attenuation(film: Any) -> Any:
    """Line integrals, with the least valid one where the film is not valid."""
    import torch

    values = film.line_integrals
    return torch.where(film.mask, values, values[film.mask].min())


def _atlas_of(model: Path, wanted: bool | None) -> Any:
    """The model's atlas, unless it is not wanted; FileError where it must be there and is not."""
    from xreg.errors import FileError
    from xreg.shape.atlas import FILE, Atlas

    if wanted is False:
        return None
    atlas = Atlas.beside(model)
    if wanted and atlas is None:
        raise FileError(f"{model}: holds no {FILE}, which --refine needs; xreg shape train writes one")
    return atlas


def _references_in(folder: Path | None, names: Scheme) -> Any:
    from xreg.shape.reference import read_references

    return None if folder is None else read_references(folder, names)


def _grid_of(path: Path) -> Any:
    from xreg.io import VoxelGrid, read_nifti

    known = read_nifti(path)
    return VoxelGrid(known.values.shape, known.affine)


def _lines(found: Reconstruction, output: Path, files: dict[str, str]) -> list[tuple[str, str]]:
    from xreg.shape.patients import counted
    from xreg.shape.report import doubt_text

    seen = [m for m in found.measures if m.value is not None]
    fit = ", ".join(f"film {n} r {fit.correlation:.2f}" for n, fit in enumerate(found.fits))
    return [
        ("bones", f"{len(found.bones)}: {', '.join(found.bones)}"),
        ("level", found.level.text),
        *([("refined", found.refined.text)] if found.refined else []),
        ("films show them", fit),
        ("doubt", doubt_text(found)),
        ("measures", f"{len(seen)} of {len(found.measures)} in view"),
        *(("against reference", fit.text) for fit in found.references),
        ("model learned", counted(found.facts.get("patients", []))),
        *(("rejected", reason) for reason in found.rejected),
        ("look at", str(output / files["report"])),
    ]


def _result(found: Reconstruction, output: Path, files: dict[str, str], clock: Clock) -> dict[str, Any]:
    from xreg.shape.report import record

    return {
        "status": "rejected" if found.rejected else "done",
        "output": str(output),
        "files": files,
        "bones": list(found.bones),
        **record(found),
        "seconds": {name: round(value, 3) for name, value in clock.parts.items()},
    }
