"""The benchmark scripts run: their help, and a tiny run on the phantom.  No time is asserted."""

import json
import pathlib

import pytest
from benchmark_scripts import run


@pytest.mark.parametrize("script", ["projector.py", "registration.py", "table.py"])
def test_help(script: str) -> None:
    assert "Usage" in run(script, "--help")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("results")
    pytest.importorskip("nanodrr")
    projector = ("projector.py", "--ct", "phantom", "--quick", "--peers", "nanodrr")
    run(*projector, "--out", str(folder / "projector.json"))
    run("registration.py", "--ct", "phantom", "--quick", "--out", str(folder / "registration.json"))
    return folder


def test_projector(results) -> None:
    found = json.loads((results / "projector.json").read_text())
    rows = {(r["renderer"], r["mode"]): r for r in found["rows"]}
    assert {mode for name, mode in rows if name.startswith("nanodrr")} == {"forward", "pose", "volume"}
    assert rows["xreg exact float", "forward"]["error"] < 1e-5
    assert rows["nanodrr torch f32 500", "forward"]["error"] < 1e-3  # the same geometry, the same voxels
    assert all(r["median_ms"] > 0 for r in found["rows"])
    assert "/" not in found["run"]["command"].replace("benchmarks/projector.py", "")


def test_registration(results) -> None:
    found = json.loads((results / "registration.json").read_text())
    assert len(found["cases"]) == 2
    assert found["cases"][0]["adam"]["renders"] > 0
    assert found["cases"][0]["xreg_mm"] < found["cases"][0]["start_mm"]
    assert {g["what"] for g in found["goals"]}


def test_table(results, tmp_path) -> None:
    page = tmp_path / "page.md"
    marks = [f"<!-- {n}:{e} -->" for n in ("projector", "registration") for e in ("begin", "end")]
    page.write_text("\n".join(["top", *marks, "bottom"]))
    for _ in range(2):
        run("table.py", str(page), "--results", str(results))
        text = page.read_text()
        assert all(text.count(mark) == 1 for mark in marks)
        assert "xreg trilinear 500 int16" in text
        assert "mTRE" in text
        assert text.startswith("top")
        assert text.endswith("bottom")
