"""`xreg evaluate`: registers every case of a manifest, and says how far from the truth it ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import PATH, POSITIVE, check_folder, shared
from xreg.cli.terminal import Clock, Tell, Terminal
from xreg.cli.verb import verb

if TYPE_CHECKING:
    from xreg.evaluation import Gate, Manifest

METHODS = ("refine", "search", "guess", "guided")
BY_MODEL = ("guess", "guided")
_SHOWN = (
    "trials", "failed", "success", "gross_failure", "capture_range_mm", "start_mtre_median_mm",
    "mtre_median_mm", "mtre_p95_mm", "mpe_median_mm", "mrpe_median_mm", "accepted", "accepted_but_wrong",
    "auc", "coverage95", "seconds_median",
)  # fmt: skip

_EPILOG = """\b
  {"schema": "xreg.cases/1",
   "defaults": {"ct": {"path": "ct.nii.gz", "mask": "labels.nii.gz"},
                "landmarks": "points.fcsv",
                "starts": {"random": {"mm": 20, "degrees": 10, "count": 4, "seed": 0}}},
   "cases": [{"name": "ap", "truth": "ap.json",
              "films": [{"path": "ap.dcm", "camera": "ap_camera.json"}]}]}

docs/evaluation.md says what each field may be, and how each figure is defined."""


@verb("evaluate", "Judge registration on cases whose truth is known.", epilog=_EPILOG)
@click.argument("manifest", type=PATH)
@shared("output", "Folder for trials.jsonl and report.json, .md, .png.", required=True)
@click.option(
    "--method",
    "methods",
    type=click.Choice(METHODS),
    multiple=True,
    default=("refine",),
    show_default=True,
    help="refine: from each start; search: over a box of poses about it; guess: what the network of --model "
    "says of the film; guided: registration from that guess. Give several to compare.",
)
@click.option("--model", type=PATH, metavar="DIR", help="Network of xreg train, for guess and guided.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Cases at a time.")
@click.option("--within", type=POSITIVE, default=2.0, show_default=True, help="mTRE of a success, mm.")
@click.option("--gross", type=POSITIVE, default=10.0, show_default=True, help="mTRE of a gross failure, mm.")
@click.option(
    "--bin", "bin_mm", type=POSITIVE, default=2.0, show_default=True, help="Bins of start mTRE, mm."
)
@click.option(
    "--require",
    multiple=True,
    metavar="GATE",
    help='What must hold, such as "success>=0.9"; else exit code 3.',
)
@click.option("--retry", is_flag=True, help="Run trials again that ended with an error before.")
@click.option(
    "--plots/--no-plots", default=True, help="Draw report.png (needs matplotlib).  [default: plots]"
)
def command(terminal: Terminal, manifest: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Register every case of MANIFEST from each of its starts, and report the errors against the truth.

    \b
        xreg evaluate cases.json -o out/ --method refine --require "success>=0.9"

    A run that was stopped goes on where it was when it is started again: each finished trial is a line of
    OUT/trials.jsonl, and is run anew only where its case, a file of it or the network has changed. Trials of
    other methods and cases stay there; the report is of those asked for. A case that fails is counted and
    named in it, and stops nothing. Exit code 3 says that a gate of --require does not hold. The manifest is
    JSON; paths in it are relative to it.
    """
    from xreg.evaluation import load_manifest, run, write_report

    if options["within"] > options["gross"]:
        raise click.UsageError(
            f"--within {options['within']:g} mm must not exceed --gross {options['gross']:g} mm."
        )
    names = tuple(dict.fromkeys(options["methods"]))
    methods = _methods(names, options["model"])
    gates = _gates(options["require"], methods)
    if options["plots"]:
        from xreg.evaluation.plots import require_matplotlib

        require_matplotlib()  # now, and not after hours
    check_folder(output)
    clock, cases = Clock(), load_manifest(manifest)
    with terminal.working("registering") as tell, clock.part("run"):
        records = run(
            cases,
            methods,
            output,
            fingerprints=_fingerprints(names, options["model"]),
            jobs=options["jobs"],
            retry=options["retry"],
            on_trial=_progress(tell),
        )
    with terminal.working("reporting"), clock.part("report"):
        report = write_report(
            output,
            records,
            manifest=manifest,
            within_mm=options["within"],
            gross_mm=options["gross"],
            bin_mm=options["bin_mm"],
            gates=gates,
            plots=options["plots"],
        )
    _require_some(records, cases)
    report["files"].insert(0, str(output / "trials.jsonl"))
    terminal.lines(_lines(report, cases))
    rejected = not all(report["gates"].values())
    return {**report, "status": "rejected" if rejected else "done", "seconds": dict(clock.parts)}


