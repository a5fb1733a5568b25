"""Makes the networks of the shape tables from nothing, one a fold, and scores them.

python benchmarks/shape_learn.py FOLDER -o OUT --minutes 85      (see --help)

FOLDER holds the published patients.  More patients are given by --also: a folder of the layout 'plain' of
`xreg shape prepare`, and the scheme or table of names of its labels.  Each fold gets a network that never
sees its patients, and goes on with it for --more minutes with other new patients.  Stopped, the same command
goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from common import RESULTS

from xreg.shape import SCHEMES

FOLDS = ("0532,s0561", "0510")
MORE = "more"  # folder of the networks that went on
HERE = Path(__file__).resolve().parent


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="For all that is made.")
@click.option(
    "--also", nargs=2, multiple=True, metavar="FOLDER SCHEME", help="More patients, and their labels' scheme."
)
@click.option("--fold", "folds", multiple=True, default=FOLDS, show_default=True, help="Held out together.")
@click.option("--minutes", type=float, default=85.0, show_default=True, help="Of training a fold, in all.")
@click.option("--more", type=float, default=85.0, show_default=True, help="Minutes to go on for; 0 for none.")
@click.option("--near", type=int, default=120, show_default=True)
@click.option("--turned", type=int, default=130, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Folds at a time.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "shape_learn.json")
def main(folder: Path, output: Path, also, folds, minutes, more, near, turned, jobs, out: Path) -> None:
    """Learn from the patients in FOLDER without those of each fold, and score these: into --out.

    Then go on with each network, and score them again: into a file beside it, whose name ends in _more.
    """
    prepared = output / "prepared"
    _prepare(folder, prepared, ["--dataset", "swinx2s"])
    for place, names in also:
        told = "--scheme" if names in SCHEMES else "--names"
        _prepare(Path(place), prepared, ["--dataset", "plain", told, names])
    known = [f"--near={near}", f"--turned={turned}"]

    def learned(fold: str) -> Path:
        return _learn(prepared, output, fold, [*known, f"--minutes={minutes}"], jobs)

    def learned_more(fold: str, model: Path) -> Path:
        again = [*known, f"--minutes={more}", "--seed=1", f"--from={model}"]
        return _learn(prepared, output / MORE, fold, again, jobs)

    def scored(models: Sequence[Path], result: Path) -> None:
        words = [word for model in models for word in ("--model", str(model))]
        told = ["--prepared", prepared, "--out", result]
        _say([sys.executable, HERE / "shape_crossval.py", folder, *words, *told])

    with ThreadPoolExecutor(jobs) as pool:
        models = list(pool.map(learned, folds))
    scored(models, out)
    if more:
        with ThreadPoolExecutor(jobs) as pool:
            models = list(pool.map(learned_more, folds, models))
        scored(models, out.with_name(f"{out.stem}_more.json"))


def _prepare(folder: Path, prepared: Path, how: Sequence[str]) -> None:
    """Samples of a folder's patients; what is there already is made again, the same."""
    _say([_xreg(), "shape", "prepare", folder, "-o", prepared, *how])


def _learn(prepared: Path, output: Path, fold: str, known: Sequence[str], jobs: int) -> Path:
    """The model that never sees the patients of a fold; its progress goes to a file beside it."""
    out = fold.split(",")
    model = output / f"without-{'-'.join(out)}"
    output.mkdir(parents=True, exist_ok=True)
    words = [_xreg(), "shape", "learn", prepared, "-o", model, *known]
    words += [f"--hold-out={patient}" for patient in out]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with open(f"{model}.log", "w", encoding="utf-8") as log:
        _say(words, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    return model


def _xreg() -> Path:
    return Path(sys.executable).with_name("xreg")


def _say(words: Sequence[str | Path], **known) -> None:
    command = [str(word) for word in words]
    click.echo(" ".join([Path(command[0]).name, *command[1:]]))
    if code := subprocess.run(command, check=False, **known).returncode:
        raise click.ClickException(f"{' '.join(command)} ended with {code}")


if __name__ == "__main__":
    main()
