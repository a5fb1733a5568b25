"""An atlas of bones, and its fit to a doubtful prediction: shapes come right, and films move them."""

from dataclasses import replace

import pytest
import shape_case
import torch

from xreg.errors import FileError, ShapeError
from xreg.geometry import Camera
from xreg.io import VoxelGrid
from xreg.shape.atlas import FILE, Atlas, BoneShape, build_atlas
from xreg.shape.films import label_thickness
from xreg.shape.networks.views import fitted
from xreg.shape.predict import DOUBT, prediction_of
from xreg.shape.refine import RefineSettings, _volumes, refine
from xreg.shape.scene import Scene, overlap, shadow_groups
from xreg.shape.schemes import SCHEMES
from xreg.shape.shadows import _moved, alike, group_shadows, spine_sought
from xreg.shape.shares import Shares
from xreg.shape.shipped import grid_camera
from xreg.shape.sources import Member
from xreg.shape.training import mean_dice

ALL, SPINE = SCHEMES["all"], SCHEMES["spine"]
SHAPE, VOXEL = (40, 28, 28), 4.0
GRID = VoxelGrid.box(SHAPE, [n * VOXEL for n in reversed(SHAPE)], (10.0, -5.0, 20.0))


def bodies(shift=(0.0, 0.0, 0.0), turn=0.0, stretch=1.0, spike=37.0) -> torch.Tensor:
    """L1 to L3 as boxes with a spike to the back, about 28 mm wide; moved in mm, turned about x.

    spike: how far back it reaches, mm.
    """
    k, j, i = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in SHAPE), indexing="ij")
    points = torch.stack([i, j, k], -1) @ GRID.affine[:3, :3].T + GRID.affine[:3, 3]
    labels = torch.zeros(SHAPE, dtype=torch.int16)
    c, s = torch.cos(torch.tensor(turn)), torch.sin(torch.tensor(turn))
    for n in range(3):
        middle = torch.tensor([10.0, 0.0, 20.0 + 40.0 * (1 - n)]) + torch.tensor(shift)
        x, y, z = ((points - middle) / stretch).unbind(-1)
        y, z = c * y + s * z, c * z - s * y
        body = (x.abs() < 17) & (y.abs() < 13) & (z.abs() < 11)
        behind = (x.abs() < 5) & (y > -spike) & (y < 0) & (z.abs() < 5)
        labels[body | behind] = 20 + n
    return labels


def doubtful(labels: torch.Tensor, blur: int = 2, names=SPINE):
    """A prediction of these labels that is blurred over a few voxels."""
    one = torch.nn.functional.one_hot(labels.long(), len(names)).movedim(-1, 0).float()
    for _ in range(blur):
        one = torch.nn.functional.avg_pool3d(one[None], 3, 1, 1, count_include_pad=False)[0]
    flat = (one / one.sum(0)).flatten(1).T
    voxels = (flat[:, 0] < 0.98).nonzero()[:, 0]
    return prediction_of([Shares.of(voxels, flat[voxels])], GRID, names)


def films_of(labels: torch.Tensor):
    cameras = (grid_camera(GRID, 1), grid_camera(GRID, 0))
    return shape_case.films_of(labels, GRID, cameras), cameras


@pytest.fixture(scope="module")
def atlas():
    return build_atlas([Member("p", "spine", bodies(), GRID)])


# ---- the atlas ----


def test_distances_are_those_of_the_bone(atlas) -> None:
    bone = atlas.bones["L2"]
    size = float((bodies() == 21).sum() * VOXEL**3) ** (1 / 3)
    assert bone.sizes == pytest.approx((size,))
    index = (bodies() == 21).nonzero().double().mean(0).flip(0)
    middle = GRID.affine[:3, :3] @ index + GRID.affine[:3, 3]
    point = torch.tensor(
        [[10.0, 0.0, 20.0], [10.0 + 27.0, 0.0, 20.0], [10.0, 0.0, 20.0 + 18.0]]
    )  # edges: 16, 12
    alone = torch.ones(1)
    distance, density = bone.at((point - middle.float()) / size, alone)
    found = size * distance
    assert float(found[0]) < -7
    torch.testing.assert_close(found[1:], torch.tensor([11.0, 6.0]), atol=0.7, rtol=0.0)
    far = torch.tensor([[10.0, 0.0, 400.0], [10.0, 0.0, 500.0]])
    away = size * bone.at((far - middle.float()) / size, alone)[0]
    assert float(away[1] - away[0]) == pytest.approx(100.0, abs=1.0)  # it goes on beyond the lattice
    torch.testing.assert_close(density, torch.ones(3))  # there is no CT


