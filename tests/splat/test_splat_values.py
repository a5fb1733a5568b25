"""Images of Gaussians: against integration along the rays, the torch reference, and each other."""

import numpy as np
import pytest
import roma
import torch
from scipy.integrate import quad
from splat_scenes import KINDS, SIZE, as_float, pinhole, relative, scene, views

from xreg.ops import splat_reference
from xreg.ops import splatting as ops
from xreg.ops.reference import pixel_rays

FINE = {"rtol": 1e-10, "atol": 1e-12}


def field(tensors, x: np.ndarray) -> float:
    """The sum of Gaussians at a point, with roma's rotations."""
    mean, scale, rotation, density = tensors
    axes = roma.unitquat_to_rotmat(rotation / rotation.norm(dim=-1, keepdim=True))
    away = ((torch.from_numpy(x) - mean)[:, None] @ axes)[:, 0] / scale
    return float((density * torch.exp(-0.5 * away.square().sum(-1))).sum())


@pytest.mark.parametrize("kind", ["exact", "parallel"])
def test_numerical_integration_along_the_ray(kind: str) -> None:
    tensors, rays = scene(), views(kind, 1)
    image, _ = ops.splat(*tensors, rays, SIZE, kind=kind, cutoff=12.0)
    s, d = (r[0].numpy() for r in pixel_rays(rays, *SIZE))
    brightest = image[0].abs().flatten().topk(150).indices[::60].tolist()
    for v, u in [divmod(n, SIZE[1]) for n in (*brightest, 0)]:
        at = lambda t: field(tensors, s[v, u] + t * d[v, u])  # noqa: B023, E731
        expected = sum(quad(at, a, a + 0.1, epsabs=1e-12)[0] for a in np.arange(0.1, 1.1, 0.1))
        expected *= np.linalg.norm(d[v, u])
        assert abs(float(image[0, v, u]) - expected) < 1e-8
        assert abs(expected) > 0.1 or (u, v) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_build_agrees_with_the_reference(backend: str, kind: str, dtype: torch.dtype) -> None:
    tensors, rays = scene(40, seed=5), views(kind, 3)
    moments = kind != "affine"
    expected, slopes = splat_reference.splat(*tensors, rays, *SIZE, ops.KINDS[kind], 4.0, moments)
    found, jac = ops.splat(*(t.to(dtype) for t in tensors), rays, SIZE, kind=kind, moments=moments)
    limit = 1e-11 if dtype == torch.float64 else 2e-6
    assert found.dtype == jac.dtype == dtype
    assert relative(found, expected) < limit
    assert jac.shape == (3, 6 if moments else 0, *SIZE)
    for row in range(jac.shape[1]):
        assert relative(jac[:, row], slopes[:, row]) < 5 * limit


@pytest.mark.parametrize("size", [(0.2, 0.5), (4.0, 9.0)], ids=["slight", "strong"])
def test_foreshortening_slight_and_strong(backend: str, size: tuple[float, float]) -> None:
    """The two ways in which the host kernels take the root: a short polynomial, or for all numbers."""
    tensors, rays = scene(60, seed=7, size=size), views("exact", 2)
    expected, slopes = splat_reference.splat(*tensors, rays, *SIZE, ops.KINDS["exact"], 4.0, True)
    found, jac = ops.splat(*as_float(tensors), rays, SIZE, moments=True)
    assert float(expected.abs().max()) > 0.1
    assert relative(found, expected) < 2e-6
    assert relative(jac, slopes) < 1e-5


@pytest.mark.parametrize("kind", ["exact", "parallel"])
def test_the_image_with_and_without_moments(kind: str) -> None:
    tensors = as_float(scene(20))
    alone, none = ops.splat(*tensors, views(kind), SIZE, kind=kind)
    both, _ = ops.splat(*tensors, views(kind), SIZE, kind=kind, moments=True)
    assert none.shape == (2, 0, *SIZE)
    assert relative(alone, both) < 1e-7


def test_affine_is_near_and_not_equal() -> None:
    tensors, rays = scene(), views("exact", 1)
    exact, _ = ops.splat(*tensors, rays, SIZE)
    affine, _ = ops.splat(*tensors, rays, SIZE, kind="affine")
    assert 1e-4 < relative(affine, exact) < 0.05


