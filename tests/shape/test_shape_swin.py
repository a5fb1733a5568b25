"""The baseline Swin-X2S: sizes as published, two branches, and films of the axes only."""

from functools import partial

import pytest
import shape_case
import torch

pytest.importorskip("monai")
pytest.importorskip("einops")

from xreg.errors import ShapeError
from xreg.shape.networks import (
    PRESETS,
    NetworkSettings,
    SwinX2S,
    Views,
    count_parameters,
    make_network,
)
from xreg.shape.networks.swin_x2s import CrossAttention, Expand
from xreg.shape.points import Points
from xreg.shape.schemes import SCHEMES
from xreg.shape.shipped import grid_camera
from xreg.shape.targets import Cases
from xreg.shape.training import loss_parts

SHAPE = (64, 32, 32)
TINY = NetworkSettings("swin_x2s", width=8, depths=(2, 2, 2, 2), heads=(1, 2, 2, 2), window=4, grid=SHAPE)
SPINE = len(shape_case.SPINE)


@pytest.fixture(scope="module")
def case():
    grid = shape_case.grid(SHAPE)
    cameras = (grid_camera(grid, 1), grid_camera(grid, 0))
    labels = shape_case.body(0, SHAPE)
    from xreg.shape.samples import Sample

    films = shape_case.films_of(labels, grid, cameras)
    return Sample(films, cameras, labels, grid, "spine", "a")


@pytest.mark.parametrize(
    ("name", "millions"),
    [("tiny", 32.6), ("small", 130.1), ("base", 313.8), ("large", 557.8)],
)
def test_sizes(name: str, millions: float, monkeypatch) -> None:
    """Base: 314 M, as published; the others follow from the published widths and depths."""
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))  # of which .item() is asked
    with torch.device("meta"):
        net = SwinX2S(PRESETS[f"swin-x2s-{name}"], SCHEMES["all"])
    assert count_parameters(net) / 1e6 == pytest.approx(millions, abs=0.06)


def test_films_are_found_by_their_axes_in_any_order(case) -> None:
    net = make_network(TINY, shape_case.SPINE)
    views = Views.of(case.films, case.cameras, case.grid)
    other = Views.of(case.films.flip(0), case.cameras[::-1], case.grid)
    for one, same in zip(net.films(views), net.films(other), strict=True):
        torch.testing.assert_close(one, same)
    along_j, along_i = net.films(views)
    # pixels of these films are the grid's columns: rows of the film run down, slices of the grid up
    shown = views.films[0]
    torch.testing.assert_close(along_j[0, 0], shown[0].flip(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(along_i[0, 0], shown[1].flip(0), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_it_learns(case) -> None:
    net = make_network(TINY, shape_case.SPINE, 1)
    cases = Cases.of(case)
    points = Points.draw(cases.labels, 64, torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    found = []
    for _ in range(24):
        parts = loss_parts(net(cases.views, points), cases, points, shape_case.SPINE)
        total = sum(parts.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        found.append(float(total.detach()))
    assert {"entropy", "dice", "mutual"} == set(parts)
    assert found[-1] < 0.5 * found[0]
    dead = [n for n, p in net.named_parameters() if p.grad is None]
    assert not dead


def test_dense_and_sparse_answers_agree(case) -> None:
    net = make_network(TINY, shape_case.SPINE, 2).eval()
    views = Views.of(case.films, case.cameras, case.grid)
    with torch.no_grad():
        out = net(views)
        found, _ = net.probabilities(views, 0.9)
    assert len(out.logits) == 2
    assert out.combined.shape == (1, SPINE, *SHAPE)
    dense = out.combined[0].softmax(0).flatten(1)[:, found.voxels]
    torch.testing.assert_close(found.columns(range(SPINE)), dense.T)


def test_views_ask_each_other() -> None:
    cross = CrossAttention(8, 2, 8)
    a, b = torch.randn(2, 1, 8, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    one, other = cross(a, b)
    assert one.shape == a.shape
    swapped = cross(b, a)
    torch.testing.assert_close(one, swapped[1])
    torch.testing.assert_close(other, swapped[0])
    changed, _ = cross(a, b + 1.5 * b.roll(1, 1))
    assert not torch.allclose(changed, one, atol=1e-4)  # the answer to a depends on what b holds


def test_a_map_is_repeated_with_a_factor_and_an_offset_a_slice() -> None:
    expand = Expand(5)
    film = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(expand(film, 3)[0, :, :, 2], film[0])
    with torch.no_grad():
        expand.factor[1], expand.offset[1] = 2.0, 0.5
    torch.testing.assert_close(expand(film, 4)[..., 1], 2 * film + 0.5)


def test_what_it_cannot_do_is_told(case) -> None:
    net = make_network(TINY, shape_case.SPINE)
    with pytest.raises(ShapeError, match="2 films"):
        net(Views.of(case.films[:1], case.cameras[:1], case.grid))
    twice = Views.of(case.films[[0, 0]], [case.cameras[0]] * 2, case.grid)
    with pytest.raises(ShapeError, match="one film along"):
        net(twice)
    with pytest.raises(ShapeError, match="H = W"):
        make_network(NetworkSettings("swin_x2s", grid=(32, 32, 64)), shape_case.SPINE)
