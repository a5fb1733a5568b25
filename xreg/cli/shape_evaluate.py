"""`xreg shape evaluate`: how well label maps agree with reference label maps, label by label."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import PATH, POSITIVE, check_apart, check_file, shared
from xreg.cli.terminal import Terminal
from xreg.cli.verb import given, verb

if TYPE_CHECKING:
    from xreg.shape.schemes import Scheme
    from xreg.shape.scores import Scores

SUFFIXES = (".nii.gz", ".nii")
FIGURES = (
    "dice", "dice_shifted", "dice_foreground", "hd95_mm", "assd_mm", "centroid_mm",
)  # fmt: skip
_EPILOG = """\b
Dice of a case is the mean over the labels in the reference; one that is missing counts 0.
HD95, ASSD (mm) and centroid errors are means over the labels that both have.
shifted: after the renumbering of vertebrae and of ribs that suits best.
identified: centroid within 20 mm, and nearest both ways; counted over both maps.
docs/shape.md has the definitions in full."""


@verb("evaluate", "Judge label maps against reference label maps.", epilog=_EPILOG)
@click.argument("prediction", type=PATH)
@click.argument("reference", type=PATH)
@click.option("--scheme", default="all", show_default=True, help="Labels of REFERENCE: all, spine, pelvis …")
@click.option(
    "--prediction-scheme", metavar="NAME", help="Labels of PREDICTION.  [default: those of REFERENCE]"
)
@click.option(
    "--names",
    type=PATH,
    metavar="TABLE",
    help="Names of the labels of both (CSV or JSON), for another scheme.",
)
@click.option(
    "--spacing-scale",
    type=POSITIVE,
    default=1.0,
    show_default=True,
    help="True voxel spacing over the header's, where it is stale.",
)
@shared("output", "Also write the result here (.json).")
def command(terminal: Terminal, prediction: Path, reference: Path, **options: Any) -> dict[str, Any]:
    """Compare the label map PREDICTION with REFERENCE (NIfTI on one grid), or a folder with a folder.

    \b
        xreg shape evaluate predicted.nii.gz truth.nii.gz --scheme spine
        xreg shape evaluate predictions/ truths/ --json

    In folders, each reference needs a prediction of the same file name.
    """
    pairs = _pairs(prediction, reference)
    if options["output"] is not None:
        _check_output(options["output"], pairs, options["names"])
    mine, theirs = _schemes(options)
    cases = []
    with terminal.working("comparing") as tell:
        for number, (name, one, other) in enumerate(pairs):
            tell(f"{name}", key=name, done=number, total=len(pairs))
            cases.append((name, _scored(one, other, mine, theirs, options["spacing_scale"])))
    if len(cases) == 1:
        terminal.lines(_table(cases[0][1]))
    terminal.lines(_summary(cases))
    result = {
        "scheme": theirs.name,
        "cases": [{"name": name, **scores.to_json()} for name, scores in cases],
        "mean": {f: _mean([getattr(scores, f) for _, scores in cases]) for f in FIGURES},
    }
    if options["output"] is not None:
        from xreg.io import write_json

        write_json(options["output"], result)
    return result


def _check_output(output: Path, pairs: list[tuple[str, Path, Path]], names: Path | None) -> None:
    """Before any work: the result is JSON, lies where it can be written, and over nothing that is read."""
    if output.suffix.lower() != ".json":
        raise click.BadParameter(f"{output} must end in .json.", param_hint="'-o'")
    check_file(output)
    check_apart({"-o": output}, {"--names": names})
    for _, one, other in pairs:
        check_apart({"-o": output}, {"PREDICTION": one, "REFERENCE": other})


def _pairs(prediction: Path, reference: Path) -> list[tuple[str, Path, Path]]:
    """Name, prediction and reference of each case."""
    from xreg.errors import FileError

    if prediction.is_dir() != reference.is_dir():
        raise FileError(
            f"{prediction} and {reference} must be two label maps or two folders of them, not one of each"
        )
    if not reference.is_dir():
        return [(reference.name, prediction, reference)]
    files = sorted(f for f in reference.iterdir() if f.name.lower().endswith(SUFFIXES))
    if not files:
        raise FileError(f"{reference}: holds no NIfTI file (.nii or .nii.gz)")
    missing = [f.name for f in files if not (prediction / f.name).is_file()]
    if missing:
        raise FileError(
            f"{prediction}: lacks {', '.join(missing[:5])}: {len(missing)} of {len(files)} references have "
            "no prediction of their name"
        )
    return [(f.name, prediction / f.name, f) for f in files]


def _schemes(options: dict[str, Any]) -> tuple[Scheme, Scheme]:
    from xreg.shape.schemes import Scheme, scheme

    if options["names"] is not None:
        from xreg.io.labels import label_names

        if wrong := given("scheme", "prediction_scheme"):
            raise click.UsageError(f"--names speaks of both label maps; leave out {' and '.join(wrong)}.")
        known = Scheme.of_table(options["names"].name, label_names(options["names"]))
        return known, known
    theirs = scheme(options["scheme"])
    return scheme(options["prediction_scheme"] or theirs), theirs


def _scored(prediction: Path, reference: Path, mine: Scheme, theirs: Scheme, scale: float) -> Scores:
    from xreg.errors import ShapeError
    from xreg.io import VoxelGrid, load_labels
    from xreg.io.labels import same_grid
    from xreg.shape.schemes import relabel
    from xreg.shape.scores import score

    one, other = load_labels(prediction), load_labels(reference)
    if not same_grid(one.labels.shape, one.affine, other.labels.shape, other.affine):
        raise ShapeError(
            f"{prediction} is not on the grid of {reference}: {_grid_text(one)} against {_grid_text(other)}; "
            "resample the prediction to the reference (nearest neighbour)"
        )
    affine = other.affine.clone()
    affine[:3, :3] *= scale
    mine.require(one.labels, str(prediction))
    theirs.require(other.labels, str(reference))
    labels = relabel(one.labels, mine, theirs, what=str(prediction)) if mine != theirs else one.labels
    return score(labels, other.labels, VoxelGrid(other.labels.shape, affine), theirs)


def _grid_text(found: Any) -> str:
    size = "×".join(str(n) for n in reversed(found.labels.shape))
    rows = "; ".join(" ".join(f"{v:.4g}" for v in row) for row in found.affine[:3].tolist())
    return f"{size} voxels, affine [{rows}]"


def _table(scores: Scores) -> list[tuple[str, str]]:
    """A line a label."""
    rows = [("label", "Dice    HD95 mm  ASSD mm  centroid mm  identified")]
    for label in scores.labels:
        if not label.reference_voxels:
            rows.append((label.name, f"only in the prediction, {label.predicted_voxels} voxels"))
            continue
        far, close, apart = (
            "-" if v is None else f"{v:.2f}" for v in (label.hd95_mm, label.assd_mm, label.centroid_mm)
        )
        rows.append(
            (
                label.name,
                f"{label.dice:.3f}  {far:>7}  {close:>7}  {apart:>11}  {'yes' if label.identified else 'no'}",
            )
        )
    return rows


def _summary(cases: list[tuple[str, Scores]]) -> list[tuple[str, str]]:
    lines = [(name, _case_text(scores)) for name, scores in cases]
    if len(cases) > 1:
        lines.append(("mean", f"Dice {_mean([s.dice for _, s in cases]):.3f} over {len(cases)} cases"))
    return lines


def _case_text(scores: Scores) -> str:
    shifts = ", ".join(f"{group} {by:+d}" for group, by in scores.shifts.items() if by)
    moved = f" by {shifts}" if shifts else ""
    known = (("HD95", scores.hd95_mm), ("ASSD", scores.assd_mm))
    distances = ", ".join(f"{what} {value:.2f} mm" for what, value in known if value is not None)
    counts = scores.identification
    return (
        f"Dice {scores.dice:.3f} (shifted {scores.dice_shifted:.3f}{moved}, foreground "
        f"{scores.dice_foreground:.3f}), {distances or 'no label in both'}\n"
        f"identified {counts.identified} of {counts.reference} in the reference and {counts.predicted} "
        f"predicted, missing {len(scores.missed)}"
    )


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None
