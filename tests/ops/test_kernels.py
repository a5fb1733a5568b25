"""The compiled kernels against the torch reference, and the fast builds against the float64 one."""

import numpy as np
import projector_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from projector_cases import BEAMS, METRIC, MISSES, SIZE, STEPS, relative, run_op
from torch import Tensor

from xreg.ops import reference, registry
from xreg.ops.project import INTEGRATORS, project

pytestmark = pytest.mark.usefixtures("compiled")
integrators = pytest.mark.parametrize("integrator", INTEGRATORS)
beams = pytest.mark.parametrize("beam", BEAMS)

# What float32 arithmetic and 16-bit voxels (off by max / 65534) may cost: relative L2 of image and moments.
# Siddon's moments are jumps over a ray's slope, so a ray along its own voxel faces has large ones.
FLOAT_IMAGE, FLOAT_MOMENTS = 1e-6, 5e-6
INT16_IMAGE, INT16_MOMENTS = 1e-5, 2e-4


def run_reference(mu: Tensor, rays: Tensor, integrator: str, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    return reference.project(mu, 1.0, rays[None], METRIC, *SIZE, INTEGRATORS[integrator], steps, True)


@integrators
@beams
def test_float64_kernel_is_the_reference(mu: Tensor, integrator: str, beam: str) -> None:
    image, moments = run_op(mu, BEAMS[beam], integrator)
    expected, expected_moments = run_reference(mu, BEAMS[beam], integrator)
    assert float(expected.max()) > 0.1, "this beam should see the volume"
    assert relative(image, expected) <= 1e-12
    assert relative(moments, expected_moments) <= 1e-10


def too_far(
    results: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], image: float, moments: dict
) -> dict:
    """The beams whose relative error is above the limits, with their errors."""
    found = {}
    for view, beam in enumerate(BEAMS):
        errors = tuple(relative(r[view], e[view]) for r, e in zip(results, expected, strict=True))
        if not (errors[0] <= image and errors[1] <= moments.get(beam, moments[""])):
            found[beam] = errors
    return found


@integrators
def test_fast_builds_in_float(mu: Tensor, backend: str, integrator: str) -> None:
    rays = cases.stack(*BEAMS.values())
    results = run_op(mu.float(), rays, integrator)
    assert {r.dtype for r in results} == {torch.float32}
    limits = {"": FLOAT_MOMENTS}
    if integrator == "siddon":
        limits |= dict.fromkeys(
            ("parallel to x", "parallel to -y", "parallel to z", "faces"), 10 * FLOAT_MOMENTS
        )
    assert not too_far(results, run_op(mu, rays, integrator), FLOAT_IMAGE, limits)


@integrators
def test_fast_builds_in_int16(mu: Tensor, backend: str, integrator: str) -> None:
    rays = cases.stack(*BEAMS.values())
    voxels, scale = cases.quantise(mu)
    results = run_op(voxels, rays, integrator, scale=scale)
    assert {r.dtype for r in results} == {torch.float32}
    assert not too_far(results, run_op(mu, rays, integrator), INT16_IMAGE, {"": INT16_MOMENTS})


@integrators
def test_negative_int16_voxels(mu: Tensor, backend: str, integrator: str) -> None:
    voxels, scale = cases.quantise(mu - 0.6)
    expected, expected_moments = run_op(voxels.double() * scale, BEAMS["oblique"], integrator)
    image, moments = run_op(voxels, BEAMS["oblique"], integrator, scale=scale)
    torch.testing.assert_close(image.double(), expected, atol=1e-5, rtol=0)
    assert relative(moments, expected_moments) <= FLOAT_MOMENTS


@integrators
@pytest.mark.parametrize("miss", MISSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int16], ids=str)
def test_rays_that_miss_are_zero(mu: Tensor, integrator: str, miss: str, dtype: torch.dtype) -> None:
    voxels = cases.quantise(mu)[0] if dtype == torch.int16 else mu.to(dtype)
    image, moments = run_op(voxels, MISSES[miss], integrator)
    assert not image.any()
    assert not moments.any()


