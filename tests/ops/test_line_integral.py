"""Are these line integrals?  Against an integral written apart from the kernels, and against closed forms."""

from collections.abc import Callable
from pathlib import Path

import exact_integral
import numpy as np
import projector_cases as cases
import pytest
import torch
from ellipsoids import phantom
from projector_cases import LINEAR, METRIC, SIZE, relative, run_op
from torch import Tensor

from xreg import Beam, Camera, Volume, drr_with_jacobian, se3
from xreg.ops import reference
from xreg.renderer import rays_in_volume

VIEWS = {"AP": 0.0, "45 degrees": 45.0, "lateral": 90.0}
PIXELS = 300
MM_OF_RADIAN = 100.0  # puts the rotations of a Jacobian on the scale of its translations


def view_of(volume: Volume, angle: float) -> Camera:
    return Camera.c_arm(
        sdd=1020.0, sod=850.0, size=(200, 200), spacing=2.0, primary=angle, isocenter=volume.center
    )


def chosen_pixels(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of some pixels."""
    generator = np.random.default_rng(8)
    return generator.integers(0, camera.size[1], PIXELS), generator.integers(0, camera.size[0], PIXELS)


def of_pixels(rays: Tensor, pixels: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Source and direction [R, 3] of pixels from a view's rays [6, 3]."""
    s0, su, sv, d0, du, dv = rays.numpy()
    u, v = (p[:, None] for p in pixels)
    return s0 + u * su + v * sv, d0 + u * du + v * dv


def true_view(volume: Volume, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Line integrals [R] of the chosen pixels and their derivative [R, 6] along a pose step about the centre.

    How rays move with a pose step comes from differences of the geometry itself, which is smooth.
    """
    pixels, h = chosen_pixels(camera), 1e-4
    pose = torch.eye(4, dtype=torch.float64)
    moves = []
    for direction in torch.eye(6, dtype=torch.float64):
        ahead, behind = (
            of_pixels(
                rays_in_volume(volume, camera, se3.retract(pose, k * h * direction, volume.center)), pixels
            )
            for k in (1, -1)
        )
        moves.append([(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)])
    s_dot, d_dot = (np.stack([m[i] for m in moves], 1) for i in (0, 1))
    rays = of_pixels(rays_in_volume(volume, camera, pose), pixels)
    linear = volume.affine[:3, :3].numpy()
    return exact_integral.derivatives(volume.mu.numpy(), linear, *rays, s_dot, d_dot)


def errors_of(
    volume: Volume, camera: Camera, truth: tuple[np.ndarray, np.ndarray], **beam: object
) -> tuple[float, float]:
    """Relative L2 of the image and of the pose Jacobian at the chosen pixels."""
    pose = torch.eye(4, dtype=torch.float64)
    image, jacobian = drr_with_jacobian(volume, camera, pose, beam=Beam(**beam))
    u, v = (torch.from_numpy(p) for p in chosen_pixels(camera))
    weight = torch.tensor([1 / MM_OF_RADIAN] * 3 + [1.0] * 3, dtype=torch.float64)
    expected, expected_jacobian = (torch.from_numpy(t) for t in truth)
    found = jacobian[:, v, u].T.double()
    return relative(image[v, u], expected), relative(found * weight, expected_jacobian * weight)


@pytest.fixture(scope="module")
def body() -> tuple[Volume, dict]:
    volume = phantom()
    return volume, {name: true_view(volume, view_of(volume, angle)) for name, angle in VIEWS.items()}


@pytest.fixture(scope="module")
def patient(chest_ct: Path) -> tuple[Volume, dict]:
    volume = Volume.load(chest_ct)
    return volume, {name: true_view(volume, view_of(volume, angle)) for name, angle in VIEWS.items()}


@pytest.mark.parametrize("storage", ["int16", "float"])
@pytest.mark.parametrize("view", VIEWS)
def test_phantom(body: tuple[Volume, dict], view: str, storage: str) -> None:
    volume, truth = body
    camera = view_of(volume, VIEWS[view])
    image, jacobian = errors_of(volume, camera, truth[view], integrator="exact", storage=storage)
    assert image <= 1e-5
    assert jacobian <= 1e-4
    image, jacobian = errors_of(volume, camera, truth[view], integrator="trilinear", storage=storage)
    assert image <= 3e-4
    assert jacobian <= 0.05
    assert errors_of(volume, camera, truth[view], integrator="joseph", storage=storage)[0] <= 5e-3
    assert errors_of(volume, camera, truth[view], integrator="siddon", storage=storage)[0] <= 4e-2


def test_more_samples_are_closer(body: tuple[Volume, dict]) -> None:
    volume, truth = body
    camera = view_of(volume, 45.0)
    errors = [
        errors_of(volume, camera, truth["45 degrees"], samples=n, storage="float")[0]
        for n in (60, 250, 1000, 4000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


@pytest.mark.parametrize("storage", ["int16", "float"])
@pytest.mark.parametrize("view", VIEWS)
def test_chest_ct(patient: tuple[Volume, dict], view: str, storage: str) -> None:
    """16 bits show in the Jacobian, whose voxel differences are small beside the densest voxel."""
    volume, truth = patient
    camera = view_of(volume, VIEWS[view])
    image, jacobian = errors_of(volume, camera, truth[view], integrator="exact", storage=storage)
    assert image <= 1e-5
    assert jacobian <= (5e-4 if storage == "int16" else 1e-4)
    image, jacobian = errors_of(volume, camera, truth[view], integrator="trilinear", storage=storage)
    assert image <= 3e-4
    assert jacobian <= 0.2
    assert errors_of(volume, camera, truth[view], integrator="joseph", storage=storage)[0] <= 1e-3


@pytest.mark.parametrize("beam", cases.BEAMS)
def test_exact_on_noise(mu: Tensor, beam: str) -> None:
    """Every kind of beam, in float64, where the only difference may be rounding."""
    rays = cases.BEAMS[beam]
    s, d = (r.reshape(-1, 3).numpy() for r in reference.pixel_rays(rays[None], *SIZE))
    expected = exact_integral.line_integrals(mu.numpy(), LINEAR.numpy(), s, d)
    image, _ = run_op(mu, rays, "exact")
    assert relative(image.reshape(-1), torch.from_numpy(expected)) <= 1e-12


def test_the_derivative_here_is_that_of_the_integral_here(mu: Tensor) -> None:
    s, d = (r.reshape(-1, 3).numpy() for r in reference.pixel_rays(cases.skew()[None], *SIZE))
    s_dot, d_dot = np.random.default_rng(3).normal(size=(2, len(s), 1, 3))
    linear, h = LINEAR.numpy(), 1e-5
    ahead, behind = (
        exact_integral.line_integrals(mu.numpy(), linear, s + k * h * s_dot[:, 0], d + k * h * d_dot[:, 0])
        for k in (1, -1)
    )
    found = exact_integral.derivatives(mu.numpy(), linear, s, d, s_dot, d_dot)[1][:, 0]
    np.testing.assert_allclose(found, (ahead - behind) / (2 * h), atol=1e-7, rtol=1e-6)


# ---- closed forms ----


def box_path(rays: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Millimetres of each ray between source and detector that lie in the box of all voxels."""
    s, d = reference.pixel_rays(rays[None], *SIZE)
    low, high = torch.full((3,), -0.5, dtype=s.dtype), torch.tensor(size, dtype=s.dtype) - 0.5
    flat = d == 0
    t = torch.stack([low - s, high - s]) / torch.where(flat, torch.ones_like(d), d)
    within = (s > low) & (s < high)
    near = torch.where(flat, torch.where(within, 0.0, 2.0), t.amin(0)).amax(-1).clamp(min=0.0)
    far = torch.where(flat, torch.where(within, 1.0, -1.0), t.amax(0)).amin(-1).clamp(max=1.0)
    return (far - near).clamp(min=0.0) * (d @ LINEAR.T).norm(dim=-1)


@pytest.mark.parametrize("beam", cases.BEAMS)
def test_siddon_measures_the_box(beam: str) -> None:
    rays = cases.BEAMS[beam]
    image, _ = run_op(torch.full(cases.SHAPE, 0.07, dtype=torch.float64), rays, "siddon")
    torch.testing.assert_close(image, 0.07 * box_path(rays, cases.SHAPE[::-1]), atol=1e-12, rtol=0)


INSIDE = {
    "cone": cases.cone([2.13, 9.41, 2.27], [13.83, 3.47, 7.61], 0.4),
    "parallel": cases.parallel([5.3, 2.1, 3.3], [3.7, 8.9, 2.6], [0.4, 0.0, 0.1], [0.1, 0.0, 0.4]),
    "along z": cases.parallel([8.2, 6.1, 1.4], [0.0, 0.0, 7.3], [0.9, 0.0, 0.0], [0.0, 0.8, 0.0]),
}


def lengths(rays: Tensor) -> Tensor:
    return (reference.pixel_rays(rays[None], *SIZE)[1] @ LINEAR.T).norm(dim=-1)


@pytest.mark.parametrize("integrator", ["trilinear", "joseph", "siddon", "exact"])
@pytest.mark.parametrize("bundle", INSIDE)
def test_inside_a_constant_it_is_the_length(integrator: str, bundle: str) -> None:
    mu = torch.full(cases.SHAPE, 0.031, dtype=torch.float64)
    expected = 0.031 * lengths(INSIDE[bundle])
    for voxels, limit in ((mu, 1e-12), (mu.float(), 1e-6)):
        image, _ = run_op(voxels, INSIDE[bundle], integrator)
        torch.testing.assert_close(image.double(), expected, atol=0, rtol=limit)


@pytest.mark.parametrize("integrator", ["trilinear", "exact"])
@pytest.mark.parametrize("bundle", INSIDE)
def test_inside_a_ramp_it_is_the_middle_value(integrator: str, bundle: str) -> None:
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in cases.SHAPE), indexing="ij")
    mu = 0.1 + 0.013 * x + 0.021 * y + 0.008 * z
    s, d = reference.pixel_rays(INSIDE[bundle][None], *SIZE)
    middle = 0.1 + (s + d / 2) @ torch.tensor([0.013, 0.021, 0.008], dtype=torch.float64)
    image, moments = run_op(mu, INSIDE[bundle], integrator)
    torch.testing.assert_close(image, middle * lengths(INSIDE[bundle]), atol=0, rtol=1e-12)
    slope = torch.tensor([0.013, 0.021, 0.008], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(moments[0, :3], slope * lengths(INSIDE[bundle]), atol=0, rtol=1e-11)


@pytest.mark.parametrize("bundle", INSIDE)
def test_a_product_of_ramps_is_a_cubic_along_the_ray(bundle: str) -> None:
    """A trilinear field has no interpolation error for it, and 'exact' none of integration."""
    slopes, offsets = np.array([0.3, -0.2, 0.5]), np.array([1.0, 4.0, 2.0])
    z, y, x = np.indices(cases.SHAPE)
    mu = np.prod([o + g * c for o, g, c in zip(offsets, slopes, (x, y, z), strict=True)], 0)
    s, d = (r.reshape(-1, 3).numpy() for r in reference.pixel_rays(INSIDE[bundle][None], *SIZE))
    expected = []
    for start, step in zip(s, d, strict=True):
        factors = [
            np.polynomial.Polynomial([offsets[a] + slopes[a] * start[a], slopes[a] * step[a]])
            for a in range(3)
        ]
        cubic = (factors[0] * factors[1] * factors[2]).integ()
        expected.append((cubic(1.0) - cubic(0.0)) * np.linalg.norm(LINEAR.numpy() @ step))
    image, _ = run_op(torch.from_numpy(mu), INSIDE[bundle], "exact")
    torch.testing.assert_close(
        image.reshape(-1), torch.tensor(expected, dtype=torch.float64), atol=0, rtol=1e-12
    )


def bell(n: int, width: float) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """exp(−|x|²/2w²), w in mm, on n³ voxels over ±6 w; affine; its integral along (point, direction)."""
    pitch = 12 * width / n
    at = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * pitch
    one = torch.exp(-((at / width) ** 2) / 2)
    affine = torch.diag(torch.tensor([pitch, pitch, pitch, 1.0], dtype=torch.float64))
    affine[:3, 3] = -(n - 1) / 2 * pitch

    def integral(point: Tensor, direction: Tensor) -> Tensor:
        along = direction / direction.norm(dim=-1, keepdim=True)
        off = point - (point * along).sum(-1, keepdim=True) * along
        return width * np.sqrt(2 * np.pi) * torch.exp(-off.square().sum(-1) / (2 * width**2))

    return one[:, None, None] * one[:, None] * one, affine, integral


@pytest.mark.parametrize("integrator", ["trilinear", "joseph", "exact", "siddon"])
def test_a_gaussian_is_approached_with_the_square_of_the_voxel(integrator: str) -> None:
    camera = Camera.c_arm(
        sdd=900.0, sod=600.0, size=SIZE, spacing=9.0, primary=31.0, secondary=17.0, isocenter=(3.0, -2.0, 5.0)
    )
    basis = camera.ray_basis()
    source, direction = reference.pixel_rays(basis[None], *SIZE)
    errors = []
    for n in (24, 48, 96):
        mu, affine, integral = bell(n, 15.0)
        volume = Volume(mu, affine)
        rays = rays_in_volume(volume, camera)[None]
        metric = (affine[:3, :3].T @ affine[:3, :3])[(0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)]
        registered = {"trilinear": 0, "joseph": 1, "siddon": 2, "exact": 3}[integrator]
        image, _ = torch.ops.xreg.project(mu, 1.0, rays, metric, *SIZE, registered, 4000, False)
        errors.append(relative(image, integral(source, direction)))
    assert errors[2] <= 3e-3
    assert errors[0] / errors[1] >= 3.0
    assert errors[1] / errors[2] >= 3.0


def test_metric_of_a_sheared_grid() -> None:
    """The length of a voxel step is that of the affine's linear part."""
    step = torch.tensor([0.3, -1.2, 2.2], dtype=torch.float64)
    xx, xy, xz, yy, yz, zz = METRIC
    g = torch.stack([torch.stack(r) for r in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))])
    torch.testing.assert_close((step @ g @ step).sqrt(), (LINEAR @ step).norm(), atol=0, rtol=1e-14)
