"""Several bodies in one system, and what is known of them beforehand."""

import math

import pytest
import torch
from poses_of_body import moved, target_error

import xreg
from xreg import Camera, Volume, se3
from xreg.errors import GeometryError, RegistrationError
from xreg.registration import Body, RelativePrior, ViewFreedom, register_bodies
from xreg.registration.unknowns import Unknowns


@pytest.fixture(scope="module")
def halves(body) -> list[Volume]:
    """The body cut in two across its length: two volumes, each with a place in the world."""
    half = body.mu.shape[2] // 2
    left, right = body.mu.clone(), body.mu.clone()
    left[..., half:], right[..., :half] = 0, 0
    return [
        Volume(left[..., :half].contiguous(), body.affine),
        Volume(right[..., half:].contiguous(), body.affine @ torch.tensor(
            [[1, 0, 0, half], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]], dtype=torch.float64)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def cameras(body) -> list[Camera]:
    common = {"sdd": 1000, "sod": 700, "size": (96, 104), "spacing": (3.0, 3.0), "isocenter": body.center}
    return [Camera.c_arm(primary=p, **common) for p in (-45, 45)]


def test_two_bodies_that_moved_apart_are_both_found(halves, cameras):
    truth = [moved(halves[0], (3, -2, 4), (5, -3, 4)), moved(halves[1], (-2, 4, -3), (-4, 5, -2))]
    films = [
        sum(
            xreg.drr(h, c, t, integrator="siddon", storage="float")
            for h, t in zip(halves, truth, strict=True)
        )
        for c in cameras
    ]
    starts = [moved(h, (2, 2, -2), (4, -5, 3), t) for h, t in zip(halves, truth, strict=True)]
    out = register_bodies([Body(h, s) for h, s in zip(halves, starts, strict=True)], films, cameras)
    assert out.covariance.shape == (12, 12)
    for half, found, expected, start in zip(halves, out.bodies, truth, starts, strict=True):
        assert target_error(half, start, expected) > 5
        assert target_error(half, found.world_from_body, expected) < 0.7
    assert len(out.bodies[0].trajectory[-1].poses) == 2


def test_a_prior_decides_what_a_film_cannot(body, truth):
    """A parallel beam says nothing of depth; a prior on the pose does."""
    camera = Camera.parallel_beam(size=(80, 80), spacing=2.5, sdd=600, isocenter=body.center)
    film = xreg.drr(body, camera, truth, integrator="exact")
    start = moved(body, (1, 1, 1), (3, 2, 3), truth)
    out = register_bodies([Body(body, start, prior=(5.0, 10.0))], film, camera).bodies[0]
    beam = camera.world_from_camera[:3, 2]
    middle = [se3.apply(p, body.center[None])[0] for p in (out.world_from_body, start)]
    assert abs(float((middle[0] - middle[1]) @ beam)) < 0.5
    assert 1.0 < float((beam @ out.covariance[3:, 3:] @ beam).sqrt()) < 100.0
    assert not out.accepted  # ten millimetres are not what acceptance promises
    assert "determine the pose to" in out.reason
    near = moved(body, (1, 1, 1), (0, 0, 0), truth)
    tight = register_bodies([Body(body, near, prior=(5.0, 0.5))], film, camera)
    assert tight.verdict.accepted, tight.verdict.reason


def test_a_tight_relation_moves_two_bodies_as_one(halves, cameras):
    truth = moved(halves[0], (2, -2, 3), (4, -3, 2))
    film = sum(xreg.drr(h, cameras[0], truth, storage="float") for h in halves)
    starts = [moved(halves[0], (2, 1, -1), (3, -3, 2), truth)] * 2
    out = register_bodies(
        [Body(h, s) for h, s in zip(halves, starts, strict=True)], film, cameras[0],
        relations=[RelativePrior(0, 1, degrees=0.02, mm=0.02)],
    )  # fmt: skip
    a, b = (one.world_from_body for one in out.bodies)
    assert target_error(halves[1], a, b) < 0.2
    assert target_error(halves[0], a, truth) < 0.7


def test_the_penalty_has_the_derivative_of_its_cost(halves):
    bodies = [Body(halves[0], prior=(3.0, 5.0)), Body(halves[1], moved(halves[1], (5, 3, 1), (2, 3, 4)))]
    unknowns = Unknowns(bodies, [], relations=[RelativePrior(0, 1, 2.0, 4.0, torch.eye(4))])
    state = unknowns.moved(unknowns.start, 0.1 * torch.arange(12, dtype=torch.float64).sin())
    _, gradient, hessian = unknowns.penalty(state)
    for k in range(12):
        step = torch.zeros(12, dtype=torch.float64)
        step[k] = 1e-5
        ends = [unknowns.penalty(unknowns.moved(state, s * step))[0] for s in (1, -1)]
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient[k]), rel=1e-4, abs=1e-4)
    assert float(torch.linalg.eigvalsh(hessian)[0]) > -1e-8


