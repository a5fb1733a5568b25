"""What covers a film lies where it is said to lie."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.errors import ImageError
from xreg.xray import occlusion


def like(size: tuple[int, int] = (64, 48), count: int = 1) -> torch.Tensor:
    return torch.zeros(count, *size, dtype=torch.float64)


# ---- blades and round fields ----


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(0, 20)] * 4))
def test_blades_cover_whole_rows_and_columns(covered: tuple[int, int, int, int]) -> None:
    height, width = 64, 48
    top, bottom, left, right = covered
    found = occlusion.blades(like(), (top / height, bottom / height, left / width, right / width))
    expected = like()
    expected[:, top : height - bottom, left : width - right] = 1.0
    assert torch.equal(found, expected)


def test_blades_turned_by_a_quarter_exchange_sides() -> None:
    square = like((40, 40))
    straight = occlusion.blades(square, (0.1, 0.2, 0.3, 0.05))
    turned = occlusion.blades(square, (0.1, 0.2, 0.3, 0.05), math.pi / 2)
    # from u towards v, so that what was at the top comes to the right
    assert torch.equal(turned[0], torch.rot90(straight[0], -1))


def test_turned_blades_keep_their_area() -> None:
    found = occlusion.blades(like((400, 400)), (0.3, 0.3, 0.3, 0.3), 0.4)
    assert float(found.mean()) == pytest.approx(0.16, rel=0.01)


def test_a_round_field_is_round() -> None:
    found = occlusion.round_field(like((200, 300)), 0.4, (0.5, 0.5))
    assert float(found.sum()) == pytest.approx(math.pi * (0.4 * 200) ** 2, rel=0.005)
    assert torch.equal(found, found.flip(-1))
    rows, columns = (found[0].any(dim=d).sum() for d in (1, 0))
    assert rows == columns == 160


def test_a_soft_edge_is_half_open_on_the_edge() -> None:
    found = occlusion.blades(like((100, 100)), (0.25, 0, 0, 0), edge=0.2)[0, :, 50]
    centres = (torch.arange(100) + 0.5) / 100
    expected = ((centres.double() - 0.25) / 0.2 + 0.5).clamp(0, 1)
    far = centres < 0.85  # where the soft edge of the opposite blade has not begun
    torch.testing.assert_close(found[far], expected[far])


# ---- tools ----


def test_a_rod_has_the_line_integrals_of_a_cylinder() -> None:
    size = 80
    found = occlusion.rod(like((size, size)), (0.5, 0.25), 0.0, 0.5, 0.2, 3.0)[0]
    v = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.25
    chord = 3.0 * (1 - (v / 0.1) ** 2).clamp_min(0).sqrt()
    expected = torch.zeros(size, size, dtype=torch.float64)
    expected[:, 20:60] = chord[:, None]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("shape", [{}, {"bend": 0.1}, {"thread": 0.3}])
def test_a_turned_rod_is_the_rod_turned(quarters: int, shape: dict) -> None:
    square = like((60, 60))
    straight = occlusion.rod(square, (0.5, 0.5), 0.3, 0.6, 0.1, 2.0, **shape)
    turned = occlusion.rod(square, (0.5, 0.5), 0.3 + quarters * math.pi / 2, 0.6, 0.1, 2.0, **shape)
    torch.testing.assert_close(turned[0], torch.rot90(straight[0], -quarters), atol=1e-6, rtol=0.0)


@settings(deadline=None, max_examples=20)
@given(st.floats(-3, 3), st.floats(0.2, 0.6), st.floats(0.05, 0.2))
def test_what_a_rod_absorbs_does_not_depend_on_its_angle(angle: float, length: float, width: float) -> None:
    # An end may fall anywhere in a pixel: a rod is up to one of its 160 or more pixels too long or short.
    found = occlusion.rod(like((800, 800)), (0.5, 0.5), angle, length, width, 1.0)
    assert float(found.sum()) == pytest.approx(math.pi / 4 * width * length * 800**2, rel=0.02)


def test_a_wire_bows_by_its_bend_and_a_screw_is_cut_in() -> None:
    square = like((201, 201))
    wire = occlusion.rod(square, (0.5, 0.5), 0.0, 0.8, 0.03, 1.0, bend=0.2)[0]
    assert int(wire[:, 100].argmax()) == pytest.approx(100 + 0.2 * 201, abs=1)
    assert int(wire[:, 22].argmax()) == pytest.approx(100, abs=6)  # near an end, half of 0.8 away
    plain, screw = (occlusion.rod(square, (0.5, 0.5), 0.0, 0.5, 0.2, 1.0, thread=t)[0] for t in (0.0, 0.4))
    assert bool((screw <= plain).all())
    widths = (screw[:, 60:140] > 0).sum(0)
    assert int(widths.max()) >= 38
    assert int(widths.min()) <= 30


def test_balls_and_discs() -> None:
    volume = occlusion.ball(like((200, 300)), (0.5, 0.5), 0.3, 2.0).sum()
    assert float(volume) == pytest.approx(2.0 * 2 / 3 * math.pi * 60**2, rel=0.005)
    disc = occlusion.ball(like((200, 300)), (0.25, 0.5), 0.3, 2.0, flat=True)[0]
    assert set(disc.unique().tolist()) == {0.0, 2.0}
    assert disc[100, 75] == 2.0
    assert disc[100, 75 + 59] == 2.0
    assert disc[100, 75 + 61] == 0.0


def test_each_film_has_its_own_tool() -> None:
    at, angle = torch.tensor([[0.3, 0.4], [0.6, 0.7]]), torch.tensor([0.2, 1.2])
    both = occlusion.rod(like(count=2), at, angle, 0.5, 0.1)
    for i in range(2):
        alone = occlusion.rod(like(), at[i], angle[i], 0.5, 0.1)
        assert torch.equal(both[i], alone[0])


# ---- boxes and covering ----


def test_a_box_and_what_covers_it() -> None:
    films = torch.arange(40.0, dtype=torch.float64).reshape(1, 5, 8)
    box = occlusion.box(films, (2 / 8, 1 / 5), (3 / 8, 2 / 5))
    expected = torch.zeros_like(films)
    expected[:, 1:3, 2:5] = 1.0
    assert torch.equal(box, expected)
    covered = occlusion.cover(films, 1 - box, 0.5)
    assert torch.equal(covered, torch.where(box > 0, 19.5, films))
    assert torch.equal(occlusion.cover(films, 1 - box, 1.0)[box > 0].unique(), torch.tensor([39.0]).double())


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: occlusion.blades(x, (0.1, 0.1, 0.1)), "covered"),
        (lambda x: occlusion.blades(x, (0.1, 0.1, 0.1, 2.0)), "covered"),
        (lambda x: occlusion.blades(x, (0, 0, 0, 0), float("nan")), "angle"),
        (lambda x: occlusion.round_field(x, -1.0), "radius"),
        (lambda x: occlusion.rod(x, (0.5, 0.5), 0.0, 0.0, 0.1), "length"),
        (lambda x: occlusion.rod(x, (0.5,), 0.0, 0.1, 0.1), "at"),
        (lambda x: occlusion.ball(x, (0.5, 0.5), torch.ones(3)), "radius"),
        (lambda x: occlusion.box(x, (0, 0), (-1, 1)), "size"),
        (lambda x: occlusion.cover(x, x, 1.5), "shade"),
    ],
)
def test_what_cannot_be_is_named(call, name: str) -> None:
    with pytest.raises(ImageError, match=f"^{name} must"):
        call(like(count=2))
