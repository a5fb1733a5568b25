"""Every build that this machine has (torch reference, host kernels, CUDA kernels) against one float64 oracle.

The tolerances are the same for all.  On a machine without a card the CUDA cases are skipped and say why.
"""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from projector_cases import quantise, random_labels, relative
from torch import Tensor

from xreg import Camera, Volume
from xreg.ops import reference, registry
from xreg.ops.project import INTEGRATORS, metric_of, project, pull_back
from xreg.renderer import rays_in_volume

SHAPE, SPACING = (10, 15, 13), (3.7, 3.0, 6.1)  # depth, rows, columns; mm along i, j, k
SIZE, STEPS, CHANNELS = (6, 9), 80, 4
# What float32 arithmetic and 16-bit voxels may cost, as in test_kernels.py: relative L2 of a view.
IMAGE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.int16: 1e-5}
MOMENTS = {torch.float64: 1e-10, torch.float32: 5e-6, torch.int16: 2e-4}
LABELS = {torch.float64: 1e-12, torch.float32: 5e-6, torch.int16: 2e-5}
VOLUME = {torch.float64: 1e-12, torch.float32: 5e-6}
VIEWS = {
    "AP": {"primary": 0.3},
    "45 degrees": {"primary": 45.0},
    "lateral": {"primary": 89.6},
    "from above": {"primary": 3.0, "secondary": 80.0},
    "detector in the volume": {"primary": 31.0, "sdd": 412.0, "spacing": 6.3},
    "source in the volume": {"primary": -20.0, "sod": 7.0, "sdd": 300.0, "spacing": 27.0},
}
integrators = pytest.mark.parametrize("integrator", INTEGRATORS)
dtypes = pytest.mark.parametrize("dtype", IMAGE, ids=str)


def why_no_cuda() -> str:
    """Empty where the CUDA kernels answer on this machine."""
    if not torch.cuda.is_available():
        return "there is no CUDA card here"
    return f"the CUDA kernels are not here: {reason}" if (reason := registry.cuda_reason()) else ""


@dataclass(frozen=True)
class Build:
    """The operators of one build; tensors come from the host and go back to it."""

    name: str

    def __call__(self, operator: str, *arguments):
        """Run an operator by name.  The metric, six numbers, stays on the host."""
        if self.name == "reference":
            found = getattr(reference, operator)(*arguments)
        elif self.name == "host":
            found = getattr(torch.ops.xreg, operator)(*arguments)
        else:
            there = [a.cuda() if isinstance(a, Tensor) and a.numel() != 6 else a for a in arguments]
            found = getattr(torch.ops.xreg, operator)(*there)
        return tuple(f.cpu() for f in found) if isinstance(found, tuple) else found.cpu()


@pytest.fixture(params=["reference", "host", "cuda"])
def build(request: pytest.FixtureRequest, operators: bool) -> Build:
    if request.param == "host" and not operators:
        pytest.skip("the compiled library is not here; build it with pip install --no-build-isolation .")
    if request.param == "cuda" and (why := why_no_cuda()):
        pytest.skip(why)
    return Build(request.param)


