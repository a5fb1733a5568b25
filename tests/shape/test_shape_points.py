"""Voxels that a training compares: unbiased sums over the grid, rare labels seen as well as common ones."""

import pytest
import shape_case
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.shape import losses
from xreg.shape.networks import Lattice
from xreg.shape.points import Points


def draw(labels: torch.Tensor, most: int, seed: int = 0) -> Points:
    return Points.draw(labels.long()[None], most, torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(*[st.integers(9, 26)] * 3), most=st.integers(4, 40), seed=st.integers(0, 99))
def test_weights_add_up_to_every_label_of_the_grid(shape, most, seed) -> None:
    labels = shape_case.body(seed, shape)
    points = draw(labels, most, seed)
    own, weight = points.take(labels.long()[None])[0], points.weight[0]
    for label in labels.unique().long().tolist():
        assert float(weight[own == label].sum()) == pytest.approx(int((labels == label).sum()), rel=1e-4)
        if label:
            assert int((own == label).sum()) == min(most, int((labels == label).sum()))


def test_places_are_those_of_the_voxels() -> None:
    labels = shape_case.body()
    points = draw(labels, 16)
    i, j, k = points.index()[0].long().T
    assert torch.equal(points.take(labels[None])[0], labels[k, j, i])
    whole = Lattice(labels.shape).index()
    assert torch.equal(points.index()[0], whole[points.flat[0]])
    channels = torch.stack([labels, 2 * labels])[None]
    assert torch.equal(points.take(channels)[0, 1], 2 * labels[k, j, i])


def test_sums_over_points_estimate_sums_over_the_grid() -> None:
    """Of a field, by 200 drawings, near bones and elsewhere; and the Dice of soft answers."""
    labels = shape_case.body()
    field = torch.rand(labels.shape, generator=torch.Generator().manual_seed(5)) + (labels > 0)
    found = []
    for seed in range(200):
        points = draw(labels, 8, seed)
        found.append(float((points.take(field[None]) * points.weight).sum()))
    error = torch.tensor(found).std() / 200**0.5
    assert float(torch.tensor(found).mean()) == pytest.approx(float(field.sum()), abs=4 * float(error))
    one = F.one_hot(labels.long(), 26).permute(3, 0, 1, 2)[None].float()
    soft = F.avg_pool3d(one, 3, 1, 1)
    known = torch.ones(1, 26, dtype=torch.bool)
    dense = losses.dice_loss(soft.flatten(2), labels.long().reshape(1, -1), known)
    points = draw(labels, 128)
    some = losses.dice_loss(points.take(soft), points.take(labels.long()[None]), known, points.weight)
    assert float(some) == pytest.approx(float(dense), abs=0.02)


def test_a_batch_is_padded_with_what_weighs_nothing() -> None:
    labels = shape_case.body()
    fewer = torch.where(labels == 20, labels, 0)
    both = Points.draw(torch.stack([labels, fewer]).long(), 16, torch.Generator().manual_seed(0))
    assert both.flat.shape == both.weight.shape
    for row in both.weight:
        assert float(row.sum()) == pytest.approx(labels.numel(), rel=1e-4)


def test_grids_without_bone_and_full_of_it() -> None:
    nothing, full = torch.zeros(8, 9, 10), torch.full((8, 9, 10), 3)
    assert float(draw(nothing, 8).weight.sum()) == pytest.approx(720)
    points = draw(full, 8)
    assert points.counts == (8,)
    assert float(points.weight.sum()) == pytest.approx(720)