def _methods(names: tuple[str, ...], model: Path | None) -> dict[str, Callable[..., Any]]:
    """What `run` calls, by name."""
    from xreg import registration

    needing = [name for name in names if name in BY_MODEL]
    if needing and model is None:
        raise click.UsageError(f"--method {needing[0]} needs --model: the folder of a network (xreg train).")
    if model is not None and not needing:
        raise click.UsageError("--model is for --method guess and guided; give one of these as well.")
    known = {"refine": registration.register, "search": registration.register_anywhere}
    if needing:
        known |= _by_model(model)
    return {name: known[name] for name in names}


def _fingerprints(names: tuple[str, ...], model: Path | None) -> dict[str, str]:
    """What a method's name does not say: its settings, what verdicts go by, the network itself."""
    from xreg import __version__
    from xreg.registration import SearchBox, SearchSettings, Settings
    from xreg.registration.trust import rules

    judged = (__version__, rules())
    known = {"refine": repr((Settings(), judged))}
    known["search"] = repr((SearchBox(), SearchSettings(), Settings(), judged))
    if model is not None:
        from xreg.evaluation.fingerprint import Fingerprints
        from xreg.regression import start
        from xreg.regression.checkpoint import MODEL

        network = Fingerprints().of(model / MODEL if model.is_dir() else model)
        words = (start.SETTINGS, start.SEARCH, start.MOST_SIGMAS, start.BOX_SIGMAS, judged)
        known |= {"guess": network, "guided": f"{network} {words}"}
    return {name: known[name] for name in names}


def _by_model(folder: Path) -> dict[str, Callable[..., Any]]:
    """The network's guess alone, and registration from it; neither looks at a case's starts."""
    from xreg.regression import Regressor, register_guessed
    from xreg.regression.start import surest, views_of

    network = Regressor.load(folder)

    def guess(volume: Any, film: Any, camera: Any, init: Any) -> Any:
        network.require(volume)
        return surest(network, volume, views_of(film, camera))[0]

    def guided(volume: Any, film: Any, camera: Any, init: Any) -> Any:
        return register_guessed(network, volume, film, camera).result

    return {"guess": guess, "guided": guided}


def _gates(texts: tuple[str, ...], methods: Mapping[str, Any]) -> list[Gate]:
    from xreg.errors import XregError
    from xreg.evaluation import parse_gate

    try:
        return [parse_gate(text, list(methods)) for text in texts]
    except XregError as error:
        raise click.UsageError(f"--require: {error}") from error


def _progress(tell: Tell) -> Callable[[int, int, Any], None]:
    """A bar on a terminal; elsewhere a line a tenth of the way."""

    def on_trial(done: int, total: int, record: Any) -> None:
        text = f"{done}/{total}"
        if record is not None:
            value = record.get("mtre_mm")
            said = record["error"]["type"] if value is None else f"mTRE {value:.2f} mm"
            text += f", {record['case']}: {said}"
        tell(text, key=math.floor(10 * done / max(total, 1)), done=done, total=total)

    return on_trial


def _require_some(records: list[Any], cases: Manifest) -> None:
    """Where no trial at all has an answer, the manifest is wrong and not the method."""
    from xreg.errors import RegistrationError

    if all(record["status"] == "failed" for record in records):
        first = records[0]["error"]
        raise RegistrationError(
            f"{cases.path}: none of {len(records)} trials gave a pose; the first: {first['type']}: "
            f"{first['message']}"
        )


def _lines(report: dict[str, Any], cases: Manifest) -> list[tuple[str, str]]:
    from xreg.evaluation.summary import FIGURES, shown_value

    methods = report["methods"]
    lines = [("cases", f"{report['cases']} of {cases.path}")]
    for name in _SHOWN:
        values = [summary[name] for summary in methods.values()]
        if any(value is not None for value in values):
            shown = [shown_value(value, FIGURES[name][0]) for value in values]
            words = shown if len(methods) == 1 else [f"{m} {v}" for m, v in zip(methods, shown, strict=True)]
            lines.append((name, ", ".join(words)))
    lines += [
        ("required", f"{gate}: {'held' if held else 'FAILED'}") for gate, held in report["gates"].items()
    ]
    return [*lines, ("files", ", ".join(report["files"]))]
