"""An atlas of bones: distances, densities, mixtures, sides and files."""

import pytest
import torch
from bone_case import ALL, GRID, SHAPE, VOXEL, bodies, doubtful, one_patient

from xreg.errors import FileError, ShapeError
from xreg.shape.atlas import FILE, Atlas, BoneShape, build_atlas
from xreg.shape.scene import Scene
from xreg.shape.sources import Member


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return one_patient()


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
