"""One channel a label: that they add up, what goes where, and that kernel and reference agree."""

import projector_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from projector_cases import BEAMS, METRIC, MISSES, SHAPE, SIZE, STEPS, relative
from torch import Tensor

from xreg.ops import reference
from xreg.ops.project import INTEGRATORS, project, project_labels

CHANNELS = 5
integrators = pytest.mark.parametrize("integrator", INTEGRATORS)
rules = pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])


def channels_of(
    mu: Tensor, labels: Tensor, rays: Tensor, integrator: str, soft: bool, channels=CHANNELS, **options
) -> Tensor:
    words = {
        "size": SIZE,
        "channels": channels,
        "soft": soft,
        "integrator": integrator,
        "steps": STEPS,
    } | options
    return project_labels(mu, labels, rays, METRIC, **words)


def inside_labels(seed: int = 1) -> Tensor:
    """Labels that all have a channel."""
    return cases.random_labels(CHANNELS, seed).clamp(0, CHANNELS - 1)


def bordered_volume() -> Tensor:
    """Noise with a border of empty voxels: nothing lies beyond the outermost half voxel."""
    mu = cases.random_volume()
    mu[[0, -1]] = mu[:, [0, -1]] = mu[:, :, [0, -1]] = 0.0
    return mu


@integrators
@pytest.mark.parametrize("beam", BEAMS)
def test_soft_channels_add_up_to_the_image(mu: Tensor, integrator: str, beam: str) -> None:
    rays = BEAMS[beam][None]
    image, _ = project(mu, rays, METRIC, SIZE, integrator=integrator, steps=STEPS)
    total = channels_of(mu, inside_labels(), rays, integrator, True).sum(1)
    torch.testing.assert_close(total, image, atol=1e-12, rtol=1e-12)


@integrators
@pytest.mark.parametrize("beam", BEAMS)
def test_hard_channels_add_up_to_the_image(integrator: str, beam: str) -> None:
    mu, rays = bordered_volume(), BEAMS[beam][None]
    image, _ = project(mu, rays, METRIC, SIZE, integrator=integrator, steps=STEPS)
    total = channels_of(mu, inside_labels(), rays, integrator, False).sum(1)
    torch.testing.assert_close(total, image, atol=1e-12, rtol=1e-12)


@integrators
def test_hard_channels_of_a_bright_border(mu: Tensor, integrator: str) -> None:
    """Beyond the outermost voxels' halves the field falls to zero and has no nearest voxel: that part is left
    out, and it is the only part."""
    rays = cases.stack(*BEAMS.values())
    image, _ = project(mu, rays, METRIC, SIZE, integrator=integrator, steps=STEPS)
    total = channels_of(mu, inside_labels(), rays, integrator, False).sum(1)
    missing = image - total
    assert float(missing.min()) >= -1e-12
    if integrator == "siddon":
        assert float(missing.max()) <= 1e-12
    inner = torch.zeros_like(mu)
    inner[1:-1, 1:-1, 1:-1] = mu[1:-1, 1:-1, 1:-1]
    shell, _ = project(mu - inner, rays, METRIC, SIZE, integrator=integrator, steps=STEPS)
    assert bool((missing <= shell + 1e-12).all())


def quiet_borders(labels: Tensor) -> Tensor:
    """One label in the outer two voxels.

    Where two labels meet inside a cell, 'exact' decides by its two Gauss points, and kernel and reference
    cut a ray's way through the outermost cells at different places.
    """
    quiet = torch.zeros_like(labels)
    quiet[2:-2, 2:-2, 2:-2] = labels[2:-2, 2:-2, 2:-2]
    return quiet


