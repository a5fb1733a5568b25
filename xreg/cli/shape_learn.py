"""`xreg shape learn`: from prepared patients to a model for `xreg reconstruct`, in one go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import PATH, POSITIVE, SEED, check_budget, check_folder, shared
from xreg.cli.shape_train import NETWORKS, telling
from xreg.cli.shape_train_spine import telling_spine
from xreg.cli.terminal import Clock, Terminal
from xreg.cli.verb import verb

if TYPE_CHECKING:
    from xreg.shape.learn import Learning

_FILES = """\b
What -o OUT holds afterwards:
  model.safetensors  the network          model.json   its facts and patients, for people
  atlas.safetensors  the patients' bones  spine/       what counts vertebrae
  pool/, coarse/     new patients and the network on the way; only needed to go on"""


@verb("learn", "Make a model of prepared patients, all of it in one go.", epilog=_FILES)
@click.argument("samples", type=PATH, nargs=-1, required=True)
@shared("output", "Folder for the model; see below.", required=True)
@click.option(
    "--minutes", type=POSITIVE, help="How long its trainings take in all.  [default: 90, without --steps]"
)
@click.option("--steps", type=click.IntRange(min=3), help="How many steps they take in all instead.")
@click.option(
    "--hold-out",
    multiple=True,
    metavar="PATIENT",
    help="Never learned from; its Dice is in the curve. Repeated.",
)
@click.option("--from", "start", type=PATH, metavar="DIR",
              help="Go on with a model made before; -o is another folder.")  # fmt: skip
@click.option("--near", type=click.IntRange(min=0), default=120, show_default=True,
              help="New patients whose views are hardly tilted.")  # fmt: skip
@click.option("--turned", type=click.IntRange(min=0), default=130, show_default=True,
              help="New patients whose views are tilted.")  # fmt: skip
@click.option("--network", type=click.Choice(NETWORKS[:2]),
              help="Its size.  [default: rays-light, or that of --from]")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True,
              help="Threads that make the films of the next steps.")  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True)
@shared("device")
def command(terminal: Terminal, samples: tuple[Path, ...], output: Path, **options: Any) -> dict[str, Any]:
    """Draw new patients from SAMPLES, folders that `xreg shape prepare` wrote, and learn from all of them.

    \b
        xreg shape prepare swinx2s -o prepared/ --dataset swinx2s
        xreg shape learn prepared/ -o net/ --minutes 90
        xreg reconstruct ap.dcm lateral.dcm --cameras rig.json --model net/ -o out/

    It does in turn what draw, atlas, train (films at half the resolution, then at all of it) and train-spine
    do. The same command given again goes on where it was stopped. To go on with one that is finished, --from
    begins with its network, takes over what counts vertebrae, and learns from its new patients and from
    others, drawn by another --seed.
    """
    check_budget(options)
    check_folder(output)
    clock = Clock()
    from xreg.shape.learn import Learning, LearnSettings
    from xreg.shape.networks import PRESETS

    settings = LearnSettings(
        steps=options["steps"],
        minutes=None if options["steps"] else options["minutes"] or 90.0,
        network=PRESETS[options["network"]] if options["network"] else None,
        **{name: options[name] for name in ("near", "turned", "seed")},
    )
    with terminal.working("reading patients"):
        known = {name: options[name] for name in ("start", "device", "workers")}
        learning = Learning(samples, settings, output, held_out=options["hold_out"], **known)
    result = {"model": str(output), **_taken(terminal, learning), "seconds": {"total": clock.seconds}}
    terminal.lines(_lines(result))
    return result


def _taken(terminal: Terminal, learning: Learning) -> dict[str, Any]:
    """All steps in turn, and what came of them."""
    count = learning.count
    with terminal.working("drawing patients") as tell:
        learning.draw(lambda n: tell(f"patient {n}", key=n // 50, done=n, total=count))
    with terminal.working("cutting out the bones of the patients"):
        bones = learning.keep_bones()
    with terminal.working("learning from coarse films") as tell:
        learning.read_coarse(telling(tell))
    with terminal.working("learning from fine films") as tell:
        trained = learning.read_fine(telling(tell))
    with terminal.working("learning to count vertebrae") as tell:
        reader = learning.count_vertebrae(telling_spine(tell))
    if reader is None:
        terminal.note("no patient shows two whole vertebrae: nothing counts vertebrae in this model")
    return {
        "patients": list(trained.patients),
        "held_out": list(trained.held_out),
        "drawn": count,
        "bones": bones,
        "steps": trained.steps,
        "spine_steps": None if reader is None else reader["step"],
        "validation": trained.log[-1]["validation"] if trained.log else None,
    }


def _lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    from xreg.shape.patients import counted

    lines = [
        ("model", result["model"]),
        ("learned from", f"{counted(result['patients'])}; {result['drawn']} drawn from them"),
        ("atlas", f"{result['bones']} bones" if result["bones"] else "none: no patient shows a whole bone"),
        ("took", f"{result['seconds']['total'] / 60:.0f} min"),
    ]
    scores = result["validation"] or {}
    return lines + [("held out", f"{name}: mean Dice {dice:.3f}") for name, dice in scores.items()]
