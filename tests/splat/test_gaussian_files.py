"""Gaussians on disk: round trips, an independent reading of the .ply, damage, other writers' habits."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from xreg.errors import FileError
from xreg.splat import Gaussians

USUAL = [
    "x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity",
    "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3",
]  # fmt: skip


@pytest.fixture
def gaussians() -> Gaussians:
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    density = 0.02 + 0.01 * draw(11)
    density[4] = -0.01
    return Gaussians(50 * draw(11, 3), draw(11, 3), 3 * draw(11, 4), density, 65.0, {"from": "a test"})


def same(a: Gaussians, b: Gaussians) -> bool:
    return all(torch.equal(x, y) for (_, x), (_, y) in zip(a.items(), b.items(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_safetensors_round_trip(tmp_path: Path, gaussians: Gaussians, dtype: torch.dtype) -> None:
    written, path = gaussians.to(dtype=dtype), tmp_path / "body.safetensors"
    written.save(path)
    found = Gaussians.load(path)
    assert same(found, written)
    assert found.energy_kev == 65.0
    assert found.provenance == {"from": "a test"}
    assert set(safetensors.torch.load_file(path)) == {"mean", "log_scale", "rotation", "density"}
    assert [p.name for p in tmp_path.iterdir()] == ["body.safetensors"]


def parse(path: Path) -> tuple[list[str], list[tuple[float, ...]]]:
    """A .ply read by the letter of its header, one number at a time."""
    data = path.read_bytes()
    head, body = data.split(b"end_header\n", 1)
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    (count,) = [int(line.split()[2]) for line in lines if line.startswith("element vertex")]
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    row = struct.Struct("<" + "f" * len(names))
    assert len(body) == count * row.size
    return names, [row.unpack_from(body, n * row.size) for n in range(count)]


def test_the_ply_as_a_viewer_reads_it(tmp_path: Path, gaussians: Gaussians) -> None:
    path = tmp_path / "body.ply"
    gaussians.save(path)
    names, rows = parse(path)
    assert names == [*USUAL, "density"]
    for n, numbers in enumerate(rows):
        row = dict(zip(names, numbers, strict=True))
        assert [row["x"], row["y"], row["z"]] == gaussians.mean[n].tolist()
        assert [row[f"scale_{i}"] for i in range(3)] == gaussians.log_scale[n].tolist()
        assert row["density"] == float(gaussians.density[n])
        q = gaussians.rotation[n] / gaussians.rotation[n].norm()
        wxyz = [row[f"rot_{i}"] for i in range(4)]
        assert np.allclose(wxyz, q[[3, 0, 1, 2]], atol=1e-6)
        assert math.isclose(math.hypot(*wxyz), 1.0, abs_tol=1e-6)
        alpha = 1 / (1 + math.exp(-row["opacity"]))
        through = (
            float(gaussians.density[n])
            * math.sqrt(2 * math.pi)
            * math.exp(float(gaussians.log_scale[n].mean()))
        )
        assert math.isclose(alpha, max(1 - math.exp(-through), 1e-4), abs_tol=1e-4)
        assert 0.0 <= 0.5 + 0.28209479 * row["f_dc_0"] <= 1.0 + 1e-6


def test_ply_round_trip(tmp_path: Path, gaussians: Gaussians) -> None:
    gaussians.to_ply(tmp_path / "body.ply")
    found = Gaussians.from_ply(tmp_path / "body.ply")
    for name, value in found.items():
        expected = getattr(gaussians, name)
        if name == "rotation":
            expected = expected / expected.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    found.to_ply(tmp_path / "again.ply")
    assert same(Gaussians.load(tmp_path / "again.ply"), found)


def write_other(path: Path, kind: str, table: dict[str, list[float]], extra: str = "") -> None:
    """A .ply as other programs write it: properties in another order, of other types."""
    count, order = len(table["x"]), sorted(table)
    types = {name: "double" if name in ("x", "scale_1") else "float" for name in order}
    head = ["ply", f"format {kind} 1.0", "comment by hand", "obj_info no", f"element vertex {count}"]
    head += [f"property {types[name]} {name}" for name in order] + ([extra] if extra else [])
    rows = list(zip(*(table[name] for name in order), strict=True))
    if kind == "ascii":
        body = "".join(" ".join(repr(float(x)) for x in row) + "\n" for row in rows).encode()
    else:
        sign = "<" if "little" in kind else ">"
        form = sign + "".join("d" if types[name] == "double" else "f" for name in order)
        body = b"".join(struct.pack(form, *row) for row in rows)
    path.write_bytes(("\n".join([*head, "end_header"]) + "\n").encode() + body)


TABLE = {
    **{name: [0.0, 0.5] for name in USUAL}, "x": [1.5, -2.25], "y": [3.0, 4.0], "z": [5.0, 6.0],
    "rot_0": [1.0, 2.0], "opacity": [0.25, -1.0], "f_rest_0": [9.0, 9.0],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_other_writers(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other.ply"
    write_other(path, kind, TABLE)
    found = Gaussians.from_ply(path)
    assert found.mean.tolist() == [[1.5, 3.0, 5.0], [-2.25, 4.0, 6.0]]
    assert found.rotation[1].tolist() == [0.5, 0.5, 0.5, 2.0]
    alpha = 1 / (1 + math.exp(-0.25))
    assert math.isclose(float(found.density[0]), -math.log(1 - alpha) / math.sqrt(2 * math.pi), rel_tol=1e-5)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.ply"
    without = {name: column for name, column in TABLE.items() if name not in ("rot_3", "opacity")}
    write_other(path, "ascii", without)
    with pytest.raises(FileError, match=r"rot_3, density \(or opacity\); it has"):
        Gaussians.load(path)
    write_other(path, "ascii", TABLE, "property list uchar int faces")
    with pytest.raises(FileError, match="property list uchar int faces"):
        Gaussians.load(path)
    write_other(path, "ascii", {**TABLE, "x": [math.nan, 1.0]})
    with pytest.raises(FileError, match=r"other\.ply: mean must be finite"):
        Gaussians.load(path)


@pytest.mark.parametrize("suffix", [".ply", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, 0.999])
def test_cut_off_files(tmp_path: Path, gaussians: Gaussians, suffix: str, keep: float) -> None:
    path = tmp_path / f"body{suffix}"
    gaussians.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(FileError, match=path.name):
        Gaussians.load(path)


def test_other_things(tmp_path: Path, gaussians: Gaussians) -> None:
    with pytest.raises(FileError, match=r"\.safetensors or \.ply"):
        gaussians.save(tmp_path / "body.npz")
    with pytest.raises(FileError, match="no such file"):
        Gaussians.load(tmp_path / "none.ply")
    other = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"layer": torch.zeros(3)}, other)
    with pytest.raises(FileError, match=r"schema None with layer"):
        Gaussians.load(other)
    text = tmp_path / "mesh.ply"
    text.write_text("ply\nformat ascii 1.0\nelement face 1\nend_header\n")
    with pytest.raises(FileError, match="'face'"):
        Gaussians.load(text)


def test_none_at_all(tmp_path: Path) -> None:
    none = Gaussians(*(torch.zeros(0, *n) for n in ((3,), (3,), (4,), ())))
    for suffix in (".ply", ".safetensors"):
        none.save(tmp_path / f"none{suffix}")
        assert len(Gaussians.load(tmp_path / f"none{suffix}")) == 0
