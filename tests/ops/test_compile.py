"""The operators as torch.compile and torch.export see them: schemas, shapes, and a graph without a break."""

from collections.abc import Callable, Iterator

import projector_cases as cases
import pytest
import torch
from projector_cases import BEAMS, METRIC, SHAPE, SIZE, STEPS
from torch import Tensor

from xreg.ops.project import INTEGRATORS, metric_of, project, project_labels, push_forward

CHANNELS = 4
LABELS = cases.random_labels(CHANNELS)
# torch makes an instance of the autograd function while it traces, and warns of that itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int16], ids=str)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@dtypes
@pytest.mark.parametrize(
    "name", ["image", "moments", "labels", "label moments", "backproject", "label backproject"]
)
def test_schema_and_shapes(mu: Tensor, dtype: torch.dtype, name: str) -> None:
    integrator = INTEGRATORS["joseph"]
    rays = cases.stack(BEAMS["oblique"], BEAMS["skew"])
    voxels = cases.quantise(mu)[0] if dtype == torch.int16 else mu.to(dtype)
    result = torch.float64 if dtype == torch.float64 else torch.float32
    image, channels = torch.rand(2, *SIZE, dtype=result), torch.rand(2, CHANNELS, *SIZE, dtype=result)
    beam = (rays, METRIC)
    ops = torch.ops.xreg
    operator, arguments = {
        "image": (ops.project, (voxels, 1.0, *beam, *SIZE, integrator, STEPS, False)),
        "moments": (ops.project, (voxels, 1.0, *beam, *SIZE, integrator, STEPS, True)),
        "labels": (
            ops.project_labels,
            (voxels, 1.0, LABELS, CHANNELS, True, *beam, *SIZE, integrator, STEPS),
        ),
        "label moments": (
            ops.label_moments,
            (channels, voxels, 1.0, LABELS, True, *beam, integrator, STEPS),
        ),
        "backproject": (ops.backproject, (image, 1.0, *SHAPE, None, False, *beam, integrator, STEPS)),
        "label backproject": (
            ops.backproject,
            (channels, 1.0, *SHAPE, LABELS, True, *beam, integrator, STEPS),
        ),
    }[name]
    torch.library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_faketensor"))


def squared(mu: Tensor, rays: Tensor) -> Tensor:
    """A loss as registration has it."""
    image, _ = project(mu, rays, METRIC, SIZE, integrator="exact")
    return (image - image.mean()).square().sum()


def moved(mu: Tensor, rays: Tensor) -> Tensor:
    """The affine and a shift of the rays inside the traced function, as in drr."""
    metric = metric_of(cases.LINEAR)
    shift = torch.zeros(6, 3, dtype=rays.dtype)
    shift[0] = 0.3
    image, _ = project(mu, rays + shift, metric, SIZE, integrator="trilinear", steps=STEPS)
    return image.exp().sum()


def labelled(mu: Tensor, rays: Tensor) -> Tensor:
    image = project_labels(
        mu, LABELS, rays, METRIC, SIZE, channels=CHANNELS, soft=True, integrator="joseph", steps=STEPS
    )
    return image.square().sum()


def with_jacobian(mu: Tensor, rays: Tensor) -> Tensor:
    image, moments = project(mu, rays, METRIC, SIZE, integrator="siddon", moments=True)
    change = torch.ones(len(rays), 2, 6, 3, dtype=rays.dtype)
    return image.sum() + push_forward(moments, change).square().mean() * image.detach().mean()


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("function", [squared, moved, labelled, with_jacobian])
@pytest.mark.usefixtures("fresh_compiler")
def test_one_graph_with_the_same_gradients(mu: Tensor, function: Callable, compiler: str) -> None:
    results = []
    for run in (function, torch.compile(function, backend=compiler, fullgraph=True)):
        leaves = [mu.float().requires_grad_(), cases.stack(BEAMS["oblique"], BEAMS["skew"]).requires_grad_()]
        value = run(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for plain, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, plain, atol=0, rtol=1e-6)


@pytest.mark.usefixtures("fresh_compiler")
def test_another_number_of_views_is_traced_too(mu: Tensor) -> None:
    run = torch.compile(squared, backend="aot_eager", fullgraph=True)
    for views in (1, 3, 4):
        rays = cases.stack(*list(BEAMS.values())[:views])
        torch.testing.assert_close(run(mu, rays), squared(mu, rays), atol=0, rtol=1e-12)