def test_densities_are_half_those_of_the_ct() -> None:
    labels = bodies()
    shell = labels.clone()
    shell[torch.nn.functional.max_pool3d(-(labels > 0).float()[None], 3, 1, 1)[0] == -1] = 0
    hu = torch.where(labels == 0, -100.0, torch.where(shell > 0, 645.0, 245.0))
    hu[labels == 20] = 5000.0  # metal
    bones = build_atlas([Member("p", "spine", labels, GRID, hu)]).bones
    mean = float((hu[labels == 21] - 45).mean())
    inside = bones["L2"].at(torch.zeros(1, 3), torch.ones(1))[1]
    assert float(inside) == pytest.approx(0.5 + 0.5 * 200 / mean, abs=0.02)
    outside = bones["L2"].at(torch.tensor([[0.0, -1.0, 0.0]]), torch.ones(1))[1]  # as at the surface
    assert float(outside) == pytest.approx(0.5 + 0.5 * 600 / mean, abs=0.02)
    torch.testing.assert_close(bones["L1"].fields[:, 1], torch.ones_like(bones["L1"].fields[:, 1]))


def test_examples_are_mixed() -> None:
    members = [Member(name, "spine", bodies(stretch=s), GRID) for name, s in (("a", 1.0), ("b", 1.1))]
    bone = build_atlas(members).bones["L2"]
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    one, other, half = (bone.at(points, torch.tensor(w))[0] for w in ([1.0, 0], [0.0, 1], [0.5, 0.5]))
    torch.testing.assert_close(half, (one + other) / 2 - bone.slack)
    assert not torch.allclose(one, other, atol=1e-3)


def test_mixtures_are_as_large_as_their_examples() -> None:
    """Spikes of two patients, one of them turned: the mean of their distances is thin."""
    members = [Member(name, "spine", bodies(turn=t), GRID) for name, t in (("a", -0.5), ("b", 0.5))]
    bone = build_atlas(members).bones["L2"]
    assert bone.slack > 0
    assert 0.5 < bone.kept < 0.95
    lines = [torch.linspace(-1, 1, 60) * r for r in bone.reach.tolist()]
    points = torch.cartesian_prod(*lines)
    one, other, half = (
        int((bone.at(points, torch.tensor(w))[0] < 0).sum()) for w in ([1.0, 0], [0.0, 1], [0.5, 0.5])
    )
    assert half == pytest.approx((one + other) / 2, rel=0.05)


def test_what_has_no_mean_begins_with_an_example(monkeypatch) -> None:
    """Thin plates at different places: an even mixture of them has no inside."""
    line = torch.linspace(-1, 1, 41)
    plates = torch.stack([(line - at).abs() - 0.1 for at in (-0.3, 0.3)])
    fields = plates[:, None, None, None, :].expand(2, 2, 5, 5, 41)
    thin = BoneShape(fields, torch.ones(3), (30.0, 30.0))
    assert thin.kept == 0
    assert thin.slack == pytest.approx(0.2)
    short, long = (bodies(spike=length) for length in (21.0, 45.0))
    atlas = build_atlas([Member("short", "spine", short, GRID), Member("long", "spine", long, GRID)])
    assert not Scene.of(doubtful(short), atlas, GRID, 1).still.mix.any()  # these have a mean
    monkeypatch.setattr(BoneShape, "kept", 0.3)
    for n, labels in enumerate((short, long)):
        begun = Scene.of(doubtful(labels), atlas, GRID, 1).still.mix
        assert begun.argmax(1).tolist() == [n] * 3
        assert float(begun.softmax(1).amax(1).min()) > 0.95