@pytest.mark.parametrize("shape", [(0.05, 0.05, 30.0), (25.0, 25.0, 0.03), (0.02, 4.0, 12.0)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_needles_and_discs(kind: str, shape: tuple[float, float, float]) -> None:
    mean, _, rotation, density = scene(12, seed=8)
    tensors = (mean, torch.tensor(shape, dtype=torch.float64).repeat(12, 1), rotation, density)
    rays, code = views(kind, 1), ops.KINDS[kind]
    expected, _ = splat_reference.splat(*tensors, rays, *SIZE, code, 4.0, False)
    assert float(expected.abs().max()) > 0.01
    for dtype, limit in (
        (torch.float64, 1e-7),
        (torch.float32, 2e-3),
    ):  # a pixel on the edge may fall either way
        found, _ = ops.splat(*(t.to(dtype) for t in tensors), rays, SIZE, kind=kind)
        assert relative(found, expected) < limit


@pytest.mark.parametrize("kind", ["exact", "affine"])
def test_behind_or_about_the_source_is_left_out(kind: str) -> None:
    rays = pinhole()[None]
    source, middle = rays[0, 0], rays[0, 3] + 0.47 * SIZE[1] * rays[0, 4] + 0.52 * SIZE[0] * rays[0, 5]
    along = middle / middle.norm()
    still = (
        torch.tensor([[2.0, 1.0, 3.0]]).double(),
        torch.tensor([[0.1, 0.2, -0.3, 0.9]]).double(),
        torch.ones(1).double(),
    )

    def seen(distance: float) -> float:
        return float(ops.splat((source + distance * along)[None], *still, rays, SIZE, kind=kind)[0].max())

    assert seen(-30.0) == 0.0
    assert seen(-1.0) == 0.0
    assert seen(5.0) == 0.0, "its ellipsoid reaches behind the source"
    assert seen(13.0) > 0.0
    assert seen(250.0) > 0.0, "behind the detector it counts: the line is not cut"


def test_a_parallel_beam_has_no_behind() -> None:
    tensors, rays = scene(), views("parallel", 1)
    moved = rays.clone()
    moved[:, 0] += 3.0 * moved[:, 3]
    a, _ = ops.splat(*tensors, rays, SIZE, kind="parallel")
    b, _ = ops.splat(*tensors, moved, SIZE, kind="parallel")
    torch.testing.assert_close(a, b, **FINE)


def test_how_long_a_ray_is_does_not_matter() -> None:
    tensors, rays = scene(), views("exact", 1)
    longer = rays * torch.tensor([1, 1, 1, 1.7, 1.7, 1.7]).double()[:, None]
    torch.testing.assert_close(
        ops.splat(*tensors, rays, SIZE)[0], ops.splat(*tensors, longer, SIZE)[0], **FINE
    )


def test_the_cutoff_leaves_out_what_it_says() -> None:
    _, *rest = scene(1, size=(2.0, 2.5))
    tensors, rays = (
        (torch.zeros(1, 3).double(), *rest),
        views("exact", 1) * torch.tensor([1, 1, 1, 1, 0.4, 0.4])[:, None],
    )
    rays[:, 3] = -rays[:, 0] - 80 * rays[:, 4] - 40 * rays[:, 5]  # the middle of the image looks at the mean
    whole, _ = ops.splat(*tensors, rays, (80, 160), cutoff=12.0)
    for cutoff in (2.0, 3.0, 4.0):
        cut, _ = ops.splat(*tensors, rays, (80, 160), cutoff=cutoff)
        left_out = float((whole - cut).sum() / whole.sum())
        assert abs(left_out / np.exp(-(cutoff**2) / 2) - 1) < 0.25
        assert float((whole - cut).max() / whole.max()) <= np.exp(-(cutoff**2) / 2) * 1.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_no_gaussians_and_no_views(dtype: torch.dtype) -> None:
    none = tuple(t[:0].to(dtype).requires_grad_() for t in scene())
    image, jac = ops.splat(*none, views("exact"), SIZE, moments=True)
    assert image.shape == (2, *SIZE)
    assert float(image.detach().abs().max()) == 0.0 == float(jac.abs().max())
    image.sum().backward()
    assert none[0].grad.shape == (0, 3)
    no_view, _ = ops.splat(*(t.to(dtype) for t in scene()), views("exact")[:0], SIZE)
    assert no_view.shape == (0, *SIZE)


def test_one_pixel_and_odd_sizes() -> None:
    tensors, rays = scene(), views("exact", 1)
    whole, _ = ops.splat(*tensors, rays, (40, 50))
    for size in [(1, 1), (1, 50), (40, 1), (17, 33)]:
        part, _ = ops.splat(*tensors, rays, size)
        torch.testing.assert_close(part, whole[:, : size[0], : size[1]], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: (t[0][:, :2], *t[1:]), "contiguous mean"),
        (lambda t: (t[0], t[1][:3], *t[2:]), "contiguous mean"),
        (lambda t: (t[0], t[1], t[2][:, :3], t[3]), "contiguous mean"),
        (lambda t: (*t[:3], t[3].float()), "one dtype"),
        (lambda t: tuple(x.half() for x in t), "float32 or float64"),
    ],
)
@pytest.mark.usefixtures("compiled")
def test_bad_gaussians_are_refused(change, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.splat(*change(scene()), views("exact"), SIZE)


@pytest.mark.usefixtures("compiled")
def test_bad_views_are_refused() -> None:
    with pytest.raises(RuntimeError, match="float64"):
        ops.splat(*scene(), views("exact").float(), SIZE)
    with pytest.raises(RuntimeError, match="at least one pixel"):
        ops.splat(*scene(), views("exact"), (0, 5))
    with pytest.raises(RuntimeError, match="sigmas"):
        ops.splat(*scene(), views("exact"), SIZE, cutoff=0.0)
    with pytest.raises(RuntimeError, match="no moments"):
        ops.splat(*scene(), views("exact"), SIZE, kind="affine", moments=True)
