"""Labels from films: the same as in training, with doubt, and refusals where a model does not fit."""

from dataclasses import replace

import pytest
import shape_case
import torch

from xreg.errors import FileError, InputWarning, ShapeError
from xreg.geometry import Camera
from xreg.io import VoxelGrid
from xreg.shape.networks import NetworkSettings
from xreg.shape.predict import ShapeModel
from xreg.shape.shipped import grid_camera
from xreg.shape.sources import AsTheyAre
from xreg.shape.train_settings import ShapeTrainSettings
from xreg.shape.training import mean_dice, train
from xreg.training import MODEL, TRAINING

NETWORK = NetworkSettings(film_widths=(8, 16, 16), features=8, cells=16, space_widths=(8, 16), hidden=16)


@pytest.fixture(scope="module")
def case():
    return shape_case.sample("a")


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory):
    """A network that knows one case by heart."""
    place = tmp_path_factory.mktemp("net")
    settings = ShapeTrainSettings(
        steps=400, points=64, rate=1e-2, film_rate=1e-2, film_batch=2, film_share=0.25, average=0.9,
        hulls=False, mirror=False, variation=shape_case.STILL, validations=1, network=NETWORK,
    )  # fmt: skip
    train(AsTheyAre([case]), settings, place)
    return place


def predict(folder, case, **known):
    return ShapeModel.load(folder).predict(case.films, case.cameras, case.grid, normalised=True, **known)


def test_labels_probabilities_and_doubt(folder, case) -> None:
    found = predict(folder, case)
    assert mean_dice(found.labels, case.labels) > 0.9
    assert found.labels.dtype == torch.int16
    total = sum(found.probability(n) for n in range(len(found.scheme)))
    torch.testing.assert_close(total, torch.ones(case.grid.shape))
    torch.testing.assert_close(found.probability("L2"), found.probability(21))
    assert torch.equal(found.probability("L2") > 0.5, (found.labels == 21) & (found.probability("L2") > 0.5))
    edge = (found.labels > 0) & (torch.nn.functional.avg_pool3d(
        (found.labels > 0).float()[None], 3, 1, 1)[0] < 0.7)  # fmt: skip
    inside = (found.labels > 0) & ~edge
    assert float(found.entropy[edge].mean()) > float(found.entropy[inside].mean())
    for name, (labelled, expected) in found.expected_volumes().items():
        assert name in ("L1", "L2", "L3", "L4")
        assert expected == pytest.approx(labelled, rel=0.3)


def test_the_maps_bring_the_cameras_of_their_films(folder, case) -> None:
    """On a grid finer than the training's, films are averaged to the training's pixels all the same."""
    for times in (1, 2):
        space = VoxelGrid.box(tuple(times * n for n in case.grid.shape), [n * s for n, s in zip(
            case.grid.size, case.grid.spacing, strict=True)], case.grid.center)  # fmt: skip
        cameras = (grid_camera(space, 1), grid_camera(space, 0))
        films = torch.nn.functional.interpolate(case.films[None], cameras[0].size)[0]
        found = ShapeModel.load(folder).predict(films, cameras, space, normalised=True, count=False)
        assert [tuple(camera.size) for camera in found.told] == [tuple(found.thickness.shape[-2:])] * 2
        assert tuple(found.thickness.shape[-2:]) == tuple(case.films.shape[-2:])


def test_variants_average_and_tell_where_they_disagree(folder, case) -> None:
    one, several = predict(folder, case), predict(folder, case, variants=3)
    assert one.disagreement is None
    assert float(several.disagreement.min()) >= 0
    assert float(several.disagreement.max()) > 0
    assert bool((several.disagreement <= several.entropy + 1e-6).all())
    assert mean_dice(several.labels, case.labels) > 0.85


def test_any_grid_can_be_asked(folder, case) -> None:
    coarse = case.grid.binned(2)
    found = ShapeModel.load(folder).predict(case.films, case.cameras, coarse, normalised=True)
    assert found.labels.shape == coarse.shape


