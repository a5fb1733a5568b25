"""Jobs with their tensors on a card, pretended: no job mixes places, and its results are the host's."""

import contextlib
import importlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pretended
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from xreg import Camera, Rig, Tracker, Volume, drr, drr_with_jacobian, metrics, register
from xreg.cli import main
from xreg.phantom import chest_phantom
from xreg.registration import (
    Body,
    RelativePrior,
    SearchBox,
    SearchSettings,
    Settings,
    ViewFreedom,
    locate,
    pose_from_landmarks,
    register_bodies,
)

CARD = pretended.CARD
BRIEF = Settings(restarts=0)
POSE = torch.eye(4, dtype=torch.float64)
POINTS = torch.tensor(
    [[0, 0, 0], [40, 10, 5], [-30, 20, 30], [10, -40, -20], [25, 25, -35], [-20, -30, 10]],
    dtype=torch.float64,
)
Place = Callable[[object], object]


@pytest.fixture(autouse=True)
def card() -> Iterator[None]:
    with pretended.pretended():
        yield


@pytest.fixture(scope="module")
def body() -> Volume:
    return chest_phantom(spacing=8.0)


@pytest.fixture(scope="module")
def camera(body: Volume) -> Camera:
    return Camera.c_arm(sdd=1000, sod=800, size=(48, 48), spacing=8.0, isocenter=body.center, primary=10.0)


@pytest.fixture(scope="module")
def film(body: Volume, camera: Camera) -> Tensor:
    return drr(body, camera)


def there(x: object) -> object:
    return x.to(CARD)


def here(x: object) -> object:
    return x


def places(count: int) -> list[tuple[Place, ...]]:
    """All ways to have so many things here and there."""
    return list(itertools.product((here, there), repeat=count))


# ---- that pretending refuses what a card refuses ----


def test_places_are_not_mixed() -> None:
    a, b = torch.ones(3, device=CARD), torch.ones(3)
    assert a.is_cuda
    assert a.device == CARD
    assert torch.equal((a + 1).cpu(), b + 1)
    for mix in (lambda: a + b, lambda: torch.cat([a, b]), lambda: b[a.long()], lambda: torch.stack([b, a])):
        with pytest.raises(RuntimeError, match="on cuda:0 and"):
            mix()
    with pytest.raises(TypeError, match="numpy"):
        a.numpy()
    with pytest.raises(RuntimeError, match="got a generator on cpu"):
        torch.rand(3, device=CARD, generator=torch.Generator())
    a[torch.tensor([True, False, True])] = 2.0
    assert (a * torch.tensor(2.0)).tolist() == [4.0, 2.0, 4.0]


def test_gradients_come_back_to_where_their_tensors_are() -> None:
    leaf, far = torch.ones(3, requires_grad=True), torch.ones(3, device=CARD, requires_grad=True)
    ((leaf.to(CARD) * far).cpu() * torch.arange(3.0)).sum().backward()
    assert not leaf.grad.is_cuda
    assert far.grad.is_cuda
    assert leaf.grad.tolist() == far.grad.tolist() == [0.0, 1.0, 2.0]


# ---- rendering ----


@pytest.mark.parametrize(("volume", "view", "pose"), places(3))
def test_images_are_where_the_volume_is(body, camera, film, volume, view, pose) -> None:
    image = drr(volume(body), view(camera), pose(POSE))
    assert image.is_cuda == (volume is there)
    torch.testing.assert_close(image.cpu(), film)
    one, jacobian = drr_with_jacobian(volume(body), view(camera), pose(POSE), center=pose(POINTS[0]))
    torch.testing.assert_close(one.cpu(), film)
    assert jacobian.shape == (6, *film.shape)


@pytest.mark.parametrize(("volume", "pose"), places(2))
def test_gradients_of_images(body, camera, volume, pose) -> None:
    mu, at = volume(body.mu).clone().requires_grad_(), pose(POSE).clone().requires_grad_()
    (drr(replace(volume(body), mu=mu), camera, at) ** 2).sum().backward()
    assert mu.grad.is_cuda == (volume is there)
    assert at.grad.is_cuda == (pose is there)


@pytest.mark.parametrize("rule", ["soft", "hard"])
def test_labels(body, camera, rule) -> None:
    labelled = replace(body, labels=(body.mu > 0.01).to(torch.int16) + (body.mu > 0.03).to(torch.int16))
    expected = drr(labelled, camera, labels=rule)
    torch.testing.assert_close(drr(labelled.to(CARD), camera, labels=rule).cpu(), expected)


def test_looks_of_films_are_the_same_on_the_card(film) -> None:
    from xreg.xray import Augment, FilmSettings, expose

    films = film[None].repeat(6, 1, 1)
    looks = Augment()(films, torch.Generator().manual_seed(1))
    far = Augment()(films.to(CARD), torch.Generator().manual_seed(1))
    assert far.is_cuda
    torch.testing.assert_close(far.cpu(), looks)
    pretended.waits.clear()
    Augment()(films.repeat(8, 1, 1).to(CARD), torch.Generator().manual_seed(1))
    assert pretended.waits.total() < 12, "a batch waits for the card some times, and not once a film"
    generator = torch.Generator(CARD).manual_seed(1)
    assert expose(films.to(CARD), FilmSettings(photons=1e4, scatter=0.1), generator).is_cuda