@integrators
@pytest.mark.parametrize("size", [(1, 1), (1, 13), (13, 1), (4, 4), (5, 6), (9, 3), (10, 17)])
def test_any_size_of_image(mu: Tensor, backend: str, integrator: str, size: tuple[int, int]) -> None:
    """A pixel has the same value whatever packet it falls into."""
    rays = cases.cone([-23.1, -19.7, -15.3], [38.3, 31.9, 24.6], 2.3, size)
    image, moments = run_op(mu.float(), rays, integrator, size=size)
    expected, expected_moments = run_op(mu, rays, integrator, size=size)
    assert image.shape == (1, *size)
    assert moments.shape == (1, 6, *size)
    assert relative(image, expected) <= FLOAT_IMAGE
    assert relative(moments, expected_moments) <= FLOAT_MOMENTS


@integrators
def test_views_of_a_batch_are_the_single_views(mu: Tensor, backend: str, integrator: str) -> None:
    rays = cases.stack(*BEAMS.values())
    images, moments = run_op(mu.float(), rays, integrator)
    for view, one in enumerate(rays):
        image, jacobian = run_op(mu.float(), one, integrator)
        assert torch.equal(images[view], image[0])
        assert torch.equal(moments[view], jacobian[0])


@integrators
def test_image_does_not_depend_on_the_moments(mu: Tensor, backend: str, integrator: str) -> None:
    rays = cases.stack(*BEAMS.values())
    for voxels in (mu, mu.float(), cases.quantise(mu)[0]):
        image, moments = run_op(voxels, rays, integrator)
        alone, none = run_op(voxels, rays, integrator, moments=False)
        assert torch.equal(image, alone)
        assert moments.shape == (len(rays), 6, *SIZE)
        assert none.shape == (len(rays), 0, *SIZE)


@integrators
def test_no_views(mu: Tensor, integrator: str) -> None:
    image, moments = run_op(mu, torch.zeros(0, 6, 3, dtype=torch.float64), integrator)
    assert image.shape == (0, *SIZE)
    assert moments.shape == (0, 6, *SIZE)


@integrators
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 6), (6, 1, 5), (5, 6, 1), (2, 2, 2), (2, 9, 3)], ids=str)
def test_thin_volumes(backend: str, integrator: str, shape: tuple[int, int, int]) -> None:
    mu = cases.random_volume(7, shape)
    middle = np.array([(n - 1) / 2 for n in reversed(shape)])
    for name in ("along +x", "along +y", "along -z", "oblique", "skew"):
        rays = BEAMS[name].clone()
        rays[0] += torch.from_numpy(middle - cases.MIDDLE)
        rays[3:] *= 0.999
        expected, expected_moments = run_reference(mu, rays, integrator)
        exact, exact_moments = run_op(mu, rays, integrator)
        torch.testing.assert_close(exact, expected, atol=1e-12, rtol=0)
        assert relative(exact_moments, expected_moments) <= 1e-10
        image, moments = run_op(mu.float(), rays, integrator)
        torch.testing.assert_close(image.double(), expected, atol=2e-6, rtol=2e-6)
        assert relative(moments, expected_moments) <= (2e-4 if integrator == "siddon" else FLOAT_MOMENTS)


@integrators
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sense", [1.0, -1.0])
def test_rays_on_the_lattice(mu: Tensor, backend: str, integrator: str, axis: int, sense: float) -> None:
    """Rays through voxel centres along an axis, first and last row included, sum the voxels in their row."""
    grid = mu.permute(2, 1, 0)  # [x, y, z]
    others = [a for a in range(3) if a != axis]
    n = grid.shape[axis]
    across = [grid.shape[a] for a in others]
    rays = torch.zeros(6, 3, dtype=torch.float64)
    rays[0, axis] = (n - 1) / 2 - sense * (n + 3) / 2
    rays[1, others[0]] = rays[2, others[1]] = 1.0
    rays[3, axis] = sense * (n + 3)
    length = (n + 3) * float(cases.LINEAR[:, axis].norm())
    expected = grid.sum(axis).T * length / (n + 3)  # every voxel is worth one voxel's length
    size = (across[1], across[0])
    for voxels in (mu, mu.float()):
        image, moments = run_op(voxels, rays, integrator, size=size, steps=4 * (n + 3))
        torch.testing.assert_close(image[0].double(), expected, atol=0, rtol=2e-6)
        assert bool(torch.isfinite(moments).all())