def test_a_prior_counts_in_standard_deviations(body):
    unknowns = Unknowns([Body(body, prior=(2.0, 4.0))], [])
    step = torch.tensor([math.radians(2.0), 0, 0, 0, 4.0, 0], dtype=torch.float64)
    assert unknowns.penalty(unknowns.moved(unknowns.start, step))[0] == pytest.approx(1.0, rel=1e-3)


def test_a_relation_needs_two_bodies(body):
    with pytest.raises(RegistrationError, match="two of 1 bodies"):
        Unknowns([Body(body)], [], relations=[RelativePrior(0, 1, 1.0, 1.0)])
    with pytest.raises(RegistrationError, match="at least one body"):
        Unknowns([], [])


@pytest.mark.parametrize(
    "freedom",
    [
        ViewFreedom(0, pose=(0.0, 1.0)),
        ViewFreedom(0, pose=(1.0, math.inf)),
        ViewFreedom(0, focal=0.0),
        ViewFreedom(0, principal=-2.0),
        ViewFreedom(0, focal=math.nan),
    ],
)
def test_a_freedom_has_a_width(body, camera, freedom):
    with pytest.raises(RegistrationError, match=r"ViewFreedom\(.*above zero and finite; None is what"):
        Unknowns([Body(body)], [camera], [freedom])


@pytest.mark.parametrize("prior", [(0, 5), (5.0, 0.0), (-1.0, 5.0), (math.inf, 5.0)])
def test_a_prior_has_a_width(body, prior):
    with pytest.raises(RegistrationError, match=r"the prior of body 1.*above zero and finite"):
        Unknowns([Body(body), Body(body, prior=prior)], [])
    with pytest.raises(RegistrationError, match=r"RelativePrior\(.*above zero and finite"):
        Unknowns([Body(body), Body(body)], [], relations=[RelativePrior(0, 1, *prior)])


def test_a_view_has_one_freedom(body, camera):
    both = [ViewFreedom(0, focal=0.02), ViewFreedom(0, principal=4.0)]
    with pytest.raises(RegistrationError, match="view 0 has 2 ViewFreedoms; give it one"):
        Unknowns([Body(body)], [camera], both)
    assert Unknowns([Body(body)], [camera] * 2, [both[0], ViewFreedom(1, principal=4.0)]).count == 9


def test_a_relation_that_is_no_pose_is_refused() -> None:
    turned = RelativePrior(0, 1, 2.0, 4.0, torch.eye(4).tolist())
    assert torch.equal(turned.a_from_b, torch.eye(4, dtype=torch.float64))
    for wrong in (2 * torch.eye(4), torch.eye(4)[None], torch.eye(3)):
        with pytest.raises(GeometryError, match="a_from_b"):
            RelativePrior(0, 1, 2.0, 4.0, wrong)
