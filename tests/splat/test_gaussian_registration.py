"""Gaussians in the place of a volume: a CT becomes Gaussians, which are registered to a film of the CT."""

import math

import pytest
import torch

from xreg import register
from xreg.errors import GeometryError, RegistrationError
from xreg.geometry import Camera, se3
from xreg.metrics import mtre
from xreg.phantom import chest_phantom
from xreg.registration import ViewFreedom, locate, register_bodies
from xreg.registration.unknowns import Body
from xreg.renderer import drr
from xreg.splat import Gaussians, fit_to_volume


@pytest.fixture(scope="module")
def ct():
    return chest_phantom(spacing=6.0)


@pytest.fixture(scope="module")
def body(ct):
    return fit_to_volume(Gaussians.from_volume(ct, 8000, seed=0), ct, steps=40)


@pytest.fixture(scope="module")
def scene(ct):
    """The film of the CT, its camera, the true pose, and a start that is 10 mm and 5 degrees off."""
    camera = Camera.c_arm(sdd=1200.0, sod=850.0, size=(96, 96), spacing=4.5, isocenter=ct.center)
    true = se3.retract(
        torch.eye(4, dtype=torch.float64), torch.tensor([0.03, -0.04, 0.05, 6, -4, 5]).double(), ct.center
    )
    off = torch.tensor([1.0, -1.0, 1.0]) / math.sqrt(3)
    start = se3.retract(true, torch.cat([off * math.radians(5), off.flip(0) * 10]).double(), ct.center)
    return drr(ct, camera, true), camera, true, start


def test_a_ct_as_gaussians_finds_its_film(ct, body, scene) -> None:
    film, camera, true, start = scene
    found = register(body, film, camera, start)
    points = ct.box_corners
    before, after = mtre(start, true, points), mtre(found.world_from_body, true, points)
    assert before > 10
    assert after < 4, f"{before:.1f} mm became {after:.1f}"
    assert torch.isfinite(found.covariance).all()


def test_two_views_and_a_free_focal_length(ct, body, scene) -> None:
    film, camera, true, start = scene
    side = Camera.c_arm(sdd=1200.0, sod=850.0, size=(96, 96), spacing=4.5, isocenter=ct.center, primary=80.0)
    free = [ViewFreedom(0, focal=0.02), ViewFreedom(1, principal=2.0)]
    found = register_bodies([Body(body, start)], [film, drr(ct, side, true)], [camera, side], freedoms=free)
    assert mtre(found.bodies[0].world_from_body, true, ct.box_corners) < 4


def test_what_cannot_be_registered_is_refused(ct, body, scene) -> None:
    film, camera, _, start = scene
    with pytest.raises(RegistrationError, match="to_volume"):
        locate(body, film, camera, start)
    with pytest.raises(GeometryError, match="none of 8000 Gaussians"):
        register(body, film, camera, se3.from_translation(torch.tensor([2000.0, 0, 0], dtype=torch.float64)))
    with pytest.raises(RegistrationError, match="takes a Volume"):
        register("ct.nii.gz", film, camera)


def test_detail_is_the_edge_of_a_cube_of_equal_content() -> None:
    n = torch.zeros(1, 3)
    one = Gaussians(n, n + math.log(3.0), torch.tensor([[0.0, 0, 0, 1]]), torch.ones(1))
    grid = torch.diag(torch.tensor([1.0, 1, 1, 1], dtype=torch.float64))
    grid[:3, 3] = -20
    content = float(one.voxelize((grid, (41, 41, 41)), cutoff=6.0).sum())
    assert one.detail_mm == pytest.approx(content ** (1 / 3), rel=1e-4)
