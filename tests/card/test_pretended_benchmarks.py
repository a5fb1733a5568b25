"""The benchmarks of a card come to their end on a pretended one.  No time is asserted."""

import json
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
SCRIPTS = {
    "step.py": ["--pixels", "32", "--repeats", "2"],
    "splat.py": ["--count", "300", "--size", "32", "--grid", "16", "--rounds", "1"],
    "projector.py": ["--views", "ap", "--sizes", "w200", "--batches", "1", "--repeats", "1", "--peers", ""],
    "regression.py": ["--minutes", "0.1", "--at", "0.1", "--films", "1", "--searches", "1",
                      "--curve-films", "1", "--detector-films", "1"],
    "regression_films.py": ["--steps", "6", "--rounds", "1", "--batch", "4", "--grid", "12"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_ends_well(script: str, tmp_path: pathlib.Path) -> None:
    if script == "regression_films.py":
        pytest.importorskip("nanodrr")
    out = tmp_path / "found.json"
    phantom = [] if script == "splat.py" else ["--ct", "phantom"]
    words = [*SCRIPTS[script], *phantom, "--device", "cuda", "--out", str(out)]
    command = [sys.executable, str(HERE / "pretended_run.py"), str(BENCHMARKS / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(out.read_text())["card"]["name"] == "pretended"
