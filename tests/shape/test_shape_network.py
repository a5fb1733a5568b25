"""Films carried into space: geometry, orders, gradients, sizes."""

import math
from dataclasses import replace

import pytest
import shape_case
import torch
from torch.utils.flop_counter import FlopCounterMode

from xreg.errors import ImageError, ShapeError
from xreg.geometry import Camera
from xreg.io import VoxelGrid
from xreg.shape.film_cases import BoneFilm, FilmBatch
from xreg.shape.networks import PRESETS, Lattice, NetworkSettings, Views, count_parameters, make_network
from xreg.shape.networks.backproject import fuse, hull, look_up
from xreg.shape.networks.closer import read_closer
from xreg.shape.networks.heads import FilmMaps, centroids
from xreg.shape.networks.views import USUAL_MM, fitted
from xreg.shape.schemes import SCHEMES
from xreg.shape.targets import Cases

SMALL = NetworkSettings(film_widths=(8, 16, 16), features=8, cells=16, space_widths=(8, 16), hidden=16)


def views_of(sample, **known) -> Views:
    return Views.of(sample.films, sample.cameras, sample.grid, **known)


@pytest.fixture(scope="module")
def case():
    return shape_case.sample(cameras=shape_case.c_arms())


@pytest.fixture(scope="module")
def net():
    return make_network(SMALL, shape_case.SPINE, 3).eval()


def test_voxels_fall_where_the_cameras_put_them(case) -> None:
    """Parallel and perspective, films turned or not: each voxel finds the pixel that Camera.project says."""
    parallel = shape_case.sample().cameras
    for cameras in (case.cameras, parallel, tuple(c.flip_rows().flip_columns() for c in case.cameras)):
        height, width = cameras[0].size
        films = torch.rand(2, height, width, generator=torch.Generator().manual_seed(1))
        views = Views.of(films, cameras, case.grid)
        index = Lattice(views.shape, 5).index()
        world = index.double() @ case.grid.affine[:3, :3].T + case.grid.affine[:3, 3]
        values, seen = look_up(views.films.flatten(0, 1)[:, None], views, index[None])
        for number, camera in enumerate(cameras):
            at = camera.project(world)
            inside = (at[:, 0] > 0) & (at[:, 0] < width - 1) & (at[:, 1] > 0) & (at[:, 1] < height - 1)
            u, v = at[inside].floor().long().T
            fu, fv = (at[inside] - at[inside].floor()).float().T
            film = films[number]
            top = film[v, u] * (1 - fu) + film[v, u + 1] * fu
            below = film[v + 1, u] * (1 - fu) + film[v + 1, u + 1] * fu
            torch.testing.assert_close(
                values[0, number, 0, inside], top * (1 - fv) + below * fv, atol=2e-4, rtol=0
            )
            assert bool(seen[0, number, inside].all())


