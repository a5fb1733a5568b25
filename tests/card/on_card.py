"""What only a card does, on the card that the host plays; test_host_card.py runs this file there.

What it cannot show is that a card's gather is so; `tests/ops/test_builds.py` compares the two where there is
one.
"""

import ctypes
import os
from collections.abc import Iterator

import projector_cases as cases
import pytest
import splat_scenes as scenes
import torch
from projector_cases import BEAMS, METRIC, MISSES, SHAPE, SIZE, STEPS, relative
from torch import Tensor

from xreg.ops import registry, splat_reference, splatting
from xreg.ops.project import INTEGRATORS

LIMIT = 32768  # of a texture that can be gathered from, on cards from sm_60 on
ANY_ORDER = "XREG_CUDA_ATOMICS" in os.environ
integrators = pytest.mark.parametrize("integrator", INTEGRATORS)
kinds = pytest.mark.parametrize("kind", scenes.KINDS)


@pytest.fixture(autouse=True)
def card() -> Iterator[ctypes.CDLL]:
    """The library, to set what the card is like; as it was before, afterwards."""
    assert registry.load()
    library = ctypes.CDLL(os.environ["XREG_CARD"])
    library.card_textures.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double]
    yield library
    library.card_textures(LIMIT, LIMIT, 0.0)
    library.card_order(1)


# ---- the texture atlas ----


def by_atlas(voxels: Tensor, scale: float, rays: Tensor) -> tuple[Tensor, Tensor]:
    handle = torch.ops.xreg_cuda.atlas_new(voxels)
    try:
        return torch.ops.xreg_cuda.atlas_project(handle, scale, rays, METRIC, *SIZE, True)
    finally:
        torch.ops.xreg_cuda.atlas_free(handle)


@pytest.mark.parametrize("limits", [(LIMIT, LIMIT), (40, 300), (20, 400), (90, 60)], ids=str)
@pytest.mark.parametrize("nudge", [0.0, 0.004, -0.004, 0.4, -0.4])
def test_joseph_over_an_atlas(card: ctypes.CDLL, limits: tuple[int, int], nudge: float) -> None:
    """The image and moments of the kernels, with many tilings, and wherever a card rounds a coordinate to."""
    voxels, scale = cases.quantise(cases.random_volume() - 0.4)
    rays = cases.stack(*BEAMS.values(), *MISSES.values())
    card.card_textures(*limits, nudge)
    image, moments = by_atlas(voxels, scale, rays)
    expected, expected_moments = cases.run_op(voxels.double() * scale, rays, "joseph")
    for view, name in enumerate([*BEAMS, *MISSES]):
        assert relative(image[view], expected[view]) <= 2e-6, name
        assert relative(moments[view], expected_moments[view]) <= 1e-5, name


def test_a_wrong_texel_would_show(card: ctypes.CDLL) -> None:
    voxels, scale = cases.quantise(cases.random_volume())
    rays = cases.stack(BEAMS["oblique"])
    card.card_textures(LIMIT, LIMIT, 0.6)
    image, _ = by_atlas(voxels, scale, rays)
    assert relative(image, cases.run_op(voxels.double() * scale, rays, "joseph")[0]) > 0.01


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 6), (6, 1, 5), (5, 6, 1), (2, 2, 2)], ids=str)
def test_thin_volumes_over_an_atlas(shape: tuple[int, int, int]) -> None:
    voxels, scale = cases.quantise(cases.random_volume(7, shape))
    rays = cases.stack(*BEAMS.values())
    rays[:, 0] += torch.tensor([(n - 1) / 2 for n in reversed(shape)]) - torch.from_numpy(cases.MIDDLE)
    image, moments = by_atlas(voxels, scale, rays)
    expected, expected_moments = cases.run_op(voxels.double() * scale, rays, "joseph")
    assert relative(image, expected) <= 2e-6
    assert relative(moments, expected_moments) <= 2e-5


def test_a_volume_that_does_not_fit_the_textures_is_refused(card: ctypes.CDLL) -> None:
    voxels, _ = cases.quantise(cases.random_volume())
    card.card_textures(40, 40, 0.0)
    with pytest.raises(RuntimeError, match="too large for the textures"):
        torch.ops.xreg_cuda.atlas_new(voxels)
    with pytest.raises(RuntimeError, match="int16"):
        torch.ops.xreg_cuda.atlas_new(voxels.float())


# ---- the adjoint in whole numbers ----


def cotangent(dtype: torch.dtype, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return size * torch.randn(len(BEAMS), *SIZE, generator=generator, dtype=torch.float64).to(dtype)


def adjoint(g: Tensor, integrator: str) -> Tensor:
    rays, code = cases.stack(*BEAMS.values()), INTEGRATORS[integrator]
    return torch.ops.xreg.backproject(g, 1.0, *SHAPE, None, False, rays, METRIC, code, STEPS)


@integrators
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-12, 1e12])
def test_sums_have_the_same_bits_in_any_order(
    card: ctypes.CDLL, integrator: str, dtype: torch.dtype, limit: float, size: float
) -> None:
    """Of whole numbers; plain sums, which XREG_CUDA_ATOMICS asks for, are as near and differ."""
    g, found = cotangent(dtype, size), []
    for seed in (0, 1, 2):
        card.card_order(seed)
        found.append(adjoint(g, integrator))
    same = [torch.equal(found[0], other) for other in found[1:]]
    assert same == [not ANY_ORDER] * 2
    if not ANY_ORDER:
        return
    exact = adjoint(g.double(), integrator)
    assert all(relative(one, exact) <= limit for one in found)


