"""The benchmark of levels finds what confidences are worth where that is known."""

import pytest
import torch
from benchmark_scripts import FOLDER

SHIFTS = (-2, -1, 0, 1, 2)
WITNESSES = 3.0


@pytest.fixture
def levels(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import shape_levels

    return shape_levels


def rows(count: int, patient: str, seed: int) -> list[dict]:
    """Numberings that are worth three witnesses: true shifts are drawn by them."""
    generator = torch.Generator().manual_seed(seed)
    told = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    told[:, 2] += 0.5
    true = torch.multinomial((WITNESSES * told).softmax(1), 1, generator=generator)[:, 0]
    both = zip(told.tolist(), true.tolist(), strict=True)
    return [{"patient": patient, "numberings": one, "shift": SHIFTS[n]} for one, n in both]


def test_what_numberings_are_worth_is_found(levels) -> None:
    made = [row for n, name in enumerate("abc") for row in rows(600, name, n)]
    found = levels.summary([*made, {"patient": "a", "shift": None}])
    assert found["witnesses"] == pytest.approx(WITNESSES, rel=0.1)
    assert found["by_others"]["cases"] == len(made)
    assert found["by_others"]["confidence"] == pytest.approx(found["by_others"]["right"], abs=0.03)
    assert found["by_others"]["log_loss"] < found["one_witness"]["log_loss"]
    slope = [levels.loss(made, found["witnesses"] * x) for x in (0.8, 1.0, 1.25)]
    assert slope[1] < min(slope[0], slope[2])


def test_certain_and_right_is_judged_so(levels) -> None:
    row = {"patient": "a", "numberings": [-9.0, -9.0, 0.0, -9.0, -9.0], "shift": 0}
    judged = levels.judged([row, {**row, "shift": -1}], [1.0, 1.0])
    assert (judged["right"], judged["taken"], judged["right_of_taken"]) == (0.5, 1.0, 0.5)
    assert judged["brier"] == pytest.approx(0.5, abs=1e-3)


def test_a_shift_beyond_those_told_apart_counts_as_the_furthest(levels) -> None:
    row = {"patient": "a", "numberings": [0.0, 0.0, 0.0, 0.0, 0.0], "shift": 3}
    assert levels.loss([row], 1.0) == pytest.approx(-torch.tensor(0.2).log().item())


def test_what_is_told_stands_in_a_table(levels) -> None:
    import table_shape

    right = {"patient": "a", "numberings": [-2.0, -1.0, 0.0, -1.0, -2.0], "shift": 0}
    rows = [right, {**right, "patient": "b"}, {**right, "patient": "b", "shift": 1}]
    text = table_shape.levels({**levels.summary(rows), "tilt": 10.0})
    assert "| a | 1 | 100 % |" in text
    assert "| all | 3 | 67 % |" in text
    assert "tilted by 10°" in text
