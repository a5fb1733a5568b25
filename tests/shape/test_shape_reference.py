"""Bones beside reference surfaces: known motions found again, distances in closed form, files read."""

import json
import math

import numpy as np
import pytest
import shape_case
import torch
import trimesh
from click.testing import CliRunner
from shape_oracle import Oracle

from xreg.cli import main
from xreg.errors import BackendError, FileError
from xreg.geometry import Rig, se3
from xreg.io import save_image, save_rig, write_nifti
from xreg.shape import align_surface, bone_meshes, compare_surfaces, read_references, save_mesh
from xreg.shape.predict import ShapeModel
from xreg.shape.reference import surface_gap


def block() -> trimesh.Trimesh:
    return trimesh.creation.box((30, 20, 12)).subdivide_loop(1)


def test_it_says_what_it_needs(monkeypatch, tmp_path) -> None:
    mesh = trimesh.creation.icosphere(radius=10)
    shape_case.missing(monkeypatch, "open3d")
    with pytest.raises(BackendError, match="open3d: pip install open3d"):
        align_surface(mesh, mesh)
    with pytest.raises(BackendError, match="open3d: pip install open3d"):
        read_references(tmp_path, shape_case.SPINE)


def test_a_motion_is_found_again() -> None:
    pytest.importorskip("open3d")
    moved = block()
    moved.apply_translation([1.0, -0.5, 0.7])
    motion, gap = align_surface(moved, block(), reach_mm=6)
    assert motion[:3, 3].tolist() == pytest.approx([-1.0, 0.5, -0.7], abs=0.15)
    assert gap < 1.0


def test_the_gap_of_two_balls_is_that_of_their_radii() -> None:
    pytest.importorskip("open3d")
    small, large = (trimesh.creation.icosphere(subdivisions=5, radius=r) for r in (10.0, 12.5))
    assert surface_gap(small, large) == pytest.approx(2.5, abs=0.02)
    assert surface_gap(small, small) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("far", [0.0, 60.0])
def test_a_bone_is_told_from_its_place(far) -> None:
    """Turned by 6° about its middle and shifted; from afar it is brought near first."""
    pytest.importorskip("open3d")
    turn = se3.exp(torch.tensor([0, 0, math.radians(6), 0, 0, 0], dtype=torch.float64))
    motion = se3.from_translation(torch.tensor([2.0 + far, 1.0, -1.0], dtype=torch.float64)) @ turn
    bone = block().apply_transform(motion.numpy())
    (fit,) = compare_surfaces({"L1": bone, "L2": block()}, {"L1": block(), "T4": block()})
    assert fit.name == "L1"
    assert fit.turn_degrees == pytest.approx(6.0, abs=0.3)
    assert fit.shift_mm == pytest.approx(math.hypot(2 + far, 1, 1), abs=0.1)
    torch.testing.assert_close(fit.motion @ motion, torch.eye(4, dtype=torch.float64), atol=0.1, rtol=0)
    assert fit.moved_gap_mm < 0.1 < 1.0 < fit.gap_mm
    assert "L1: " in fit.text
    assert json.loads(json.dumps(fit.to_json()))["name"] == "L1"


def test_what_shares_no_bone_is_not_compared() -> None:
    assert compare_surfaces({"L1": block()}, {"T4": block()}) == ()


def test_folders_of_references(tmp_path) -> None:
    pytest.importorskip("open3d")
    with pytest.raises(FileError, match="holds no surface of a bone"):
        read_references(tmp_path, shape_case.SPINE)
    save_mesh(tmp_path / "L1.stl", block())
    save_mesh(tmp_path / "L3.ply", block())
    save_mesh(tmp_path / "skull.ply", block())
    found = read_references(tmp_path, shape_case.SPINE)
    assert list(found) == ["L1", "L3"]
    assert found["L3"].volume == pytest.approx(block().volume, rel=1e-4)
    for text in ("no surface", ""):
        (tmp_path / "L2.ply").write_text(text)
        with pytest.raises(FileError, match=r"L2\.ply"):
            read_references(tmp_path, shape_case.SPINE)


def test_the_verb_compares(tmp_path, monkeypatch) -> None:
    pytest.importorskip("open3d")
    case = shape_case.sample("a")
    oracle = Oracle(case.labels, case.grid, "spine")
    monkeypatch.setattr(ShapeModel, "load", classmethod(lambda cls, folder, **_: oracle))
    for name, film in zip(("ap", "lat"), case.films, strict=True):
        save_image(tmp_path / f"{name}.npy", film)
    save_rig(tmp_path / "rig.json", Rig(case.cameras))
    write_nifti(tmp_path / "like.nii.gz", np.zeros(case.grid.shape, dtype=np.uint8), case.grid.affine)
    (tmp_path / "ct").mkdir()
    for name, mesh in bone_meshes(case.labels, case.grid, "spine", names=["L1", "L2"], smooth_mm=2).items():
        save_mesh(tmp_path / "ct" / f"{name}.stl", mesh.apply_translation([3.0, 0.0, 0.0]))
    words = ["reconstruct", *(str(tmp_path / f"{n}.npy") for n in ("ap", "lat")), "--model", "net"]
    words += ["--cameras", str(tmp_path / "rig.json"), "-o", str(tmp_path / "out"), "--draws", "2"]
    words += ["--intensity", "line_integral", "--like", str(tmp_path / "like.nii.gz")]
    said = CliRunner().invoke(main, [*words, "--reference", str(tmp_path / "ct")])
    assert said.exit_code == 0, said.output
    assert "L2: " in said.stdout
    found = json.loads((tmp_path / "out" / "measures.json").read_text())["references"]
    assert [one["name"] for one in found] == ["L1", "L2"]
    assert found[0]["shift_mm"] == pytest.approx(3.0, abs=0.3)
    assert "Against the references" in (tmp_path / "out" / "report.html").read_text()
    empty = CliRunner().invoke(main, [*words, "--reference", str(tmp_path)])
    assert "holds no surface of a bone" in empty.output