def test_films_come_the_same_way_round(case) -> None:
    plain = views_of(case)
    flipped = Views.of(
        case.films.flip(2).flip(1), [c.flip_columns().flip_rows() for c in case.cameras], case.grid
    )
    torch.testing.assert_close(plain.films, flipped.films)
    torch.testing.assert_close(plain.matrices, flipped.matrices, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(plain.rays, flipped.rays)
    maps = case.films.flip(2).flip(1)[None, :, None]
    torch.testing.assert_close(flipped.turned(maps)[:, :, 0], flipped.films)


def test_a_mirrored_case_is_the_case_of_the_mirrored_body(case) -> None:
    """Films of a mirrored body by mirrored cameras are the films: each label lies on its own shadow."""
    films = BoneFilm.of(case)
    for mirror in (False, True):
        cases = Cases.of(case, mirror=mirror)
        maps = FilmBatch.of([film.mirrored() for film in films] if mirror else films).thickness
        where = (cases.labels[0] > 0).nonzero()
        index = where.flip(1).float()[None]
        found, _ = look_up(maps, cases.views, index)
        own = cases.labels[0][tuple(where.T)]
        thick = found[0].gather(1, (own - 1)[None, None].expand(2, 1, -1))[:, 0]
        assert float((thick > 0.01).float().mean()) > 0.999
    assert torch.equal(Cases.of(case, mirror=True).labels[0].flip(2), Cases.of(case).labels[0])


def test_a_scaled_case_is_that_of_a_larger_patient_and_machine(case) -> None:
    def views(factor: float) -> Views:
        mm = {"sdd": 1000.0 * factor, "sod": 700.0 * factor, "spacing": 4.0 * factor}
        middle = [factor * x for x in (10.0, -5.0, 20.0)]
        cameras = [
            Camera.c_arm(primary=p, secondary=s, size=tuple(case.films.shape[1:]), isocenter=middle, **mm)
            for p, s in ((5, 3), (80, -4))
        ]
        change = torch.diag(torch.tensor([factor, factor, factor, 1.0], dtype=torch.float64))
        return Views.of(case.films, cameras, VoxelGrid(case.grid.shape, change @ case.grid.affine))

    scaled, large = views(1.0).scaled(1.2), views(1.2)
    torch.testing.assert_close(scaled.rays, large.rays)
    torch.testing.assert_close(scaled.place, large.place)
    index = Lattice(case.grid.shape, 5).index()[None]
    torch.testing.assert_close(scaled.pixels(index)[0], large.pixels(index)[0], atol=1e-5, rtol=1e-5)


def test_fusion_forgets_the_order_and_ignores_who_does_not_see(case) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 3, 4, 50, generator=generator)
    seen = torch.rand(1, 3, 50, generator=generator) < 0.7
    values = values * seen[:, :, None]
    order = [2, 0, 1]
    torch.testing.assert_close(fuse(values, seen), fuse(values[:, order], seen[:, order]))
    torch.testing.assert_close(hull(values, seen), hull(values[:, order], seen[:, order]))
    blind = torch.cat([values, torch.zeros(1, 1, 4, 50)], 1)
    more = torch.cat([seen, torch.zeros(1, 1, 50, dtype=torch.bool)], 1)
    torch.testing.assert_close(fuse(values, seen)[:, :-1], fuse(blind, more)[:, :-1])
    assert bool((hull(blind, torch.zeros_like(more)) == 30).all())


def test_hulls_are_where_both_masks_agree(case, net) -> None:
    """Masks of one structure drawn by hand: the body is a box, and only where two films see."""
    views = Views.of(case.films, case.cameras, case.grid)
    encoded = net.encode(views, hulls=True)
    masks = torch.full_like(encoded.maps.masks, -20.0)
    masks[0, 4, 10:20, 5:15] = 3.0
    masks[1, 4, 12:30, 8:20] = 2.0
    index = Lattice(case.grid.shape).index()[None]
    logits, rows = net.at(replace(encoded, maps=replace(encoded.maps, masks=masks)), index)
    assert rows.shape[1] == 0
    assert bool((logits[0, 0] == 0).all())
    at, seen = views.pixels(index)
    size = torch.tensor(case.films.shape[:0:-1])
    u, v = (((at[0] + 1) * size - 1) / 2).unbind(-1)
    inside = (u[0] >= 5) & (u[0] <= 14) & (v[0] >= 10) & (v[0] <= 19)
    inside &= (u[1] >= 8) & (u[1] <= 19) & (v[1] >= 12) & (v[1] <= 29) & seen[0].all(0)
    assert int(inside.sum()) > 20
    torch.testing.assert_close(logits[0, 5, inside], torch.full((int(inside.sum()),), 2.0), atol=1e-4, rtol=0)
    assert bool((logits[0, 5, ~seen[0].all(0)] == -30).all())
    assert bool((logits[0, 6] < -19).all())
    assert views.crossing == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("finest", "reads"), [(4.0, 1), (3.2, 5), (1.0, 10)])
