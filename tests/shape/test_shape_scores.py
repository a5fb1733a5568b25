import numpy as np
import pytest
import torch

from xreg.errors import ShapeError
from xreg.io import VoxelGrid
from xreg.shape.scores import assd, hd95, score, surface_distances, surface_points


def grid_of(shape, spacing=(1.0, 1.0, 1.0)):
    return VoxelGrid(shape, torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64)))


def boxes(shape, **where):
    """Labels L<n> (scheme `spine`: number) as boxes: n=(slices)."""
    labels = torch.zeros(shape, dtype=torch.int16)
    for name, box in where.items():
        labels[tuple(slice(*b) for b in box)] = int(name[1:])
    return labels


def test_equal_maps_are_perfect():
    labels = boxes((12, 10, 10), n20=((1, 5), (2, 6), (2, 6)), n21=((6, 10), (2, 6), (2, 6)))
    found = score(labels, labels, grid_of(labels.shape), "spine")
    assert (found.dice, found.dice_shifted, found.dice_foreground) == (1, 1, 1)
    assert (found.hd95_mm, found.assd_mm, found.centroid_mm) == (0, 0, 0)
    assert found.identification.rate == found.identification_spine.recall == 1
    assert (found.missed, found.invented, dict(found.shifts)) == ((), (), {"spine": 0})


def test_a_box_moved_by_whole_voxels():
    shape, spacing = (12, 14, 20), (3.0, 1.0, 2.0)
    true = boxes(shape, n20=((2, 8), (2, 10), (2, 10)))
    moved = boxes(shape, n20=((2, 8), (2, 10), (5, 13)))  # three voxels of 3 mm
    found = score(moved, true, grid_of(shape, spacing), "spine")
    assert found.dice == pytest.approx(5 / 8)
    assert found.centroid_mm == pytest.approx(9.0)
    one, other = (surface_points(v.numpy(), grid_of(shape, spacing))[20] for v in (moved, true))
    apart = np.linalg.norm(one[:, None] - other[None], axis=-1)  # every pair
    directed = apart.min(1), apart.min(0)
    assert found.hd95_mm == pytest.approx(max(np.percentile(d, 95) for d in directed))
    assert found.assd_mm == pytest.approx(np.concatenate(directed).mean())


@pytest.mark.filterwarnings("ignore::FutureWarning:monai")
def test_distances_are_monai_s():
    metrics = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(0)
    shape, spacing = (14, 16, 18), (1.5, 2.0, 2.5)
    at = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    maps = []
    for _ in range(2):
        center = np.array(shape) / 2 + rng.normal(0, 1.5, 3)
        maps.append(torch.from_numpy((((at - center) / rng.uniform(3, 5, 3)) ** 2).sum(-1) < 1))
    masks = [torch.nn.functional.pad(m, (2,) * 6)[None, None].float() for m in maps]
    along = spacing[::-1]  # of D, H, W
    theirs = [
        metrics.compute_hausdorff_distance(*masks, percentile=95, spacing=along),
        metrics.compute_average_surface_distance(*masks, symmetric=True, spacing=along),
        metrics.compute_dice(*masks),
    ]
    found = score(maps[0].short(), maps[1].short(), grid_of(shape, spacing), "spine")
    assert [found.hd95_mm, found.assd_mm, found.dice] == pytest.approx([float(t) for t in theirs], rel=1e-5)


