"""What only a card runs, proven on the host: the texture atlas's addresses, and sums in whole numbers.

The same headers are compiled here with the gather written out as a card defines it.  What this cannot show is
that a card's gather is so; `test_builds.py` compares the two where there is one.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import projector_cases as cases
import pytest
import torch
from projector_cases import BEAMS, METRIC, MISSES, SHAPE, SIZE, STEPS, relative
from torch import Tensor

from xreg.ops.project import INTEGRATORS

SOURCE = Path(__file__).with_name("device_bodies.cpp")
CUDA = Path(__file__).parents[2] / "cuda"
LIMIT = 32768  # of a texture that can be gathered from, on cards from sm_60 on
CODES = {torch.int16: 0, torch.float32: 1, torch.float64: 2}
integrators = pytest.mark.parametrize("integrator", INTEGRATORS)


class CVolume(ctypes.Structure):
    _fields_ = (
        ("voxels", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("nx", ctypes.c_int32),
        ("ny", ctypes.c_int32),
        ("nz", ctypes.c_int32),
        ("scale", ctypes.c_double),
    )


class CBeam(ctypes.Structure):
    _fields_ = (
        ("rays", ctypes.c_void_p),
        ("views", ctypes.c_int64),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("metric", ctypes.c_double * 6),
        ("integrator", ctypes.c_int32),
        ("steps", ctypes.c_int32),
    )


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler to build the device's bodies with")
    made = tmp_path_factory.mktemp("bodies") / "bodies.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    done = subprocess.run(
        [compiler, *flags, f"-I{CUDA}", str(SOURCE), "-o", str(made)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


def c_volume(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0, voxels: Tensor | None = None):
    depth, rows, columns = shape
    at = None if voxels is None else voxels.data_ptr()
    return CVolume(at, CODES[dtype], columns, rows, depth, scale)


def c_beam(rays: Tensor, integrator: str) -> CBeam:
    metric = (ctypes.c_double * 6)(*METRIC.tolist())
    return CBeam(rays.data_ptr(), len(rays), *SIZE, metric, INTEGRATORS[integrator], STEPS)


# ---- the texture atlas ----


def layout(bodies: ctypes.CDLL, axis: int, size: tuple[int, int, int], *limits: int) -> dict[str, int]:
    out = (ctypes.c_int * 9)()
    bodies.layout(axis, *size, *limits, out)
    names = ("nu", "nv", "planes", "columns", "rows", "tile_u", "tile_v", "width", "height")
    return dict(zip(names, out, strict=True))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    "size",
    [(512, 512, 133), (1, 1, 1), (17, 13, 11), (700, 3, 900), (1024, 1000, 600), (30000, 1, 1)],
    ids=str,
)
def test_every_plane_has_its_tile(bodies: ctypes.CDLL, axis: int, size: tuple[int, int, int]) -> None:
    a = layout(bodies, axis, size, LIMIT, LIMIT)
    assert a["planes"] == size[axis]
    assert (a["nu"], a["nv"]) == tuple(n for i, n in enumerate(size) if i != axis)
    assert a["columns"] * a["rows"] >= a["planes"] > a["columns"] * (a["rows"] - 1)
    assert (a["width"], a["height"]) == (a["columns"] * a["tile_u"], a["rows"] * a["tile_v"])
    assert max(a["width"], a["height"]) <= LIMIT
    assert bodies.misplaced(axis, *size, LIMIT, LIMIT) == 0


def test_what_does_not_fit_says_so(bodies: ctypes.CDLL) -> None:
    assert layout(bodies, 2, (40000, 10, 10), LIMIT, LIMIT)["rows"] == 0
    assert layout(bodies, 2, (2000, 2000, 2000), LIMIT, LIMIT)["rows"] == 0
    assert layout(bodies, 2, (1021, 1021, 1024), LIMIT, LIMIT)["rows"] == 32
    assert layout(bodies, 2, (1021, 1021, 1025), LIMIT, LIMIT)["rows"] == 0


def by_atlas(
    bodies: ctypes.CDLL, voxels: Tensor, scale: float, rays: Tensor, limits=(LIMIT, LIMIT), nudge: float = 0.0
) -> tuple[Tensor, Tensor]:
    image, moments = torch.full((len(rays), *SIZE), torch.nan), torch.full((len(rays), 6, *SIZE), torch.nan)
    volume, beam = c_volume(voxels.shape, torch.int16, scale, voxels), c_beam(rays, "joseph")
    results = [ctypes.c_void_p(t.data_ptr()) for t in (image, moments)]
    bodies.atlas_joseph(ctypes.byref(volume), ctypes.byref(beam), *limits, ctypes.c_double(nudge), *results)
    return image, moments


@pytest.mark.parametrize("limits", [(LIMIT, LIMIT), (40, 300), (20, 400), (90, 60)], ids=str)
@pytest.mark.parametrize("nudge", [0.0, 0.004, -0.004, 0.4, -0.4])
def test_joseph_over_an_atlas(mu: Tensor, bodies: ctypes.CDLL, limits: tuple[int, int], nudge: float) -> None:
    """The image and moments of the kernels, with many tilings, and wherever a card rounds a coordinate to."""
    voxels, scale = cases.quantise(mu - 0.4)
    rays = cases.stack(*BEAMS.values(), *MISSES.values())
    image, moments = by_atlas(bodies, voxels, scale, rays, limits, nudge)
    expected, expected_moments = cases.run_op(voxels.double() * scale, rays, "joseph")
    for view, name in enumerate([*BEAMS, *MISSES]):
        assert relative(image[view], expected[view]) <= 2e-6, name
        assert relative(moments[view], expected_moments[view]) <= 1e-5, name


def test_a_wrong_texel_would_show(mu: Tensor, bodies: ctypes.CDLL) -> None:
    voxels, scale = cases.quantise(mu)
    rays = cases.stack(BEAMS["oblique"])
    image, _ = by_atlas(bodies, voxels, scale, rays, nudge=0.6)
    assert relative(image, cases.run_op(voxels.double() * scale, rays, "joseph")[0]) > 0.01


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 6), (6, 1, 5), (5, 6, 1), (2, 2, 2)], ids=str)
def test_thin_volumes_over_an_atlas(bodies: ctypes.CDLL, shape: tuple[int, int, int]) -> None:
    voxels, scale = cases.quantise(cases.random_volume(7, shape))
    rays = cases.stack(*BEAMS.values())
    rays[:, 0] += torch.tensor([(n - 1) / 2 for n in reversed(shape)]) - torch.from_numpy(cases.MIDDLE)
    image, moments = by_atlas(bodies, voxels, scale, rays)
    expected, expected_moments = cases.run_op(voxels.double() * scale, rays, "joseph")
    assert relative(image, expected) <= 2e-6
    assert relative(moments, expected_moments) <= 2e-5


# ---- the adjoint in whole numbers ----


def adjoint(
    bodies: ctypes.CDLL, g: Tensor, rays: Tensor, integrator: str, *, whole: bool, backwards: bool, scale=1.0
) -> Tensor:
    out = torch.zeros(SHAPE, dtype=g.dtype)
    volume, beam = c_volume(SHAPE, g.dtype, scale), c_beam(rays, integrator)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (g, out)]
    bodies.adjoint(ctypes.byref(volume), ctypes.byref(beam), int(backwards), int(whole), *pointers)
    return out


def cotangent(dtype: torch.dtype, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return size * torch.randn(len(BEAMS), *SIZE, generator=generator, dtype=torch.float64).to(dtype)


@integrators
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-12, 1e12])
def test_whole_numbers_have_one_sum(
    bodies: ctypes.CDLL, integrator: str, dtype: torch.dtype, limit: float, size: float
) -> None:
    """The same bits in either order, and the value of the kernels; plain sums have neither order's bits."""
    rays, g = cases.stack(*BEAMS.values()), cotangent(dtype, size)
    ways = {
        (whole, backwards): adjoint(bodies, g, rays, integrator, whole=whole, backwards=backwards)
        for whole in (True, False)
        for backwards in (True, False)
    }
    expected = torch.ops.xreg.backproject(
        g.double(), 1.0, *SHAPE, None, False, rays, METRIC, INTEGRATORS[integrator], STEPS
    )
    assert torch.equal(ways[True, True], ways[True, False])
    assert relative(ways[True, True], expected) <= limit
    assert not torch.equal(ways[False, True], ways[False, False]), "this scene shows the order of sums"


def test_nothing_and_what_is_not_finite(bodies: ctypes.CDLL) -> None:
    rays, g = cases.stack(*BEAMS.values()), cotangent(torch.float32)
    words = {"whole": True, "backwards": False}
    assert not adjoint(bodies, torch.zeros_like(g), rays, "joseph", **words).any()
    for bad in (torch.nan, torch.inf):
        g[3, 2, 1] = bad
        assert bool(adjoint(bodies, g, rays, "joseph", **words).isnan().all())


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extreme_cotangents_stay_finite(bodies: ctypes.CDLL, size: float) -> None:
    rays, g = cases.stack(*BEAMS.values()), cotangent(torch.float32, size)
    found = adjoint(bodies, g, rays, "trilinear", whole=True, backwards=False)
    assert bool(found.isfinite().all())
    expected = adjoint(bodies, g, rays, "trilinear", whole=False, backwards=False)
    assert relative(found, expected) <= (1e-5 if size > 1 else 1.0)
