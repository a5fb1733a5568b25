"""Where the planes of a volume lie in the textures of a card."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("texture_layout.cpp")
CUDA = Path(__file__).parents[2] / "cuda"
LIMIT = 32768  # of a texture that can be gathered from, on cards from sm_60 on


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler to ask the layout with")
    made = tmp_path_factory.mktemp("layout") / "layout.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    done = subprocess.run(
        [compiler, *flags, f"-I{CUDA}", str(SOURCE), "-o", str(made)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


def layout(atlas: ctypes.CDLL, axis: int, size: tuple[int, int, int], *limits: int) -> dict[str, int]:
    out = (ctypes.c_int * 9)()
    atlas.layout(axis, *size, *limits, out)
    names = ("nu", "nv", "planes", "columns", "rows", "tile_u", "tile_v", "width", "height")
    return dict(zip(names, out, strict=True))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    "size",
    [(512, 512, 133), (1, 1, 1), (17, 13, 11), (700, 3, 900), (1024, 1000, 600), (30000, 1, 1)],
    ids=str,
)
def test_every_plane_has_its_tile(atlas: ctypes.CDLL, axis: int, size: tuple[int, int, int]) -> None:
    a = layout(atlas, axis, size, LIMIT, LIMIT)
    assert a["planes"] == size[axis]
    assert (a["nu"], a["nv"]) == tuple(n for i, n in enumerate(size) if i != axis)
    assert a["columns"] * a["rows"] >= a["planes"] > a["columns"] * (a["rows"] - 1)
    assert (a["width"], a["height"]) == (a["columns"] * a["tile_u"], a["rows"] * a["tile_v"])
    assert max(a["width"], a["height"]) <= LIMIT
    assert atlas.misplaced(axis, *size, LIMIT, LIMIT) == 0


def test_what_does_not_fit_says_so(atlas: ctypes.CDLL) -> None:
    assert layout(atlas, 2, (40000, 10, 10), LIMIT, LIMIT)["rows"] == 0
    assert layout(atlas, 2, (2000, 2000, 2000), LIMIT, LIMIT)["rows"] == 0
    assert layout(atlas, 2, (1021, 1021, 1024), LIMIT, LIMIT)["rows"] == 32
    assert layout(atlas, 2, (1021, 1021, 1025), LIMIT, LIMIT)["rows"] == 0