def small_volume() -> Volume:
    """Noise, so that a wrong neighbour shows, on an oblique grid of oblong voxels."""
    mu = torch.rand(SHAPE, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 0.04 + 0.002
    affine = torch.eye(4, dtype=torch.float64)
    turn = torch.linalg.qr(
        torch.eye(3, dtype=torch.float64) + 0.1 * torch.tensor([[0, 1, -2], [1, 0, 1], [2, 0, 0.0]])
    )
    affine[:3, :3] = turn.Q @ torch.diag(torch.tensor(SPACING, dtype=torch.float64))
    affine[:3, 3] = torch.tensor([5.0, -8.0, 11.0])
    return Volume(mu, affine)


VOLUME_HERE = small_volume()
METRIC = metric_of(VOLUME_HERE.affine[:3, :3])
HARD_EDGES = random_labels(CHANNELS, 3, SHAPE)


def rays_of(count: int = 1, **words) -> Tensor:
    """Views about the volume's middle, each a little further round than the one before."""
    known = {"sdd": 520.0, "sod": 400.0, "size": SIZE, "spacing": 8.1, "isocenter": VOLUME_HERE.center}
    words = known | words
    turn = words.pop("primary")
    cameras = [Camera.c_arm(**words, primary=turn + 3.1 * n) for n in range(count)]
    return torch.stack([rays_in_volume(VOLUME_HERE, camera) for camera in cameras])


ALL_VIEWS = torch.cat([rays_of(**words) for words in VIEWS.values()])


def voxels_of(dtype: torch.dtype) -> tuple[Tensor, float]:
    return quantise(VOLUME_HERE.mu) if dtype == torch.int16 else (VOLUME_HERE.mu.to(dtype), 1.0)


def cotangent(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


@functools.cache
def oracle(integrator: str) -> tuple[Tensor, Tensor]:
    """Image and moments of all views by the reference in float64."""
    return reference.project(
        VOLUME_HERE.mu, 1.0, ALL_VIEWS, METRIC, *SIZE, INTEGRATORS[integrator], STEPS, True
    )


def too_far(found: Tensor, expected: Tensor, limit: float) -> dict[str, float]:
    """The views whose error is above the limit."""
    errors = {name: relative(found[i], expected[i]) for i, name in enumerate(VIEWS)}
    return {name: error for name, error in errors.items() if not error <= limit}


@integrators
@dtypes
def test_image_and_moments(build: Build, integrator: str, dtype: torch.dtype) -> None:
    known = (METRIC, *SIZE, INTEGRATORS[integrator], STEPS, True)
    voxels, scale = voxels_of(dtype)
    image, moments = build("project", voxels, scale, ALL_VIEWS, *known)
    expected, expected_moments = oracle(integrator)
    assert float(expected.amax((1, 2)).min()) > 0.02, "each view sees the volume"
    assert image.dtype == moments.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not too_far(image, expected, IMAGE[dtype])
    # a jump of Siddon's is the difference of two voxels, which 16 bits know less well than their sum
    assert not too_far(moments, expected_moments, MOMENTS[dtype])
    alone, none = build("project", voxels, scale, ALL_VIEWS, *known[:-1], False)
    assert relative(alone, image) <= 1e-7
    assert none.shape == (len(VIEWS), 0, *SIZE)


@integrators
@pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16], ids=str)
def test_labels(build: Build, integrator: str, soft: bool, dtype: torch.dtype) -> None:
    labels = HARD_EDGES
    if integrator == "exact" and not soft:  # its two Gauss points decide; see test_labels.py
        labels = torch.full_like(labels, 2)
    known = (labels, CHANNELS, soft, ALL_VIEWS, METRIC, *SIZE, INTEGRATORS[integrator], STEPS)
    voxels, scale = voxels_of(dtype)
    found = build("project_labels", voxels, scale, *known)
    expected = reference.project_labels(VOLUME_HERE.mu, 1.0, *known)
    assert not too_far(found, expected, LABELS[dtype])


@integrators
@pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
def test_moments_of_labels(build: Build, integrator: str, soft: bool) -> None:
    if integrator == "exact" and not soft:
        pytest.skip("kernel and reference cut a ray at other places, and samples fall to other labels")
    labels = HARD_EDGES
    g = cotangent(len(VIEWS), CHANNELS, *SIZE)
    known = (labels, soft, ALL_VIEWS, METRIC, INTEGRATORS[integrator], STEPS)
    found = build("label_moments", g.float(), VOLUME_HERE.mu.float(), 1.0, *known)
    expected = reference.label_moments(g, VOLUME_HERE.mu, 1.0, *known)
    assert not too_far(found, expected, 1e-5)


