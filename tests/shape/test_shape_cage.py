"""A rib cage on counted vertebrae: where it hangs, how it is kept, and that films move it into place."""

import math
from dataclasses import replace

import pytest
import shape_case
import torch

from xreg.io import VoxelGrid
from xreg.shape.atlas import Atlas, build_atlas
from xreg.shape.cage import build_cages, level_gap, rib_numbers, spine_at
from xreg.shape.cage_fit import CageFit, _about, _splatted, fit_cage
from xreg.shape.centroids import middles_of, points_of
from xreg.shape.films import label_thickness
from xreg.shape.predict import prediction_of
from xreg.shape.refine import RefineSettings, refine
from xreg.shape.schemes import SCHEMES
from xreg.shape.shares import Shares
from xreg.shape.shipped import grid_camera
from xreg.shape.sources import Member

ALL, SPINE = SCHEMES["all"], SCHEMES["spine"]
SHAPE, VOXEL = (84, 76, 76), 4.0
GRID = VoxelGrid.box(SHAPE, [n * VOXEL for n in reversed(SHAPE)], (0.0, 30.0, 0.0))
RIBS, FIRST = rib_numbers(ALL), ALL.index("T1")
GAP = 22.0


def trunk(wide: float = 1.0, deep: float = 1.0, slope: float = 0.5) -> torch.Tensor:
    """T1 to T12 as balls on a bent line, each with two ribs: arcs of tubes that fall to the front."""
    labels = torch.zeros(SHAPE, dtype=torch.int16).reshape(-1)
    points = points_of(GRID, torch.arange(math.prod(SHAPE)))
    for level in range(12):
        start = torch.tensor([0.0, -40.0 - 0.3 * (level - 6) ** 2, 125.0 - GAP * level])
        size = 0.6 + 0.4 * math.sin(math.pi * (level + 2) / 14)
        angle = torch.linspace(0.25, 2.2, 60)
        x, y = 105 * wide * size * angle.sin(), 75 * deep * size * (1 - angle.cos())
        for side, sign in enumerate((-1.0, 1.0)):
            arc = start + torch.stack([sign * x, y, -slope * y], 1)
            near = ((points - start).norm(dim=1) < 140).nonzero()[:, 0]
            tube = near[torch.cdist(points[near], arc).amin(1) < 5.0]
            labels[tube] = RIBS[12 * side + level]
        labels[(points - start).norm(dim=1) < 10] = FIRST + level
    return labels.reshape(SHAPE)


def misnamed(labels: torch.Tensor):
    """A prediction that sees vertebrae, and that ribs are ribs, but takes each for its lower neighbour."""
    wrong = labels.clone()
    for group in (RIBS[:12], RIBS[12:]):
        for level, number in enumerate(group):
            wrong[labels == number] = group[min(level + 1, 11)]
    one = torch.nn.functional.one_hot(wrong.long(), len(ALL)).movedim(-1, 0).float()
    one = torch.nn.functional.avg_pool3d(one[None], 3, 1, 1, count_include_pad=False)[0]
    flat = (one / one.sum(0)).flatten(1).T
    voxels = (flat[:, 0] < 0.95).nonzero()[:, 0]
    cameras = grid_camera(GRID, 1), grid_camera(GRID, 0)
    maps = torch.stack([label_thickness(wrong, GRID, camera, len(ALL)) for camera in cameras])
    found = prediction_of([Shares.of(voxels, flat[voxels])], GRID, ALL)
    return replace(found, thickness=maps), shape_case.films_of(labels, GRID, cameras), cameras


