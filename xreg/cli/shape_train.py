"""`xreg shape train`: from prepared patients to a network that labels bones from films."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import (
    PATH,
    POSITIVE,
    SEED,
    Number,
    check_beginning,
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

    from xreg.shape.training import Report, Trained, Trainer

NETWORKS = ("rays-light", "rays", "swin-x2s-tiny", "swin-x2s-small", "swin-x2s-base", "swin-x2s-large")
_SHARE = Number(0, 1, max_open=True)
_FILES = """\b
What -o OUT holds afterwards:
  model.safetensors     the network           model.json  its facts and patients, for people
  training.safetensors  what --resume needs   log.jsonl   the curve, a line a look at the held-out patients
  atlas.safetensors     the patients' bones, which xreg reconstruct fits to films

\b
rays        ours: any number of films of any cameras, for a card; rays-light is for a CPU
swin-x2s-…  the baseline: two orthogonal films, one grid; needs MONAI and einops"""


@verb("train", "Train a network that labels bones from films.", epilog=_FILES)
@click.argument("samples", type=PATH, nargs=-1, required=True)
@shared("output", "Folder for the network; see below.", required=True)
@click.option("--network", type=click.Choice(NETWORKS), default="rays-light", show_default=True)
@click.option("--minutes", type=POSITIVE, help="How long to train.  [default: 60, without --steps]")
@click.option("--steps", type=click.IntRange(min=1), help="How many steps to train instead.")
@click.option(
    "--hold-out",
    multiple=True,
    metavar="PATIENT",
    help="Never learned from; its Dice is in the curve. Repeated.",
)
@click.option("--as-they-are", is_flag=True, help="Make no new patients: learn from the samples alone.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Cases a step.")
@click.option("--rate", type=POSITIVE, default=8e-4, show_default=True, help="Greatest learning rate.")
@click.option(
    "--space",
    type=click.Choice(("hulls", "learned")),
    default="hulls",
    show_default=True,
    help="Bones are where the films' masks agree, or where the network's half in space puts them.",
)
@click.option("--film-share", type=_SHARE,
              help="Part of the training for films alone; 0 keeps what --from reads.  "
                   "[default: 0.9 for hulls, 0.6 for learned]")  # fmt: skip
@click.option(
    "--voxels",
    type=click.IntRange(min=16),
    metavar="N",
    help="Bin samples to about N along the longest edge: coarser, faster.  [default: as they are]",
)
@click.option("--tilt", type=Number(min=0), default=0.0, show_default=True,
              help="Standard deviation of the new patients' view angles, degrees.")  # fmt: skip
@click.option("--bfloat16", is_flag=True, help="Half precision inside the network; faster on a card.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True,
              help="Threads that make the cases of the next steps.")  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--from", "start", type=PATH, metavar="DIR", help="Begin with another network's weights.")
@click.option("--resume", is_flag=True, help="Go on where a training in OUT was stopped.")
@click.option("--overwrite", is_flag=True, help="Begin anew where OUT holds a training.")
@shared("device")
def command(terminal: Terminal, samples: tuple[Path, ...], output: Path, **options: Any) -> dict[str, Any]:
    """Train on SAMPLES: folders that `xreg shape prepare` wrote, or folders of such folders.

    \b
        xreg shape train prepared/ -o net/ --hold-out s0561 --minutes 60
        xreg shape train prepared/ -o net/ --network rays --device cuda --bfloat16 --batch 4 --workers 12

    Where patients have their CT, new patients are made of them as the training goes on. A training that was
    stopped goes on with --resume; with --steps, on the CPU, it then ends with the same bits. A training that
    OUT holds is not replaced without --overwrite.
    """
    check_budget(options)
    check_beginning(options)
    check_folder(output)
    check_beside(output, samples)
    check_training(output, options)
    clock = Clock()
    from xreg.shape.atlas import keep_atlas
    from xreg.shape.sources import coarser, read_prepared, require_apart, scanned_members, split_patients

    require_apart(samples, options["hold_out"])
    with terminal.working("reading samples"):
        prepared, patients = read_prepared(samples)
        if options["voxels"]:
            prepared, patients = (coarser(items, options["voxels"]) for items in (prepared, patients))
        source, held_out = split_patients(
            prepared, patients, options["hold_out"], plain=options["as_they_are"]
        )
    trainer = _trainer(_tilted(source, options["tilt"]), held_out, output, options)
    with terminal.working("cutting out the bones of the patients"):
        atlas = keep_atlas(scanned_members(source, patients, options["hold_out"]), output)
    with terminal.working("training") as tell:
        trained = trainer.run(telling(tell), options["workers"])
    result = _result(trained, options, type(source).__name__)
    result["atlas"] = atlas
    result["seconds"] = {"training": trained.seconds, "total": clock.seconds}
    terminal.lines(_lines(result))
    return result


def _tilted(source: Any, degrees: float) -> Any:
    """A population whose views are tilted; samples as they are keep their cameras."""
    from dataclasses import replace

    from xreg.shape.sources import Population

    if not degrees:
        return source
    if not isinstance(source, Population):
        raise click.UsageError("--tilt is for new patients: the samples as they are have their films.")
    return replace(source, exposure=replace(source.exposure, tilt_degrees=degrees))


def _trainer(source: Any, held_out: list[Any], output: Path, options: dict[str, Any]) -> Trainer:
    from xreg.shape.networks import PRESETS
    from xreg.shape.train_settings import ShapeTrainSettings
    from xreg.shape.training import ready_to_train

    settings = ShapeTrainSettings(
        steps=options["steps"],
        minutes=None if options["steps"] else options["minutes"] or 60.0,
        batch=options["batch"],
        rate=options["rate"],
        hulls=options["space"] == "hulls",
        film_share=options["film_share"],
        seed=options["seed"],
        precision="bfloat16" if options["bfloat16"] else "float32",
        network=PRESETS[options["network"]],
    )
    known = {name: options[name] for name in ("start", "resume", "device")}
    return ready_to_train(source, settings, output, held_out=held_out, **known)


def telling(tell: Tell) -> Callable[[Report], None]:
    """What shows where a training of labels stands, with the last look at the held-out patients."""
    told = [""]

    def on_report(report: Report) -> None:
        key = None
        if report.validation:
            key, scores = report.step, report.validation
            told[0] = "held out: " + ", ".join(f"{name} {dice:.3f}" for name, dice in scores.items())
        text = f"{report.seconds:.0f} s, step {report.step}, loss {report.losses['loss']:.3f}"
        shown = f"{text}; {told[0]}" if told[0] else text
        tell(shown, key=key, done=round(1000 * report.progress), total=1000)

    return on_report


def _result(trained: Trained, options: dict[str, Any], made: str) -> dict[str, Any]:
    last = trained.log[-1] if trained.log else {}
    return {
        "model": str(trained.folder),
        "network": options["network"],
        "steps": trained.steps,
        "patients": list(trained.patients),
        "held_out": list(trained.held_out),
        "cases": "new patients" if made == "Population" else "samples as they are",
        "loss": last.get("loss"),
        "validation": last.get("validation"),
    }


def _lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    from xreg.shape.patients import counted

    lines = [
        ("network", f"{result['model']} ({result['network']})"),
        ("trained", f"{result['steps']} steps, {result['seconds']['training']:.0f} s, {result['cases']}"),
        ("atlas", f"{result['atlas']} bones" if result["atlas"] else "none: no patient shows a whole bone"),
        ("learned from", counted(result["patients"])),
    ]
    scores = result["validation"] or {}
    return lines + [("held out", f"{name}: mean Dice {dice:.3f}") for name, dice in scores.items()]
