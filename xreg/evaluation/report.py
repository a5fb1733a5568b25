"""The end of an evaluation: report.json, report.md and report.png in one folder."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from xreg import __version__
from xreg.evaluation.plots import require_matplotlib, save_plots
from xreg.evaluation.summary import WITHIN_MM, Gate, markdown, summarise
from xreg.io import atomic_write, write_json
from xreg.metrics import GROSS_MM

SCHEMA = "xreg.evaluation/1"


def write_report(
    output: str | PathLike,
    records: Sequence[Mapping[str, Any]],
    *,
    manifest: str | PathLike = "",
    within_mm: float = WITHIN_MM,
    gross_mm: float = GROSS_MM,
    bin_mm: float = 2.0,
    gates: Sequence[Gate] = (),
    plots: bool = True,
) -> dict[str, Any]:
    """Summarise trials into the folder `output` (which exists), and return what report.json holds.

    records: of `run`.  within_mm, gross_mm (mTRE), bin_mm: as in `summarise`.  plots: also draw report.png,
    which needs matplotlib (BackendError before anything is written).
    """
    if plots:
        require_matplotlib()
    folder = Path(output)
    summaries = summarise(records, within_mm=within_mm, gross_mm=gross_mm, bin_mm=bin_mm)
    held = {str(gate): gate.holds(summaries) for gate in gates}
    names = ["report.json", "report.md", *(["report.png"] if plots else [])]
    report = {
        "schema": SCHEMA,
        "xreg": __version__,
        "manifest": str(manifest),
        "cases": len({r["case"] for r in records}),
        "within_mm": within_mm,
        "gross_mm": gross_mm,
        "bin_mm": bin_mm,
        "machine": machine(),
        "methods": summaries,
        "gates": held,
    }
    write_json(folder / "report.json", report)
    if not plots:  # one of an earlier run would be of other trials
        (folder / "report.png").unlink(missing_ok=True)
    else:
        save_plots(folder / "report.png", summaries, records, within_mm=within_mm, gross_mm=gross_mm)
    text = markdown(
        summaries,
        records,
        title="Evaluation",
        about=[
            f"{report['cases']} cases of `{manifest}`; success is an mTRE within {within_mm:g} mm, a gross "
            f"failure one beyond {gross_mm:g} mm.  xreg {__version__}, {report['machine']['processor']}, "
            f"{report['machine']['backend']}."
        ],
        picture="report.png" if plots else None,
        gates=held,
    )
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return {**report, "files": [str(folder / name) for name in names]}


def machine() -> dict[str, Any]:
    """What the times were measured on."""
    import torch

    from xreg.ops.registry import backend

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backend": str(backend()),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
