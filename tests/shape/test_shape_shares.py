"""What single voxels may be: the compact form is the dense one."""

import pytest
import torch

from xreg.shape.shares import Shares, aligned, mean


def dense(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows)


ONE = Shares.of(torch.tensor([3, 7]), dense([[0.25, 0.0, 0.75, 0.0], [0.5, 0.0, 0.0, 0.5]]))
TWO = Shares.of(torch.tensor([5, 7]), dense([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]))


def test_labels_that_are_nowhere_are_left_out_and_come_back_as_zero() -> None:
    assert ONE.labels.tolist() == [0, 2, 3]
    assert torch.equal(ONE.columns(range(4)), dense([[0.25, 0.0, 0.75, 0.0], [0.5, 0.0, 0.0, 0.5]]))
    assert ONE.of_label(1).tolist() == [0.0, 0.0]
    assert ONE.of_label(9).tolist() == [0.0, 0.0]
    assert ONE.sums() == pytest.approx({0: 0.75, 2: 0.75, 3: 0.5})
    assert ONE.best().tolist() == [2, 0]
    nothing = Shares.of(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert nothing.labels.tolist() == [0]
    assert len(nothing) == 0


def test_opinions_are_brought_to_the_same_voxels_and_labels() -> None:
    both = aligned([ONE, TWO])
    assert [run.voxels.tolist() for run in both] == [[3, 5, 7]] * 2
    assert both[1].columns(range(4)).tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1]]
    assert mean(both).columns(range(4))[2].tolist() == [0.25, 0, 0, 0.75]
    assert mean([ONE]) is ONE
    assert aligned([ONE]) == [ONE]
    torch.testing.assert_close(mean(both).values.sum(1), torch.ones(3))


def test_one_opinion_is_put_in_anothers_place() -> None:
    both = ONE.but(TWO.on(TWO.voxels, torch.tensor([0, 1, 2, 3])))
    assert both.voxels.tolist() == [3, 5, 7]
    assert both.columns(range(4)).tolist() == [[0.25, 0, 0.75, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1]]
    nothing = Shares.of(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert nothing.on(torch.tensor([2, 4]), torch.tensor([0, 1])).values.tolist() == [[1.0, 0.0]] * 2
    assert ONE.on(torch.tensor([7]), ONE.labels).values.tolist() == [[0.5, 0.0, 0.5]]  # fewer voxels


def test_unknown_labels_and_unlikely_voxels_go() -> None:
    known = torch.tensor([True, True, False, True])
    assert ONE.only(known).labels.tolist() == [0, 3]
    assert ONE.only(known).values.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert ONE.values[0, 0] == 0.25  # the original stays
    assert ONE.only(torch.ones(4, dtype=torch.bool)) is ONE
    assert ONE.likely(0.6).voxels.tolist() == [3]


def test_doubt_is_the_entropy() -> None:
    expected = torch.distributions.Categorical(probs=ONE.values).entropy()
    torch.testing.assert_close(ONE.entropy(), expected, atol=1e-5, rtol=1e-5)