@integrators
@rules
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int16], ids=str)
@pytest.mark.usefixtures("compiled")
def test_kernel_is_the_reference(mu: Tensor, integrator: str, soft: bool, dtype: torch.dtype) -> None:
    rays, labels = cases.stack(*BEAMS.values(), *MISSES.values()), cases.random_labels(CHANNELS)
    if integrator == "exact" and not soft:
        labels = quiet_borders(labels)
    voxels, scale = cases.quantise(mu) if dtype == torch.int16 else (mu.to(dtype), 1.0)
    found = channels_of(voxels, labels, rays, integrator, soft, scale=scale)
    expected = reference.project_labels(
        mu, 1.0, labels, CHANNELS, soft, rays, METRIC, *SIZE, INTEGRATORS[integrator], STEPS
    )
    assert found.shape == (len(rays), CHANNELS, *SIZE)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not found[len(BEAMS) :].any()
    limit = {torch.float64: 1e-12, torch.float32: 5e-6, torch.int16: 2e-5}[dtype]
    errors = {beam: relative(found[view], expected[view]) for view, beam in enumerate(BEAMS)}
    assert not {beam: error for beam, error in errors.items() if not error <= limit}


@integrators
@rules
@pytest.mark.usefixtures("compiled")
def test_gradients_of_kernel_and_reference(mu: Tensor, integrator: str, soft: bool) -> None:
    rays = cases.stack(BEAMS["oblique"], BEAMS["source inside"], BEAMS["both inside"], BEAMS["skew"])
    labels = cases.random_labels(CHANNELS)
    generator = torch.Generator().manual_seed(4)
    cotangent = torch.randn(len(rays), CHANNELS, *SIZE, generator=generator, dtype=torch.float64)
    code = INTEGRATORS[integrator]
    if integrator == "exact" and not soft:
        labels = quiet_borders(labels)
    else:
        found = torch.ops.xreg.label_moments(cotangent, mu, 1.0, labels, soft, rays, METRIC, code, STEPS)
        expected = reference.label_moments(cotangent, mu, 1.0, labels, soft, rays, METRIC, code, STEPS)
        assert relative(found, expected) <= 1e-10
    volume = torch.ops.xreg.backproject(cotangent, 1.0, *SHAPE, labels, soft, rays, METRIC, code, STEPS)
    expected = reference.backproject(cotangent, 1.0, *SHAPE, labels, soft, rays, METRIC, code, STEPS)
    assert relative(volume, expected) <= 1e-12


@pytest.mark.usefixtures("compiled")
def test_ray_gradient_of_hard_labels_is_that_of_the_field(mu: Tensor) -> None:
    """Under hard labels the ray gradient is ∫ g(label) ∇mu: 'exact' has it as a fine fixed step does."""
    rays, labels = (
        cases.stack(BEAMS["oblique"], BEAMS["source inside"]),
        torch.zeros(SHAPE, dtype=torch.int16),
    )
    labels[:, :, 9:], labels[:, 7:] = 1, 2
    generator = torch.Generator().manual_seed(4)
    cotangent = torch.randn(len(rays), CHANNELS, *SIZE, generator=generator, dtype=torch.float64)
    exact, fine = (
        torch.ops.xreg.label_moments(
            cotangent, mu, 1.0, labels, False, rays, METRIC, INTEGRATORS[name], 20000
        )
        for name in ("exact", "trilinear")
    )
    assert relative(exact, fine) <= 0.2


@integrators
@rules
def test_one_label_is_the_image(integrator: str, soft: bool) -> None:
    mu, rays = bordered_volume(), cases.stack(BEAMS["oblique"], BEAMS["detector inside"])
    image, _ = project(mu, rays, METRIC, SIZE, integrator=integrator, steps=STEPS)
    found = channels_of(mu, torch.full(SHAPE, 3, dtype=torch.int16), rays, integrator, soft)
    torch.testing.assert_close(found[:, 3], image, atol=1e-12, rtol=1e-12)
    assert not found[:, [0, 1, 2, 4]].any()


