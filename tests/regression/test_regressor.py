"""From a trained network to a registered pose."""

import math
from dataclasses import replace

import pytest
import torch
from small_training import BOX, TINY, body, narrow, settings

import xreg
from xreg.errors import FileError, GeometryError, ImageError, RegistrationError, VolumeError
from xreg.geometry import Camera, Rig, se3
from xreg.metrics import tangent_error
from xreg.registration import Level, Settings
from xreg.regression import Canonical, PoseGuess, Regressor, checkpoint, register_guessed, start, train
from xreg.regression.network import Prediction
from xreg.regression.regressor import turned

QUICK = Settings(
    levels=(Level(32, iterations=10, tolerance=0.2), Level(64, iterations=10, tolerance=0.05)), restarts=0
)


@pytest.fixture(scope="module")
def volume():
    return body()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, volume):
    """A network that has seen enough for guesses which registration can use."""
    path = tmp_path_factory.mktemp("net")
    known = settings(steps=100, batch=16, groups=1, held_out=32, rate=6e-3, cut=0.0, contrast=(1.0, 1.0))
    train([volume], narrow(), known, path)
    return path


@pytest.fixture(scope="module")
def camera(volume):
    return Camera.c_arm(
        sdd=1100, sod=900, primary=-25, secondary=11, size=(96, 112), spacing=4.2, isocenter=volume.center
    )


def pose_at(camera: Camera, volume, seed: int) -> torch.Tensor:
    box = replace(narrow(), sod=900.0)
    return camera.world_from_camera @ box.pose(0.7 * box.spread(8, 3)[seed], volume.center)


