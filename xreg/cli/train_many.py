"""`xreg train-many`: a network a patient, over Ray."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import PATH, Number, check_folder, shared
from xreg.cli.terminal import Clock, Terminal
from xreg.cli.train import PRESETS, make_settings, training_options
from xreg.cli.verb import verb

if TYPE_CHECKING:
    from xreg.regression.many import Done

_MANIFEST = """\b
MANIFEST is a CSV table; mask, preset, range and from may be left out:
  name,ct,mask,preset,range,from
  anna,anna/ct.nii.gz,,chest,primary=-30:30 depth=-60:60,common/
  ben,ben/dicom/,ben/labels.nii.gz,pelvis,,

OUT/NAME holds each network, as xreg train leaves it. Exit code 1 says that some failed."""


@verb("train-many", "Train networks for many CTs on a Ray cluster, or on this machine.", epilog=_MANIFEST)
@click.argument("manifest", type=PATH)
@shared("output", "Folder for the networks' folders.", required=True)
@click.option("--address", metavar="ADDRESS", help="Of a Ray cluster, or auto.  [default: this machine]")
@click.option(
    "--workers", type=click.IntRange(min=1), default=2, show_default=True, help="At a time, on this machine."
)
@click.option("--gpus", type=Number(min=0), default=0.0, show_default=True, help="That one training takes.")
@click.option(
    "--preset", type=click.Choice(PRESETS), default="chest", show_default=True, help="Of other rows."
)
@training_options
def command(terminal: Terminal, manifest: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Train a network for each CT of MANIFEST, as many at a time as Ray has room for.

    \b
        xreg train-many patients.csv -o nets/ --minutes 5 --workers 4
        xreg train-many patients.csv -o nets/ --minutes 2 --address auto --gpus 1

    Started again, it goes on with what was stopped. One that fails ends no other.
    """
    from xreg.regression.many import read_jobs, train_many

    settings, jobs = make_settings(options), read_jobs(manifest, options["preset"])
    check_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    clock, done = Clock(), []
    with terminal.working(f"training {len(jobs)} networks") as tell:

        def on_done(one: Done) -> None:
            done.append(one)
            tell(_text(one), key=one.name, done=len(done), total=len(jobs))

        found = train_many(
            jobs,
            settings,
            output,
            address=options["address"],
            workers=options["workers"],
            gpus=options["gpus"],
            on_done=on_done,
        )
    terminal.lines([(one.name, _text(one)) for one in found])
    failed = sum(one.error is not None for one in found)
    return {
        "status": "failed" if failed else "done",
        "failed": failed,
        "trained": [asdict(one) for one in found],
        "settings": settings.to_dict(),
        "seconds": clock.seconds,
    }


def _text(one: Done) -> str:
    if one.error is not None:
        return f"failed: {one.error}"
    found = one.validation or {}
    errors = ", ".join(
        f"{found[name]:.1f}{unit}"
        for name, unit in (("degrees", "°"), ("in_plane_mm", " mm"))
        if name in found
    )
    return f"{one.steps} steps in {one.seconds:.0f} s; held out {errors or 'not judged'}"