@integrators
@rules
@pytest.mark.parametrize("outside", [-1, -7, CHANNELS, CHANNELS + 1, 32767, -32768])
def test_labels_without_a_channel_are_left_out(mu: Tensor, integrator: str, soft: bool, outside: int) -> None:
    rays, labels = cases.stack(BEAMS["oblique"]), inside_labels()
    labels[2:5] = outside
    found = channels_of(mu, labels, rays, integrator, soft)
    roomy = labels.clone()
    roomy[2:5] = CHANNELS
    expected = channels_of(mu, roomy, rays, integrator, soft, channels=CHANNELS + 1)
    assert torch.equal(found, expected[:, :CHANNELS])
    assert float(expected[:, CHANNELS].max()) > 0.1


@integrators
def test_soft_is_the_image_of_each_label_alone(mu: Tensor, integrator: str) -> None:
    """Each voxel counts for its own label, so a channel is the image of the voxels of that label."""
    rays, labels = cases.stack(BEAMS["oblique"], BEAMS["parallel"]), inside_labels()
    found = channels_of(mu, labels, rays, integrator, True)
    for label in range(CHANNELS):
        alone, _ = project(
            torch.where(labels == label, mu, 0.0), rays, METRIC, SIZE, integrator=integrator, steps=STEPS
        )
        torch.testing.assert_close(found[:, label], alone, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("integrator", ["trilinear", "exact", "joseph"])
def test_hard_labels_change_half_way_between_voxels(integrator: str) -> None:
    """Along z through two slabs of one attenuation, the border lies in the middle between their voxels."""
    mu = torch.zeros(12, 5, 5, dtype=torch.float64)
    mu[2:10] = 1.0
    labels = torch.zeros(12, 5, 5, dtype=torch.int16)
    labels[6:] = 1
    rays = cases.parallel([2.0, 2.0, -4.0], [0.0, 0.0, 20.0], [0.0] * 3, [0.0] * 3, (1, 1))[None]
    found = channels_of(mu, labels, rays, integrator, False, channels=2, size=(1, 1), steps=20000)[0, :, 0, 0]
    pitch = float(METRIC[5].sqrt())
    torch.testing.assert_close(found / pitch, torch.full((2,), 4.0, dtype=torch.float64), atol=0.15, rtol=0)
    if integrator == "trilinear":
        torch.testing.assert_close(
            found / pitch, torch.full((2,), 4.0, dtype=torch.float64), atol=2e-3, rtol=0
        )


def test_siddon_knows_no_difference_between_soft_and_hard(mu: Tensor) -> None:
    rays, labels = cases.stack(*BEAMS.values()), cases.random_labels(CHANNELS)
    soft, hard = (channels_of(mu, labels, rays, "siddon", s) for s in (True, False))
    torch.testing.assert_close(soft, hard, atol=1e-12, rtol=0)


@settings(max_examples=30, deadline=None)
@given(channels=st.integers(1, 40), soft=st.booleans(), integrator=st.sampled_from(list(INTEGRATORS)))
def test_any_number_of_channels(channels: int, soft: bool, integrator: str) -> None:
    mu, labels = bordered_volume(), cases.random_labels(channels).clamp(0, channels - 1)
    rays = cases.stack(BEAMS["oblique"])
    found = channels_of(mu, labels, rays, integrator, soft, channels=channels)
    assert found.shape == (1, channels, *SIZE)
    image, _ = project(mu, rays, METRIC, SIZE, integrator=integrator, steps=STEPS)
    torch.testing.assert_close(found.sum(1), image, atol=1e-11, rtol=0)


def test_wrong_labels_are_refused(mu: Tensor) -> None:
    rays, labels = cases.stack(BEAMS["oblique"]), inside_labels()
    with pytest.raises(RuntimeError, match="labels must be a contiguous int16"):
        channels_of(mu, labels[1:], rays, "exact", True)
    with pytest.raises(RuntimeError, match="labels must be a contiguous int16"):
        channels_of(mu, labels.to(torch.int32), rays, "exact", True)
