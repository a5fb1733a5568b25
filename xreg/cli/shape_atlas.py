"""`xreg shape atlas`: patients' bones kept beside a network, without training it anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import PATH, check_folder, shared
from xreg.cli.terminal import Clock, Terminal
from xreg.cli.verb import verb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xreg.shape.patients import Patient


@verb("atlas", "Keep patients' bones, which xreg reconstruct fits to films.")
@click.argument("samples", type=PATH, nargs=-1, required=True)
@shared("output", "Folder of a network, or a new one.", required=True)
@click.option(
    "--hold-out",
    multiple=True,
    metavar="PATIENT",
    help="Not kept. Repeated.  [default: whom the network held out]",
)
def command(
    terminal: Terminal, samples: tuple[Path, ...], output: Path, hold_out: tuple[str, ...]
) -> dict[str, Any]:
    """Keep the whole bones and rib cages of the patients in SAMPLES, folders that `xreg shape prepare` wrote.

    \b
        xreg shape atlas prepared/ -o net/

    A training does this by itself; this verb makes the atlas of a network anew, after an update of xreg or
    with more patients. Patients that the network held out stay out of it.
    """
    check_folder(output)
    clock = Clock()
    from xreg.shape.atlas import FILE, build_atlas
    from xreg.shape.patients import counted
    from xreg.shape.sources import Population, patients_without, read_prepared

    with terminal.working("reading patients"):
        _, patients = read_prepared(samples)
        kept = patients_without(patients, hold_out or _held_out(output, patients))
    with terminal.working("cutting out their bones"):
        atlas = build_atlas(Population(kept).members)
        output.mkdir(parents=True, exist_ok=True)
        atlas.save(output)
    known = f"{len(atlas.bones)} bones, {len(atlas.cages)} rib cages"
    terminal.lines([("atlas", f"{output / FILE}: {known}"), ("made of", counted(atlas.patients))])
    return {
        "atlas": str(output / FILE),
        "bones": len(atlas.bones),
        "cages": len(atlas.cages),
        "patients": list(atlas.patients),
        "seconds": {"total": clock.seconds},
    }


def _held_out(folder: Path, patients: Sequence[Patient]) -> list[str]:
    """Those of the patients that the network in a folder held out; none where there is no network."""
    from xreg.shape import checkpoint
    from xreg.training import MODEL, require

    file = folder / MODEL
    if not file.is_file():
        return []
    _, facts = checkpoint.load(file)
    require(facts, ("held_out",), file)
    there = {patient.name for patient in patients}
    return [name for name in facts["held_out"] if name in there]