def test_a_finer_grid_and_finer_films_are_read_as_in_training(folder, case) -> None:
    twice = torch.tensor([[2.0, 0.0, 0.5], [0.0, 2.0, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
    cameras = [c.replace(K=twice @ c.K, size=tuple(2 * n for n in c.size)) for c in case.cameras]
    films = case.films.repeat_interleave(2, 1).repeat_interleave(2, 2)
    sizes = [n * step for n, step in zip(case.grid.size, case.grid.spacing, strict=True)]
    fine = VoxelGrid.box(tuple(2 * n for n in case.grid.shape), sizes, case.grid.center.tolist())
    found = ShapeModel.load(folder).predict(films, cameras, fine, normalised=True)
    wanted = case.labels
    for axis in range(3):
        wanted = wanted.repeat_interleave(2, axis)
    assert found.labels.shape == wanted.shape
    assert found.thickness.shape[-2:] == case.films.shape[-2:]
    assert mean_dice(found.labels, wanted) > 0.85


def test_hulls_need_films_that_cross(folder, case) -> None:
    found, plain = predict(folder, case, hulls=True), predict(folder, case)
    assert mean_dice(found.labels, case.labels) > 0.4
    assert not torch.equal(found.labels, plain.labels)
    model = ShapeModel.load(folder)
    model.hulls = True
    told = model.predict(case.films, case.cameras, case.grid, normalised=True)
    assert torch.equal(told.labels, found.labels)
    same = case.films[:1].expand(2, -1, -1), [case.cameras[0]] * 2
    along = model.predict(*same, case.grid, normalised=True)
    learned = model.predict(*same, case.grid, normalised=True, hulls=False)
    assert torch.equal(along.labels, learned.labels)


def test_a_single_film_works_and_says_what_it_is_worth(folder, case) -> None:
    with pytest.warns(InputWarning, match="one film only"):
        found = ShapeModel.load(folder).predict(case.films[:1], case.cameras[:1], case.grid, normalised=True)
    assert any("one film" in text for text in found.warnings)
    assert float(found.entropy.sum()) > float(predict(folder, case).entropy.sum())


def test_films_that_show_little_or_nothing(folder, case) -> None:
    away = tuple(
        Camera.parallel_beam(
            size=c.size, spacing=4.0, sdd=400, direction=d, isocenter=(10.0, -5.0, 20.0 + shift)
        )
        for c, d, shift in zip(case.cameras, ((0, -1, 0), (1, 0, 0)), (0, 100), strict=True)
    )
    with pytest.warns(InputWarning, match="film 1 shows only"):
        ShapeModel.load(folder).predict(case.films, away, case.grid, normalised=True)
    away = (away[0], away[1].moved(_shifted(500.0)))
    with pytest.raises(ShapeError, match="film 1 shows no part of the grid"):
        ShapeModel.load(folder).predict(case.films, away, case.grid, normalised=True)


def _shifted(z: float) -> torch.Tensor:
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = z
    return pose


def test_a_model_of_another_anatomy_is_refused(folder) -> None:
    with pytest.raises(ShapeError, match="'spine', and 'pelvis' was asked for"):
        ShapeModel.load(folder, scheme="pelvis")
    with pytest.raises(ShapeError, match="never shown C3, T12"):
        ShapeModel.load(folder, labels=["C3", "T12", "L1"])
    with pytest.raises(ShapeError, match="no structure"):
        ShapeModel.load(folder, labels=["rib_left_1"])
    assert ShapeModel.load(folder, scheme="spine", labels=["L1"]).facts["patients"] == ["a"]


def test_what_was_never_shown_is_never_said(folder, case) -> None:
    model = ShapeModel.load(folder)
    generator = torch.Generator().manual_seed(0)
    films = torch.rand(case.films.shape, generator=generator)
    found = model.predict(films, case.cameras, case.grid)
    assert set(found.labels.unique().tolist()) <= {0, 20, 21, 22, 23}
    torch.testing.assert_close(found.shares.values.sum(1), torch.ones(len(found.shares)))


def test_damaged_folders(folder, tmp_path, case) -> None:
    with pytest.raises(FileError, match="is not there"):
        ShapeModel.load(tmp_path)
    (tmp_path / MODEL).write_bytes((folder / MODEL).read_bytes()[:-9])
    with pytest.raises(FileError, match="damaged"):
        ShapeModel.load(tmp_path)
    with pytest.raises(FileError, match="layers"):
        ShapeModel.load(folder / TRAINING)
    with pytest.raises(ShapeError, match="variants"):
        predict(folder, replace(case), variants=9)
