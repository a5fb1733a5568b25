"""The container: what it refuses, its renders and their Jacobian, a start from voxels."""

import math

import numpy as np
import pytest
import torch

from xreg import Camera, Volume, drr
from xreg.errors import GaussianError, GeometryError
from xreg.geometry import se3
from xreg.phantom import chest_phantom
from xreg.splat import Gaussians

SIZE = (24, 31)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def body(count: int = 30) -> Gaussians:
    return Gaussians(
        25 * random(count, 3) + torch.tensor([10.0, -20.0, 30.0]).double(),
        1.6 + 0.5 * random(count, 3, seed=1),
        random(count, 4, seed=2),
        0.01 + 0.002 * random(count, seed=3),
    )


def camera(**words) -> Camera:
    known = {"sdd": 1020.0, "sod": 850.0, "size": SIZE, "spacing": 8.0, "isocenter": (10.0, -20.0, 30.0)}
    return Camera.c_arm(**(known | {"primary": 25.0, "secondary": -10.0} | words))


BEAMS = {
    "pinhole": camera(),
    "mirrored": camera(mirrored=True),
    "parallel": Camera.parallel_beam(
        size=SIZE, spacing=7.0, sdd=900.0, primary=25.0, secondary=-10.0, isocenter=(10.0, -20.0, 30.0)
    ),
}
POSE = se3.exp(torch.tensor([0.1, -0.2, 0.15, 3.0, -4.0, 5.0], dtype=torch.float64))


@pytest.mark.parametrize("beam", BEAMS)
def test_it_renders_what_the_projector_renders(beam: str) -> None:
    """The same body in voxels, marched: another path to the same image."""
    gaussians = body()
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]).double())
    affine[:3, 3] = torch.tensor([-110.0, -140.0, -90.0])
    grid = (affine, (120, 120, 120))
    marched = drr(
        Volume(gaussians.voxelize(grid, cutoff=7.0), affine),
        BEAMS[beam],
        POSE,
        integrator="exact",
        storage="float",
    )
    found = gaussians.render(BEAMS[beam], POSE, cutoff=7.0)
    assert float(found.max()) > 0.05
    assert float((found - marched).norm() / found.norm()) < 0.02  # the grid's interpolation


@pytest.mark.parametrize("beam", BEAMS)
def test_the_jacobian_is_that_of_the_pose(beam: str) -> None:
    gaussians = body()
    image, jacobian = gaussians.render_with_jacobian(BEAMS[beam], POSE, cutoff=9.0)
    torch.testing.assert_close(image, gaussians.render(BEAMS[beam], POSE, cutoff=9.0))
    center = se3.apply(POSE, gaussians.center[None])[0]
    for n in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[n] = 1e-5 if n < 3 else 1e-3
        ahead, back = (
            gaussians.render(BEAMS[beam], se3.retract(POSE, sign * step, center), cutoff=9.0)
            for sign in (1, -1)
        )
        expected = (ahead - back) / (2 * step[n])
        assert float(expected.norm()) > 0 or (beam == "parallel")
        assert float((jacobian[n] - expected).norm()) < 1e-5 * float(expected.norm()) + 1e-9


def test_more_columns() -> None:
    gaussians, view = body(), camera()
    near = camera(sdd=1020.01)
    more = ((gaussians.rays(near, POSE) - gaussians.rays(view, POSE)) / 0.01)[None]
    _, jacobian = gaussians.render_with_jacobian(view, POSE, more=more, cutoff=9.0)
    assert jacobian.shape == (7, *SIZE)
    expected = (gaussians.render(near, POSE, cutoff=9.0) - gaussians.render(view, POSE, cutoff=9.0)) / 0.01
    assert float((jacobian[6] - expected).norm() / expected.norm()) < 1e-3


def test_gradients_reach_the_pose_and_the_camera() -> None:
    gaussians, y = body(), random(*SIZE)
    pose = POSE.clone().requires_grad_()
    sdd = torch.tensor(1020.0, dtype=torch.float64, requires_grad=True)
    (gaussians.render(camera(sdd=sdd), pose, cutoff=9.0) * y).sum().backward()
    value = lambda s: float((gaussians.render(camera(sdd=s), POSE, cutoff=9.0) * y).sum())  # noqa: E731
    assert math.isclose(float(sdd.grad), (value(1020.01) - value(1019.99)) / 0.02, rel_tol=1e-4)
    assert float(pose.grad.abs().sum()) > 0


