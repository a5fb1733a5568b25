"""Many networks: the table, one job, and a local Ray of two workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_training import body, settings

from xreg.errors import BackendError, FileError
from xreg.regression import Regressor
from xreg.regression.many import read_jobs, run_job, train_many

HEADER = "name,ct,range\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two CTs, one file that is none, and a table of all three."""
    path = tmp_path_factory.mktemp("many")
    volume = body()
    volume.save(path / "a.nii.gz", units="hu")
    volume.crop([(4, 40), (0, 32), (4, 36)]).save(path / "b.nii.gz", units="hu")
    (path / "broken.nii.gz").write_bytes(b"no CT")
    rows = "anna,a.nii.gz,primary=-20:20 roll=5\nben,b.nii.gz,\ncleo,broken.nii.gz,\n"
    (path / "table.csv").write_text(HEADER + rows)
    return path


def test_a_table_of_jobs(folder: Path) -> None:
    anna, ben, cleo = read_jobs(folder / "table.csv")
    assert anna.box.primary == (-20, 20)
    assert anna.box.roll == (-5, 5)
    assert ben.box.primary == (-45, 45)
    assert Path(anna.ct) == folder / "a.nii.gz"
    assert (anna.mask, anna.start, cleo.name) == (None, None, "cleo")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "header"),
        ("name,ct\n", "header"),
        ("name,path\na,a.nii.gz\n", "header"),
        ("name,ct,speed\na,a.nii.gz,9\n", "header"),
        (HEADER + "a,nothing.nii.gz,\n", "exists"),
        (HEADER + "a,,\n", "exists"),
        (HEADER + "../a,a.nii.gz,\n", "name"),
        (HEADER + ",a.nii.gz,\n", "name"),
        (HEADER + "a,a.nii.gz,\na,b.nii.gz,\n", "repeated"),
        (HEADER + "a,a.nii.gz,tilt=3\n", "line 2"),
        ("name,ct,preset\na,a.nii.gz,knee\n", "preset"),
    ],
)
def test_tables_that_are_none(folder: Path, text: str, said: str) -> None:
    table = folder / "wrong.csv"
    table.write_text(text)
    with pytest.raises(FileError, match=said):
        read_jobs(table)


def test_one_job_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    anna, _, cleo = read_jobs(folder / "table.csv")
    known = settings(steps=2)
    first, again = (run_job(anna, known, str(tmp_path)) for _ in range(2))
    assert (first.steps, again.steps, first.error) == (2, 2, None)
    assert again.validation == first.validation
    assert "broken.nii.gz" in run_job(cleo, known, str(tmp_path)).error


def test_without_ray(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match="pip install 'xreg\\[cluster\\]'"):
        train_many(read_jobs(folder / "table.csv"), settings(), tmp_path)


@pytest.mark.slow  # starts Ray and two workers
def test_two_workers_of_a_local_ray(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    words = ["train-many", folder / "table.csv", "-o", tmp_path / "nets", "--workers", 2, "--steps", 2]
    words += ["--size", 32, "--batch", 8, "--grid", 16, "--json"]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "xreg.cli", *map(str, words)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # one CT is broken; the others do not mind
    found = json.loads(done.stdout)
    assert [one["name"] for one in found["trained"]] == ["anna", "ben", "cleo"]
    assert [one["steps"] for one in found["trained"]] == [2, 2, 0]
    assert found["failed"] == 1
    assert "broken.nii.gz" in found["trained"][2]["error"]
    for name in ("anna", "ben"):
        assert Regressor.load(tmp_path / "nets" / name).facts["step"] == 2
