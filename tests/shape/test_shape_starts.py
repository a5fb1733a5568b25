"""Where bones start: the middles of their thickness in the films meet at their own middles."""

import pytest
import shape_case
import torch

from xreg.errors import ShapeError
from xreg.io import VoxelGrid
from xreg.shape import starts
from xreg.shape.atlas import build_atlas
from xreg.shape.centroids import middles_of
from xreg.shape.films import label_thickness
from xreg.shape.predict import ShapePrediction, prediction_of
from xreg.shape.scene import Scene
from xreg.shape.schemes import SCHEMES
from xreg.shape.shares import Shares
from xreg.shape.shipped import grid_camera
from xreg.shape.sources import Member
from xreg.shape.starts import started_by_maps

ALL = SCHEMES["all"]
SHAPE, VOXEL = (32, 30, 30), 4.0
GRID = VoxelGrid.box(SHAPE, [n * VOXEL for n in reversed(SHAPE)], (10.0, -5.0, 20.0))
BONES = {"L4": (0, 6, 28), "sacrum": (0, -8, -6), "femur_left": (-34, 2, -20), "femur_right": (34, 2, -20)}
UPRIGHT = (grid_camera(GRID, 1), grid_camera(GRID, 0))


def body(shift=(0.0, 0.0, 0.0)) -> torch.Tensor:
    """Ellipsoids with their middles at BONES (mm from the grid's middle), all moved alike."""
    k, j, i = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in SHAPE), indexing="ij")
    points = torch.stack([i, j, k], -1) @ GRID.affine[:3, :3].T + GRID.affine[:3, 3] - GRID.center
    labels = torch.zeros(SHAPE, dtype=torch.int16)
    for name, middle in BONES.items():
        off = points - torch.tensor(middle, dtype=torch.float64) - torch.tensor(shift, dtype=torch.float64)
        labels[((off / torch.tensor([13.0, 10.0, 9.0])) ** 2).sum(-1) < 1] = ALL.index(name)
    return labels


def told(labels: torch.Tensor) -> ShapePrediction:
    """A prediction that is sure of these labels."""
    voxels = (labels.reshape(-1) > 0).nonzero()[:, 0]
    shares = torch.zeros(len(voxels), len(ALL))
    shares[torch.arange(len(voxels)), labels.reshape(-1)[voxels].long()] = 0.95
    shares[:, 0] = 0.05
    return prediction_of([Shares.of(voxels, shares)], GRID, ALL)


def maps_of(labels: torch.Tensor, cameras) -> torch.Tensor:
    return torch.stack([label_thickness(labels, GRID, camera, len(ALL)) for camera in cameras])


@pytest.fixture(scope="module")
def atlas():
    return build_atlas([Member("p", "all", body(), GRID)])


@pytest.mark.parametrize("cameras", [UPRIGHT, shape_case.c_arms((64, 64))], ids=["parallel", "c-arm"])
def test_bones_start_where_their_shadows_meet(atlas, cameras) -> None:
    """The network's probabilities are 12 mm off, its maps are right."""
    truth = body((0.0, 10.0, 6.0))
    scene = Scene.of(told(body()), atlas, GRID, 1)
    made = started_by_maps(scene, maps_of(truth, cameras), cameras, ALL)
    wanted = middles_of(truth, GRID, len(ALL))[list(scene.numbers)].float()
    before = (scene.place - wanted).norm(dim=1)
    after = (made.place - wanted).norm(dim=1)
    assert float(before.min()) > 9
    assert float(after.max()) < 1.5
    assert len(made.points[0]) > 0


def test_a_film_that_does_not_know_left_from_right_tells_the_middle_of_both(atlas, monkeypatch) -> None:
    """Almost from the side each thigh has half of both shadows: taken as they are, both are off by more."""
    cameras = shape_case.c_arms((64, 64))
    truth = body((0.0, 8.0, 0.0))
    maps = maps_of(truth, cameras)
    pair = [ALL.index("femur_left"), ALL.index("femur_right")]
    maps[1, pair] = maps[1, pair].mean(0)
    scene = Scene.of(told(body()), atlas, GRID, 1)
    wanted = middles_of(truth, GRID, len(ALL))[list(scene.numbers)].float()

    def off() -> float:
        return float((started_by_maps(scene, maps, cameras, ALL).place - wanted).norm(dim=1).max())

    together = off()
    monkeypatch.setattr(starts, "_ALIKE", 2.0)  # as if each film told them apart
    assert together < 4
    assert off() > together + 2


def test_both_sides_start_side_by_side(atlas) -> None:
    """Probabilities and maps have one thigh 40 mm in front of the other: no patient stands so in films."""
    askew = body()
    for name, way in (("femur_left", 5), ("femur_right", -5)):
        askew[askew == ALL.index(name)] = 0
        one = body()
        one[one != ALL.index(name)] = 0
        askew += one.roll(way, 1)
    scene = Scene.of(told(askew), atlas, GRID, 1)
    left, right = (scene.names.index(f"femur_{side}") for side in ("left", "right"))
    assert float((scene.place[left] - scene.place[right])[1].abs()) > 35
    made = started_by_maps(scene, maps_of(askew, UPRIGHT), UPRIGHT, ALL)
    across = made.place[left] - made.place[right]
    assert float(across[0]) == pytest.approx(-68.0, abs=2.0)
    assert float(across[1:].norm()) <= 0.151 * float(across[0].abs())
    middle = (scene.place[left] + scene.place[right]) / 2
    torch.testing.assert_close((made.place[left] + made.place[right]) / 2, middle, atol=1.5, rtol=0.0)


def test_what_lies_far_away_is_a_mistake(atlas) -> None:
    scene, maps = Scene.of(told(body()), atlas, GRID, 1), maps_of(body(), UPRIGHT)
    number = ALL.index("L4")
    maps[:, number] = maps[:, number].roll(12, -2)  # 48 mm down in both films
    made = started_by_maps(scene, maps, UPRIGHT, ALL)
    torch.testing.assert_close(made.place, scene.place, atol=1.0, rtol=0.0)
    maps[:, number] = 0.0
    gone = started_by_maps(scene, maps, UPRIGHT, ALL)
    bone = scene.names.index("L4")
    assert torch.equal(gone.place[bone], scene.place[bone])


def test_one_film_leaves_the_depth_as_it_was(atlas) -> None:
    scene = Scene.of(told(body()), atlas, GRID, 1)
    made = started_by_maps(scene, maps_of(body((6.0, 9.0, 4.0)), UPRIGHT[:1]), UPRIGHT[:1], ALL)
    moved = made.place - scene.place
    torch.testing.assert_close(
        moved, torch.tensor([[6.0, 0.0, 4.0]]).expand(len(moved), 3), atol=1.0, rtol=0.0
    )


def test_maps_and_cameras_must_be_of_the_same_films(atlas) -> None:
    scene = Scene.of(told(body()), atlas, GRID, 1)
    finer = [camera.resize((2 * camera.size[0], 2 * camera.size[1])) for camera in UPRIGHT]
    with pytest.raises(ShapeError, match="give those of the films that the network read"):
        started_by_maps(scene, maps_of(body(), UPRIGHT), finer, ALL)
