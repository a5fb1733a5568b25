"""The benchmarks of a card take their way on the CPU too: tiny, and with nothing claimed."""

import json
import pathlib
import subprocess
import sys

import pytest
import torch
from benchmark_scripts import FOLDER, run


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import projector_cuda_report

    return projector_cuda_report


def test_projector(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("nanodrr")
    shown = run("projector.py", "--dry-run", "--out", str(tmp_path / "cuda.json"))
    assert "say nothing about a card" in shown
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert found["card"] is None
    assert not [r for r in found["rows"] if "failed" in r]
    rows = {(r["renderer"], r["mode"], r["batch"]): r for r in found["rows"]}
    for name in ("xreg joseph float", "nanodrr torch f32"):
        for batch in (1, 2):
            assert all(
                rows[name, mode, batch]["kernel"]["median"] > 0 for mode in ("forward", "pose", "volume")
            )
    assert rows["xreg exact float", "forward", 1]["error"] < 1e-5
    assert rows["nanodrr torch f32", "forward", 1]["error"] < 1e-3
    matched = rows["xreg trilinear matched int16", "forward", 1]["error"]
    assert matched <= rows["nanodrr torch f32", "forward", 1]["error"]
    assert len(found["goals"]) == 5
    assert {g["met"] for g in found["goals"]} == {None}, "a dry run claims nothing"


def test_without_a_card_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    command = [sys.executable, str(FOLDER / "projector.py"), "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "--dry-run" in done.stderr


def test_step(tmp_path: pathlib.Path) -> None:
    """One step in tensors of fixed size is xreg.registration's, and nothing in it waits for a card."""
    run("step.py", "--dry-run", "--out", str(tmp_path / "step.json"))
    found = json.loads((tmp_path / "step.json").read_text())
    assert len(found["off_from_registration"]) == 4
    assert max(found["off_from_registration"]) <= 1e-5
    assert found["waiting"] == []
    assert found["graph_us"] is None
    assert found["goal"]["met"] is None


def row(name: str, mode: str, us: float, error: float, wall: float = 1000.0, batch: int = 1) -> dict:
    return {"renderer": name, "mode": mode, "view": "ap", "size": "w200", "batch": batch, "error": error,
            "kernel": {"median": us}, "wall": {"median": wall}, "peak_mb": 1.0}  # fmt: skip


def test_goals_take_the_best_of_both_at_equal_accuracy(report) -> None:
    rows = []
    for mode in ("forward", "pose", "volume"):
        rows += [
            row("nanodrr triton f32", mode, 90.0, 5e-5, 300.0),
            row("nanodrr triton f32 compiled", mode, 80.0, 5e-5, 200.0),
            row("nanodrr triton f16 voxels", mode, 40.0, 3e-4, 100.0),  # less accurate: does not count
            row("xreg joseph int16", mode, 20.0, 4e-5, 50.0),
            row("xreg siddon int16", mode, 5.0, 5e-3, 50.0),  # likewise
        ]
    card = {"multiprocessors": 100, "clock_mhz": "1000"}
    floors = [{"view": "ap", "size": "w200", "us": report.floor_us(4e6, card)}]
    result = {"rows": rows, "floors": floors, "dry_run": False}
    assert [g["value"] for g in report.goals(result)] == pytest.approx([4.0, 4.0, 4.0, 4.0, 0.5])
    assert [g["met"] for g in report.goals(result)] == [True, True, True, False, False]
    rows.append(row("nanodrr triton f32", "forward", 90.0, 5e-5, batch=8))
    assert report.goals(result)[0]["met"] is False, "a place without a row of xreg's fails"


def test_the_floor_needs_a_card(report) -> None:
    assert report.floor_us(1e6, None) is None
    assert report.floor_us(1e6, {"multiprocessors": 1, "clock_mhz": None}) is None


def test_tables(tmp_path: pathlib.Path) -> None:
    """A card's results come into the README; those of a dry run do not."""
    machine = {"cpu": "C", "threads": 1, "kernels": "k", "versions": {}, "when": "w", "command": "c",
               "volume": {"name": "v", "size": [1, 2, 3]}}  # fmt: skip
    rows = [row("xreg joseph int16", "forward", 20.0, 4e-5), row("xreg joseph int16", "pose", 22.0, 4e-5)]
    goal = {"what": "a step", "goal": "< 100", "met": True}
    card = {"name": "a card", "driver": "1", "cuda": "13.0"}
    known = {"run": machine, "card": card, "skipped": {}, "goals": []}
    results = {
        "projector_cuda": {**known, "rows": rows},
        "step": {**known, "graph_us": {"median": 90.0}, "wall_us": {"median": 900.0}, "operators": 150,
                 "off_from_registration": [1e-6], "pixels": 256, "compiled": False, "goal": goal},
    }  # fmt: skip
    page = tmp_path / "page.md"
    for dry in (True, False):
        page.write_text("".join(f"<!-- {n}:begin --><!-- {n}:end -->\n" for n in results))
        for name, result in results.items():
            (tmp_path / f"{name}.json").write_text(json.dumps({**result, "dry_run": dry}))
        run("table.py", str(page), "--results", str(tmp_path))
        text = page.read_text()
        assert ("| xreg joseph int16 | 20.0 | 22.0 |" in text) != dry
        assert ("| in a CUDA graph, µs | 90.0 |" in text) != dry
