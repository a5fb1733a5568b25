"""Judging registration methods: manifests of cases with a known truth, a runner, and a report.

    manifest = load_manifest("cases.json")
    records = run(manifest, {"refine": xreg.register}, "out")
    report = write_report("out", records)

The methods are handed in, so that nothing here depends on how a registration is done.
"""

from xreg.evaluation.cases import Case, Shelf, random_starts
from xreg.evaluation.manifest import CaseSpec, Manifest, RandomStarts, load_manifest
from xreg.evaluation.report import write_report
from xreg.evaluation.runner import read_trials, run
from xreg.evaluation.summary import Gate, parse_gate, summarise

__all__ = [
    "Case",
    "CaseSpec",
    "Gate",
    "Manifest",
    "RandomStarts",
    "Shelf",
    "load_manifest",
    "parse_gate",
    "random_starts",
    "read_trials",
    "run",
    "summarise",
    "write_report",
]
