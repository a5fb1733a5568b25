"""`xreg shape train-spine`: what reads the levels of the spine in films, beside a network of labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import (
    PATH,
    POSITIVE,
    SEED,
    check_beside,
    check_budget,
    check_folder,
    check_training,
    shared,
)
from xreg.cli.terminal import Clock, Tell, Terminal
from xreg.cli.verb import verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from xreg.shape.spine_training import SpineReport


@verb("train-spine", "Train what counts vertebrae in films, beside a network of labels.")
@click.argument("samples", type=PATH, nargs=-1, required=True)
@shared("output", "Folder of the network; this goes into its folder spine.", required=True)
@click.option("--minutes", type=POSITIVE, help="How long to train.  [default: 20, without --steps]")
@click.option("--steps", type=click.IntRange(min=1), help="How many steps to train instead.")
@click.option("--hold-out", multiple=True, metavar="PATIENT", help="Never learned from. Repeated.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Patients a step.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on where a training in OUT was stopped.")
@click.option("--overwrite", is_flag=True, help="Begin anew where OUT holds one already.")
def command(terminal: Terminal, samples: tuple[Path, ...], output: Path, **options: Any) -> dict[str, Any]:
    """Train on SAMPLES: folders of `xreg shape prepare` and `xreg shape draw`, as they are.

    \b
        xreg shape draw prepared/ -o pool/ --count 160 --hold-out s0561 --tilt 8 --bodies .75
        xreg shape train pool/ prepared/ -o net/ --as-they-are --hold-out s0561
        xreg shape train-spine pool/ prepared/ -o net/ --hold-out s0561

    Films are straightened along the labelled spine; learned is where on a vertebra a row lies, and on which.
    `xreg reconstruct --model net/` then counts by it. Minutes on a CPU do. One that is there is not
    replaced without --overwrite.
    """
    check_budget(options)
    check_folder(output)
    check_beside(output, samples)
    clock = Clock()
    from xreg.shape.patients import counted
    from xreg.shape.sources import read_prepared, require_apart, split_patients
    from xreg.shape.spine_training import FOLDER, SpineTrainSettings, train_spine

    check_training(output / FOLDER, options)
    require_apart(samples, options["hold_out"])
    with terminal.working("reading samples"):
        prepared, _ = read_prepared(samples)
        source, _ = split_patients(prepared, (), options["hold_out"], plain=True)
    minutes = None if options["steps"] else options["minutes"] or 20.0
    settings = SpineTrainSettings(
        steps=options["steps"], minutes=minutes, batch=options["batch"], seed=options["seed"]
    )
    with terminal.working("training") as tell:
        known = {
            "held_out": options["hold_out"],
            "resume": options["resume"],
            "on_report": telling_spine(tell),
        }
        facts = train_spine(source.samples, settings, output, **known)
    terminal.lines(
        [
            ("reader", f"{output / FOLDER}: {facts['step']} steps, {facts['seconds']:.0f} s"),
            ("learned from", f"{counted(facts['patients'])}; {facts['samples']} samples"),
        ]
    )
    names = ("patients", "held_out", "samples", "step")
    seconds = {"training": facts["seconds"], "total": clock.seconds}
    return {"reader": str(output / FOLDER), **{n: facts[n] for n in names}, "seconds": seconds}


def telling_spine(tell: Tell) -> Callable[[SpineReport], None]:
    """What shows where the training of a reader stands."""

    def on_report(report: SpineReport) -> None:
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in report.losses.items())
        text = f"{report.seconds:.0f} s, step {report.step}, {losses}"
        tell(text, done=round(1000 * report.progress), total=1000)

    return on_report
