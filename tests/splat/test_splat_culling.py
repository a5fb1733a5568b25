"""Nothing that a Gaussian touches is lost to tiles, chords or boxes: each pixel against a plain sum over
all.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splat_scenes import KINDS, random, relative, views

from xreg.ops import splat_reference
from xreg.ops import splatting as ops

SIZE = (70, 83)  # several tiles each way
number = st.floats(0.05, 12.0)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), scale=st.tuples(number, number, number), seed=st.integers(0, 9999))
def test_one_gaussian_anywhere(kind: str, scale: tuple[float, float, float], seed: int) -> None:
    rays = views(kind, 1)
    tensors = (
        9.0 * random(1, 3, seed=seed) + torch.tensor([0.0, 10.0, 20.0]).double(),
        torch.tensor([scale], dtype=torch.float64),
        random(1, 4, seed=seed + 1),
        torch.ones(1, dtype=torch.float64),
    )
    code = ops.KINDS[kind]
    expected, _ = splat_reference.splat(*tensors, rays, *SIZE, code, 3.0, False)
    found, _ = ops.splat(*tensors, rays, SIZE, kind=kind, cutoff=3.0)
    # which pixels it reaches, but for those that rounding puts on the edge
    edge = (found > 0) != (expected > 0)
    assert int(edge.sum()) <= 1
    inside = ~edge
    assert relative(found[inside], expected[inside]) < 1e-7
    cotangent = random(1, *SIZE, seed=seed)
    cotangent[edge] = 0
    back = torch.ops.xreg.splat_backward(cotangent, *tensors, rays, code, 3.0)
    truth = splat_reference.splat_backward(cotangent, *tensors, rays, code, 3.0)
    largest = max(float(b.norm()) for b in truth)
    for a, b in zip(back, truth, strict=True):
        assert float((a - b).norm()) <= 1e-7 * max(float(b.norm()), largest)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_the_tiles(kind: str) -> None:
    """Views shifted by pixels give the same pixels, though each lies elsewhere in a tile."""
    tensors = (
        8 * random(60, 3),
        0.3 + random(60, 3, seed=1).abs(),
        random(60, 4, seed=2),
        random(60, seed=3).abs(),
    )
    rays = views(kind, 1)
    whole, _ = ops.splat(*tensors, rays, (60, 60), kind=kind)
    for shift in (1, 7, 16):
        moved = rays.clone()
        first, step = (0, 1) if kind == "parallel" else (3, 4)
        moved[:, first] += shift * (moved[:, step] + moved[:, step + 1])
        part, _ = ops.splat(*tensors, moved, (40, 40), kind=kind)
        torch.testing.assert_close(
            part, whole[:, shift : shift + 40, shift : shift + 40], rtol=1e-9, atol=1e-10
        )