def test_sides_are_mirrored_and_cut_bones_left_out() -> None:
    labels = torch.zeros(SHAPE, dtype=torch.int16)
    left, right = ALL.index("hip_left"), ALL.index("hip_right")
    labels[10:20, 8:20, 4:10] = left
    labels[10:20, 8:12, 2:4] = left  # it leans outwards
    labels[30:, 8:20, 4:10] = ALL.index("L1")  # out of the field
    found = build_atlas([Member("p", "all", labels, GRID)])
    assert set(found.bones) == {"hip_left", "hip_right"}
    a, b = (found.bones[name] for name in ("hip_left", "hip_right"))
    torch.testing.assert_close(a.fields.flip(-1), b.fields, atol=1e-5, rtol=0.0)
    assert not torch.allclose(a.fields, b.fields, atol=0.1)
    assert right != left


def test_parts_of_bones_are_no_examples() -> None:
    part = bodies()
    part[:20, :, :][part[:20] == 21] = 0
    part[:, :14][part[:, :14] == 21] = 0
    found = build_atlas([Member("a", "spine", bodies(), GRID), Member("b", "spine", part, GRID)])
    assert [len(found.bones[n].sizes) for n in ("L1", "L2", "L3")] == [2, 1, 2]


def test_files(atlas, tmp_path) -> None:
    assert Atlas.beside(tmp_path) is None
    atlas.save(tmp_path)
    again = Atlas.beside(tmp_path / "model.safetensors")
    assert (again.patients, again.scheme, list(again.bones)) == (("p",), "spine", ["L1", "L2", "L3"])
    torch.testing.assert_close(again.bones["L1"].fields, atlas.bones["L1"].fields, atol=2e-3, rtol=0.0)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-100])
    with pytest.raises(FileError, match="damaged"):
        Atlas.load(tmp_path)


def test_what_makes_no_atlas() -> None:
    with pytest.raises(ShapeError, match="one label scheme"):
        build_atlas([])
    with pytest.raises(ShapeError, match="whole bone"):
        build_atlas([Member("p", "spine", torch.zeros(SHAPE, dtype=torch.int16), GRID)])


# ---- moves ----


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


def test_gradients_of_the_shadows(atlas) -> None:
    scene = Scene.of(doubtful(bodies()), atlas, GRID, 1)
    camera = grid_camera(GRID, 1)
    weights = torch.rand(4, *camera.size, generator=torch.Generator().manual_seed(0))
    shift = torch.zeros(3, 3, requires_grad=True)

    def value(by):
        moves = replace(scene.still, shift=by)
        return (weights * group_shadows(scene, scene.filled(moves)[0], [camera])[0]).sum()

    value(shift).backward()
    for bone, axis in ((0, 2), (2, 0)):
        step = torch.zeros(3, 3)
        step[bone, axis] = 0.001  # the lattice of distances has cells of 0.06: kinks must not lie between
        slope = float(value(step) - value(-step)) / 0.002
        assert float(shift.grad[bone, axis]) == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_both_sides_cast_one_shadow_and_neighbours_do_not(name: str) -> None:
    names = SCHEMES[name]
    group = shadow_groups(names)
    assert torch.equal(group, group[names.mirror])
    for row in ("spine", "ribs_left", "ribs_right"):
        own = group[list(names.groups.get(row, ()))]
        assert bool((own[1:] != own[:-1]).all())


# ---- where bones start ----


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


# ---- the fit ----


def test_a_blurred_prediction_becomes_sharp(atlas) -> None:
    truth = bodies(shift=(3.0, -2.0, 4.0), turn=0.12, stretch=1.06)
    found, (films, cameras) = doubtful(truth, 5), films_of(truth)
    made = refine(found, films, cameras, atlas)
    assert [bone.used for bone in made.bones] == [True] * 3
    assert all(bone.after > 0.9 for bone in made.bones)
    assert mean_dice(made.prediction.labels, truth) > mean_dice(found.labels, truth) + 0.02
    assert float(made.prediction.entropy.sum()) < float(found.entropy.sum())
    total = made.prediction.shares.values.sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0.0)
    assert "3 of 3 bones" in made.text
    assert made.to_json()["bones"][0]["name"] == "L1"