def dice(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean over the ribs."""
    each = [
        2 * int(((found == n) & (truth == n)).sum()) / int((found == n).sum() + (truth == n).sum())
        for n in RIBS
    ]
    return sum(each) / len(each)


@pytest.fixture(scope="module")
def patient() -> torch.Tensor:
    return trunk()


@pytest.fixture(scope="module")
def atlas(patient) -> Atlas:
    return build_atlas([Member("p", "all", patient, GRID)])


def test_the_spine_is_a_cubic_through_the_vertebrae() -> None:
    level = torch.arange(25, dtype=torch.float64)[:, None]
    line = 0.01 * level**3 * torch.tensor([1.0, -2.0, 0.0]) + level * torch.tensor([0.0, 1.0, -22.0])
    middles = torch.full((len(ALL), 3), torch.nan, dtype=torch.float64)
    middles[[ALL.index(name) for name in SPINE.names[1:26]]] = line
    torch.testing.assert_close(spine_at(middles, ALL).double(), line[7:19], rtol=0, atol=2e-4)
    few = middles.clone()
    few[: ALL.index("T4")] = torch.nan
    few[ALL.index("T10") :] = torch.nan
    there = spine_at(few, ALL).isfinite().all(1)
    assert there.tolist() == [False] * 2 + [True] * 8 + [False] * 2  # one beyond each end
    few[ALL.index("T8") :] = torch.nan
    assert bool(spine_at(few, ALL).isnan().all())
    assert bool(spine_at(middles, SCHEMES["pelvis"]).isnan().all())


def test_a_cage_is_the_patients_ribs(patient, atlas) -> None:
    (cage,) = atlas.cages
    spine = spine_at(middles_of(patient, GRID, len(ALL)), ALL)
    assert cage.gap == pytest.approx(level_gap(spine))
    assert cage.gap == pytest.approx(GAP, rel=0.03)
    rib = cage.ribs == 12 + 4
    at = (patient == RIBS[16]).nonzero().flip(1).double() @ GRID.affine[:3, :3].T + GRID.affine[:3, 3]
    torch.testing.assert_close(cage.points[rib] + spine[4], at.float(), rtol=0, atol=1e-3)
    assert float(cage.edges[0]) == pytest.approx(VOXEL)


def test_what_a_patient_lacks_is_the_other_sides_or_anothers(patient) -> None:
    part = patient.clone()
    part[part == RIBS[3]] = 0  # its right one is there
    part[(part == RIBS[7]) | (part == RIBS[19])] = 0  # on neither side
    cages = build_cages([Member("part", "all", part, GRID), Member("p", "all", patient, GRID)])
    assert [cage.patient for cage in cages] == ["p", "part"]
    whole, filled = cages
    assert filled.ribs.unique().tolist() == list(range(24))
    mine, other = (filled.points[filled.ribs == rib] for rib in (3, 15))
    torch.testing.assert_close(mine, other * torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(
        filled.points[filled.ribs == 7], whole.points[whole.ribs == 7] * filled.gap / whole.gap
    )
    assert build_cages([Member("none", "all", torch.zeros_like(patient), GRID)]) == ()
    assert build_cages([Member("spine", "spine", torch.zeros_like(patient), GRID)]) == ()


def test_files_keep_cages(atlas, tmp_path) -> None:
    atlas.save(tmp_path)
    (cage,), (again,) = atlas.cages, Atlas.load(tmp_path).cages
    assert (again.patient, again.gap) == (cage.patient, cage.gap)
    assert torch.equal(again.ribs, cage.ribs)
    torch.testing.assert_close(again.points, cage.points, rtol=0, atol=0.07)


def test_ribs_are_found_and_named_by_their_vertebrae(atlas) -> None:
    truth = trunk(wide=1.12, deep=0.9, slope=0.65)
    found, films, cameras = misnamed(truth)
    assert dice(found.labels, truth) < 0.1
    made = refine(found, films, cameras, atlas)
    assert made.cage.used
    assert made.cage.after > made.cage.before
    assert dice(made.prediction.labels, truth) > 0.55
    assert dice(trunk(), truth) < 0.3  # so they were moved
    assert "24 ribs as one cage" in made.text
    assert made.to_json()["rib_cage"]["ribs"] == 24
    again = refine(found, films, cameras, atlas)
    assert torch.equal(again.prediction.labels, made.prediction.labels)
    alone = refine(found, films, cameras, replace(atlas, cages=()), RefineSettings(steps=3))
    assert alone.cage is None
    assert dice(alone.prediction.labels, truth) < 0.2


def test_where_ribs_come_to_lie_does_not_hang_on_rounding(atlas) -> None:
    """A spine .01 mm elsewhere brings ribs about as far: no step is left that only chance directs."""
    found, films, cameras = misnamed(trunk(wide=1.12, deep=0.9, slope=0.65))
    moved = GRID.affine.clone()
    moved[:3, 3] += torch.tensor([0.01, -0.01, 0.01])
    nudged = replace(found, grid=VoxelGrid(GRID.shape, moved))
    one, other = (fit_cage(told, films, cameras, atlas.cages) for told in (found, nudged))
    assert float((one.points - other.points).norm(dim=1).mean()) < 0.3


def test_the_cage_that_fits_best_is_taken(atlas) -> None:
    found, films, cameras = misnamed(trunk(wide=1.1))
    (cage,) = atlas.cages
    other = replace(cage, points=cage.points * torch.tensor([0.5, 1.6, 1.0]), patient="other")
    assert fit_cage(found, films, cameras, [other, cage]).patient == "p"
    assert fit_cage(found, films, cameras, []) is None
    blind = replace(found, thickness=torch.zeros_like(found.thickness))
    spineless = replace(found, labels=found.labels.masked_fill(found.labels < RIBS[0], 0))
    for poor in (replace(found, thickness=None), blind, spineless):
        assert fit_cage(poor, films, cameras, [cage]) is None


def test_a_cages_voxels_are_those_about_its_points(patient) -> None:
    numbers = torch.tensor([RIBS[0], RIBS[12]])
    at = torch.isin(patient, numbers.to(torch.int16)).reshape(-1).nonzero()[:, 0]
    ribs = torch.where(patient.reshape(-1)[at] == RIBS[0], 0, 12)
    cage = CageFit(points_of(GRID, at), ribs, torch.full((len(at),), VOXEL), 0.0, 1.0, "p")
    drawn = cage.logits(GRID, ALL, 0.5 * VOXEL)
    assert set(drawn) == set(numbers.tolist())
    for number, (voxels, logit) in drawn.items():
        own = (patient.reshape(-1) == number).nonzero()[:, 0]
        assert torch.equal(voxels[logit > 0], own)
        assert len(voxels) > len(own)
    odd = torch.tensor(RIBS[:12]).sort().values
    values = torch.zeros(len(at), 13)
    values[:, 0], values[:, 5], values[:, 9] = 0.5, 0.2, 0.3
    renamed = cage.renamed(Shares(at, torch.cat([torch.zeros(1, dtype=torch.long), odd]), values), GRID, ALL)
    torch.testing.assert_close(renamed.values.sum(1), torch.ones(len(at)))
    left = ribs == 0
    # of ribs 1 on both sides this cage knows; what was said of ribs 5 and 9 is left alone
    assert float(renamed.of_label(RIBS[0])[left].max()) == 0.0
    values[:, 5], values[:, 1] = 0.0, 0.2
    renamed = cage.renamed(Shares(at, torch.cat([torch.zeros(1, dtype=torch.long), odd]), values), GRID, ALL)
    assert renamed.of_label(RIBS[0])[left].unique().tolist() == pytest.approx([0.2])
    assert renamed.of_label(RIBS[12])[~left].unique().tolist() == pytest.approx([0.2])
    assert float(renamed.of_label(RIBS[0])[~left].max()) == 0.0


def test_voxels_about_points_reach_over_the_grids_border() -> None:
    grid = VoxelGrid.box((4, 5, 6), (6.0, 5.0, 4.0), (3.0, 2.5, 2.0))  # voxels of 1 mm
    corner = points_of(grid, torch.tensor([0]))
    assert _about(corner, grid, 1.0).tolist() == [0, 1, 6, 7, 30, 31, 36, 37]
    outside = corner - torch.tensor([1.0, 0.0, 0.0])
    assert _about(outside, grid, 1.0).tolist() == [0, 6, 30, 36]
    assert len(_about(corner - 50.0, grid, 1.0)) == 0


def test_shadows_of_points() -> None:
    generator = torch.Generator().manual_seed(0)
    at = (torch.rand(7, 2, generator=generator, dtype=torch.float64) * 4 + 0.5).requires_grad_()
    values = torch.rand(7, generator=generator, dtype=torch.float64).requires_grad_()
    image = _splatted(at, values, (6, 7))
    assert float(image.detach().sum()) == pytest.approx(float(values.detach().sum()))
    assert torch.autograd.gradcheck(lambda a, v: _splatted(a, v, (6, 7)), (at, values))
    outside = torch.tensor([[-3.0, 2.0], [6.5, 2.0]], dtype=torch.float64)
    shown = _splatted(outside, torch.ones(2, dtype=torch.float64), (6, 7))
    assert float(shown.sum()) == pytest.approx(0.5)  # half of the second lies beyond the border
