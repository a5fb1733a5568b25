"""An atlas of bones, fitted to a doubtful prediction: shapes come right, and films move them."""

from dataclasses import replace

import pytest
import torch
from bone_case import ALL, GRID, SHAPE, SPINE, bodies, doubtful, films_of, one_patient, two_patients

from xreg.errors import ShapeError
from xreg.geometry import Camera
from xreg.shape.atlas import Atlas
from xreg.shape.films import label_thickness
from xreg.shape.networks.views import fitted
from xreg.shape.predict import DOUBT
from xreg.shape.refine import RefineSettings, _product, _volumes, refine
from xreg.shape.scene import Scene
from xreg.shape.shares import Shares
from xreg.shape.training import mean_dice


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return one_patient()


def test_a_blurred_prediction_becomes_sharp(atlas) -> None:
    truth = bodies(shift=(3.0, -2.0, 4.0), turn=0.12, stretch=1.06)
    found, (films, cameras) = doubtful(truth, 5), films_of(truth)
    made = refine(found, films, cameras, atlas)
    assert [bone.used for bone in made.bones] == [True] * 3
    assert all(bone.after > 0.9 for bone in made.bones)
    assert mean_dice(made.prediction.labels, truth) > mean_dice(found.labels, truth) + 0.02
    assert float(made.prediction.entropy.sum()) < float(found.entropy.sum())
    total = made.prediction.shares.values.sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0.0)
    assert "3 of 3 bones" in made.text
    assert made.to_json()["bones"][0]["name"] == "L1"


def test_films_move_bones_that_the_network_misplaced(atlas) -> None:
    truth, wrong = bodies(shift=(0.0, 0.0, 5.0)), bodies()
    found, (films, cameras) = doubtful(wrong), films_of(truth)
    blind = refine(found, films, cameras, atlas, RefineSettings(films=0.0, trust=0.2))
    seen = refine(found, films, cameras, atlas, RefineSettings(trust=0.2))
    dice = [mean_dice(p.labels, truth) for p in (found, blind.prediction, seen.prediction)]
    assert dice[2] > max(dice[:2]) + 0.05
    assert all(after > before for before, after in seen.matches)


def test_films_tell_what_bones_are_a_mixture_of() -> None:
    """Of two patients, one has longer spikes: films of it bring its bones, more than moves alone do."""
    atlas, long = two_patients(), bodies(spike=45.0)
    found, cameras = doubtful(bodies(spike=33.0), 4), films_of(long)[1]
    films = torch.stack([label_thickness(long, GRID, camera, len(SPINE))[1:].sum(0) for camera in cameras])
    settings = RefineSettings(trust=0.0)
    mixed = refine(found, films / films.amax(), cameras, atlas, settings)
    alike = refine(found, films / films.amax(), cameras, atlas, replace(settings, mix=0.01))
    dice = [mean_dice(made.prediction.labels, long) for made in (alike, mixed)]
    assert dice[1] > dice[0] + 0.005
    assert all(mixed.matches[n][1] > alike.matches[n][1] for n in range(2))


def test_the_last_steps_see_finer_films(monkeypatch) -> None:
    """Turned vertebrae are told better by films of the prediction's own grid than by those of one half as
    fine."""
    monkeypatch.setattr("xreg.shape.refine._EDGE", 20)
    truth, found = bodies(turn=0.1, spike=30.0), doubtful(bodies(spike=30.0))
    films, cameras = films_of(truth)
    small = fitted(films, cameras, GRID)[1]
    maps = torch.stack([label_thickness(truth, GRID, camera, len(SPINE)) for camera in small])
    dice = []
    for steps, close in ((28, 0), (12, 16)):
        settings = RefineSettings(trust=0.0, steps=steps, close_steps=close)
        made = refine(replace(found, thickness=maps), films, cameras, two_patients(), settings)
        dice.append(mean_dice(made.prediction.labels, truth))
    assert dice[1] > dice[0] + 0.03


def test_a_film_without_any_edge_moves_nothing_to_nowhere(atlas) -> None:
    """A collimated film may be flat where the bones are: no gradient, and none that is not a number."""
    found, cameras = doubtful(bodies()), films_of(bodies())[1]
    made = refine(found, torch.zeros(2, *cameras[0].size), cameras, atlas)
    assert made.matches == ((0.0, 0.0), (0.0, 0.0))
    assert mean_dice(made.prediction.labels, bodies()) > 0.9


