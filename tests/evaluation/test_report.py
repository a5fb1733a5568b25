import builtins
import json
import math

import numpy as np
import pytest
from PIL import Image

from xreg.errors import BackendError, XregError
from xreg.evaluation import parse_gate, summarise, write_report
from xreg.evaluation.summary import FIGURES


def record(n, mtre, method="m", **known):
    made = {"case": f"c{n}", "method": method, "start": 0, "status": "done", "seconds": 2.0 + n}
    return {**made, "start_mtre_mm": 1.0 + n, "mtre_mm": mtre, "nees": None, "accepted": None, **known}


def failure(n, method="m", **known):
    made = {"case": f"c{n}", "method": method, "start": 0, "status": "failed", "seconds": 0.1}
    return {**made, "error": {"type": "FileError", "message": "no such\nfile"}, **known}


@pytest.fixture
def records():
    """Four right, one wrong, one far off and one without an answer; the verdict takes one wrong for right."""
    judged = {"accepted": True, "probability": 0.9}
    return [
        record(0, 0.5, nees=3.0, **judged),
        record(1, 1.0, nees=5.0, **judged),
        record(2, 1.5, nees=40.0, **judged),
        record(3, 2.0, nees=None, nees_infinite=True, accepted=False, probability=0.2),
        record(4, 6.0, nees=6.0, **judged),
        record(5, 20.0, accepted=False, probability=0.1),
        failure(6, start_mtre_mm=7.0),
    ]


def test_the_figures_are_what_the_trials_say(records):
    found = summarise(records)["m"]
    assert list(found) == [*FIGURES, "curves"]
    assert (found["trials"], found["failed"]) == (7, 1)
    assert found["success"] == pytest.approx(4 / 7)
    assert found["gross_failure"] == pytest.approx(2 / 7)
    assert found["mtre_median_mm"] == pytest.approx(1.75)
    assert found["mtre_max_mm"] == 20.0
    assert found["start_mtre_median_mm"] == 4.0
    assert found["capture_range_mm"] == 4.0  # starts at 1 … 7 mm; that at 5 fails, in the bin from 4
    assert found["accepted"] == pytest.approx(4 / 6)
    assert found["accepted_but_wrong"] == pytest.approx(1 / 4)
    assert found["rejected_but_right"] == pytest.approx(1 / 2)
    assert found["auc"] == pytest.approx((3 * 0.5 + 3 + 0 + 1) / 8)  # ties a half, by pairs
    assert found["coverage95"] == pytest.approx(3 / 4)  # of those not rejected
    assert found["nees_median"] == 5.5
    certain = summarise([*records, record(7, 0.5, nees_infinite=True)])["m"]
    assert certain["coverage95"] == pytest.approx(3 / 5)
    assert found["seconds_median"] == 4.5
    assert found["mpe_median_mm"] is None
    assert summarise(records, within_mm=0.9)["m"]["success"] == pytest.approx(1 / 7)
    json.dumps(found, allow_nan=False)


def test_nothing_but_failures_has_figures_too():
    found = summarise([failure(0), failure(1)])["m"]
    assert (found["trials"], found["failed"], found["success"], found["gross_failure"]) == (2, 2, 0.0, 1.0)
    assert found["mtre_median_mm"] is found["capture_range_mm"] is found["auc"] is None
    assert summarise([]) == {}


def test_one_kind_of_answer_has_no_auc():
    found = summarise([record(n, 0.1, probability=0.5 + n / 10) for n in range(3)])["m"]
    assert found["auc"] is None
    assert "roc" not in found["curves"]


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("success>=0.5", False),
        ("a.success>=0.5", True),
        ("b.success >= 0.5", False),
        ("mtre_max_mm<9", True),
        ("failed<=0", False),
        ("trials>1", True),
        ("auc>0", False),
    ],
)
def test_gates(text, held):
    records = [record(0, 1.0, "a"), record(1, 1.0, "a"), record(0, 8.0, "b"), failure(1, "b")]
    assert parse_gate(text, ["a", "b"]).holds(summarise(records)) is held


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("success", "must read like"),
        ("success=1", "must read like"),
        ("success>=most", "must read like"),
        ("success>=nan", "must read like"),
        ("speed>=1", "no figure is named 'speed'; the figures are trials"),
        ("c.success>=1", "not run; these are a, b"),
    ],
)
def test_a_gate_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(XregError, match=message):
        parse_gate(text, ["a", "b"])
    assert str(parse_gate(" a.success >= 0.90 ", ["a"])) == "a.success>=0.9"


def test_the_report_is_json_text_and_a_picture(records, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'xreg[evaluate]'")
    gates = [parse_gate("success>=0.9", ["m"]), parse_gate("failed<=1", ["m"])]
    records += [record(n, 0.3, "other|b") for n in range(2)]
    made = write_report(tmp_path, records, manifest="cases.json", gates=gates)
    assert made["gates"] == {"success>=0.9": False, "failed<=1": True}
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["schema"] == "xreg.evaluation/1"
    assert stored["methods"]["m"]["success"] == pytest.approx(4 / 7)
    assert stored["machine"]["cores"] > 0
    text = (tmp_path / "report.md").read_text()
    assert "| figure | m | other\\|b | meaning |" in text
    assert "| `success` | 57.1 % | 100.0 % |" in text
    assert "- **failed**: `success>=0.9`" in text
    assert "| c5 | m | 0 | 6 mm | 20 mm | no |" in text
    assert "- c6, m, start 0: FileError: no such file" in text
    assert text.count("](report.png)") == 1
    with Image.open(tmp_path / "report.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape == (900, 1500)
    halves = [np.hsplit(row, 3) for row in np.vsplit(pixels, 2)]
    assert all((panel < 128).mean() > 0.002 for row in halves for panel in row), "every panel shows something"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["report.json", "report.md", "report.png"]


def test_a_picture_of_other_trials_does_not_stay(records, tmp_path):
    write_report(tmp_path, records)
    assert (tmp_path / "report.png").is_file()
    write_report(tmp_path, records, plots=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_numbers_that_json_lacks_leave_an_earlier_report_whole(records, tmp_path):
    write_report(tmp_path, records)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(XregError, match="within_mm"):
        write_report(tmp_path, records, within_mm=math.nan)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_empty_panels_are_drawn_too(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'xreg[evaluate]'")
    write_report(tmp_path, [failure(0), failure(1)])
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_without_matplotlib_the_extra_is_named_and_the_rest_works(records, tmp_path, monkeypatch):
    real = builtins.__import__

    def no_matplotlib(name, *rest, **known):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **known)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(BackendError, match=r"pip install 'xreg\[evaluate\]'"):
        write_report(tmp_path, records)
    assert not list(tmp_path.iterdir())
    write_report(tmp_path, records, plots=False)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert "report.png" not in (tmp_path / "report.md").read_text()
    assert math.isfinite(json.loads((tmp_path / "report.json").read_text())["within_mm"])