# ---- registration ----


@pytest.mark.parametrize(("volume", "shown", "view", "pose"), places(4))
def test_register(body, camera, film, volume, shown, view, pose) -> None:
    mask = torch.ones(film.shape, dtype=torch.bool)
    words = {"mask": shown(mask), "settings": BRIEF}
    found = register(volume(body), shown(film), view(camera), pose(POSE), **words)
    assert metrics.mtre(found.world_from_body, POSE, POINTS) < 0.1


def test_a_registration_waits_once_a_render(body, camera, film) -> None:
    volume = there(body)
    pretended.waits.clear()
    found = register(volume, film, camera, settings=Settings())
    assert found.renders > 5
    assert pretended.waits["tensor"] == found.renders + found.checks  # the sums over a render's patches
    assert pretended.waits.total() <= found.renders + found.checks + 2


@pytest.mark.parametrize("shadow", [None, 20.0])
def test_a_body_here_and_one_there_with_a_free_view(body, camera, film, shadow) -> None:
    freedom = ViewFreedom(0, focal=0.02)
    relation = RelativePrior(0, 1, 1.0, 1.0, there(POSE))
    settings = replace(BRIEF, shadow=shadow)
    for one, other in ((body.to(CARD), body), (body, body.to(CARD))):
        bodies = [Body(one, POSE), Body(other, POSE)]
        found = register_bodies(
            bodies, 2 * film, camera, freedoms=[freedom], relations=[relation], settings=settings
        )
        assert all(metrics.mtre(b.world_from_body, POSE, POINTS) < 0.5 for b in found.bodies)


@pytest.mark.parametrize(("volume", "pose"), places(2))
def test_search(body, camera, film, volume, pose) -> None:
    box, search = (
        SearchBox((5.0, 5.0, 5.0), (10.0, 10.0, 10.0)),
        SearchSettings(samples=16, heat=1, finalists=1),
    )
    found, score = locate(volume(body), film, there(camera), pose(POSE), box=box, search=search)[0]
    assert metrics.mtre(found, POSE, POINTS) < 10
    assert score > 0.5


def test_tracking_and_views_on_a_card(body, camera, film) -> None:
    tracker = Tracker(there(body), there(camera), there(POSE))
    assert not any(tracker.update(there(film)).lost for _ in range(2))
    rig = Rig(
        (
            camera,
            Camera.c_arm(sdd=1000, sod=800, size=(48, 48), spacing=8.0, isocenter=body.center, primary=95.0),
        )
    )
    films = [drr(body, c) for c in rig]
    found = register(there(body), [there(films[0]), films[1]], there(rig), settings=BRIEF)
    assert metrics.mtre(found.world_from_body, POSE, POINTS) < 0.1


@pytest.mark.parametrize(("points", "pixels", "view"), places(3))
def test_landmarks_and_metrics(camera, points, pixels, view) -> None:
    found = pose_from_landmarks(points(POINTS), pixels(camera.project(POINTS)), view(camera))
    pair = points(found.world_from_body), pixels(POSE)
    assert metrics.mtre(*pair, points(POINTS)) < 1e-6
    assert metrics.mpe(view(camera), *pair, points(POINTS)) < 1e-6
    assert metrics.mrpe(view(camera), *pair, points(POINTS)) < 1e-6


# ---- networks, Gaussians, tomography, shape ----


def test_a_pose_network_learns_there_and_guesses(body, camera, film, tmp_path: Path) -> None:
    from xreg.regression import (
        NetworkSettings,
        PoseRange,
        Regressor,
        TrainSettings,
        Weights,
        register_guessed,
        train,
    )
    from xreg.xray import AugmentSettings

    box = PoseRange((-20, 20), (-10, 10), (-8, 8), (-30, 30), (-30, 30), (-40, 40))
    tiny = NetworkSettings(width=8, depths=(1, 1), features=8, hidden=32)
    labelled = replace(body, labels=(body.mu > 0.01).to(torch.int16))
    settings = TrainSettings(
        size=32, batch=4, steps=3, grid_mm=16.0, held_out=4, validations=2, groups=2, network=tiny,
        augment=AugmentSettings(), labels=(1,), weights=Weights(image=1.0, dice=1.0),
    )  # fmt: skip
    for resume in (False, True):
        assert train([labelled], box, settings, tmp_path, device=CARD, resume=resume).steps == 3
    for model, volume in places(2):
        regressor = Regressor.load(tmp_path, device=CARD if model is there else "cpu")
        found = register_guessed(regressor, volume(labelled), film, camera, search=None, settings=BRIEF)
        assert found.how in ("guess", "variants")


