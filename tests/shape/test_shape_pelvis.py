"""How a sacrum lies between the hips: learned from tilted patients, the same however they are tilted."""

import math

import pytest
import roma
import torch

from xreg.io import VoxelGrid
from xreg.shape.atlas import Atlas, build_atlas
from xreg.shape.moves import Moves, products
from xreg.shape.pelvis import PELVIS, PelvicRing
from xreg.shape.schemes import scheme
from xreg.shape.sources import Member

ALL = scheme("all")
GRID = VoxelGrid.box((56, 48, 64), (192.0, 144.0, 168.0))
# middle (mm), half axes (mm) and tilt (rad) of each bone of a pelvis that is not tilted
BONES = {
    "sacrum": ((0.0, -30.0, 25.0), (20.0, 12.0, 32.0), 0.6),
    "hip_left": ((-65.0, 6.0, -8.0), (12.0, 20.0, 50.0), -0.2),
    "hip_right": ((65.0, 6.0, -8.0), (12.0, 20.0, 50.0), -0.2),
}
OFFSET = torch.tensor([0.0, -36.0, 33.0], dtype=torch.float64)  # between the middles above


def about_x(angle: float) -> torch.Tensor:
    return roma.rotvec_to_rotmat(torch.tensor([angle, 0.0, 0.0], dtype=torch.float64))


def patient(name: str, angle: float, bones=tuple(BONES)) -> Member:
    """A pelvis turned by an angle about the axis to the right."""
    index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in GRID.shape), indexing="ij"), -1).flip(-1)
    world = index.double() @ GRID.affine[:3, :3].double().T + GRID.affine[:3, 3].double()
    labels = torch.zeros(GRID.shape, dtype=torch.int16)
    for bone in bones:
        middle, axes, tilt = BONES[bone]
        turn = about_x(angle - tilt)  # a tilt to the front is a turn the other way
        place = about_x(angle) @ torch.tensor(middle, dtype=torch.float64)
        local = (world - place) @ turn / torch.tensor(axes, dtype=torch.float64)
        labels[local.square().sum(-1) < 1] = ALL.index(bone)
    return Member(name, "all", labels, GRID)


def size_of(member: Member) -> float:
    return (int((member.labels == ALL.index("hip_left")).sum()) * GRID.voxel_mm3) ** (1 / 3)


@pytest.fixture(scope="module")
def tilted() -> list[Member]:
    return [patient("a", 0.1), patient("b", -0.2)]


def test_patients_who_are_tilted_have_one_ring(tilted) -> None:
    ring = PelvicRing.of(tilted, ALL)
    wanted = about_x(-0.05) @ OFFSET / size_of(tilted[0])  # as both are in the mean
    torch.testing.assert_close(torch.tensor(ring.offset, dtype=torch.float64), wanted, atol=0.01, rtol=0)
    assert abs(ring.tilt) < 0.01


def test_a_sacrum_of_others_does_not_tilt_the_ring(tilted) -> None:
    """An atlas' mean sacrum is then tilted further; the ring says how far back its own are."""
    ring = PelvicRing.of([*tilted, patient("c", 0.4, bones=("sacrum",))], ALL)
    usual = (0.1 - 0.2 + 0.4) / 3
    assert ring.tilt == pytest.approx(-0.05 - usual, abs=0.01)


@pytest.mark.parametrize("angle", [-0.3, 0.0, 0.25])
def test_a_pelvis_that_is_turned_as_one_lies_right(tilted, angle: float) -> None:
    ring = PelvicRing.of(tilted, ALL)
    middles = torch.tensor([BONES[name][0] for name in PELVIS], dtype=torch.float64)
    places = middles @ about_x(angle).T
    turn = torch.zeros(3, 3, dtype=torch.float64)
    turn[:, 0] = angle + 0.05  # the atlas' is turned by -0.05
    size = torch.tensor(size_of(tilted[0]))
    assert float(ring.off(places, turn, size)) < 0.2
    alone = turn.clone()
    alone[0, 0] += 0.2
    assert float(ring.off(places, alone, size)) == pytest.approx(4.0, rel=0.3)
    places[0, 2] += 8.0
    assert float(ring.off(places, turn, size)) == pytest.approx(4.0, rel=0.3)


def test_gradients_of_how_far_it_is_off() -> None:
    ring = PelvicRing((0.0, -0.5, 0.4), -0.1)
    draw = torch.Generator().manual_seed(0)
    places = torch.tensor([BONES[name][0] for name in PELVIS], dtype=torch.float64, requires_grad=True)
    turns = (0.2 * torch.randn(3, 3, generator=draw, dtype=torch.float64)).requires_grad_()
    size = torch.tensor(70.0, dtype=torch.float64, requires_grad=True)
    right = places.detach()  # the axis to the right is that of the hips where they start
    assert torch.autograd.gradcheck(
        lambda at, turn, edge: ring.off(torch.stack([at, right[1], right[2]]), turn, edge),
        (places.detach()[0].requires_grad_(), turns, size),
    )


def test_a_turn_of_a_bone_turns_it_that_way() -> None:
    """The convention that a ring relies on: `Moves.turn` takes the atlas' bone to where it lies."""
    moves = Moves.none(1, 1)
    moves.turn[0, 0] = 0.3
    place = torch.tensor([[0.1, 0.2, 0.4]])
    lying = place @ about_x(0.3).float().T
    pose = moves.pose(torch.ones(1, 3))
    torch.testing.assert_close(products(lying) @ pose.maps[0], place)


def test_without_whole_bones_there_is_none(tilted) -> None:
    assert PelvicRing.of([patient("c", 0.0, bones=("sacrum", "hip_left"))], ALL) is None
    assert PelvicRing.of(tilted, scheme("spine")) is None
    cut = tilted[0]._replace(labels=tilted[0].labels[:, :, 10:])
    assert PelvicRing.of([cut], ALL) is None


def test_an_atlas_keeps_it(tilted, tmp_path) -> None:
    atlas = build_atlas(tilted)
    assert atlas.pelvis == PelvicRing.of(tilted, ALL)
    atlas.save(tmp_path)
    assert Atlas.load(tmp_path).pelvis == atlas.pelvis
    none = build_atlas([patient("c", 0.0, bones=("sacrum",))])
    none.save(tmp_path)
    assert Atlas.load(tmp_path).pelvis is None
    assert math.isfinite(atlas.pelvis.tilt)