def film_at(camera: Camera, volume, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    truth = pose_at(camera, volume, seed)
    image = xreg.drr(volume, camera, truth, integrator="siddon", storage="float")
    return 0.8 * image + 0.3, truth


class Oracle(torch.nn.Module):
    """Answers the same canonical pose for each film."""

    def __init__(self, rotation: torch.Tensor, place: torch.Tensor) -> None:
        super().__init__()
        self.rotation, self.place = rotation.float(), place.float()

    def forward(self, images: torch.Tensor) -> Prediction:
        n = len(images)
        return Prediction(self.rotation.expand(n, 3, 3), self.place.expand(n, 3), torch.zeros(n, 6))


def oracle(folder, camera: Camera, truth: torch.Tensor, volume) -> Regressor:
    """A regressor that answers a given pose of a camera."""
    regressor = Regressor.load(folder)
    seen = camera.camera_from_world @ truth
    regressor.net = Oracle(seen[:3, :3], se3.apply(seen, volume.center[None])[0])
    return regressor


def test_a_guess_is_a_pose_in_the_world(folder, camera, volume) -> None:
    film, truth = film_at(camera, volume, 0)
    guess = oracle(folder, camera, truth, volume).guess(film, camera, center=volume.center)
    assert torch.allclose(guess.world_from_body, truth, atol=1e-3)
    assert torch.allclose(guess.center, se3.apply(truth, volume.center[None])[0], atol=1e-3)
    assert guess.checks["coverage"] > 0.5
    assert guess.checks["outside"] >= 0
    regressor = Regressor.load(folder)
    assert torch.allclose(regressor.center, volume.center)
    plain = regressor.guess(film, camera)
    assert torch.equal(
        plain.world_from_body, regressor.guess(film, camera, center=volume.center).world_from_body
    )
    regressor.facts["volumes"] = regressor.facts["volumes"] * 2
    with pytest.raises(VolumeError, match="several CTs"):
        regressor.guess(film, camera)


def test_a_covariance_is_told_along_the_world(folder, camera, volume) -> None:
    """Depth is along the beam, wherever in the world that points."""
    film, truth = film_at(camera, volume, 0)
    regressor = oracle(folder, camera, truth, volume)
    regressor.calibration = [1.0, 1.0, 1.0, 1.0, 1.0, 16.0]
    guess = regressor.guess(film, camera, center=volume.center)
    beam = camera.world_from_camera[:3, 2]
    assert float(beam @ guess.covariance[3:, 3:] @ beam) == pytest.approx(16 * 10.0**2)
    assert guess.along(camera)[3:].tolist() == pytest.approx([10.0, 10.0, 40.0])
    side = camera.world_from_camera[:3, 0]
    assert float(side @ guess.covariance[:3, :3] @ side) == pytest.approx(math.radians(5.0) ** 2)


def test_rolled_variants_agree_with_a_network_that_sees_the_truth(folder, camera, volume) -> None:
    film, truth = film_at(camera, volume, 1)
    regressor = Regressor.load(folder)
    roll = 9.0
    seen = se3.inverse(se3.from_euler([roll], "Z", degrees=True)) @ camera.camera_from_world @ truth
    regressor.net = Oracle(seen[:3, :3], se3.apply(seen, volume.center[None])[0])
    plain, rolled = regressor.guesses(film, camera, center=volume.center, rolls=(roll,), behind=False)
    assert torch.allclose(rolled.world_from_body, truth, atol=1e-3)
    assert not torch.allclose(plain.world_from_body, truth, atol=0.1)
    assert rolled.how == "rolled by 9°"


def test_from_behind_is_half_a_turn_about_the_detector_s_axes(folder, camera, volume) -> None:
    film, truth = film_at(camera, volume, 1)
    found = oracle(folder, camera, truth, volume).guesses(film, camera, center=volume.center, rolls=())
    assert [g.how for g in found] == ["film", "from behind", "from behind"]
    for guess, axis in zip(found[1:], (1, 0), strict=True):
        turn = tangent_error(truth, guess.world_from_body, guess.center)
        assert float(turn[:3].norm()) == pytest.approx(math.pi, abs=1e-4)
        assert abs(float(turn[:3] @ camera.world_from_camera[:3, axis])) == pytest.approx(math.pi, abs=1e-3)
        assert float(turn[3:].norm()) < 1e-2


def test_turned_covariances_keep_their_ellipsoid() -> None:
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotation = se3.from_euler([0.3, -0.8, 1.1])[:3, :3]
    found = turned(root @ root.T, rotation)
    xi = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = torch.cat([rotation @ xi[:3], rotation @ xi[3:]])
    before, after = xi @ torch.linalg.solve(root @ root.T, xi), moved @ torch.linalg.solve(found, moved)
    assert float(after) == pytest.approx(float(before))


# ---- guess, refine, verdict ----


def test_guess_and_refinement_find_the_pose(folder, camera, volume) -> None:
    regressor = Regressor.load(folder)
    for seed in (0, 2):
        film, truth = film_at(camera, volume, seed)
        found = register_guessed(regressor, volume, film, camera, settings=QUICK, search=None)
        middle = se3.apply(truth, volume.center[None])[0]
        away = tangent_error(found.result.world_from_body, truth, middle)
        assert math.degrees(float(away[:3].norm())) < 1.0
        assert float(away[3:5].norm()) < 3.0
        assert found.result.verdict.evidence["guess_sigmas"] == pytest.approx(found.sigmas)


def test_several_films_are_registered_together(folder, camera, volume, monkeypatch) -> None:
    """From the guess of the film that the network is surest of."""
    other = Camera.c_arm(sdd=1000, sod=800, primary=20, size=(80, 80), spacing=5.0, isocenter=volume.center)
    truth = pose_at(camera, volume, 3)
    films = [xreg.drr(volume, c, truth, integrator="siddon") for c in (camera, other)]
    regressor = Regressor.load(folder)
    away = se3.retract(truth, torch.tensor([0.5, 0, 0, 0, 0, 300], dtype=torch.float64))
    eye = torch.eye(6, dtype=torch.float64)
    known = {96: PoseGuess(truth, 0.1 * eye, volume.center), 80: PoseGuess(away, eye, volume.center)}
    monkeypatch.setattr(regressor, "guess", lambda film, *_, **__: known[len(film)])
    for cameras in ([camera, other], Rig((camera, other))):
        found = register_guessed(regressor, volume, films, cameras, settings=QUICK, search=None)
        assert found.guess is known[96]
        assert torch.allclose(found.result.world_from_body, truth, atol=1.0)


def test_an_answer_far_from_the_guess_is_rejected(folder, camera, volume) -> None:
    film, truth = film_at(camera, volume, 0)
    regressor = oracle(folder, camera, truth, volume)
    found = register_guessed(regressor, volume, film, camera, settings=QUICK, search=None)
    assert found.how == "guess"
    assert found.sigmas < 2
    sure = replace(found.result, accepted=True)
    assert start.judged([found.guess], sure, "guess").result.accepted
    away = se3.retract(truth, torch.tensor([0, 0, 0, 90.0, 0, 0], dtype=torch.float64))
    guess = replace(found.guess, world_from_body=away, center=se3.apply(away, volume.center[None])[0])
    checked = start.judged([guess], sure, "guess").result
    assert not checked.accepted
    assert not checked.verdict.accepted
    assert "standard deviations from the network's guess" in checked.reason
    assert checked.verdict.evidence["guess_sigmas"] > start.MOST_SIGMAS
    nearest = start.judged([guess, found.guess], sure, "variants")  # a variant may be right
    assert nearest.result.accepted
    assert nearest.guess is found.guess


def test_a_wrong_guess_is_mended_by_its_variants(folder, camera, volume) -> None:
    """The network takes the body for its view from behind; the verdict sends registration to the variants."""
    film, truth = film_at(camera, volume, 2)
    regressor = oracle(folder, camera, truth, volume)
    flipped = regressor.guesses(film, camera, center=volume.center, rolls=())[1].world_from_body
    stages: list[str] = []
    picky = replace(QUICK, accept_score=0.9)
    found = register_guessed(
        oracle(folder, camera, flipped, volume), volume, film, camera, settings=picky, search=None,
        on_stage=stages.append,
    )  # fmt: skip
    assert stages == ["guess", "variants"]
    assert found.how == "variants"
    assert found.guess.how == "from behind"
    assert found.sigmas < start.MOST_SIGMAS
    assert torch.allclose(found.result.world_from_body, truth, atol=2.0)


def test_a_stage_without_an_answer_says_why(folder, camera, volume, monkeypatch) -> None:
    def lacking(*_, **__):
        raise RegistrationError("the search by evolution needs the package cmaes")

    film, truth = film_at(camera, volume, 2)
    regressor = oracle(folder, camera, truth, volume)
    picky = replace(QUICK, accept_score=1.1)  # nothing is good enough, so every stage is tried
    monkeypatch.setattr(start, "locate", lacking)
    found = register_guessed(regressor, volume, film, camera, settings=picky)
    assert found.problems == ("search: the search by evolution needs the package cmaes",)
    assert found.how in ("guess", "variants")
    monkeypatch.setattr(start, "register_bodies", lacking)
    monkeypatch.setattr(start, "register_best", lacking)
    with pytest.raises(
        RegistrationError, match=r"range of the network \(guess: the search .* variants: .* sea"
    ):
        register_guessed(regressor, volume, film, camera, settings=picky)


def test_a_film_that_cannot_be_guessed_is_named(folder, camera, volume, monkeypatch) -> None:
    film, truth = film_at(camera, volume, 0)
    regressor = oracle(folder, camera, truth, volume)
    guess = regressor.guess

    def first_only(film, camera, mask, **known):
        if mask is not None:
            raise ImageError("film fills only 3 % of the field")
        return guess(film, camera, mask, **known)

    monkeypatch.setattr(regressor, "guess", first_only)
    masks = [None, torch.ones_like(film, dtype=torch.bool)]
    found = register_guessed(
        regressor, volume, [film, film], [camera, camera], mask=masks, settings=QUICK, search=None
    )
    assert found.problems[0] == "guess from film 2: film fills only 3 % of the field"


def test_as_many_masks_as_films_are_needed(folder, camera, volume) -> None:
    film, _ = film_at(camera, volume, 0)
    regressor, valid = Regressor.load(folder), torch.ones_like(film, dtype=torch.bool)
    for mask, count in ((valid, 1), ([valid], 1), ([valid] * 3, 3), (torch.stack([valid] * 3), 3)):
        with pytest.raises(RegistrationError, match=f"got 2 films, 2 cameras and {count} masks; give lists"):
            register_guessed(regressor, volume, [film, film], [camera, camera], mask=mask)
    views = start.views_of([film, film], camera, [None, valid])
    assert views[0][2] is None
    assert views[1][2] is valid
    assert start.views_of(film, camera, valid)[0][2] is valid


def test_a_box_of_three_standard_deviations(camera) -> None:
    spread = torch.diag(torch.tensor([0.10, 0.05, 0.02, 4.0, 9.0, 25.0], dtype=torch.float64) ** 2)
    turn = camera.world_from_camera[:3, :3]
    guess = PoseGuess(torch.eye(4, dtype=torch.float64), turned(spread, turn), torch.zeros(3))
    box = start.box_of(guess, camera)  # about v, u, beam; along u, v, beam
    assert box.degrees == pytest.approx((10.0, math.degrees(0.3), 10.0))
    assert box.mm == pytest.approx((20.0, 27.0, 75.0))
    degrees, mm = start.prior_of(guess)
    assert degrees <= math.degrees(0.1) + 1e-6
    assert mm <= 25.0 + 1e-6


# ---- bad input ----


def test_another_ct_is_refused(folder, camera, volume) -> None:
    film, _ = film_at(camera, volume, 0)
    other = replace(volume, mu=volume.mu.flip(2))
    with pytest.raises(VolumeError, match="another CT"):
        register_guessed(Regressor.load(folder), other, film, camera)
    with pytest.raises(VolumeError, match="another CT"):
        Regressor.load(folder).require(volume.resample(9.0))
    Regressor.load(folder).require(volume.at_energy(60.0))  # the same CT, seen at another energy


def test_films_that_cannot_be_guessed(folder, camera, volume) -> None:
    regressor = Regressor.load(folder)
    film, _ = film_at(camera, volume, 0)
    with pytest.raises(ImageError, match="camera"):
        regressor.guess(film, center=volume.center)
    with pytest.raises(ImageError, match="field"):
        regressor.guess(film, camera, torch.zeros_like(film, dtype=torch.bool), center=volume.center)
    beam = Camera.parallel_beam(size=camera.size, spacing=4.0, sdd=1000)
    with pytest.raises(GeometryError, match="parallel"):
        regressor.guess(film, beam, center=volume.center)
    with pytest.raises((GeometryError, RegistrationError)):
        register_guessed(regressor, volume, film, beam)


def test_folders_that_hold_no_network(folder, tmp_path) -> None:
    with pytest.raises(FileError, match="is not there"):
        Regressor.load(tmp_path)
    tensors, facts = checkpoint.load(folder / checkpoint.MODEL)
    checkpoint.save(tmp_path / checkpoint.MODEL, tensors, {k: v for k, v in facts.items() if k != "range"})
    with pytest.raises(FileError, match="lacks the entries"):
        Regressor.load(tmp_path)
    wrong = {**facts, "settings": {**facts["settings"], "network": {**TINY.to_dict(), "width": 16}}}
    checkpoint.save(tmp_path / checkpoint.MODEL, tensors, wrong)
    with pytest.raises(FileError, match="xreg can make"):
        Regressor.load(tmp_path)
    assert Regressor.load(folder).canonical == Canonical.of(narrow(), 32)
    assert narrow() != BOX