def test_films_move_bones_that_the_network_misplaced(atlas) -> None:
    truth, wrong = bodies(shift=(0.0, 0.0, 5.0)), bodies()
    found, (films, cameras) = doubtful(wrong), films_of(truth)
    blind = refine(found, films, cameras, atlas, RefineSettings(films=0.0, trust=0.2))
    seen = refine(found, films, cameras, atlas, RefineSettings(trust=0.2))
    dice = [mean_dice(p.labels, truth) for p in (found, blind.prediction, seen.prediction)]
    assert dice[2] > max(dice[:2]) + 0.05
    assert all(after > before for before, after in seen.matches)


def test_films_tell_what_bones_are_a_mixture_of() -> None:
    """Of two patients, one has longer spikes: films of it bring its bones, more than moves alone do."""
    atlas, long = two_patients(), bodies(spike=45.0)
    found, cameras = doubtful(bodies(spike=33.0), 4), films_of(long)[1]
    films = torch.stack([label_thickness(long, GRID, camera, len(SPINE))[1:].sum(0) for camera in cameras])
    settings = RefineSettings(trust=0.0)
    mixed = refine(found, films / films.amax(), cameras, atlas, settings)
    alike = refine(found, films / films.amax(), cameras, atlas, replace(settings, mix=0.01))
    dice = [mean_dice(made.prediction.labels, long) for made in (alike, mixed)]
    assert dice[1] > dice[0] + 0.005
    assert all(mixed.matches[n][1] > alike.matches[n][1] for n in range(2))


def two_patients() -> Atlas:
    """Of spikes of 21 and 45 mm."""
    both = (("short", 21.0), ("long", 45.0))
    return build_atlas([Member(name, "spine", bodies(spike=length), GRID) for name, length in both])


