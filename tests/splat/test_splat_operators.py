"""The operators on Gaussians as torch sees them, and the reference that answers where no library is."""

import pytest
import torch
from splat_scenes import AFFINE, GRID_SHAPE, SIZE, random, scene, views

from xreg.ops import registry, splat_reference
from xreg.ops import splatting as ops

ROWS = AFFINE[:3].contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", registry.SPLAT_SCHEMAS)
def test_schema_and_shapes(name: str, dtype: torch.dtype) -> None:
    tensors = tuple(t.to(dtype) for t in scene())
    rays, image, volume = views("exact"), random(2, *SIZE).to(dtype), random(*GRID_SHAPE).to(dtype)
    arguments = {
        "splat": (*tensors, rays, *SIZE, 0, 4.0, True),
        "splat_backward": (image, *tensors, rays, 0, 4.0),
        "voxelize": (*tensors, ROWS, *GRID_SHAPE, 4.0),
        "voxelize_backward": (volume, *tensors, ROWS, 4.0),
    }[name]
    operator = getattr(torch.ops.xreg, name).default
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
    found, expected = operator(*arguments), getattr(splat_reference, name)(*arguments)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_one_graph_with_the_same_gradients() -> None:
    def loss(mean, scale, rotation, density, rays):
        image, _ = ops.splat(mean, scale, rotation, density, rays, SIZE)
        volume = ops.voxelize(mean, scale, rotation, density, AFFINE, GRID_SHAPE)
        return image.square().sum() + volume.square().sum()

    torch._dynamo.reset()
    results = []
    for run in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaves = [t.clone().requires_grad_() for t in (*scene(), views("exact"))]
        results.append(torch.autograd.grad(run(*leaves), leaves))
    torch._dynamo.reset()
    for plain, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, plain, rtol=1e-10, atol=1e-12)