def test_distances_do_not_depend_on_how_the_grid_lies():
    shape = (10, 12, 14)
    true = boxes(shape, n5=((2, 7), (3, 9), (2, 10)))
    other = boxes(shape, n5=((3, 9), (2, 9), (4, 11)))
    turn = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    )[0]
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn @ torch.diag(torch.tensor([1.5, 2.0, 2.5], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([10.0, -40.0, 3.0])
    plain = score(other, true, grid_of(shape, (1.5, 2.0, 2.5)), "spine")
    turned = score(other, true, VoxelGrid(shape, affine), "spine")
    assert turned.hd95_mm == pytest.approx(plain.hd95_mm)
    assert turned.assd_mm == pytest.approx(plain.assd_mm)


def test_a_missing_label_counts_zero_and_an_invented_one_is_named():
    shape = (20, 8, 8)
    true = boxes(shape, n20=((1, 6), (1, 7), (1, 7)), n21=((7, 12), (1, 7), (1, 7)))
    mine = boxes(shape, n20=((1, 6), (1, 7), (1, 7)), n2=((14, 18), (1, 7), (1, 7)))
    found = score(mine, true, grid_of(shape), "spine")
    assert found.dice == pytest.approx(0.5)
    assert (found.missed, found.invented) == (("L2",), ("C2",))
    assert found.hd95_mm == 0, "of what both have"
    assert {s.name: s.hd95_mm for s in found.labels} == {"C2": None, "L1": 0.0, "L2": None}
    assert found.dice_foreground == pytest.approx(2 * 180 / (360 + 180 + 144))
    counts = found.identification
    assert (counts.identified, counts.reference, counts.predicted) == (1, 2, 2)
    assert (counts.recall, counts.precision, counts.rate) == (0.5, 0.5, 0.5)
    assert score(mine, true, grid_of(shape), "spine").to_json()["labels"][0]["name"] == "C2"


def stack(numbers, shape=(50, 8, 8), height=10):
    return boxes(
        shape, **{f"n{n}": ((height * i, height * i + 8), (1, 7), (1, 7)) for i, n in enumerate(numbers)}
    )


@pytest.mark.parametrize("shift", [-2, 0, 1])
def test_a_miscounted_level_costs_nothing_where_shifts_are_allowed(shift):
    true = stack([23, 22, 21, 20])
    found = score(stack([n + shift for n in (23, 22, 21, 20)]), true, grid_of(true.shape, (2, 2, 3)), "spine")
    assert found.dice == (1.0 if shift == 0 else 0.0)
    assert found.dice_shifted == 1.0
    assert dict(found.shifts) == {"spine": -shift}
    assert found.identification.identified == (4 if shift == 0 else 0)


def test_no_shift_puts_right_what_lies_elsewhere():
    true = stack([23, 22])
    found = score(stack([23 - 8, 22 - 8]), true, grid_of(true.shape), "spine")
    assert dict(found.shifts) == {"spine": None}
    assert found.dice_shifted == 0.0


def test_ribs_of_both_sides_shift_together_and_apart_from_the_spine():
    true, mine = stack([20, 30, 42]), stack([20, 31, 43])
    found = score(mine, true, grid_of(true.shape), "all")
    assert dict(found.shifts) == {"spine": 0, "ribs": -1}
    assert found.dice == pytest.approx(1 / 3)
    assert found.dice_shifted == 1.0


def test_a_shift_never_moves_a_bone_to_the_other_side_or_out_of_its_group():
    true, mine = stack([38]), stack([37])  # first right rib, taken for the last left one
    assert score(mine, true, grid_of(true.shape), "all").dice_shifted == 0
    true, mine = stack([26]), stack([25])
    assert score(mine, true, grid_of(true.shape), "all").dice_shifted == 0


def test_identification_needs_the_nearest_both_ways():
    true = stack([23, 22])
    far = torch.zeros_like(true)
    far[0:8, 1:7, 1:7], far[20:28, 1:7, 1:7] = 23, 22  # L3 lies 10 voxels off
    near = score(far, true, grid_of(true.shape, (1, 1, 1)), "spine")
    assert near.identification.identified == 2, "10 mm off, and still the nearest"
    assert score(far, true, grid_of(true.shape, (1, 1, 3)), "spine").identification.identified == 1, "30 mm"
    crowd = true.clone()
    crowd[40:48] = crowd[10:18]
    crowd[10:18, 1:7, 1:7] = 21  # another predicted label stands where L3 is; L3 itself 15 mm off
    found = score(crowd, true, grid_of(true.shape, (0.5, 0.5, 0.5)), "spine")
    assert found.identification.identified == 1


def test_bad_input_is_refused():
    labels = stack([20])
    grid = grid_of(labels.shape)
    with pytest.raises(ShapeError, match=r"prediction.*shape \[50, 8, 8\].*\[49, 8, 8\]"):
        score(labels[1:], labels, grid, "spine")
    with pytest.raises(ShapeError, match=r"prediction.*float32"):
        score(labels.float(), labels, grid, "spine")
    with pytest.raises(ShapeError, match=r"reference: the scheme 'pelvis'.*20"):
        score(torch.zeros_like(labels), labels, grid, "pelvis")
    with pytest.raises(ShapeError, match="nothing to score"):
        score(labels, torch.zeros_like(labels), grid, "spine")


def test_surface_distances_of_points():
    one, other = np.array([[0.0, 0, 0], [3, 0, 0]]), np.array([[0.0, 4, 0]])
    there, back = surface_distances(one, other)
    assert there.tolist() == [4, 5]
    assert back.tolist() == [4]
    assert assd(there, back) == pytest.approx(13 / 3)
    assert hd95(there, back) == pytest.approx(4.95)
