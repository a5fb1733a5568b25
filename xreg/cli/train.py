"""`xreg train`: from a CT to a network that guesses its pose from one film."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import (
    CT_NAMES,
    PATH,
    POSITIVE,
    SEED,
    Number,
    check_beginning,
    check_budget,
    check_folder,
    check_training,
    ct_text,
    labelled_ct_options,
    load_ct,
    shared,
    split,
)
from xreg.cli.terminal import Clock, Tell, Terminal
from xreg.cli.verb import verb

if TYPE_CHECKING:
    from xreg.regression import PoseRange, Report, Trained, TrainSettings

PRESETS = ("chest", "pelvis", "spine", "skull", "limb")
_FILES = """\b
What -o OUT holds afterwards:
  model.safetensors     the network, for register --model OUT      model.json  its facts, for people
  training.safetensors  what --resume needs                        log.jsonl   the curve, a line a validation
  curve.png             the curve, where matplotlib is installed

\b
Several processes share the work where torchrun starts them:
  torchrun --nproc-per-node 4 -m xreg.cli train ct.nii.gz -o net/ --device cuda"""


_TRAINING = (
    click.option("--minutes", type=POSITIVE, help="How long to train.  [default: 5, without --steps]"),
    click.option("--steps", type=click.IntRange(min=1), help="How many steps to train instead."),
    click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Films a step."),
    click.option(
        "--size",
        type=click.IntRange(min=32),
        default=128,
        show_default=True,
        help="Pixels a side, a multiple of 32.",
    ),
    click.option("--rate", type=POSITIVE, default=2e-3, show_default=True, help="Greatest learning rate."),
    click.option("--grid", type=POSITIVE, default=4.0, show_default=True, help="Voxels to render from, mm."),
    click.option("--backbone", default="small", show_default=True, help="small, monai:resnet18, timm:NAME."),
    click.option(
        "--label", "labels", multiple=True, metavar="NAME", help="Structure of --mask for --dice. Repeated."
    ),
    click.option(
        "--image-weight",
        type=Number(min=0),
        default=0.0,
        show_default=True,
        help="Of the loss through the renderer, 1 - NCC.",
    ),
    click.option(
        "--dice",
        type=Number(min=0),
        default=0.0,
        show_default=True,
        help="Weight of the overlap of projected structures.",
    ),
    click.option("--seed", type=SEED, default=0, show_default=True),
)


def training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say how a network is trained."""
    for option in reversed(_TRAINING):
        function = option(function)
    return function


@verb("train", "Train a network that guesses poses of a CT from one film.", epilog=_FILES)
@click.argument("ct", type=PATH, nargs=-1, required=True)
@shared("output", "Folder for the network; see below.", required=True)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="chest",
    show_default=True,
    help="Range of poses and C-arm to begin with.",
)
@click.option(
    "--range",
    "ranges",
    multiple=True,
    metavar="NAME=LOW:HIGH",
    help="Change the range: primary, secondary, roll (degrees, as a C-arm's), lateral, vertical, depth (mm "
    "of the CT's middle from the isocentre, along the film's columns, rows and the beam). Repeated.",
)
@click.option("--sdd", type=POSITIVE, metavar="MM", help="Source to detector.  [default: the preset's]")
@click.option("--sod", type=POSITIVE, metavar="MM", help="Source to isocentre.  [default: the preset's]")
@click.option("--field", type=POSITIVE, metavar="MM", help="Side of the detector.  [default: the preset's]")
@training_options
@click.option("--from", "start", type=PATH, metavar="DIR", help="Begin with another network's weights.")
@click.option("--resume", is_flag=True, help="Go on where a training in OUT was stopped.")
@click.option("--overwrite", is_flag=True, help="Begin anew where OUT holds a training.")
@shared("device")
@labelled_ct_options
def command(terminal: Terminal, ct: tuple[Path, ...], output: Path, **options: Any) -> dict[str, Any]:
    """Train a network that starts registrations of CT: films are rendered and learned from as they come.

    \b
        xreg train ct.nii.gz -o net/ --preset chest --minutes 5
        xreg train ct.nii.gz -o net/ --range primary=-30:30 --range depth=-60:60 --minutes 20
        xreg train a.nii.gz b.nii.gz c.nii.gz -o common/ --minutes 60
        xreg train new.nii.gz -o net/ --from common/ --minutes 2
        xreg register ct.nii.gz film.dcm --model net/ -o out/

    With several CTs one network learns them all, as a beginning for --from. A training that was stopped goes
    on with --resume; with --steps, on the CPU, it then ends with the same bits. A training that OUT holds is
    not replaced without --overwrite.
    """
    known, options = split(options, CT_NAMES)
    settings = make_settings(options)
    check_beginning(options)
    if known.get("mask") and len(ct) > 1:
        raise click.UsageError("--mask is for one CT; train on several without it.")
    if known.get("mask") and not settings.labels:
        raise click.UsageError("--mask holds structures for --dice: give --label and --dice as well.")
    check_folder(output)
    check_training(output, options)
    clock = Clock()
    device = _join(options["device"])
    try:
        box = _range(options)
        _check_files(output, box, settings, options)
        with terminal.working(f"reading {len(ct)} CT" if len(ct) > 1 else f"reading {ct[0]}"):
            volumes = [load_ct(path, known) for path in ct]
        with terminal.working("training") as tell, _shared_cores():
            trained = _train(volumes, box, settings, output, options, device, tell)
        if _rank():
            raise click.exceptions.Exit(0)  # the first process says what came of it
        picture = _curve(output)
        result = _result(trained, box, settings, ct, picture)
        result["seconds"] = {"training": trained.seconds, "total": clock.seconds}
        terminal.lines([("CT", ct_text(v, p)) for v, p in zip(volumes, ct, strict=True)] + _lines(result))
        return result
    finally:
        _leave()


