"""Bones of an atlas in a scene: how they move, what they fill, the shadows they cast, where they start."""

from dataclasses import replace
from functools import partial

import pytest
import roma
import torch
from bone_case import ALL, GRID, SHAPE, bodies, doubtful, films_of, one_patient, two_patients

from xreg.io import VoxelGrid
from xreg.shape.atlas import Atlas, build_atlas
from xreg.shape.bone_fit import _skew
from xreg.shape.moves import Moves, products
from xreg.shape.networks.views import fitted
from xreg.shape.scene import Scene, overlap, shadow_groups
from xreg.shape.schemes import SCHEMES
from xreg.shape.shadows import Canvas, _moved, alike, spine_sought
from xreg.shape.shipped import grid_camera
from xreg.shape.sources import Member


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return one_patient()


def test_moves_carry_a_bone_where_they_say(atlas) -> None:
    scene = Scene.of(doubtful(bodies(), 0), atlas, GRID, 1)
    still = scene.still
    filled = scene.filled(still)[0][1]
    assert float(overlap(filled, scene.wanted[1])) > 0.9
    moved = replace(still, shift=torch.tensor([[0.0, 0, 0], [0.0, 0, 0.2], [0.0, 0, 0]]))
    higher = scene.filled(moved)[0][1]
    z = scene.points[1][:, 2]
    rise = float((higher * z).sum() / higher.sum() - (filled * z).sum() / filled.sum())
    assert rise == pytest.approx(0.2 * float(scene.size[1]), rel=0.1)
    grown = replace(still, grow=torch.full((3, 3), 0.1))
    assert float(scene.filled(grown)[0][1].sum() / filled.sum()) == pytest.approx(1.1**3, rel=0.06)


def test_points_are_moved_as_moves_say() -> None:
    """One map of a point's products is shift, turn, growth and bend, one after the other."""
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: 0.3 * torch.randn(shape, generator=random)  # noqa: E731
    moves = Moves(draw(2, 3), draw(2, 3), draw(2, 3), draw(2, 3, 6), draw(2, 1))
    reach, points = 1 + draw(2, 3).abs(), draw(50, 3)
    pose = moves.pose(reach)
    for bone in range(2):
        turn = roma.rotvec_to_rotmat(moves.turn[bone])
        y = (points - moves.shift[bone]) @ turn * torch.exp(-moves.grow[bone])
        a, b, c = (y / reach[bone]).T
        bent = torch.stack([a * a, b * b, c * c, a * b, b * c, c * a]).T @ moves.bend[bone].T
        wanted = y + bent * reach[bone].mean()
        torch.testing.assert_close(products(points) @ pose.maps[bone], wanted, atol=1e-5, rtol=1e-4)


def test_a_sacrum_lies_between_the_hips_and_turns_with_them() -> None:
    """Moved or turned alone, it pays; all that tilts free is one of an atlas that knows no pelvis."""
    labels = torch.zeros(SHAPE, dtype=torch.int16)
    places = {"sacrum": (slice(10, 18), slice(6, 10), slice(10, 18))}
    places |= {"hip_left": (slice(8, 20), slice(8, 20), slice(3, 9))}
    places |= {"hip_right": (slice(8, 20), slice(8, 20), slice(19, 25))}
    for name, box in places.items():
        labels[box] = ALL.index(name)
    scene = Scene.of(doubtful(labels, names=ALL), build_atlas([Member("p", "all", labels, GRID)]), GRID, 1)
    assert [scene.names[n] for n in scene.pelvis] == list(places)
    sacrum, *hips = scene.pelvis

    def cost(part: str, bones, by, scene=scene) -> float:
        moves = scene.still
        getattr(moves, part)[bones] = torch.tensor(by)
        return float(_skew(scene, moves))

    assert cost("shift", sacrum, [0.0, 0.0, 0.0]) == pytest.approx(0.0, abs=0.05)
    up = 0.2 * float(scene.size[sacrum])
    assert cost("shift", sacrum, [0.0, 0.0, 0.2]) == pytest.approx((up / 4.0) ** 2, rel=0.2)
    assert cost("turn", sacrum, [0.3, 0.0, 0.0]) == pytest.approx(9.0, rel=0.02)
    scene = replace(scene, ring=None)
    cost = partial(cost, scene=scene)
    assert cost("shift", sacrum, [0.0, 0.3, -0.2]) == pytest.approx(0.0, abs=1e-6)
    off = 0.1 * float(scene.size[sacrum])
    assert cost("shift", sacrum, [0.1, 0.0, 0.0]) == pytest.approx((off / 4.0) ** 2, rel=1e-3)
    assert cost("turn", sacrum, [0.3, 0.0, 0.0]) == pytest.approx(0.0, abs=1e-6)
    assert cost("turn", sacrum, [0.0, 0.0, 0.14]) == pytest.approx(4.0, rel=1e-3)
    assert cost("turn", [sacrum, *hips], [0.0, 0.1, 0.2]) == pytest.approx(0.0, abs=1e-6)
    assert Scene.of(doubtful(bodies()), one_patient(), GRID, 1).pelvis == ()


