"""Bones in other bodies: bone stays bone, and what lies about it is another patient's."""

from dataclasses import replace

import pytest
import torch

from xreg.io import VoxelGrid
from xreg.shape.patients import AIR, SOFT, Patient
from xreg.shape.population import draw_sample
from xreg.shape.sources import Population
from xreg.shape.tissue import covers, in_body_of

SHAPE = (24, 20, 16)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def patient(name: str, tissue: float, edge: float = 4.0, bone: int = 20) -> Patient:
    """A block of one tissue with a bone in its middle and some dense matter without a label."""
    hu = torch.full(SHAPE, tissue)
    labels = torch.zeros(SHAPE, dtype=torch.int16)
    labels[10:14, 8:12, 6:10] = bone
    hu[labels > 0] = 60.0  # as low as marrow
    hu[3:5, 3:5, 3:5] = 400.0
    return Patient(hu, labels, VoxelGrid.box(SHAPE, tuple(edge * n for n in SHAPE[::-1])), name, "spine")


def test_bones_stay_and_the_rest_is_the_others() -> None:
    own, other = patient("a", 30.0), patient("b", -80.0)
    made = in_body_of(own.hu, own.labels, own.grid, other, seeded(0))
    bone = (own.labels > 0) | (own.hu > 300)
    assert torch.equal(made[bone], own.hu[bone])
    around = made[~bone]
    assert float(around.max()) < 130.0  # the other's bones are soft tissue, but for what is hardly bone
    assert float((around + 80.0).abs().median()) < 1e-3
    assert float((around == SOFT).float().mean()) < 0.2
    assert not bool((around == 30.0).any())


@pytest.mark.parametrize("seed", range(5))
def test_a_body_fills_the_field(seed: int) -> None:
    """A smaller body is stretched, a larger one is shifted no further than its border."""
    own = patient("a", 30.0)
    for edge in (3.0, 4.0, 7.0):
        made = in_body_of(own.hu, own.labels, own.grid, patient("b", -80.0, edge), seeded(seed))
        assert float(made.min()) > AIR / 2


def test_labels_do_not_depend_on_the_body() -> None:
    own, other = patient("a", 30.0), patient("b", -80.0)
    alone, inside, again = (draw_sample(own, seeded(4), body=b) for b in (None, other, other))
    assert torch.equal(alone.labels, inside.labels)
    assert torch.equal(inside.films, again.films)
    assert not torch.equal(alone.films, inside.films)


def test_only_bodies_that_are_large_enough_are_taken() -> None:
    own = patient("a", 30.0)
    assert covers(patient("b", 0.0, 3.0), own.grid)
    assert not covers(patient("b", 0.0, 2.0), own.grid)
    small = Population([own, replace(patient("b", 0.0, 0.5), labels=own.labels * 0)], toward=0.0, bodies=1.0)
    assert all(small._body(own, [small.patients[1]], seeded(s)) is None for s in range(5))
    either = Population([own, patient("b", 0.0)], toward=0.0, bodies=0.5)
    chosen = [either._body(own, [either.patients[1]], seeded(s)) is not None for s in range(40)]
    assert 8 < sum(chosen) < 32
    assert Population([own])._body(own, [own], seeded(0)) is None
    one, two = (either.sample(7) for _ in range(2))
    assert torch.equal(one.films, two.films)
