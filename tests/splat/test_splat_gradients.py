"""Gradients of the splatter: finite differences in float64, the reference, moments, and the same bits each
time.
"""

import pytest
import torch
from splat_scenes import KINDS, SIZE, as_float, random, relative, scene, used_rows, views

from xreg.ops import splat_reference
from xreg.ops import splatting as ops
from xreg.ops.project import push_forward

SMALL = (5, 7)
NAMES = ("mean", "scale", "rotation", "density", "rays")
kinds = pytest.mark.parametrize("kind", KINDS)


def coarse(kind: str, count: int = 2):
    """Views whose few pixels cover the scene."""
    rays = views(kind, count)
    factor = torch.ones(6, 1).double()
    factor[[1, 2] if kind == "parallel" else [4, 5]] = 4.5
    return rays * factor


@kinds
def test_finite_differences_of_the_gaussians(kind: str) -> None:
    leaves = [t.requires_grad_() for t in scene(4)]
    rays = coarse(kind)
    value = lambda *t: ops.splat(*t, rays, SMALL, kind=kind, cutoff=12.0)[0]  # noqa: E731
    assert float(value(*leaves).detach().abs().max()) > 0.5
    assert torch.autograd.gradcheck(value, leaves, eps=1e-6, atol=1e-7, rtol=1e-6)


@kinds
def test_finite_differences_of_the_view(kind: str) -> None:
    tensors, rays, rows = scene(4), coarse(kind), used_rows(kind)

    def value(part):
        return ops.splat(
            *tensors, rays.index_copy(1, torch.tensor(rows), part), SMALL, kind=kind, cutoff=12.0
        )[0]

    assert torch.autograd.gradcheck(
        value, rays[:, rows].clone().requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-6
    )


@kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_build_agrees_with_the_reference(backend: str, kind: str, dtype: torch.dtype) -> None:
    tensors, rays, cotangent = scene(40, seed=5), views(kind, 3), random(3, *SIZE, seed=9)
    code = ops.KINDS[kind]
    expected = splat_reference.splat_backward(cotangent, *tensors, rays, code, 4.0)
    found = torch.ops.xreg.splat_backward(
        cotangent.to(dtype), *(t.to(dtype) for t in tensors), rays, code, 4.0
    )
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert relative(a, b) < (1e-10 if dtype == torch.float64 else 1e-5), name
        assert a.dtype == (torch.float64 if name == "rays" else dtype)


@pytest.mark.parametrize("kind", ["exact", "parallel"])
def test_moments_give_the_same_gradient_as_backward(kind: str) -> None:
    """The Jacobian of the view, forward and in reverse, agree: two derivations of one derivative."""
    tensors, rays = scene(12), views(kind).requires_grad_()
    image, moments = ops.splat(*tensors, rays, SIZE, kind=kind, moments=True)
    cotangent, change = random(2, *SIZE, seed=3), random(2, 1, 6, 3, seed=4)
    change[:, :, [n for n in range(6) if n not in used_rows(kind)]] = 0
    forward = (push_forward(moments, change)[:, 0] * cotangent).sum()
    reverse = (torch.autograd.grad((image * cotangent).sum(), rays)[0] * change[:, 0]).sum()
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=0)


@kinds
@pytest.mark.usefixtures("threads", "compiled")
def test_the_same_bits_on_any_number_of_threads(kind: str) -> None:
    tensors, rays, cotangent = as_float(scene(1500, seed=2)), views(kind), random(2, *SIZE).float()
    results = []
    for number in (1, 2, 5, 2):
        torch.set_num_threads(number)
        image, _ = ops.splat(*tensors, rays, SIZE, kind=kind)
        found = torch.ops.xreg.splat_backward(cotangent, *tensors, rays, ops.KINDS[kind], 4.0)
        results.append((image, *found))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_image_is_linear_in_the_densities() -> None:
    """⟨A ρ, y⟩ = ⟨ρ, Aᵀ y⟩: what a solve for the densities stands on."""
    mean, scale, rotation, density = scene(30)
    rays, cotangent = views("exact"), random(2, *SIZE, seed=6)
    image, _ = ops.splat(mean, scale, rotation, density, rays, SIZE)
    back = torch.ops.xreg.splat_backward(cotangent, mean, scale, rotation, density, rays, 0, 4.0)[3]
    torch.testing.assert_close((image * cotangent).sum(), (density * back).sum(), rtol=1e-11, atol=0)


def test_the_norm_of_a_quaternion_does_not_matter() -> None:
    mean, scale, rotation, density = scene()
    rotation = rotation.requires_grad_()
    image, _ = ops.splat(mean, scale, rotation, density, views("exact"), SIZE)
    twice, _ = ops.splat(mean, scale, -2 * rotation, density, views("exact"), SIZE)
    torch.testing.assert_close(image, twice, rtol=1e-10, atol=1e-12)
    (found,) = torch.autograd.grad((image * random(2, *SIZE)).sum(), rotation)
    assert float((found * rotation.detach()).sum(-1).abs().max()) < 1e-9 * float(found.norm())
    assert float(found.norm()) > 0.1


def test_a_gradient_is_not_differentiated_again() -> None:
    leaves = [t.requires_grad_() for t in scene(3)]
    image, _ = ops.splat(*leaves, views("exact"), SIZE)
    (first,) = torch.autograd.grad(image.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives"):
        first.sum().backward()
