"""An atlas of bones: distances, densities, mixtures, sides and files."""

from dataclasses import replace

import pytest
import torch
from bone_case import ALL, GRID, SHAPE, VOXEL, bodies, doubtful, one_patient

from xreg.errors import FileError, ShapeError
from xreg.shape.atlas import FILE, Atlas, BoneShape, build_atlas
from xreg.shape.deform import base_points
from xreg.shape.scene import Scene
from xreg.shape.sources import Member


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return one_patient()


def test_distances_are_those_of_the_bone(atlas) -> None:
    bone = atlas.bones["L2"]
    size = float((bodies() == 21).sum() * VOXEL**3) ** (1 / 3)
    assert bone.sizes == pytest.approx([size] * 3)  # its own, and its neighbours'
    index = (bodies() == 21).nonzero().double().mean(0).flip(0)
    middle = GRID.affine[:3, :3] @ index + GRID.affine[:3, 3]
    point = torch.tensor(
        [[10.0, 0.0, 20.0], [10.0 + 27.0, 0.0, 20.0], [10.0, 0.0, 20.0 + 18.0]]
    )  # edges: 16, 12
    alone = torch.eye(3)[0]
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
    inside = bones["L2"].at(torch.zeros(1, 3), torch.eye(3)[0])[1]
    assert float(inside) == pytest.approx(0.5 + 0.5 * 200 / mean, abs=0.02)
    outside = bones["L2"].at(torch.tensor([[0.0, -1.0, 0.0]]), torch.eye(3)[0])[1]  # as at the surface
    assert float(outside) == pytest.approx(0.5 + 0.5 * 600 / mean, abs=0.02)
    torch.testing.assert_close(bones["L1"].fields[0, 1], torch.ones_like(bones["L1"].fields[0, 1]))


def test_examples_are_mixed() -> None:
    members = [Member(name, "spine", bodies(stretch=s), GRID) for name, s in (("a", 1.0), ("b", 1.1))]
    bone = build_atlas(members).bones["L2"]
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    alone = torch.stack([bone.at(points, one)[0] for one in torch.eye(6)])
    even = bone.at(points, torch.full((6,), 1 / 6))[0]
    torch.testing.assert_close(even, alone.mean(0) - bone.slack)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_mixtures_are_as_large_as_their_examples() -> None:
    """Bars that cross: the mean of their distances is thin."""
    lines = [torch.linspace(-1, 1, 31)] * 3
    z, y, x = (n.abs() for n in torch.meshgrid(*lines, indexing="ij"))
    bars = [torch.stack([a - 0.6, b - 0.25, z - 0.4]).amax(0) for a, b in ((x, y), (y, x))]
    fields = torch.stack([torch.stack([bar, torch.ones_like(bar)]) for bar in bars])
    bone = BoneShape(fields, torch.ones(3), (30.0, 30.0))
    assert bone.slack > 0
    assert 0.5 < bone.kept < 0.95
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    one, other, half = (
        int((bone.at(points, torch.tensor(w))[0] < 0).sum()) for w in ([1.0, 0], [0.0, 1], [0.5, 0.5])
    )
    assert half == pytest.approx((one + other) / 2, rel=0.05)


def test_examples_are_laid_onto_each_other() -> None:
    """Patients who are turned against each other: their mean is the bone of one who is turned half as far."""
    turns, names = (-0.5, 0.1), ("a", "b")
    members = [Member(n, "spine", bodies(turn=t), GRID) for n, t in zip(names, turns, strict=True)]
    bone = build_atlas(members).bones["L2"]
    assert bone.kept > 0.9
    half = build_atlas([Member("half", "spine", bodies(turn=-0.2), GRID)]).bones["L2"]
    reach = torch.tensor([0.8, 1.6, 0.7])
    points = (base_points((21, 41, 25), reach) * reach).reshape(-1, 3)
    wanted = half.at(points, torch.eye(len(half.sizes))[0])[0] < 0
    even = torch.full((len(bone.sizes),), 1 / len(bone.sizes))
    found = [bone.at(points, weights)[0] < 0 for weights in (even, *torch.eye(len(bone.sizes)))]
    for one in found:
        assert 2 * float((one & wanted).sum()) / float(one.sum() + wanted.sum()) > 0.9
    middle = torch.stack([points[one].mean(0) for one in found[1:]]).mean(0)
    torch.testing.assert_close(middle, points[wanted].mean(0), atol=0.03, rtol=0.0)


def test_examples_that_are_alike_stay_as_they_are() -> None:
    bone = one_patient().bones["L2"]
    assert len(bone.sizes) == 3
    torch.testing.assert_close(bone.fields[1], bone.fields[0], atol=1e-3, rtol=0.0)
    assert bone.slack == pytest.approx(0.0, abs=1e-4)


def test_neighbours_fill_up_vertebrae_alone() -> None:
    labels = torch.zeros(SHAPE, dtype=torch.int16)
    for n, name in enumerate(("C2", "C3", "C4", "rib_left_3", "rib_left_4")):
        labels[2 + 8 * n : 7 + 8 * n, 8:20, 8 : 18 + n % 2] = ALL.index(name)
    found = build_atlas([Member("p", "all", labels, GRID)]).bones
    sizes = {name: len(bone.sizes) for name, bone in found.items()}
    assert sizes == {
        "C2": 1,
        "C3": 2,
        "C4": 2,
        **{f"rib_{s}_{n}": 1 for s in ("left", "right") for n in (3, 4)},
    }


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
    own = {n: BoneShape(one.fields[:2], one.reach, one.sizes[:2]) for n, one in atlas.bones.items()}
    atlas = replace(atlas, bones=own)  # without neighbours
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
    assert [len(found.bones[n].sizes) for n in ("L1", "L2", "L3")] == [2 + 1, 1 + 4, 2 + 1]  # and neighbours


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