@integrators
@pytest.mark.parametrize("rule", ["plain", "soft", "hard"])
@pytest.mark.parametrize("dtype", VOLUME, ids=str)
def test_adjoint(build: Build, integrator: str, rule: str, dtype: torch.dtype) -> None:
    """Its value, that it is the transpose of the same build's projection, and the same bits twice."""
    labels = None if rule == "plain" else HARD_EDGES
    if integrator == "exact" and rule == "hard":
        labels = torch.full_like(HARD_EDGES, 1)
    code, mu = INTEGRATORS[integrator], VOLUME_HERE.mu.to(dtype)
    beam = (ALL_VIEWS, METRIC)
    shape = (len(VIEWS), *SIZE) if labels is None else (len(VIEWS), CHANNELS, *SIZE)
    y = cotangent(*shape, dtype=dtype)
    known = (1.0, *SHAPE, labels, rule == "soft", *beam, code, STEPS)
    found = build("backproject", y, *known)
    expected = reference.backproject(y.double(), *known)
    assert relative(found, expected) <= VOLUME[dtype]
    if labels is None:
        ax = build("project", mu, 1.0, *beam, *SIZE, code, STEPS, False)[0]
    else:
        ax = build("project_labels", mu, 1.0, labels, CHANNELS, rule == "soft", *beam, *SIZE, code, STEPS)
    left, right = (ax.double() * y.double()).sum(), (mu.double() * found.double()).sum()
    assert float((left - right).abs() / (ax.double().norm() * y.double().norm())) <= (
        1e-6 if dtype == torch.float32 else 1e-12
    )
    if build.name != "reference":  # in plain torch threads add in no fixed order
        assert torch.equal(found, build("backproject", y, *known)), "the same bits twice"


@integrators
@pytest.mark.parametrize("count", [1, 8, pytest.param(116, marks=pytest.mark.slow)])
def test_batches(build: Build, integrator: str, count: int) -> None:
    """A view of a batch is the view alone, and the batch is right."""
    rays, voxels = rays_of(count, primary=-170.0), VOLUME_HERE.mu.float()
    known = (METRIC, *SIZE, INTEGRATORS[integrator], STEPS, True)
    image, moments = build("project", voxels, 1.0, rays, *known)
    for n in {0, count // 2, count - 1}:
        alone, alone_moments = build("project", voxels, 1.0, rays[n : n + 1], *known)
        limit = 1e-6 if build.name == "reference" else 0.0
        assert relative(image[n], alone[0]) <= limit
        assert relative(moments[n], alone_moments[0]) <= limit
        expected = reference.project(VOLUME_HERE.mu, 1.0, rays[n : n + 1], *known)
        assert relative(image[n], expected[0][0]) <= IMAGE[torch.float32]
        assert relative(moments[n], expected[1][0]) <= MOMENTS[torch.float32]


@integrators
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.usefixtures("operators")
def test_gradients_by_autograd(integrator: str, device: str) -> None:
    """To rays and voxels, through the function that users call."""
    if device == "cuda" and (why := why_no_cuda()):
        pytest.skip(why)
    g = cotangent(len(VIEWS), *SIZE)
    mu = VOLUME_HERE.mu.float().to(device).requires_grad_()
    rays = ALL_VIEWS.clone().to(device).requires_grad_()
    image, _ = project(mu, rays, METRIC, SIZE, integrator=integrator, steps=STEPS)
    (image * g.float().to(device)).sum().backward()
    code = INTEGRATORS[integrator]
    moments = oracle(integrator)[1]
    to_mu = reference.backproject(g, 1.0, *SHAPE, None, False, ALL_VIEWS, METRIC, code, STEPS)
    assert not too_far(rays.grad.cpu(), pull_back(g[:, None] * moments), 2e-5)
    assert relative(mu.grad.cpu(), to_mu) <= VOLUME[torch.float32]


# ---- only on a card ----


@pytest.fixture
def card() -> Iterator[None]:
    if why := why_no_cuda():
        pytest.skip(why)
    registry.load()
    yield
    torch.cuda.synchronize()


@pytest.mark.usefixtures("card")
def test_texture_atlas() -> None:
    """A card's gather has the order and the borders that atlas.cuh takes for granted."""
    from xreg.ops.atlas import Atlas

    voxels, scale = voxels_of(torch.int16)
    atlas = Atlas(voxels.cuda(), scale)
    image, moments = atlas.project(ALL_VIEWS.cuda(), METRIC, SIZE, moments=True)
    expected = reference.project(
        voxels.double(), scale, ALL_VIEWS, METRIC, *SIZE, INTEGRATORS["joseph"], 1, True
    )
    assert not too_far(image.cpu(), expected[0], 2e-6)
    assert not too_far(moments.cpu(), expected[1], 1e-5)
    atlas.close()
    with pytest.raises(RuntimeError, match="closed"):
        atlas.project(ALL_VIEWS.cuda(), METRIC, SIZE)


def test_a_texture_atlas_needs_a_card() -> None:
    from xreg.ops.atlas import Atlas

    with pytest.raises(RuntimeError, match="on a CUDA card, got cpu"):
        Atlas(*voxels_of(torch.int16))


@pytest.mark.usefixtures("card")
def test_work_goes_to_the_current_stream_and_a_graph_captures_it() -> None:
    voxels, rays = VOLUME_HERE.mu.float().cuda(), ALL_VIEWS.cuda()
    words = {"integrator": "joseph", "moments": True}
    expected = project(voxels, rays, METRIC, SIZE, **words)[0].cpu()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):  # anything that synchronised would fail here
        image, _ = project(voxels, rays, METRIC, SIZE, **words)
    image.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(image.cpu(), expected)