def test_enlarged_parts_are_put_back_where_they_came_from(finest: float, reads: int) -> None:
    """Of a reader that says of each pixel what the film shows there, the film comes back."""
    v, u = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (40, 30)), indexing="ij")
    films = torch.stack([0.3 + 0.5 * u * v, (3 * v).sin()])
    rays = torch.zeros(2, 10)
    rays[:, 9] = math.log(4.0 / USUAL_MM)
    seen = []

    def read(inputs: torch.Tensor) -> FilmMaps:
        seen.append(float(inputs[0, 10, 0, 0]))
        film = inputs[:, :1]
        return FilmMaps(film - 2, 2 * film, film[:, 0], torch.ones(1, 1))

    found = read_closer(read, films, rays, finest)
    assert len(seen) == 2 * reads
    assert min(seen) == pytest.approx(
        math.log(max(4.0 / 1.5 if reads > 1 else 4.0, finest) / USUAL_MM), abs=1e-5
    )
    inner = (slice(None), slice(3, -3), slice(3, -3))
    torch.testing.assert_close(found.masks[:, 0][inner], films[inner] - 2, atol=0.02, rtol=0)
    torch.testing.assert_close(found.thickness[:, 0][inner], 2 * films[inner], atol=0.02, rtol=0)
    torch.testing.assert_close(found.level[inner], films[inner], atol=0.02, rtol=0)
    assert found.presence.shape == (2, 1)


def test_the_answer_does_not_depend_on_the_order_of_films(case, net) -> None:
    lattice = Lattice(case.grid.shape, 4)
    with torch.no_grad():
        one = net(views_of(case), lattice).combined
        other = net(Views.of(case.films.flip(0), case.cameras[::-1], case.grid), lattice).combined
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_films(case, net, count: int) -> None:
    films = case.films[[0, 1, 0][:count]]
    cameras = [case.cameras[n] for n in [0, 1, 0][:count]]
    with torch.no_grad():
        out = net(Views.of(films, cameras, case.grid), Lattice(case.grid.shape, 4, (1, 2, 3)))
    assert out.combined.shape == (1, len(shape_case.SPINE), 8, 6, 6)
    assert out.maps.masks.shape == (count, len(shape_case.SPINE) - 1, 48, 40)
    assert bool(out.combined.isfinite().all())


def test_gradients_reach_every_weight(case) -> None:
    net = make_network(SMALL, shape_case.SPINE, 0)
    out = net(views_of(case), Lattice(case.grid.shape, 4))
    maps = out.maps
    parts = [out.combined, out.levels, maps.masks, maps.thickness, maps.level, maps.presence]
    sum(x.square().mean() for x in parts).backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert not dead


def test_gradients_of_points_in_the_films_by_differences(case) -> None:
    """d logits / d films through look-up, fusion, 3D network and head."""
    net = make_network(SMALL, shape_case.SPINE, 1)
    views = views_of(case)
    films = views.films.clone().requires_grad_()
    lattice = Lattice(case.grid.shape, 8)
    net(views.with_films(films), lattice).combined.square().sum().backward()
    direction = torch.randn(films.shape, generator=torch.Generator().manual_seed(2))

    def value(step: float) -> float:
        with torch.no_grad():
            moved = views.with_films(views.films + step * direction)
            return float(net(moved, lattice).combined.double().square().sum())

    slope = (value(1e-2) - value(-1e-2)) / 2e-2  # a smaller step drowns in rounding
    assert slope == pytest.approx(float((films.grad * direction).sum()), rel=0.03)


def test_sparse_answers_are_the_dense_ones(case) -> None:
    net = make_network(SMALL, shape_case.SPINE, 1).eval()
    with torch.no_grad():
        dense = net(views_of(case)).combined[0].softmax(0).flatten(1)
        found, _ = net.probabilities(views_of(case), 1e-5, chunk=700)
    assert len(found) > 0
    every = found.columns(range(len(dense)))
    torch.testing.assert_close(every, dense[:, found.voxels].T, atol=1e-5, rtol=1e-4)


