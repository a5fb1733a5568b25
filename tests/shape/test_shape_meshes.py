"""Surfaces of bones: closed, outward, of the right size and place, and the same after a file."""

import numpy as np
import pytest
import shape_case
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.errors import BackendError, FileError, ShapeError
from xreg.io import VoxelGrid
from xreg.shape import SCHEMES, bone_meshes, load_shipped, save_mesh, surface_mesh

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")

SKEWED = torch.tensor(
    [[-1.5, 0.2, 0.0, 60.0], [0.0, 1.2, 0.3, -20.0], [0.1, 0.0, 2.0, 5.0], [0, 0, 0, 1]], dtype=torch.float64
)  # left-handed and oblique


def ball(grid: VoxelGrid, center: np.ndarray, radius: float) -> torch.Tensor:
    """Soft ball: 1 inside, linear over a voxel about the surface."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    affine = grid.affine.numpy()
    points = np.stack([i, j, k], -1) @ affine[:3, :3].T + affine[:3, 3]
    away = np.linalg.norm(points - center, axis=-1)
    return torch.from_numpy(np.clip(0.5 + (radius - away) / 4, 0, 1).astype(np.float32))


@pytest.mark.parametrize("affine", [torch.diag(torch.tensor([1.0, 1, 1, 1], dtype=torch.float64)), SKEWED])
def test_a_ball(affine):
    grid = VoxelGrid((24, 34, 30), affine)
    center = grid.center.numpy()
    mesh = surface_mesh(ball(grid, center, 9.0), grid)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.02)
    assert mesh.center_mass == pytest.approx(center, abs=0.05)
    assert np.linalg.norm(mesh.vertices - center, axis=1) == pytest.approx(9.0, abs=0.25)
    outward = (mesh.face_normals * (mesh.triangles_center - center)).sum(1)
    assert (outward > 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.15, 0.6))
def test_any_heap_of_voxels_has_a_closed_surface(seed, share):
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy((rng.random((5, 6, 7)) < share).astype(np.int16)) * 20
    if not bool(labels.any()):
        return
    grid = VoxelGrid((5, 6, 7), SKEWED)
    mesh = bone_meshes(labels, grid, "spine")["L1"]
    assert mesh.is_watertight
    assert 0 < mesh.volume < int((labels > 0).sum()) * grid.voxel_mm3


def test_a_bone_at_the_edge_is_closed_and_smoothing_keeps_its_volume():
    labels = torch.zeros(12, 14, 16, dtype=torch.int16)
    labels[:6, 4:12, :9] = 24
    labels[9:, 2:5, 10:13] = 50
    grid = VoxelGrid(tuple(labels.shape), torch.diag(torch.tensor([2.0, 2, 3, 1], dtype=torch.float64)))
    for smooth in (0.0, 1.5, 3.0):
        meshes = bone_meshes(labels, grid, smooth_mm=smooth)
        assert set(meshes) == {"L5", "sacrum"}
        for name, mesh in meshes.items():
            voxels = int((labels == SCHEMES["all"].index(name)).sum()) * grid.voxel_mm3
            assert mesh.is_watertight
            assert mesh.volume == pytest.approx(voxels, rel=0.02 if smooth else 0.15)
    place = bone_meshes(labels, grid, names=["sacrum"])["sacrum"].center_mass
    assert place == pytest.approx([22, 6, 30], abs=0.05)


@pytest.mark.parametrize("suffix", [".stl", ".ply"])
def test_files_come_back(tmp_path, suffix):
    grid = VoxelGrid((20, 20, 20), SKEWED)
    mesh = surface_mesh(ball(grid, grid.center.numpy(), 8.0), grid)
    save_mesh(tmp_path / f"ball{suffix}", mesh)
    back = trimesh.load_mesh(tmp_path / f"ball{suffix}")
    assert back.is_watertight
    assert back.volume == pytest.approx(mesh.volume, rel=1e-5)
    assert back.bounds == pytest.approx(mesh.bounds, abs=1e-4)
    assert not list(tmp_path.glob("*tmp*"))
    with pytest.raises(FileError, match=r"\.stl or \.ply"):
        save_mesh(tmp_path / "ball.obj", mesh)


def test_bad_input_is_refused(monkeypatch):
    grid = VoxelGrid((4, 5, 6), torch.eye(4, dtype=torch.float64))
    empty = torch.zeros(grid.shape, dtype=torch.int16)
    with pytest.raises(ShapeError, match="no voxel of L1"):
        bone_meshes(empty, grid, names=["L1"])
    with pytest.raises(ShapeError, match="does not know the labels 99"):
        bone_meshes(empty + 99, grid)
    with pytest.raises(ShapeError, match="no voxel of the field exceeds the level"):
        surface_mesh(empty.float(), grid)
    with pytest.raises(ShapeError, match=r"shape \[4, 5, 6\]"):
        surface_mesh(torch.ones(2, 2, 2), grid)
    assert bone_meshes(empty, grid) == {}
    shape_case.missing(monkeypatch, "skimage")
    with pytest.raises(BackendError, match=r"scikit-image: pip install 'xreg\[shape\]'"):
        surface_mesh(torch.ones(grid.shape), grid)


def test_bones_of_a_patient_are_closed(shared_data):
    folder = shared_data / "swinx2s" / "s0561"
    if not folder.is_dir():
        pytest.skip("the patients of Swin-X2S are not among the shared data")
    case = load_shipped(folder)
    names = ["T8", "L3", "rib_left_4", "rib_right_12", "sacrum", "hip_left", "femur_right"]
    labels = case.labels()
    meshes = bone_meshes(labels, case.grid, names=names, smooth_mm=3.0)
    for name, mesh in meshes.items():
        assert mesh.is_watertight
        voxels = int((labels == SCHEMES["all"].index(name)).sum()) * case.grid.voxel_mm3
        assert mesh.volume == pytest.approx(voxels, rel=0.02), name
    assert meshes["hip_left"].center_mass[0] < meshes["femur_right"].center_mass[0]
    assert meshes["sacrum"].center_mass[1] < meshes["L3"].center_mass[1], "the sacrum lies behind"