def test_gradients_of_the_shadows(atlas) -> None:
    scene = Scene.of(doubtful(bodies()), atlas, GRID, 1)
    camera = grid_camera(GRID, 1)
    weights = torch.rand(4, *camera.size, generator=torch.Generator().manual_seed(0))
    shift = torch.zeros(3, 3, requires_grad=True)

    def value(by):
        moves = replace(scene.still, shift=by)
        return (weights * Canvas.of(scene, [camera]).group_shadows(scene.filled(moves)[0])[0]).sum()

    value(shift).backward()
    for bone, axis in ((0, 2), (2, 0)):
        step = torch.zeros(3, 3)
        step[bone, axis] = 0.001  # the lattice of distances has cells of 0.06: kinks must not lie between
        slope = float(value(step) - value(-step)) / 0.002
        assert float(shift.grad[bone, axis]) == pytest.approx(slope, rel=0.05)


def test_bones_that_left_the_grid_cast_no_shadow(atlas) -> None:
    scene = Scene.of(doubtful(bodies()), atlas, GRID.binned(2), 2)
    gone = replace(scene.still, shift=torch.tensor([[20.0, 0, 0], [0, 0, 0], [0, 0, 0]]))
    some = scene.closer(gone, GRID)
    assert [len(voxels) > 0 for voxels in some.voxels] == [False, True, True]
    none = scene.closer(replace(gone, shift=torch.full((3, 3), 20.0)), GRID)
    assert not Canvas.of(none, [grid_camera(GRID, 1)]).shadow(none.filled(gone)[0]).any()
    shadow = Canvas.of(some, [grid_camera(GRID, 1)]).shadow(some.filled(gone)[0])
    assert float(shadow.max()) > 0.5


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_both_sides_cast_one_shadow_and_neighbours_do_not(name: str) -> None:
    names = SCHEMES[name]
    group = shadow_groups(names)
    assert torch.equal(group, group[names.mirror])
    for row in ("spine", "ribs_left", "ribs_right"):
        own = group[list(names.groups.get(row, ()))]
        assert bool((own[1:] != own[:-1]).all())