def test_gaussians(body, camera, film, tmp_path: Path) -> None:
    from xreg.splat import Gaussians

    made = Gaussians.from_volume(body, 300)
    image = made.render(camera)
    for view, pose in places(2):
        torch.testing.assert_close(there(made).render(view(camera), pose(POSE)).cpu(), image)
    assert Gaussians.from_volume(there(body), 300).mean.is_cuda
    found = register(there(made), image, camera, settings=BRIEF)
    assert metrics.mtre(found.world_from_body, POSE, POINTS) < 0.5
    there(made).save(tmp_path / "g.safetensors")
    torch.testing.assert_close(Gaussians.load(tmp_path / "g.safetensors").mean, made.mean)


@pytest.fixture
def scan():
    from xreg.io import ProjectionSet, VoxelGrid
    from xreg.tomography import Projector

    grid = VoxelGrid.box((12, 13, 14), (120.0, 110.0, 100.0), (4.0, -3.0, 5.0))
    angles = torch.arange(8, dtype=torch.float64) * 45
    known = {"sdd": 900.0, "sod": 600.0, "size": (20, 22), "spacing": 9.0, "isocenter": grid.center}
    rig = Rig(tuple(Camera.c_arm(**known, primary=angles)))
    inside = torch.zeros(grid.shape)
    inside[3:9, 4:10, 4:9] = 0.02
    return ProjectionSet(Projector(rig, grid).forward(inside), rig, grid)


def test_tomography(scan) -> None:
    from xreg.tomography import Projector, cgls, fdk, fista_tv, os_sart

    projector, images = Projector(scan.cameras, scan.grid), scan.images
    torch.testing.assert_close(
        fdk(there(images), scan.cameras, scan.grid).cpu(), fdk(images, scan.cameras, scan.grid)
    )
    for method in (cgls, os_sart, fista_tv):
        expected, found = (method(projector, place(images), iterations=2) for place in (here, there))
        expected, found = (x[0] if isinstance(x, tuple) else x for x in (expected, found))
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("poses", [False, True])
def test_a_fit_of_gaussians(scan, poses: bool) -> None:
    from xreg.splat import FitSettings, fit

    settings = FitSettings(count=60, iterations=4, voxel_steps=4, check_every=2, poses=poses, pose_rounds=1)
    found, expected = fit(there(scan), settings), fit(scan, settings)
    assert found.gaussians.mean.is_cuda
    for (name, one), (_, other) in zip(found.gaussians.items(), expected.gaussians.items(), strict=True):
        torch.testing.assert_close(one.cpu(), other, msg=name)


def test_the_verbs_take_a_device(body, camera, film, scan, tmp_path: Path) -> None:
    from xreg.io import save_camera, save_image, save_projections

    def run(*words: str) -> dict:
        done = CliRunner().invoke(main, [*words, "--device", "cuda", "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    ct, view, picture, folder = (str(tmp_path / name) for name in ("ct.nii.gz", "c.json", "f.tif", "scan"))
    body.save(ct)
    save_camera(view, camera)
    save_image(picture, film.numpy())
    save_projections(folder, scan)
    words = ("--units", "mu", "--camera", view, "--intensity", "line_integral", "-o", str(tmp_path / "out"))
    found = run("register", ct, picture, *words)
    assert found["accepted"]
    assert found["backend"] == "cuda"
    for method in ("fdk", "os-sart"):
        made = str(tmp_path / f"{method}.nii.gz")
        run("recon", folder, "--method", method, "-o", made)
        assert float(Volume.load(made, units="mu").mu.max()) > 0.01


@pytest.fixture
def shape_case(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "shape"))
    return importlib.import_module("shape_case")


def test_a_network_of_labels_learns_there_and_predicts(tmp_path: Path, shape_case) -> None:
    from xreg.errors import ShapeError
    from xreg.shape import ShapeModel, reconstruct
    from xreg.shape.networks import NetworkSettings
    from xreg.shape.sources import AsTheyAre
    from xreg.shape.train_settings import ShapeTrainSettings
    from xreg.shape.training import train

    small = NetworkSettings(film_widths=(8, 16, 16), features=8, cells=16, space_widths=(8, 16), hidden=16)
    settings = ShapeTrainSettings(steps=4, validations=2, points=8, film_share=0.6, network=small)
    samples = [shape_case.sample(name, n) for n, name in enumerate("abc")]
    for resume in (False, True):
        known = {"held_out": samples[2:], "device": CARD, "resume": resume}
        train(AsTheyAre(samples[:2]), settings, tmp_path, **known)
    case, made = samples[0], []
    for device in (CARD, "cpu"):
        model = ShapeModel.load(tmp_path, device=device)
        with contextlib.suppress(ShapeError):  # so few steps find no bone; what comes before runs
            place = there if device is CARD else here
            reconstruct(
                [place(f) for f in case.films], [place(c) for c in case.cameras], model, grid=case.grid
            )
        made.append(model.predict(case.films, case.cameras, case.grid, variants=2, normalised=True))
    torch.testing.assert_close(made[0].labels, made[1].labels)
    torch.testing.assert_close(made[0].entropy, made[1].entropy)
