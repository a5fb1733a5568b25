"""The benchmark of guesses, refinement and search runs, on the phantom.  No time or quality is asserted."""

import json

import pytest
from benchmark_scripts import run


def test_help() -> None:
    assert "Usage" in run("regression.py", "--help")


@pytest.mark.slow
def test_a_tiny_run(tmp_path) -> None:
    out = tmp_path / "regression.json"
    words = ["--minutes", "0.1", "--at", "0.1", "--films", "2", "--searches", "1", "--curve-films", "1"]
    run("regression.py", "--ct", "phantom", *words, "--detector-films", "1", "--out", str(out))
    found = json.loads(out.read_text())
    assert found["training"]["steps"] >= 1
    assert [len(found["rows"][name]) for name in ("guess", "refined", "search")] == [2, 2, 1]
    assert found["by_minutes"][0]["minutes"] == 0.1
    assert {row["varied"] for row in found["detectors"]} == {"sdd", "field", "pixels"}
    assert set(found["goals"]) == {"guess_degrees", "guess_in_plane_mm", "refined_success"}