def test_lattices() -> None:
    lattice = Lattice((7, 6, 5), 2, (1, 0, 1))
    assert lattice.counts == (3, 3, 2)
    values = torch.arange(7 * 6 * 5).reshape(7, 6, 5)
    i, j, k = lattice.index().long().T
    assert torch.equal(lattice.take(values).flatten(), values[k, j, i])
    some = torch.tensor([0, 5, 17])
    assert torch.equal(lattice.index_at(some), lattice.index()[some])
    coarse = Lattice.coarse((7, 6, 5), 4)
    assert coarse.counts == (2, 2, 2)
    torch.testing.assert_close(coarse.inside(coarse.index()[None])[0, 0], torch.full((3,), -0.5))


def test_centroids_are_those_of_the_thickness() -> None:
    maps = torch.zeros(1, 2, 10, 20)
    maps[0, 0, 3, 4] = 1.0
    maps[0, 0, 5, 8] = 3.0
    torch.testing.assert_close(centroids(maps)[0, 0], torch.tensor([7.5 / 20, 5.0 / 10]))
    torch.testing.assert_close(centroids(maps)[0, 1], torch.tensor([0.5, 0.5]))


def test_fine_films_are_binned_to_voxels(case) -> None:
    fine = [c.resize((192, 160)) for c in case.cameras]
    films, cameras = fitted(torch.rand(2, 192, 160), fine, case.grid)
    assert films.shape == (2, 32, 26)  # a pixel is 0.7 mm where the grid is, a voxel 4 mm: six to one
    assert all(tuple(c.size) == (32, 26) for c in cameras)
    assert fitted(case.films, case.cameras, case.grid)[0] is case.films


def test_ours_is_as_small_as_promised() -> None:
    """At most 10 M weights, and 0.2 TFLOP a case of the published size (with one point in eight refined)."""
    net = make_network(PRESETS["rays"], SCHEMES["all"]).eval()
    assert count_parameters(net) < 10e6
    grid = shape_case.grid((160, 128, 128))
    cameras = shape_case.sample().cameras
    cameras = tuple(c.resize((160, 128)) for c in cameras)
    films = torch.rand(2, 160, 128, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoded = net.encode(Views.of(films, cameras, grid))
        space = counter.get_total_flops()
        net.at(encoded, torch.zeros(1, 1000, 3))
    point = (counter.get_total_flops() - space) / 1000
    count = grid.shape[0] * grid.shape[1] * grid.shape[2]
    assert 2e10 < space + point * count * (1 / 8 + 1 / 4) < 2e11  # every eighth voxel, then those near bone


def test_what_does_not_fit_is_told(case) -> None:
    with pytest.raises(ImageError, match="a camera each"):
        Views.of(case.films, case.cameras[:1], case.grid)
    with pytest.raises(ImageError, match="camera of that size"):
        Views.of(case.films[:, 1:], case.cameras, case.grid)
    away = Camera.c_arm(sdd=1000, sod=700, size=(48, 40), spacing=4.0, isocenter=(10, 5000, 20))
    with pytest.raises(ImageError, match="behind the source"):
        Views.of(case.films[:1], [away], case.grid)
    other = shape_case.sample()
    with pytest.raises(ShapeError, match="one size"):
        Views.batch([views_of(case), views_of(other)])
    with pytest.raises(ShapeError, match="kind of a network"):
        NetworkSettings(kind="magic")
    with pytest.raises(ShapeError, match="entries"):
        NetworkSettings.from_dict({"kind": "rays"})


def test_networks_are_drawn_from_their_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (make_network(SMALL, SCHEMES["pelvis"], seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.encoder.out.weight, other.encoder.out.weight)


@pytest.mark.parametrize("kind", ["rays-light", "swin-x2s-tiny"])
def test_first_weights_come_from_the_seed_alone(kind: str) -> None:
    if kind.startswith("swin"):
        pytest.importorskip("monai")
        pytest.importorskip("einops")
    nets = []
    for state in (1, 2):
        torch.manual_seed(state)
        nets.append(make_network(PRESETS[kind], shape_case.SPINE, 0).state_dict())
    differ = [name for name, value in nets[0].items() if not torch.equal(value, nets[1][name])]
    assert not differ