def test_a_mixture_that_settled_lies_as_before() -> None:
    scene = Scene.of(doubtful(bodies()), two_patients(), GRID, 1)
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(3, 6, generator=random)
    moves = replace(scene.still, mix=mix, bend=torch.full((3, 3, 6), 0.02))
    settled, alone = scene.settled(moves)
    assert alone.mix.shape == (3, 1)
    for wanted, got in zip(scene.filled(moves), settled.filled(alone), strict=True):
        torch.testing.assert_close(torch.cat(got), torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_on_a_finer_grid_bones_are_told_close_by_and_cast_the_same_shadow(atlas) -> None:
    coarse = GRID.binned(2)
    scene = Scene.of(doubtful(bodies()), atlas, coarse, 2)
    finer = scene.closer(scene.still, GRID)
    assert finer.coarse is coarse
    everywhere = Scene.of(doubtful(bodies()), atlas, GRID, 1)
    pose = scene.pose(scene.still)
    for bone, voxels in enumerate(finer.voxels):
        flat, points = everywhere.voxels[bone], everywhere.points[bone]
        logit = scene.at(pose, bone, scene.products_of(bone, points), GRID)[0]
        assert torch.equal(voxels, flat[logit > -4.0])  # none is lost by looking at blocks first
    for voxels, blocks, points in zip(finer.voxels, finer.blocks, scene.points, strict=True):
        fine, block = (torch.stack(torch.unravel_index(flat, grid.shape)) for flat, grid in
                       ((voxels, GRID), (blocks, coarse)))  # fmt: skip
        assert torch.equal(fine // 2, block)
        assert len(voxels) < 8 * len(points)
    filled = finer.filled(scene.still)[0]
    whole = Scene.of(doubtful(bodies()), atlas, GRID, 1)
    truth = whole.filled(replace(whole.still, shift=(scene.place - whole.place) / whole.size[:, None]))[0]
    cameras = [grid_camera(coarse, 1)]
    near = Canvas.of(finer, [grid_camera(GRID, 1)]).group_shadows(filled)
    same = Canvas.of(whole, [grid_camera(GRID, 1)]).group_shadows(truth)
    assert float((near - same).abs().max()) < 0.05 * float(same.max())
    blocks = Canvas.of(finer, cameras, blocks=True).group_shadows(filled)
    mean = torch.nn.functional.avg_pool2d(near, 2)
    assert float((blocks - mean).abs().max()) < 0.05 * float(mean.max())


def test_an_image_is_moved_by_whole_pixels() -> None:
    image = torch.arange(12.0).view(3, 4)
    assert torch.equal(_moved(image, 0, 0), image)
    assert torch.equal(_moved(image, 1, -1), torch.tensor([[0.0, 4, 5, 6], [0, 8, 9, 10], [0, 0, 0, 0]]))
    assert torch.equal(_moved(image, -3, 2), torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0]]))
    assert not _moved(image, 9, 0).any()


@pytest.mark.parametrize(("top", "bottom"), [(12.0, 12.0), (12.0, 0.0), (0.0, -12.0)])
def test_a_spine_is_sought_where_its_shadow_lies(atlas, top: float, bottom: float) -> None:
    """Shifted to the front, or with one end further to it than the other."""
    away = torch.tensor([[0.0, y, 0.0] for y in (top, (top + bottom) / 2, bottom)])
    labels = torch.zeros(SHAPE, dtype=torch.int16)
    for number, shift in zip((20, 21, 22), away.tolist(), strict=True):
        labels[bodies(shift=shift) == number] = number
    films, cameras = films_of(labels)
    scene = Scene.of(doubtful(bodies()), atlas, GRID, 1)
    moved = spine_sought(scene, *fitted(films, cameras, GRID)).place - scene.place
    torch.testing.assert_close(moved, away, atol=4.1, rtol=0.0)
    fits = [float((p - away).norm(dim=1).mean()) for p in (moved, torch.zeros(3, 3))]
    assert fits[0] < 0.4 * fits[1]


def test_a_single_film_moves_a_spine_across_its_beam_alone(atlas) -> None:
    films, cameras = films_of(bodies(shift=(8.0, 0.0, 0.0)))
    scene = Scene.of(doubtful(bodies()), atlas, GRID, 1)
    moved = spine_sought(scene, films[:1], cameras[:1]).place - scene.place
    torch.testing.assert_close(moved, torch.tensor([[8.0, 0.0, 0.0]]).expand(3, 3), atol=4.1, rtol=0.0)


def test_maps_count_at_any_scale() -> None:
    maps = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0))
    maps[2] = 0.0  # no bone of this group was found
    assert float(alike(0.5 * maps, maps)) == pytest.approx(1.0, abs=1e-6)
    assert float(alike(maps.flip(-1), maps)) < 0.9
    assert float(alike(maps, torch.zeros_like(maps))) == 0.0


@pytest.mark.parametrize("axis", [0, 2])
def test_voxels_about_a_bone_hold_it_on_an_oblique_grid(atlas, axis: int) -> None:
    upright = Scene.of(doubtful(bodies(), 0), atlas, GRID, 1)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = roma.rotvec_to_rotmat(0.7 * torch.eye(3, dtype=torch.float64)[axis])
    middle = torch.eye(4, dtype=torch.float64)
    middle[:3, 3] = GRID.center
    askew = VoxelGrid(GRID.shape, middle @ turn @ torch.linalg.inv(middle) @ GRID.affine)
    scene = replace(upright, grid=askew, said=tuple(torch.zeros(SHAPE) for _ in upright.names))
    own = [float(part.sum()) for part in upright.filled(upright.still)[0]]
    seen = [float(part.sum()) for part in scene.filled(scene.still)[0]]
    assert seen == pytest.approx(own, rel=0.03)
