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


@pytest.mark.slow
def test_films_of_both_renderers(tmp_path) -> None:
    pytest.importorskip("nanodrr")
    out = tmp_path / "films.json"
    words = ["--steps", "6", "--rounds", "1", "--batch", "4", "--grid", "12", "--out", str(out)]
    run("regression_films.py", "--ct", "phantom", *words)
    found = json.loads(out.read_text())
    errors = found["errors"]
    assert max(errors.values()) < 0.02  # both render the same bodies at the same poses
    assert errors[found["equal_error"]] <= errors["xreg joseph"]
    assert [row["renderer"] for row in found["rows"]] == ["xreg joseph", found["equal_error"]]
    assert all(row["trained"] > 0 for row in found["rows"])
    assert found["goals"] == []  # which are a card's


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(AssertionError, match="--steps must be at least 6, got 5"):
        run("regression_films.py", "--ct", "phantom", "--steps", "5")
