"""Vertebrae counted along a made-up spine whose network is in doubt about every name."""

from dataclasses import replace

import pytest
import torch
from spine_phantom import ALL, FIRST, GRID, LAST, SACRUM, SPINE, spine

from xreg.geometry import se3
from xreg.shape.centroids import points_of
from xreg.shape.films import facing_camera, label_thickness
from xreg.shape.networks import Views
from xreg.shape.networks.heads import FilmMaps
from xreg.shape.schemes import SCHEMES
from xreg.shape.shares import Shares
from xreg.shape.spine import SpineLine, count_vertebrae, renumbered


def doubted(labels: torch.Tensor, shift: float, spread: float) -> Shares:
    """Probabilities that give a voxel's share to vertebrae about the true one, moved by ``shift`` levels."""
    voxels = (labels.reshape(-1) > 0).nonzero()[:, 0]
    own = labels.reshape(-1)[voxels].long()
    found = torch.zeros(len(voxels), len(ALL))
    found[:, 0] = 0.1
    number = torch.tensor(SPINE)
    away = (number[None] - own[:, None] - shift) / spread
    split = (-0.5 * away.square()).softmax(1)
    bone = own != SACRUM
    found[bone[:, None] & torch.isin(torch.arange(len(ALL)), number)[None]] = 0.9 * split[bone].reshape(-1)
    found[~bone, SACRUM] = 0.9
    return Shares.of(voxels, found)


def maps_of(labels: torch.Tensor, found: Shares):
    """Masks as a network as doubtful would draw them, in two films."""
    cameras = [facing_camera(GRID, d, size=(100, 40)) for d in ((0.0, -1.0, 0.0), (-1.0, 0.0, 0.0))]
    views = Views.of(torch.zeros(2, 100, 40), cameras, GRID)
    thick = torch.stack([label_thickness(labels, GRID, c, len(ALL)) for c in cameras])
    dense = found.columns(range(len(ALL)))
    means = torch.stack([dense[labels.reshape(-1)[found.voxels] == n].mean(0) for n in range(len(ALL))])
    means = means.nan_to_num()
    share = thick[:, 1:] / thick[:, 1:].sum(1, keepdim=True).clamp_min(1e-6)
    masks = torch.einsum("vkhw,kl->vlhw", share, means[1:])[:, 1:]
    masks = views.turned(masks[None])[0].clamp(1e-4, 1 - 1e-4)
    nothing = torch.zeros(2, len(ALL) - 1, 100, 40)
    return FilmMaps(masks.logit(), nothing, nothing[:, 0], nothing[:, :, 0, 0]), views


@pytest.mark.parametrize("size", [0.85, 1.0, 1.15])
def test_doubtful_vertebrae_are_counted(size: float) -> None:
    labels = spine(size)
    found = doubted(labels, 0.0, 1.5)
    assert float(found.columns(SPINE).amax(1).max()) < 0.5  # no voxel knows its name
    points = points_of(GRID, found.voxels)
    line = count_vertebrae(points, found, GRID, ALL, *maps_of(labels, found))
    assert abs(line.size - size) < 0.11
    for number in range(FIRST + 1, LAST):
        middle = (labels == number).nonzero().double().mean(0).flip(0)
        at = line.at(se3.apply(GRID.affine, middle).reshape(1, 3).float())
        assert float(at[0]) == pytest.approx(SPINE.index(number), abs=0.4)
    made = renumbered(points, found, ALL, line)
    own = labels.reshape(-1)[found.voxels]
    right = (made.best() == own).float().mean()
    assert float(right) > 0.85
    torch.testing.assert_close(made.values.sum(1), found.values.sum(1))
    other = [n for n in range(len(ALL)) if n not in (*SPINE, SACRUM)]
    torch.testing.assert_close(made.columns(other), found.columns(other), atol=1e-3, rtol=0)
    more = (made.of_label(SACRUM) - found.of_label(SACRUM))[(own != SACRUM)]
    assert float(more.mean()) < 0.01  # but for the lower border of L5