def test_a_mixture_that_settled_lies_as_before() -> None:
    scene = Scene.of(doubtful(bodies()), two_patients(), GRID, 1)
    random = torch.Generator().manual_seed(0)
    moves = replace(scene.still, mix=torch.randn(3, 2, generator=random), bend=torch.full((3, 3, 6), 0.02))
    settled, alone = scene.settled(moves)
    assert alone.mix.shape == (3, 1)
    for wanted, got in zip(scene.filled(moves), settled.filled(alone), strict=True):
        torch.testing.assert_close(torch.cat(got), torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_on_a_finer_grid_bones_are_told_close_by_and_cast_the_same_shadow(atlas) -> None:
    coarse = GRID.binned(2)
    scene = Scene.of(doubtful(bodies()), atlas, coarse, 2)
    finer = scene.closer(scene.still, GRID, 2)
    assert finer.coarse is coarse
    for voxels, blocks, points in zip(finer.voxels, finer.blocks, scene.points, strict=True):
        fine, block = (torch.stack(torch.unravel_index(flat, grid.shape)) for flat, grid in
                       ((voxels, GRID), (blocks, coarse)))  # fmt: skip
        assert torch.equal(fine // 2, block)
        assert len(voxels) < 8 * len(points)
    filled = finer.filled(scene.still)[0]
    whole = Scene.of(doubtful(bodies()), atlas, GRID, 1)
    truth = whole.filled(replace(whole.still, shift=(scene.place - whole.place) / whole.size[:, None]))[0]
    cameras = [grid_camera(coarse, 1)]
    near = group_shadows(finer, filled, [grid_camera(GRID, 1)])
    same = group_shadows(whole, truth, [grid_camera(GRID, 1)])
    assert float((near - same).abs().max()) < 0.05 * float(same.max())
    blocks = group_shadows(finer, filled, cameras, blocks=True)
    mean = torch.nn.functional.avg_pool2d(near, 2)
    assert float((blocks - mean).abs().max()) < 0.05 * float(mean.max())


def test_the_last_steps_see_finer_films(monkeypatch) -> None:
    """Turned vertebrae are told better by films of the prediction's own grid than by those of one half as
    fine."""
    monkeypatch.setattr("xreg.shape.refine._EDGE", 20)
    truth, found = bodies(turn=0.1, spike=30.0), doubtful(bodies(spike=30.0))
    films, cameras = films_of(truth)
    small = fitted(films, cameras, GRID)[1]
    maps = torch.stack([label_thickness(truth, GRID, camera, len(SPINE)) for camera in small])
    dice = []
    for steps, close in ((28, 0), (12, 16)):
        settings = RefineSettings(trust=0.0, steps=steps, close_steps=close)
        made = refine(replace(found, thickness=maps), films, cameras, two_patients(), settings)
        dice.append(mean_dice(made.prediction.labels, truth))
    assert dice[1] > dice[0] + 0.03


def test_a_film_without_any_edge_moves_nothing_to_nowhere(atlas) -> None:
    """A collimated film may be flat where the bones are: no gradient, and none that is not a number."""
    found, cameras = doubtful(bodies()), films_of(bodies())[1]
    made = refine(found, torch.zeros(2, *cameras[0].size), cameras, atlas)
    assert made.matches == ((0.0, 0.0), (0.0, 0.0))
    assert mean_dice(made.prediction.labels, bodies()) > 0.9


def test_maps_of_the_network_count(atlas) -> None:
    truth, wrong = bodies(shift=(0.0, 0.0, 5.0)), bodies()
    films, cameras = films_of(truth)
    _, small = fitted(films, cameras, GRID)
    maps = torch.stack([label_thickness(truth, GRID, camera, len(SPINE)) for camera in small])
    settings = RefineSettings(films=0.0)
    without = refine(doubtful(wrong), films, cameras, atlas, settings)
    with_maps = refine(replace(doubtful(wrong), thickness=maps), films, cameras, atlas, settings)
    gain = mean_dice(with_maps.prediction.labels, truth) - mean_dice(without.prediction.labels, truth)
    assert gain > 0.05


def test_thickness_tells_how_large_a_bone_is(atlas) -> None:
    """A hull is larger than its bone; the films' thickness is not, and tells half of where a bone starts."""
    labels = bodies()
    known = {"sdd": 1000.0, "sod": 700.0, "size": (70, 60), "spacing": 3.5, "isocenter": GRID.center.tolist()}
    cameras = tuple(Camera.c_arm(primary=p, **known) for p in (0.0, 90.0))
    thickness = torch.stack([label_thickness(labels, GRID, camera, len(SPINE)) for camera in cameras])
    volumes = _volumes(thickness, cameras, GRID)
    true = torch.bincount(labels.flatten().long(), minlength=len(SPINE)) * GRID.voxel_mm3
    torch.testing.assert_close(volumes[20:23], true[20:23].float(), rtol=0.08, atol=0)
    hulls = doubtful(bodies(stretch=1.25))
    sizes = [Scene.of(hulls, atlas, GRID, 1, volumes=told).size for told in (None, volumes)]
    torch.testing.assert_close(sizes[0] / sizes[1], torch.full((3,), 1.25**0.5), rtol=0.03, atol=0)
    assert _volumes(None, cameras, GRID) is None


def test_the_same_bits_again_and_other_bones_untouched(atlas) -> None:
    labels = bodies()
    labels[2:6, 10:18, 10:18] = 23  # L4, which the atlas lacks
    found, (films, cameras) = doubtful(labels), films_of(labels)
    one, two = (refine(found, films, cameras, atlas).prediction for _ in range(2))
    assert torch.equal(one.shares.values, two.shares.values)
    before, after = found.probability("L4"), one.probability("L4")
    kept = before > DOUBT
    assert int(kept.sum()) > 100
    torch.testing.assert_close(after[kept], before[kept])
    assert float(after[~kept].max()) <= DOUBT


def test_what_does_not_fit(atlas) -> None:
    found, (films, cameras) = doubtful(bodies()), films_of(bodies())
    kept = refine(found, films, cameras, atlas, RefineSettings(least=1.0))
    assert not any(bone.used for bone in kept.bones)
    assert mean_dice(kept.prediction.labels, found.labels) == 1.0
    with pytest.raises(ShapeError, match="scheme"):
        refine(found, films, cameras, replace(atlas, scheme="all"))
    with pytest.raises(ShapeError, match="step or more"):
        RefineSettings(steps=0)
    nothing = doubtful(torch.zeros(SHAPE, dtype=torch.int16))
    assert refine(nothing, films, cameras, atlas).text == "no bone fitted"