def test_batches_and_dtypes() -> None:
    gaussians = body()
    cameras = Camera.stack([camera(primary=a) for a in (0.0, 30.0, 60.0)])
    images = gaussians.render(cameras, POSE)
    assert images.shape == (3, *SIZE)
    torch.testing.assert_close(
        images[1], gaussians.render(camera(primary=30.0), POSE), rtol=1e-12, atol=1e-14
    )
    small = gaussians.to(dtype=torch.float32)
    assert small.render(camera()).dtype == torch.float32
    assert small.rays(camera()).dtype == torch.float64
    without = camera().replace(sdd=None)
    torch.testing.assert_close(gaussians.render(without), gaussians.render(camera()))


def test_no_gaussians() -> None:
    none = Gaussians(*(torch.zeros(0, *n) for n in ((3,), (3,), (4,), ())))
    assert len(none) == 0
    assert float(none.render(camera()).abs().max()) == 0.0
    assert none.center.tolist() == [0.0, 0.0, 0.0]
    assert "0" in repr(none)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": torch.zeros(30, 2).double()}, r"mean must be \[N, 3\]"),
        ({"log_scale": torch.zeros(29, 3).double()}, r"N = 30 .* got \(29, 3\)"),
        ({"density": torch.zeros(30)}, "dtype and device of mean"),
        ({"density": [0.1] * 30}, "density must be a float32 or float64 tensor .* got list"),
        ({"log_scale": torch.full((30, 3), math.nan).double()}, "log_scale must be finite.* 30 of 30"),
        ({"rotation": torch.zeros(30, 4).double()}, "norm above zero"),
    ],
    ids=lambda x: "" if isinstance(x, str) else next(iter(x)),
)
def test_bad_numbers_are_named(change, message: str) -> None:
    with pytest.raises(GaussianError, match=message):
        Gaussians(**(dict(body().items()) | change))


def test_bad_calls_are_named() -> None:
    with pytest.raises(GeometryError, match="mode must be one of exact, affine, got 'ewa'"):
        body().render(camera(), mode="ewa")
    with pytest.raises(GeometryError, match="cutoff must be between"):
        body().render(camera(), cutoff=float("nan"))
    with pytest.raises(GeometryError, match="shape of a grid"):
        body().voxelize((torch.eye(4), (3, 0, 3)))


@pytest.fixture(scope="module")
def chest() -> Volume:
    return chest_phantom(spacing=8.0)


@pytest.fixture(scope="module")
def start(chest: Volume) -> Gaussians:
    return Gaussians.from_volume(chest, 8000)


def test_a_start_from_voxels(chest: Volume, start: Gaussians) -> None:
    assert len(start) == 8000
    assert float(start.density.min()) >= 0.0
    voxels = start.to_volume(chest)
    assert voxels.energy_kev == chest.energy_kev
    assert float((voxels.mu - chest.mu).norm() / chest.mu.norm()) < 0.25
    view = camera(size=(64, 64), spacing=8.0, isocenter=chest.center)
    image, truth = start.render(view), drr(chest, view, integrator="exact")
    assert float((image - truth).norm() / truth.norm()) < 0.12


def test_the_same_seed_gives_the_same_bits(chest: Volume, start: Gaussians) -> None:
    again, other = Gaussians.from_volume(chest, 8000), Gaussians.from_volume(chest, 8000, seed=1)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(start.items(), again.items(), strict=True))
    assert not torch.equal(start.mean, other.mean)


def test_more_gaussians_than_voxels() -> None:
    mu = torch.zeros(4, 4, 4)
    mu[1:3, 1:3, 1:3] = 0.02
    volume = Volume(mu, torch.eye(4))
    found = Gaussians.from_volume(volume, 20)
    index = found.mean.round().numpy().astype(int)
    kept, times = np.unique(index, axis=0, return_counts=True)
    assert len(kept) == 8
    assert set(times.tolist()) == {2, 3}
    assert len(Gaussians.from_volume(volume, 1)) == 1


def test_nowhere_to_put_them(chest: Volume) -> None:
    with pytest.raises(GaussianError, match="no voxel of the volume is above min_mu"):
        Gaussians.from_volume(chest, 10, min_mu=99.0)
    with pytest.raises(GaussianError, match="count must be a whole number"):
        Gaussians.from_volume(chest, 0)


def test_widened_gaussians_are_a_convolution() -> None:
    made = body(5)
    wide = made.widened(4.0)
    content = lambda g: g.density * g.scale.prod(1)  # noqa: E731
    torch.testing.assert_close(content(wide), content(made))
    torch.testing.assert_close(wide.scale.square(), made.scale.square() + 4.0)
    torch.testing.assert_close(wide.widened(-4.0).density, made.density)
    assert made.widened(0.0) is made
    with pytest.raises(GaussianError, match="less than the variance"):
        made.widened(-1e6)