@pytest.mark.usefixtures("card")
def test_nothing_synchronises() -> None:
    voxels, rays = VOLUME_HERE.mu.float().cuda().requires_grad_(), ALL_VIEWS.cuda().requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        image, _ = project(voxels, rays, METRIC, SIZE, integrator="trilinear", steps=STEPS)
        image.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- above 2^31 bytes, and above 2^31 voxels ----


def free_bytes(device: str) -> float:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("dtype", "depth"), [(torch.int16, 1100), (torch.float32, 600), (torch.int16, 2060)], ids=str
)
@integrators
def test_large_volumes(operators: bool, device: str, dtype: torch.dtype, depth: int, integrator: str) -> None:
    """Noise at the far end of a volume of 2^31 bytes, or voxels, is seen as it is in a volume of its own."""
    if device == "cuda" and (why := why_no_cuda()):
        pytest.skip(why)
    if device == "cpu" and not operators:
        pytest.skip("the torch reference would take hours")
    rows, columns, noisy = 1024, 1030, 20
    size = torch.empty(0, dtype=dtype).element_size()
    needed = 1.2 * depth * rows * columns * size
    if needed > free_bytes(device):
        pytest.skip(f"this needs {needed / 1e9:.1f} GB of memory")
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(1, 1000, (noisy, rows, columns), generator=generator, dtype=torch.int16).to(dtype)
    volume = torch.zeros(depth, rows, columns, dtype=dtype, device=device)
    assert volume.numel() * size > 2**31
    volume[-noisy:] = noise.to(device)
    shift = torch.zeros(6, 3, dtype=torch.float64)
    shift[0, 2] = depth - noisy
    rays = torch.tensor(
        [[1023.3, -260.7, 9.1], [0, 0, 0], [0, 0, 0], [-11.0, 1500.0, -4.0], [0.8, 0, 0.1], [0.1, 0.2, 0.9]],
        dtype=torch.float64,
    )
    known = (metric_of(torch.eye(3)), *SIZE, INTEGRATORS[integrator], 3000, True)
    found = torch.ops.xreg.project(volume, 1.0, (rays + shift)[None].to(device), *known)
    expected = torch.ops.xreg.project(noise.to(device), 1.0, rays[None].to(device), *known)
    assert float(expected[0].max()) > 0
    # float32 knows a position in so long a volume to 1e-4 of a voxel; a wrong index would be off by all of it
    assert relative(found[0].cpu(), expected[0].cpu()) <= 1e-3
    if integrator != "siddon":  # whose jumps take sides at a border
        assert relative(found[1].cpu(), expected[1].cpu()) <= 1e-2