def test_maps_of_the_network_count(atlas) -> None:
    truth, wrong = bodies(shift=(0.0, 0.0, 5.0)), bodies()
    films, cameras = films_of(truth)
    _, small = fitted(films, cameras, GRID)
    maps = torch.stack([label_thickness(truth, GRID, camera, len(SPINE)) for camera in small])
    settings = RefineSettings(films=0.0)
    without = refine(doubtful(wrong), films, cameras, atlas, settings)
    with_maps = refine(replace(doubtful(wrong), thickness=maps), films, cameras, atlas, settings)
    gain = mean_dice(with_maps.prediction.labels, truth) - mean_dice(without.prediction.labels, truth)
    assert gain > 0.05


def test_thickness_tells_how_large_a_bone_is(atlas) -> None:
    """A hull is larger than its bone; the films' thickness is not, and tells half of where a bone starts."""
    labels = bodies()
    known = {"sdd": 1000.0, "sod": 700.0, "size": (70, 60), "spacing": 3.5, "isocenter": GRID.center.tolist()}
    cameras = tuple(Camera.c_arm(primary=p, **known) for p in (0.0, 90.0))
    thickness = torch.stack([label_thickness(labels, GRID, camera, len(SPINE)) for camera in cameras])
    volumes = _volumes(thickness, cameras, GRID)
    true = torch.bincount(labels.flatten().long(), minlength=len(SPINE)) * GRID.voxel_mm3
    torch.testing.assert_close(volumes[20:23], true[20:23].float(), rtol=0.08, atol=0)
    hulls = doubtful(bodies(stretch=1.25))
    sizes = [Scene.of(hulls, atlas, GRID, 1, volumes=told).size for told in (None, volumes)]
    torch.testing.assert_close(sizes[0] / sizes[1], torch.full((3,), 1.25**0.5), rtol=0.03, atol=0)
    assert _volumes(None, cameras, GRID) is None


def test_the_same_bits_again_and_other_bones_untouched(atlas) -> None:
    labels = bodies()
    labels[2:6, 10:18, 10:18] = 23  # L4, which the atlas lacks
    found, (films, cameras) = doubtful(labels), films_of(labels)
    one, two = (refine(found, films, cameras, atlas).prediction for _ in range(2))
    assert torch.equal(one.shares.values, two.shares.values)
    before, after = found.probability("L4"), one.probability("L4")
    kept = before > DOUBT
    assert int(kept.sum()) > 100
    torch.testing.assert_close(after[kept], before[kept])
    assert float(after[~kept].max()) <= DOUBT


def test_a_network_counts_more_where_a_rib_is() -> None:
    """Opinions p and q make p^t q^(1-t), with another t at the voxels of ribs."""
    vertebra, rib = ALL.index("L1"), ALL.index("rib_left_3")
    dense = torch.zeros(3, len(ALL))
    dense[:, 0], dense[0, vertebra], dense[1:, rib] = 0.6, 0.4, 0.4
    found = Shares.of(torch.tensor([5, 6, 7]), dense)
    logit = torch.tensor([1.5])
    drawn = {vertebra: (torch.tensor([5]), logit), rib: (torch.tensor([6]), logit)}
    made = _product(found, ALL, drawn, RefineSettings(trust=0.1, rib_trust=0.6))
    own = torch.tensor(0.4 / 0.6).log()
    wanted = torch.stack([0.1 * own + 0.9 * 1.5, 0.6 * own + 0.4 * 1.5, 0.1 * own - 0.9 * 12.0])
    of = made.columns([vertebra, rib])[torch.arange(3), torch.tensor([0, 1, 1])]
    torch.testing.assert_close((of / made.of_label(0)).log(), wanted)


def test_what_does_not_fit(atlas) -> None:
    found, (films, cameras) = doubtful(bodies()), films_of(bodies())
    kept = refine(found, films, cameras, atlas, RefineSettings(least=1.0))
    assert not any(bone.used for bone in kept.bones)
    assert mean_dice(kept.prediction.labels, found.labels) == 1.0
    with pytest.raises(ShapeError, match="scheme"):
        refine(found, films, cameras, replace(atlas, scheme="all"))
    with pytest.raises(ShapeError, match="step or more"):
        RefineSettings(steps=0)
    nothing = doubtful(torch.zeros(SHAPE, dtype=torch.int16))
    assert refine(nothing, films, cameras, atlas).text == "no bone fitted"