@pytest.mark.skipif(ANY_ORDER, reason="plain sums treat one voxel at a time")
def test_nothing_and_what_is_not_finite() -> None:
    g = cotangent(torch.float32)
    assert not adjoint(torch.zeros_like(g), "joseph").any()
    for bad in (torch.nan, torch.inf):
        g[3, 2, 1] = bad
        assert bool(adjoint(g, "joseph").isnan().all())


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extreme_cotangents_stay_finite(size: float) -> None:
    found = adjoint(cotangent(torch.float32, size), "trilinear")
    assert bool(found.isfinite().all())
    exact = adjoint(cotangent(torch.float32, size).double(), "trilinear")
    assert relative(found, exact) <= (1e-5 if size > 1 else 1.0)


# ---- launches ----


@kinds
def test_gaussians_have_the_same_bits_in_any_order(card: ctypes.CDLL, kind: str) -> None:
    tensors, rays = scenes.as_float(scenes.scene(300, seed=2)), scenes.views(kind)
    g, found = scenes.random(2, *scenes.SIZE).float(), []
    for seed in (0, 1, 2):
        card.card_order(seed)
        image, _ = splatting.splat(*tensors, rays, scenes.SIZE, kind=kind)
        grads = torch.ops.xreg.splat_backward(g, *tensors, rays, splatting.KINDS[kind], 4.0)
        volume = splatting.voxelize(*tensors, scenes.AFFINE, scenes.GRID_SHAPE)
        found.append((image, *grads, volume))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    exact = (t.double() for t in tensors)
    expected = splat_reference.splat_backward(g.double(), *exact, rays, splatting.KINDS[kind], 4.0)
    assert all(relative(a, b) < 1e-5 for a, b in zip(found[0][1:6], expected, strict=True))


def test_more_views_than_a_launch_has_room_for() -> None:
    """65535 in a grid's second and third dimension."""
    few = cases.stack(BEAMS["oblique"], BEAMS["along +x"])
    rays = few.repeat(32769, 1, 1)
    mu = cases.random_volume().float()
    image, _ = cases.run_op(mu, rays, "joseph", size=(1, 1), moments=False)
    expected, _ = cases.run_op(mu, few, "joseph", size=(1, 1), moments=False)
    assert bool((expected > 0).all())
    assert torch.equal(image, expected.repeat(32769, 1, 1))


@pytest.fixture
def many() -> tuple[scenes.Scene, Tensor, Tensor]:
    """A Gaussian on the only pixel of two views, and these views more often than a launch has room for."""
    few, tensors = scenes.views("exact"), list(scenes.as_float(scenes.scene(1)))
    tensors[0] = (few[:1, 0] + 0.57 * few[:1, 3]).float()
    return tuple(tensors), few, few.repeat(32769, 1, 1)


def test_more_views_of_gaussians_than_a_launch_has_room_for(many: tuple) -> None:
    tensors, few, rays = many
    image, _ = torch.ops.xreg.splat(*tensors, rays, 1, 1, 0, 4.0, False)
    expected, _ = torch.ops.xreg.splat(*tensors, few, 1, 1, 0, 4.0, False)
    assert bool((expected > 0).all())
    assert torch.equal(image, expected.repeat(32769, 1, 1))


@pytest.mark.slow
def test_the_gradient_of_more_views_than_a_launch_has_room_for(many: tuple) -> None:
    tensors, few, rays = many
    grads = torch.ops.xreg.splat_backward(torch.ones(65538, 1, 1), *tensors, rays, 0, 4.0)
    alone = torch.ops.xreg.splat_backward(torch.ones(2, 1, 1), *tensors, few, 0, 4.0)
    assert torch.equal(grads[4], alone[4].repeat(32769, 1, 1))
    torch.testing.assert_close(grads[0], 32769 * alone[0], rtol=1e-3, atol=0)


@kinds
def test_nothing_is_launched_of_nothing(kind: str) -> None:
    """No Gaussians, no views, and Gaussians that no pixel sees: no launch of zero blocks."""
    rays, code = scenes.views(kind), splatting.KINDS[kind]
    away = list(scenes.as_float(scenes.scene(3)))
    away[0] = away[0] + 1e4
    for tensors in (away, scenes.as_float(tuple(t[:0] for t in scenes.scene(3)))):
        image, _ = torch.ops.xreg.splat(*tensors, rays, *scenes.SIZE, code, 4.0, False)
        grads = torch.ops.xreg.splat_backward(torch.ones_like(image), *tensors, rays, code, 4.0)
        assert not image.any()
        assert not any(bool(grad.any()) for grad in grads)
        assert not splatting.voxelize(*tensors, scenes.AFFINE, scenes.GRID_SHAPE).any()
    none, _ = torch.ops.xreg.splat(*away, rays[:0], *scenes.SIZE, code, 4.0, False)
    assert none.shape == (0, *scenes.SIZE)
    mu, beam = cases.random_volume().float(), (torch.zeros(0, 6, 3, dtype=torch.float64), METRIC)
    assert cases.run_op(mu, beam[0], "joseph")[0].shape == (0, *SIZE)
    back = torch.ops.xreg.backproject(torch.zeros(0, *SIZE), 1.0, *SHAPE, None, False, *beam, 1, 1)
    assert not back.any()