@integrators
def test_rays_through_voxel_corners(integrator: str) -> None:
    """Rays along a diagonal cross three planes at once; a constant cube has the chord's length."""
    mu = torch.full((6, 6, 6), 0.3, dtype=torch.float64)
    start = -3.5 if integrator == "siddon" else -3.0
    rays = torch.zeros(6, 3, dtype=torch.float64)
    rays[0], rays[3] = start, 12.0
    for voxels in (mu, mu.float()):
        image, moments = run_op(voxels, rays, integrator, size=(1, 1), steps=240)
        # a trilinear field falls to zero over the voxel outside the grid, along (1 - s)^3
        cells = {"siddon": 6.0, "joseph": 6.0}.get(integrator, 5.0 + 2 * 0.25)
        metric = METRIC[0] + METRIC[3] + METRIC[5] + 2 * (METRIC[1] + METRIC[2] + METRIC[4])
        expected = torch.full((1, 1, 1), 0.3 * cells * float(metric.sqrt()), dtype=torch.float64)
        torch.testing.assert_close(
            image.double(), expected, rtol=1e-3 if integrator == "trilinear" else 1e-6, atol=0
        )
        assert bool(torch.isfinite(moments).all())


@integrators
def test_steps_is_one_for_what_does_not_use_it(mu: Tensor, integrator: str) -> None:
    one, many = (run_op(mu, BEAMS["oblique"], integrator, steps=n)[0] for n in (1, STEPS))
    assert torch.equal(one, many) == (integrator != "trilinear")


def test_joseph_counts_the_plane_just_beyond_the_end(mu: Tensor) -> None:
    """A plane stands for half a voxel on each side: a ray that stops just beside the field has a share."""
    rays = cases.parallel([-11.9, -16.15, 5.1], [20.0, 15.0, 0.0], [0.11, 0.0, 0.0], [0.0, 0.02, 1.1])
    expected, expected_moments = run_reference(mu, rays, "joseph")
    image, moments = run_op(mu, rays, "joseph")
    end = (rays[0] + rays[3])[1]
    assert float(end) < -1.0
    assert bool((expected > 0).any())
    torch.testing.assert_close(image, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(moments, expected_moments, atol=1e-10, rtol=0)


points = st.floats(-30, 40, allow_nan=False).map(lambda x: round(x, 3))


@integrators
@settings(max_examples=20, deadline=None)
@given(
    source=arrays(np.float64, 3, elements=points),
    detector=arrays(np.float64, 3, elements=points),
    pitch=st.floats(0.01, 8.0),
)
def test_any_cone(integrator: str, source: np.ndarray, detector: np.ndarray, pitch: float) -> None:
    """Sources and detectors anywhere, also on the lattice: float64, float32 and reference give one image."""
    if np.linalg.norm(detector - source) < 0.1:
        detector = source + 5.0
    mu, rays = cases.random_volume(), cases.cone(source, detector, pitch)
    expected = run_reference(mu, rays, integrator)[0]
    exact = run_op(mu, rays, integrator, moments=False)[0]
    if integrator == "siddon":  # a ray within a voxel's face belongs to either neighbour
        faces = (reference.pixel_rays(rays[None], *SIZE)[1].abs() < 1e-9).any(-1)
        exact, expected = exact * ~faces, expected * ~faces
    torch.testing.assert_close(exact, expected, atol=1e-9, rtol=0)
    image, moments = run_op(mu.float(), rays, integrator)
    assert bool(torch.isfinite(moments).all())
    if integrator != "siddon":
        torch.testing.assert_close(image.double(), expected, atol=2e-4, rtol=0)


def test_backend_names(compiled: None) -> None:
    before = registry.backend()
    assert before in ("avx512", "avx2", "base", "scalar")
    assert not registry.use_backend("abacus")
    assert registry.backend() == before


def test_wrong_tensors_are_refused(mu: Tensor) -> None:
    rays = BEAMS["oblique"][None]
    with pytest.raises(RuntimeError, match="int16, float32 or float64"):
        project(mu.to(torch.int32), rays, METRIC, SIZE)
    with pytest.raises(RuntimeError, match="contiguous"):
        project(mu.permute(2, 1, 0), rays, METRIC, SIZE)
    with pytest.raises(RuntimeError, match="float64"):
        project(mu, rays.float(), METRIC, SIZE)
    with pytest.raises(RuntimeError, match=r"\[V, 6, 3\]"):
        project(mu, rays[:, :5], METRIC, SIZE)
    with pytest.raises(RuntimeError, match="metric"):
        project(mu, rays, METRIC.float(), SIZE)
