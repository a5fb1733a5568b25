"""`xreg project`: a labelled CT to an annotated radiograph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import (
    CT_NAMES,
    PATH,
    POSITIVE,
    c_arm_options,
    check_folder,
    labelled_ct_options,
    load_ct,
    shared,
    split,
)
from xreg.cli.terminal import Clock, Terminal
from xreg.cli.verb import verb
from xreg.cli.view import aimed, check_view, read_view, view_text

if TYPE_CHECKING:
    from xreg.geometry import Camera
    from xreg.shape.annotate import Annotated


@verb("project", "Render a radiograph of a labelled CT with its annotations.")
@click.argument("ct", type=PATH)
@shared("output", "Folder for the film, masks, maps, overlay and annotation.json.", required=True)
@c_arm_options
@click.option(
    "--pose", type=PATH, help="Pose of the CT in the world (JSON or .tfm).  [default: as its header says]"
)
@click.option("--only", metavar="NAMES", help="Structures to annotate: names or numbers, with commas.")
@click.option(
    "--least",
    type=POSITIVE,
    default=1.0,
    show_default=True,
    metavar="MM",
    help="Of a structure along a ray, from which its pixel is in the mask.",
)
@labelled_ct_options
def command(terminal: Terminal, ct: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Project CT and the labels of --mask into a film, a mask a structure, maps and boxes.

    \b
        xreg project ct.nii.gz --mask labels.nii.gz -o film1 --sdd 1020 --sod 850 \\
            --size 512 512 --spacing 0.78 0.78

    The view is given as for drr. In OUT: film.png and film.npy, masks/, maps.safetensors (mm),
    annotation.json (names, boxes, centroids in the world and in the film), overlay.png.
    """
    known, options = split(options, CT_NAMES)
    if "mask" not in known:
        raise click.UsageError("project needs --mask, the label map of the CT; drr renders a CT alone.")
    check_view(options)
    check_folder(output)
    clock = Clock()
    with clock.part("read"):
        camera, pose = read_view(options)
    with terminal.working(f"reading {ct}"), clock.part("read"):
        volume = load_ct(ct, known)
        camera = aimed(camera, options, volume, pose)
    with terminal.working("projecting"), clock.part("project"):
        from xreg.shape.annotate import annotate, save_annotated

        picked = _picked(options["only"], volume)
        found = annotate(volume, camera, pose, least_mm=options["least"], only=picked)
    with clock.part("write"):
        where = None if pose is None else pose.tolist()
        source = {"ct": str(ct), "mask": str(known["mask"]), "world_from_body": where}
        files = save_annotated(output, found, facts=source)
    return _report(terminal, output, found, camera, files, clock)


def _picked(names: str | None, volume: Any) -> list[int] | None:
    if names is None:
        return None
    words = [word.strip() for word in names.split(",") if word.strip()]
    return volume.label_numbers([int(word) if word.isdecimal() else word for word in words])


def _report(
    terminal: Terminal, output: Path, found: Annotated, camera: Camera, files: dict[str, str], clock: Clock
) -> dict[str, Any]:
    seen = [s for s in found.structures if s.pixels]
    outside = [s.name for s in found.structures if not s.pixels]
    terminal.lines(
        [
            ("film", f"{output / files['film']}: {view_text(camera)}"),
            ("structures", f"{len(seen)} in the film, {sum(s.cut for s in seen)} of them cut by its border"),
            *([("not seen", ", ".join(outside))] if outside else []),
            ("look at", str(output / files["overlay"])),
        ]
    )
    return {
        "output": str(output),
        "files": files,
        "structures": [s.to_json() for s in found.structures],
        "not_seen": outside,
        "seconds": {name: round(value, 4) for name, value in clock.parts.items()},
    }
