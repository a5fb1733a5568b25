"""Gaussians on a grid: values, gradients, grids of any size and place."""

import pytest
import torch
from splat_scenes import AFFINE, GRID_SHAPE, as_float, random, relative, scene

from xreg.ops import splat_reference
from xreg.ops import splatting as ops

ROWS = AFFINE[:3].contiguous()


def plain(tensors, shape, affine, cutoff: float):
    """The sum, voxel by voxel, with matrices of covariance."""
    mean, scale, rotation, density = tensors
    axes = splat_reference._axes(rotation)
    precision = torch.linalg.inv(axes @ torch.diag_embed(scale**2) @ axes.transpose(-1, -2))
    k, j, i = torch.meshgrid(*(torch.arange(n).double() for n in shape), indexing="ij")
    x = torch.stack([i, j, k], -1) @ affine[:3, :3].T + affine[:3, 3]
    away = x[..., None, :] - mean
    e = torch.einsum("...ni,nij,...nj->...n", away, precision, away)
    return torch.where(e < cutoff**2, density * torch.exp(-0.5 * e), 0.0).sum(-1)


def test_values(backend: str) -> None:
    tensors = scene(25, seed=3)
    expected = plain(tensors, GRID_SHAPE, AFFINE, 4.0)
    assert relative(ops.voxelize(*tensors, AFFINE, GRID_SHAPE), expected) < 1e-12
    assert relative(ops.voxelize(*as_float(tensors), AFFINE, GRID_SHAPE), expected) < 1e-6
    assert relative(splat_reference.voxelize(*tensors, ROWS, *GRID_SHAPE, 4.0), expected) < 1e-12


def test_finite_differences() -> None:
    """On oblong voxels, where a gradient in voxels instead of millimetres would show."""
    leaves = [t.requires_grad_() for t in scene(3)]
    near = AFFINE.clone()
    near[:3, 3] = torch.tensor([-3.1, 4.2, -4.3])
    value = lambda *t: ops.voxelize(*t, near, (5, 6, 7), cutoff=12.0)  # noqa: E731
    assert float(value(*leaves).detach().abs().max()) > 0.01
    assert torch.autograd.gradcheck(value, leaves, eps=1e-6, atol=1e-8, rtol=1e-6)


def test_gradients_of_every_build(backend: str) -> None:
    tensors, cotangent = scene(25, seed=3), random(*GRID_SHAPE, seed=8)
    expected = splat_reference.voxelize_backward(cotangent, *tensors, ROWS, 4.0)
    for dtype, limit in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        found = torch.ops.xreg.voxelize_backward(
            cotangent.to(dtype), *(t.to(dtype) for t in tensors), ROWS, 4.0
        )
        for a, b in zip(found, expected, strict=True):
            assert relative(a, b) < limit


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 40), (40, 1, 1), (1, 40, 1), (3, 17, 33), (33, 2, 16)], ids=str
)
def test_grids_of_any_shape(shape: tuple[int, int, int]) -> None:
    tensors = scene(20)
    affine = torch.eye(4).double()
    affine[:3, 3] = -torch.tensor([n / 2 for n in reversed(shape)])
    expected = plain(tensors, shape, affine, 4.0)
    assert float(expected.abs().max()) > 0
    assert relative(ops.voxelize(*as_float(tensors), affine, shape), expected) < 2e-6
    leaf = [t.clone().requires_grad_() for t in tensors]
    ops.voxelize(*leaf, affine, shape).sum().backward()
    truth = splat_reference.voxelize_backward(torch.ones(shape).double(), *tensors, affine[:3], 4.0)
    assert all(relative(t.grad, b) < 1e-10 for t, b in zip(leaf, truth, strict=True))


@pytest.mark.usefixtures("threads", "compiled")
def test_the_same_bits_on_any_number_of_threads() -> None:
    tensors, cotangent = as_float(scene(1500)), random(*GRID_SHAPE).float()
    results = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        volume = ops.voxelize(*tensors, AFFINE, GRID_SHAPE)
        results.append((volume, *torch.ops.xreg.voxelize_backward(cotangent, *tensors, ROWS, 4.0)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_mass_and_transpose() -> None:
    """The volume's sum is the Gaussians' mass; and it is linear in the densities."""
    mean, scale, rotation, density = scene(6, size=(2.0, 3.0))
    affine = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0]).double())
    affine[:3, 3] = -40
    volume = ops.voxelize(mean, scale, rotation, density, affine, (80, 80, 80), cutoff=8.0)
    mass = (density * (2 * torch.pi) ** 1.5 * scale.prod(-1)).sum()
    torch.testing.assert_close(volume.sum(), mass, rtol=1e-6, atol=0)
    y = random(80, 80, 80)
    back = torch.ops.xreg.voxelize_backward(y, mean, scale, rotation, density, affine[:3].contiguous(), 8.0)[
        3
    ]
    torch.testing.assert_close((volume * y).sum(), (density * back).sum(), rtol=1e-10, atol=0)


def test_far_from_the_grid_and_none() -> None:
    mean, *rest = scene(5)
    assert float(ops.voxelize(mean + 500.0, *rest, AFFINE, GRID_SHAPE).abs().max()) == 0.0
    none = [t[:0] for t in (mean, *rest)]
    assert float(ops.voxelize(*none, AFFINE, GRID_SHAPE).abs().max()) == 0.0


@pytest.mark.usefixtures("compiled")
def test_bad_grids_are_refused() -> None:
    with pytest.raises(RuntimeError, match="at least one voxel"):
        ops.voxelize(*scene(), AFFINE, (0, 3, 3))
    with pytest.raises(RuntimeError, match="sigmas"):
        ops.voxelize(*scene(), AFFINE, (3, 3, 3), cutoff=40.0)
