"""Gradients of the projector against float64 finite differences, and the adjoint by inner products."""

import projector_cases as cases
import pytest
import torch
from central_differences import by_differences
from projector_cases import BEAMS, METRIC, SHAPE, SIZE, STEPS, relative
from torch import Tensor

from xreg.ops import registry
from xreg.ops.project import INTEGRATORS, project, project_labels, pull_back, push_forward

CHANNELS = 4
integrators = pytest.mark.parametrize("integrator", INTEGRATORS)
BUNDLES = [
    "along +x",
    "along -y",
    "along +z",
    "oblique",
    "detector inside",
    "source inside",
    "parallel",
    "skew",
]


def weights(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def image_of(
    mu: Tensor, rays: Tensor, integrator: str, labels: Tensor | None = None, soft: bool = True
) -> Tensor:
    if labels is None:
        return project(mu, rays, METRIC, SIZE, integrator=integrator, steps=STEPS)[0]
    return project_labels(
        mu, labels, rays, METRIC, SIZE, channels=CHANNELS, soft=soft, integrator=integrator, steps=STEPS
    )


@integrators
@pytest.mark.parametrize("beam", BUNDLES)
def test_rays(mu: Tensor, integrator: str, beam: str) -> None:
    """All eighteen numbers of a view; the second view checks that they are not mixed up."""
    rays = cases.stack(BEAMS[beam], cases.skew(9))
    weight = weights(2, *SIZE)

    def loss(r: Tensor) -> Tensor:
        return (image_of(mu, r, integrator) * weight).sum()

    leaf = rays.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    expected = by_differences(loss, rays, 1e-6)
    assert relative(gradient, expected) <= 1e-6
    scale = expected.abs().amax(-1, keepdim=True)
    assert float(((gradient - expected).abs() / scale).max()) <= 1e-5


@integrators
def test_mu(mu: Tensor, integrator: str) -> None:
    """The image is linear in mu, so a difference quotient has no error but rounding."""
    rays, weight = cases.stack(BEAMS["oblique"], BEAMS["source inside"]), weights(2, *SIZE)
    leaf = mu.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((image_of(leaf, rays, integrator) * weight).sum(), leaf)
    picked = torch.randperm(mu.numel(), generator=torch.Generator().manual_seed(2))[:60]
    for i in picked.tolist():
        change = torch.zeros_like(mu).reshape(-1)
        change[i] = 1.0
        expected = (image_of(change.reshape(mu.shape), rays, integrator) * weight).sum()
        torch.testing.assert_close(gradient.reshape(-1)[i], expected, atol=1e-12, rtol=1e-12)


@integrators
def test_rays_of_soft_labels(mu: Tensor, integrator: str) -> None:
    rays, labels = cases.stack(BEAMS["oblique"], cases.skew()), cases.random_labels(CHANNELS)
    weight = weights(2, CHANNELS, *SIZE)

    def loss(r: Tensor) -> Tensor:
        return (image_of(mu, r, integrator, labels) * weight).sum()

    leaf = rays.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    assert relative(gradient, by_differences(loss, rays, 1e-6)) <= 1e-6


@integrators
def test_rays_of_hard_labels_where_nothing_borders(mu: Tensor, integrator: str) -> None:
    """Hard labels leave out the moving border; with one label for all there is none."""
    rays, labels = cases.stack(BEAMS["oblique"], cases.skew()), torch.full(SHAPE, 2, dtype=torch.int16)
    weight = weights(2, *SIZE)
    grads = []
    for image in (
        lambda r: image_of(mu, r, integrator),
        lambda r: image_of(mu, r, integrator, labels, soft=False)[:, 2],
    ):
        leaf = rays.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((image(leaf) * weight).sum(), leaf)
        grads.append(gradient)
    # a sample outside the outermost half voxel has no nearest voxel, and counts for no label
    inside = integrator == "siddon"
    assert relative(grads[1], grads[0]) <= (1e-12 if inside else 0.5)


@integrators
@pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
def test_mu_of_labels(mu: Tensor, integrator: str, soft: bool) -> None:
    rays, labels = cases.stack(BEAMS["oblique"], BEAMS["along +y"]), cases.random_labels(CHANNELS)
    weight, change = weights(2, CHANNELS, *SIZE), weights(*SHAPE, seed=8)
    leaf = mu.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((image_of(leaf, rays, integrator, labels, soft) * weight).sum(), leaf)
    expected = (image_of(change, rays, integrator, labels, soft) * weight).sum()
    torch.testing.assert_close((gradient * change).sum(), expected, atol=1e-10, rtol=1e-12)


@integrators
@pytest.mark.parametrize("labelled", ["plain", "soft", "hard"])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["f64", "f32"]
)
def test_adjoint(integrator: str, labelled: str, dtype: torch.dtype, limit: float) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩ for x and y of both signs, over every kind of beam."""
    rays = cases.stack(*BEAMS.values())
    labels = None if labelled == "plain" else cases.random_labels(CHANNELS)
    soft = labelled == "soft"
    x = weights(*SHAPE, seed=11).to(dtype)
    ax = image_of(x, rays, integrator, labels, soft)
    y = weights(*ax.shape, seed=12).to(dtype)
    aty = torch.ops.xreg.backproject(
        y, 1.0, *SHAPE, labels, soft, rays, METRIC, INTEGRATORS[integrator], STEPS
    )
    assert aty.dtype == ax.dtype == dtype
    left, right = (ax.double() * y.double()).sum(), (x.double() * aty.double()).sum()
    assert float((left - right).abs() / (ax.double().norm() * y.double().norm())) <= limit


@integrators
def test_adjoint_of_each_fast_build(backend: str, integrator: str) -> None:
    x = weights(*SHAPE, seed=11).float()
    rays = cases.stack(*BEAMS.values())
    ax = image_of(x, rays, integrator)
    y = weights(*ax.shape, seed=12).float()
    aty = torch.ops.xreg.backproject(
        y, 1.0, *SHAPE, None, False, rays, METRIC, INTEGRATORS[integrator], STEPS
    )
    left, right = (ax.double() * y.double()).sum(), (x.double() * aty.double()).sum()
    assert float((left - right).abs() / (ax.double().norm() * y.double().norm())) <= 1e-6


@integrators
@pytest.mark.parametrize("labelled", ["plain", "soft", "hard"])
def test_backprojection_has_the_same_bits_on_any_number_of_threads(
    threads: None, integrator: str, labelled: str
) -> None:
    rays = cases.stack(*BEAMS.values())
    labels = None if labelled == "plain" else cases.random_labels(CHANNELS)
    shape = (len(rays), *SIZE) if labels is None else (len(rays), CHANNELS, *SIZE)
    for dtype in (torch.float32, torch.float64):
        y = weights(*shape).to(dtype)
        results = []
        for count in (1, 2, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(
                torch.ops.xreg.backproject(
                    y, 1.0, *SHAPE, labels, labelled == "soft", rays, METRIC, INTEGRATORS[integrator], STEPS
                )
            )
        assert all(torch.equal(results[0], other) for other in results[1:])


@integrators
def test_images_have_the_same_bits_on_any_number_of_threads(
    threads: None, mu: Tensor, integrator: str
) -> None:
    rays = cases.stack(*BEAMS.values())
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(cases.run_op(mu.float(), rays, integrator))
    for image, moments in results[1:]:
        assert torch.equal(image, results[0][0])
        assert torch.equal(moments, results[0][1])


def test_scale_belongs_to_the_gradient(mu: Tensor) -> None:
    rays = cases.stack(BEAMS["oblique"]).requires_grad_()
    grads = []
    for scale in (1.0, 0.25):
        leaf = (mu / scale).requires_grad_()
        image, _ = project(leaf, rays, METRIC, SIZE, scale=scale, integrator="exact")
        grads.append(torch.autograd.grad(image.square().sum(), (leaf, rays)))
    torch.testing.assert_close(grads[1][0], 0.25 * grads[0][0], atol=0, rtol=1e-12)
    torch.testing.assert_close(grads[1][1], grads[0][1], atol=0, rtol=1e-12)


def test_int16_voxels_have_a_ray_gradient_only(mu: Tensor) -> None:
    voxels, scale = cases.quantise(mu)
    rays = cases.stack(BEAMS["oblique"]).requires_grad_()
    image, _ = project(voxels, rays, METRIC, SIZE, scale=scale, integrator="exact")
    (gradient,) = torch.autograd.grad(image.sum(), rays)
    leaf = rays.detach().requires_grad_()
    (expected,) = torch.autograd.grad(project(mu, leaf, METRIC, SIZE, integrator="exact")[0].sum(), leaf)
    assert gradient.dtype == torch.float64
    assert relative(gradient, expected) <= 1e-4


@integrators
def test_twice_is_refused(mu: Tensor, integrator: str) -> None:
    rays = cases.stack(BEAMS["oblique"]).requires_grad_()
    (gradient,) = torch.autograd.grad(image_of(mu, rays, integrator).square().sum(), rays, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiat"):
        gradient.sum().backward()


def test_twice_is_refused_for_labels(mu: Tensor) -> None:
    leaf, labels = mu.clone().requires_grad_(), cases.random_labels(CHANNELS)
    image = image_of(leaf, cases.stack(BEAMS["oblique"]), "trilinear", labels)
    (gradient,) = torch.autograd.grad(image.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiat"):
        gradient.sum().backward()


def test_moments_carry_no_gradient(mu: Tensor) -> None:
    rays = cases.stack(BEAMS["oblique"]).requires_grad_()
    image, moments = project(mu.clone().requires_grad_(), rays, METRIC, SIZE, moments=True, steps=STEPS)
    assert image.requires_grad
    assert not moments.requires_grad


def test_moments_are_made_only_where_they_are_wanted(mu: Tensor) -> None:
    rays = cases.stack(BEAMS["oblique"])
    leaf = rays.clone().requires_grad_()
    assert project(mu, rays, METRIC, SIZE, steps=STEPS)[1].shape == (1, 0, *SIZE)
    assert project(mu, leaf, METRIC, SIZE, steps=STEPS)[1].shape == (1, 6, *SIZE)
    with torch.no_grad():
        assert project(mu, leaf, METRIC, SIZE, steps=STEPS)[1].shape == (1, 0, *SIZE)


def test_one_input_alone_and_both_together(mu: Tensor) -> None:
    rays = cases.stack(BEAMS["oblique"])
    both = (mu.clone().requires_grad_(), rays.clone().requires_grad_())
    together = torch.autograd.grad(image_of(*both, "joseph").sum(), both)
    for i in (0, 1):
        alone = [mu, rays]
        alone[i] = alone[i].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(image_of(*alone, "joseph").sum(), alone[i])
        assert torch.equal(gradient, together[i])


@integrators
def test_push_forward_is_the_derivative_along_rays(mu: Tensor, integrator: str) -> None:
    """Jacobian images of three changes of the rays, against differences of the image itself."""
    rays = cases.stack(BEAMS["oblique"], cases.skew())
    change = weights(2, 3, 6, 3, seed=21) * torch.tensor([1.0, 0.1, 0.1, 1.0, 0.1, 0.1])[:, None]
    _, moments = project(mu, rays, METRIC, SIZE, integrator=integrator, steps=STEPS, moments=True)
    found = push_forward(moments, change)
    h = 1e-6
    for p in range(3):
        ahead, behind = (image_of(mu, rays + s * h * change[:, p], integrator) for s in (1, -1))
        assert relative(found[:, p], (ahead - behind) / (2 * h)) <= 1e-6


def test_pull_back_is_the_transpose_of_push_forward() -> None:
    moments, cotangent = weights(2, 6, *SIZE, seed=1), weights(2, *SIZE, seed=2)
    change = weights(2, 1, 6, 3, seed=3)
    left = (push_forward(moments, change)[:, 0] * cotangent).sum()
    right = (pull_back(moments * cotangent[:, None]) * change[:, 0]).sum()
    torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-12)


@pytest.mark.usefixtures("compiled")
def test_the_backward_pass_follows_the_chosen_build(mu: Tensor, backend: str) -> None:
    """The gradient to rays comes from the forward march, whichever build ran it."""
    rays = cases.stack(BEAMS["oblique"]).requires_grad_()
    (gradient,) = torch.autograd.grad(image_of(mu.float(), rays, "trilinear").sum(), rays)
    (expected,) = torch.autograd.grad(image_of(mu, rays, "trilinear").sum(), rays)
    assert registry.backend() == backend
    assert relative(gradient, expected) <= 1e-5


@integrators
def test_twice_is_refused_where_the_image_enters_linearly(mu: Tensor, integrator: str) -> None:
    """The gradient of a sum is no constant: it depends on the rays."""
    rays = cases.stack(BEAMS["oblique"]).requires_grad_()
    (gradient,) = torch.autograd.grad(image_of(mu, rays, integrator).sum(), rays, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(gradient.square().sum() + rays.sum(), rays)


def test_push_forward_goes_where_the_moments_are() -> None:
    """A camera on the host, and moments on a card; the meta device stands in for one."""
    moments = torch.empty(1, 6, *SIZE, device="meta")
    assert push_forward(moments, weights(1, 2, 6, 3)).device == moments.device
