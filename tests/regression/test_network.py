"""The network's geometry, its losses against closed forms, and their gradients."""

import math
import sys

import pytest
import torch
from small_training import BOX, TINY, body, narrow, same

import xreg
from xreg.errors import BackendError, RegistrationError
from xreg.geometry import se3
from xreg.metrics import tangent_error
from xreg.regression import Canonical, NetworkSettings, losses
from xreg.regression.network import ERROR_UNIT, Prediction, along, make_backbone, make_network
from xreg.regression.ranges import pose_of


def test_an_untrained_network_guesses_near_the_middle() -> None:
    net = make_network(TINY, BOX, 64, 0)
    with torch.no_grad():
        found = net(torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0)))
    turn, shift = se3.geodesic_distance(
        se3.from_rt(found.rotation.double(), found.place.double()),
        se3.from_rt(BOX.rotation(BOX.middle), BOX.place(BOX.middle)),
    )
    assert float(turn.max()) < 0.3
    assert float(shift.max()) < 20
    assert torch.allclose(found.rotation @ found.rotation.mT, torch.eye(3), atol=1e-5)
    assert found.log_variance.shape == (3, 6)


def test_weights_come_from_the_seed_and_the_global_state_stays() -> None:
    before = torch.random.get_rng_state()
    first, second, third = (make_network(TINY, BOX, 32, seed).state_dict() for seed in (1, 1, 2))
    assert same(first, second)
    assert not same(first, third)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_shifted_body_looks_the_same_along_its_ray() -> None:
    """A body moved on a sphere about the source, turned as its ray is, keeps its image but for the place."""
    place = torch.tensor([[40.0, -30.0, 850.0]], dtype=torch.float64)
    turn = along(place)
    assert torch.allclose(turn[0] @ torch.tensor([0.0, 0, 1], dtype=torch.float64), place[0] / place.norm())
    assert torch.allclose(turn @ turn.mT, torch.eye(3, dtype=torch.float64).expand(1, 3, 3))
    axis = se3.so3_log(turn)[0]
    assert abs(float(axis[2])) < 1e-12  # no roll: the least turn
    assert math.acos(float(place[0, 2] / place.norm())) == pytest.approx(float(axis.norm()))


def test_the_error_is_the_tangent_that_a_covariance_speaks_of() -> None:
    volume = body()
    x = BOX.draw(2, torch.Generator().manual_seed(5))
    small = x.clone()
    small[1] = x[0] + torch.tensor([0.02, -0.03, 0.05, 0.1, -0.2, 0.15], dtype=torch.float64)
    guess = Prediction(BOX.rotation(x[:1]), BOX.place(x[:1]), torch.zeros(1, 6))
    found = losses.tangent(guess, BOX.rotation(small[1:]), BOX.place(small[1:]))[0]
    poses = [pose_of(BOX.rotation(y), BOX.place(y), volume.center) for y in (x[0], small[1])]
    assert torch.allclose(found, tangent_error(*poses, BOX.place(x[0])), atol=2e-4)


def test_the_likelihood_is_least_at_the_true_variance() -> None:
    error = 0.7 * torch.randn(20_000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = [
        float(losses.gaussian_nll(error, torch.full_like(error, 2 * math.log(s)), 0.0))
        for s in (0.5, 0.6, 0.7, 0.8, 1.0)
    ]
    assert min(values) == values[2]
    expected = torch.distributions.Normal(0.0, 0.7).log_prob(error).mean() + 0.5 * math.log(2 * math.pi)
    assert values[2] == pytest.approx(-float(expected))


def test_beta_one_gives_the_mean_the_gradient_of_least_squares() -> None:
    error = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    spread = torch.randn(5, 6, dtype=torch.float64)
    (found,) = torch.autograd.grad(losses.gaussian_nll(error, spread, 1.0), error)
    assert torch.allclose(found, error.detach() / error.numel())


def test_soft_dice_and_ncc_of_equal_images_are_zero() -> None:
    images = torch.rand(3, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    images[0, 2] = 0.0  # a structure that is not on the film does not count
    assert float(losses.soft_dice(images, images)) == pytest.approx(0, abs=1e-6)
    assert float(losses.dissimilarity(images[:, 0], 3 * images[:, 0] + 2)) == pytest.approx(0, abs=1e-5)
    apart = torch.zeros(1, 2, 8, 8)
    apart[0, 1, :4] = 1.0
    assert float(losses.soft_dice(apart, apart.flip(-2))) == pytest.approx(1)


@pytest.mark.parametrize("name", ["geodesic", "nll", "image", "dice"])
def test_gradients_of_the_loss_against_differences(name: str) -> None:
    """In float64, with respect to the pose that a network answers."""
    volume = body().to(dtype=torch.float64)
    box, camera = narrow(), Canonical.of(narrow(), 32).camera
    truth, start = box.spread(2, 1), box.spread(2, 2)
    labels = torch.where(volume.labels >= 5, volume.labels - 4, 0)
    volume = xreg.Volume(volume.mu, volume.affine, labels)
    spread = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6)

    def value(step: torch.Tensor) -> torch.Tensor:
        poses = se3.retract(se3.from_rt(box.rotation(start), box.place(start)), step, box.place(start))
        guess = Prediction(poses[:, :3, :3], poses[:, :3, 3], spread)
        error = losses.in_units(losses.tangent(guess, box.rotation(truth), box.place(truth)))
        if name == "geodesic":
            return losses.double_geodesic(error)
        if name == "nll":
            return losses.gaussian_nll(error, spread, 0.5)
        how = {"integrator": "joseph", "storage": "float", "labels": "soft" if name == "dice" else None}
        pair = [
            xreg.drr(volume, camera, pose_of(g[:, :3, :3], g[:, :3, 3], volume.center), **how)
            for g in (poses, se3.from_rt(box.rotation(truth), box.place(truth)))
        ]
        return losses.dissimilarity(*pair) if name == "image" else losses.soft_dice(*pair)

    zero = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(value(zero), zero)
    scale = torch.tensor([ERROR_UNIT[0]] * 3 + [ERROR_UNIT[1]] * 3, dtype=torch.float64)
    for row, column in ((0, 0), (1, 1), (0, 2), (1, 3), (0, 4), (1, 5)):
        step = torch.zeros_like(zero)
        step[row, column] = h = 1e-6 * float(scale[column])
        numeric = float(value(step) - value(-step)) / (2 * h)
        assert float(found[row, column]) == pytest.approx(numeric, rel=2e-4, abs=1e-7)


@pytest.mark.parametrize("name", ["large", "monai:vgg", "timm:", ":x", "small:2"])
def test_backbones_that_are_not_known(name: str) -> None:
    if name.startswith("monai"):
        pytest.importorskip("monai")
    with pytest.raises(RegistrationError):
        make_backbone(NetworkSettings(backbone=name))


@pytest.mark.parametrize("package", ["monai", "timm"])
def test_a_missing_package_is_named(package: str, monkeypatch) -> None:
    for module in (package, "monai.networks.nets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=f"pip install {package}"):
        make_backbone(NetworkSettings(backbone=f"{package}:resnet18"))


def test_a_backbone_of_monai() -> None:
    pytest.importorskip("monai", reason="MONAI is not installed")
    net = make_network(NetworkSettings(backbone="monai:resnet18", features=4, hidden=8), BOX, 64, 0)
    assert net(torch.zeros(2, 64, 64)).place.shape == (2, 3)


@pytest.mark.parametrize("wrong", [{"width": 12}, {"width": 0}, {"depths": ()}, {"depths": (1, 0)}])
def test_networks_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(RegistrationError):
        NetworkSettings(**wrong)