def test_beyond_the_last_vertebra_is_the_sacrum() -> None:
    """A network that takes the top of the sacrum for a vertebra does not make it a sixth one."""
    labels = spine()
    top = points_of(GRID, (labels.reshape(-1) == SACRUM).nonzero()[:, 0])[:, 2].max()
    found = doubted(labels, 0.0, 0.4)
    points = points_of(GRID, found.voxels)
    mistaken = (labels.reshape(-1)[found.voxels] == SACRUM) & (points[:, 2] > top - 14)
    dense = found.columns(range(len(ALL)))
    dense[mistaken] = 0.1 * torch.eye(len(ALL))[0] + 0.9 * torch.eye(len(ALL))[ALL.index("L6")]
    wrong = Shares.of(found.voxels, dense)
    line = count_vertebrae(points, found, GRID, ALL, *maps_of(labels, found))
    assert line.names(ALL) == [*SPINE[:24], SACRUM]
    for keep in (0.0, 0.5):
        made = renumbered(points, wrong, ALL, line, keep)
        assert float(made.of_label(ALL.index("L6")).sum()) == 0
        assert float((made.best()[mistaken] == SACRUM).float().mean()) > 0.9
    whole = SpineLine(line.points, torch.linspace(15.0, 24.2, len(line.points)), 1.0)
    assert whole.names(ALL) == SPINE  # its end is that of the film
    counted = replace(whole, levels=whole.levels.masked_fill(torch.arange(len(line.points)) > 40, torch.nan))
    ends = {23.6: 24, 23.8: 25, 24.9: 25}  # one more vertebra from three quarters on
    for end, count in ends.items():
        moved = counted.levels + end - counted.levels[40]
        assert replace(counted, levels=moved).names(ALL) == [*SPINE[:count], SACRUM]


def test_the_sacrum_sets_the_number() -> None:
    """Vertebrae all named most of a level too high are put right by where the sacrum begins."""
    labels = spine()
    found = doubted(labels, -0.6, 1.5)
    points = points_of(GRID, found.voxels)
    line = count_vertebrae(points, found, GRID, ALL, *maps_of(labels, found))
    made = renumbered(points, found, ALL, line)
    own = labels.reshape(-1)[found.voxels]
    before, after = ((x.best() == own)[own != SACRUM].float().mean() for x in (found, made))
    assert float(before) < 0.1
    assert float(after) > 0.6


def test_levels_go_on_beyond_the_line_and_along_its_bends() -> None:
    points = torch.stack([torch.zeros(11), torch.zeros(11), -30.0 * torch.arange(11) / 2], 1)
    line = SpineLine(points, torch.arange(11) / 2.0, 1.0)
    probe = torch.tensor([[0.0, 40.0, -45.0], [0.0, 0.0, 10.0], [0.0, 0.0, -52.5], [0.0, 0.0, 90.0]])
    torch.testing.assert_close(line.at(probe), torch.tensor([1.5, -1 / 3, 1.75, -0.5]), atol=1e-4, rtol=0)


def test_no_spine_is_not_counted() -> None:
    labels = torch.zeros(GRID.shape, dtype=torch.int16)
    labels[50:53, 20:23, 20:23] = FIRST
    found = doubted(labels, 0.0, 1.0)
    maps, views = maps_of(labels, found)
    points = points_of(GRID, found.voxels)
    assert count_vertebrae(points, found, GRID, ALL, maps, views) is None
    none = Shares(found.voxels[:0], found.labels, found.values[:0])
    assert count_vertebrae(points[:0], none, GRID, ALL, maps, views) is None
    few = Shares(found.voxels, found.labels[:1], found.values[:, :1])
    assert count_vertebrae(points, few, GRID, SCHEMES["ribseg"], maps, views) is None
