"""The splatter's benchmark runs, tiny, and writes what it says.  No time is asserted."""

import json
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "splat.py"


def test_a_tiny_run(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "splat.json"
    words = ["--ct", "phantom", "--count", "400", "--size", "40", "--grid", "24", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--out", str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    rows = {(row["mode"], row["work"]) for row in found["rows"]}
    assert {("exact", "forward"), ("affine", "forward + backward"), ("voxels", "forward + backward")} <= rows
    assert all(row["best_ms"] > 0 for row in found["rows"])
    assert found["errors"]["float32"] < 1e-5
    assert 1e-5 < found["errors"]["cutoff"] < 1e-3
    assert 1e-5 < found["errors"]["affine"] < 0.05
    assert {goal["goal_ms"] for goal in found["goals"]} == {30.0, 120.0}
    assert "error of affine" in done.stdout
