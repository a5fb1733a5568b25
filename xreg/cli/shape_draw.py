"""`xreg shape draw`: new patients, drawn once for many trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xreg.cli.options import PATH, SEED, Number, check_beside, check_folder, shared
from xreg.cli.terminal import Clock, Terminal
from xreg.cli.verb import verb


@verb("draw", "Draw new patients from prepared ones, for many trainings.")
@click.argument("samples", type=PATH, nargs=-1, required=True)
@shared("output", "Folder for the new samples.", required=True)
@click.option("--count", type=click.IntRange(1), default=500, show_default=True, help="How many.")
@click.option("--hold-out", multiple=True, metavar="PATIENT", help="Not drawn from. Repeated.")
@click.option(
    "--tilt",
    type=Number(0),
    default=0.0,
    show_default=True,
    help="Standard deviation of their view angles, degrees.",
)
@click.option(
    "--bodies",
    type=Number(0, 1),
    default=0.0,
    show_default=True,
    help="Part of them whose bones are put in the soft tissue of another patient.",
)
@click.option("--seed", type=SEED, default=0, show_default=True)
def command(terminal: Terminal, samples: tuple[Path, ...], output: Path, **options: Any) -> dict[str, Any]:
    """Draw new patients from the CTs in SAMPLES, folders that `xreg shape prepare` wrote.

    \b
        xreg shape draw prepared/ -o pool/ --count 500 --hold-out s0561
        xreg shape train pool/ prepared/ -o net/ --as-they-are --hold-out s0561

    Drawing a patient takes as long as a step of the training, so several trainings gain from one pool. A draw
    that was stopped goes on. Networks that must not know a patient need a pool that was drawn without it.
    """
    check_folder(output)
    check_beside(output, samples)
    clock = Clock()
    from xreg.shape.patients import counted
    from xreg.shape.population import Exposure
    from xreg.shape.sources import Population, draw_pool, patients_without, read_prepared

    with terminal.working("reading patients"):
        _, patients = read_prepared(samples)
        learned = patients_without(patients, options["hold_out"])
    source = Population(learned, exposure=Exposure(tilt_degrees=options["tilt"]), bodies=options["bodies"])
    count = options["count"]
    with terminal.working("drawing patients") as tell:
        drawn = draw_pool(
            source,
            output,
            count,
            seed=options["seed"],
            on_done=lambda n: tell(f"patient {n}", key=n // 50, done=n, total=count),
        )
    names = [p.name for p in learned]
    terminal.lines(
        [
            ("pool", f"{output}: {count} samples, {drawn} of them new"),
            ("drawn from", counted(names)),
        ]
    )
    return {"pool": str(output), "count": count, "drawn": drawn, "patients": names, "seconds": clock.seconds}