def _range(options: dict[str, Any]) -> PoseRange:
    from dataclasses import replace

    from xreg.regression import ranges

    words = {name: options[name] for name in ("sdd", "sod", "field") if options[name] is not None}
    return ranges.parse_range(replace(ranges.PRESETS[options["preset"]], **words), options["ranges"])


def _check_files(output: Path, box: PoseRange, settings: TrainSettings, options: dict[str, Any]) -> None:
    """FileError, before a CT is read, where what --resume or --from name is not there or does not fit."""
    from xreg.regression.train import require_beginning

    require_beginning(output, box, settings, start=options["start"], resume=options["resume"])


def make_settings(options: dict[str, Any]) -> TrainSettings:
    """The settings that `training_options` ask for; UsageError where both kinds of budget are given."""
    check_budget(options)
    if options["labels"] and not options["dice"]:
        raise click.UsageError("--label names structures for the overlap: give --dice, its weight, as well.")
    from xreg.regression import NetworkSettings, TrainSettings, Weights

    minutes = None if options["steps"] else options["minutes"] or 5.0
    labels = tuple(int(name) if name.isdigit() else name for name in options["labels"])
    return TrainSettings(
        size=options["size"],
        batch=options["batch"],
        steps=options["steps"],
        minutes=minutes,
        rate=options["rate"],
        grid_mm=options["grid"],
        seed=options["seed"],
        labels=labels,
        weights=Weights(image=options["image_weight"], dice=options["dice"]),
        network=NetworkSettings(backbone=options["backbone"]),
    )


def _train(
    volumes: list[Any],
    box: PoseRange,
    settings: TrainSettings,
    output: Path,
    options: dict[str, Any],
    device: str,
    tell: Tell,
) -> Trained:
    from xreg.regression import train

    def on_report(report: Report) -> None:
        text = f"step {report.step}, loss {report.losses['loss']:.3f}"
        key = None
        if report.validation is not None:
            found = report.validation
            key = report.step
            told[0] = (
                f"held out: {found.degrees:.1f}°, {found.in_plane_mm:.1f} mm across, "
                f"{found.depth_mm:.0f} mm along the beam"
            )
        shown = f"{report.seconds:.0f} s, {text}; {told[0]}" if told[0] else text
        tell(shown, key=key, done=round(1000 * report.progress), total=1000)

    told = [""]
    start, resume = options["start"], options["resume"]
    return train(
        volumes, box, settings, output, start=start, resume=resume, device=device, on_report=on_report
    )


def _result(
    trained: Trained, box: PoseRange, settings: TrainSettings, ct: tuple[Path, ...], picture: str | None
) -> dict[str, Any]:
    last = trained.validations[-1]["validation"] if trained.validations else None
    return {
        "ct": [str(path) for path in ct],
        "model": str(trained.folder),
        "steps": trained.steps,
        "films": trained.steps * settings.batch,
        "ended": trained.ended,
        "validation": last,
        "range": box.to_dict(),
        "settings": settings.to_dict(),
        "curve": picture,
    }


def _lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    seconds, found = result["seconds"]["training"], result["validation"]
    lines = [
        ("network", f"{result['model']}, for xreg register --model {result['model']}"),
        ("trained", f"{result['steps']} steps, {result['films']} films, {seconds:.0f} s; {result['ended']}"),
    ]
    if found is not None:
        errors = f"{found['degrees']:.2f}°, {found['in_plane_mm']:.1f} mm across, {found['depth_mm']:.1f} mm"
        lines.append(("held out", f"{errors} along the beam (medians)"))
    return lines + ([("curve", result["curve"])] if result["curve"] else [])


def _curve(folder: Path) -> str | None:
    """The validations as a picture; None without matplotlib or a curve."""
    from xreg.regression.checkpoint import LOG, read_log

    if find_spec("matplotlib") is None or not (folder / LOG).is_file():
        return None
    from xreg.regression.curve import draw_curve

    draw_curve(read_log(folder), folder / "curve.png")
    return str(folder / "curve.png")


# ---- several processes, where torchrun started them ----


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _join(device: str) -> str:
    """Enter the process group that torchrun set up, if it did; this process's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return device
    import torch
    import torch.distributed as dist

    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


@contextmanager
def _shared_cores() -> Iterator[None]:
    """Half of torch's threads, since the films of the next step are made beside the network.

    With all of them for both, two cores trained at half the speed.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _leave() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
