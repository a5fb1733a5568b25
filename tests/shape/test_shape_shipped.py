"""What Swin-X2S published, read and scored."""

import json
import pathlib
import sys

import numpy as np
import pytest
import torch

from xreg.errors import FileError, ImageError, ShapeError
from xreg.io import VoxelGrid, read_nifti, write_nifti
from xreg.shape import load_shipped, shipped_patients, sides
from xreg.shape.measures.field import Bones
from xreg.shape.measures.vertebra import thickest
from xreg.shape.shipped import grid_camera

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
AFFINE = torch.tensor([[-2.0, 0, 0, 50], [0, -2, 0, 40], [0, 0, 2, -9], [0, 0, 0, 1]], dtype=torch.float64)


@pytest.fixture
def patients(shared_data) -> pathlib.Path:
    folder = shared_data / "swinx2s"
    if not folder.is_dir():
        pytest.skip("the patients of Swin-X2S are not among the shared data")
    return folder


@pytest.fixture
def made(tmp_path) -> pathlib.Path:
    """A patient s0561 of our own making: a bright voxel, seen in both films."""
    folder = tmp_path / "s0561"
    folder.mkdir()
    body = np.zeros((6, 5, 5), dtype=np.uint8)  # k, j, i
    body[4, 1, 3] = 255
    for name, axis in (("cor", 1), ("sag", 2)):
        film = np.repeat(body.max(axis, keepdims=True), 5, axis)
        write_nifti(folder / f"film_{name}.nii.gz", film, AFFINE)
    write_nifti(folder / "label_spine.nii.gz", (body // 255 * 20).astype(np.uint8), AFFINE)
    write_nifti(folder / "peer_spine_net_small.nii.gz", (body // 255 * 21).astype(np.uint8), AFFINE)
    return folder


def test_films_cameras_and_labels_agree(made):
    case = load_shipped(made)
    assert case.grid.spacing == (3.0, 3.0, 3.0), "the stale header, put right"
    point = (
        case.grid.affine[:3, :3] @ torch.tensor([3.0, 1, 4], dtype=torch.float64) + case.grid.affine[:3, 3]
    )
    for film, camera in zip(case.films, case.cameras, strict=True):
        u, v = camera.project(point[None])[0].tolist()
        assert film[round(v), round(u)] == 1.0 == film.sum()
        assert (u, v) == pytest.approx((round(u), round(v)))
    assert int(case.labels()[4, 1, 3]) == 20
    assert int(case.peer("spine", "net_small").max()) == 21
    assert case.ct_file is None
    assert "wrap" in case.remark


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_the_camera_of_a_grid_has_its_voxels_as_pixels(signs):
    affine = torch.diag(
        torch.tensor([2.0 * signs[0], 3.0 * signs[1], 1.5 * signs[2], 1.0], dtype=torch.float64)
    )
    affine[:3, 3] = torch.tensor([5.0, -7.0, 11.0])
    grid = VoxelGrid((7, 5, 6), affine)
    index = torch.tensor([[0.0, 0, 0], [5, 4, 6], [2, 1, 3]], dtype=torch.float64)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    for axis in (0, 1):
        seen = grid_camera(grid, axis).project(world)
        expected = torch.stack([index[:, 1 - axis], 6 - index[:, 2]], dim=1)
        assert torch.allclose(seen, expected)


def test_bad_folders_are_refused(made, tmp_path):
    with pytest.raises(FileError, match="no such folder"):
        load_shipped(tmp_path / "s0562")
    with pytest.raises(FileError, match="holds no patient"):
        shipped_patients(made)
    with pytest.raises(ShapeError, match="s0561: scheme and network must be one of"):
        load_shipped(made).peer("spine", "other")
    with pytest.raises(ShapeError, match="s0561: scheme must be one of"):
        load_shipped(made).labels("all")
    moved = AFFINE.clone()
    moved[0, 3] += 20
    write_nifti(made / "label_pelvis.nii.gz", np.ones((6, 5, 5), dtype=np.uint8), moved)
    with pytest.raises(ShapeError, match=r"label_pelvis.*not on the grid"):
        load_shipped(made).labels("pelvis")
    write_nifti(made / "label_skull.nii.gz", np.ones((6, 5, 5), dtype=np.uint8), AFFINE)
    with pytest.raises(FileError, match="unknown schemes: skull"):
        load_shipped(made)
    write_nifti(made / "film_sag.nii.gz", np.arange(150, dtype=np.uint8).reshape(6, 5, 5), AFFINE)
    with pytest.raises(ImageError, match="one film repeated"):
        load_shipped(made)


def test_sides_and_films_of_the_real_patients(patients):
    spacing = {"s0561": 3.891, "verse083": 1.813, "0532": 2.380}
    for folder in shipped_patients(patients):
        case = load_shipped(folder)
        for name in case.label_files:
            assert sides(case.labels(name), case.grid.affine, name) == (0 if name == "spine" else 1)
        if folder.name in spacing:
            assert case.grid.spacing == pytest.approx((spacing[folder.name],) * 3, abs=1e-3)
        if case.ct_file is None or case.patient == "verse083":
            continue
        ct = torch.from_numpy(read_nifti(case.ct_file).values).float()
        for film, dim in zip(case.films, (1, 2), strict=True):  # a film is a line integral of the CT
            image = ct.sum(dim).flip(0)
            right, *wrong = (torch.corrcoef(torch.stack([i.flatten(), film.flatten()]))[0, 1]
                             for i in (image, image.flip(0), image.flip(1)))  # fmt: skip
            assert right > max(0.5, *wrong)


def test_the_patients_face_forward(patients):
    for name in ("0532", "s0561", "verse083"):
        case = load_shipped(patients / name)
        bones = Bones(case.labels(), case.grid, next(iter(case.label_files)))
        for level in ("L2", "L3"):
            body = thickest(bones[level])[0]
            assert body[1] - bones[level].points.mean(0)[1] > 5, "the arch lies behind the body"


def test_the_peers_figures_come_out_again(patients, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    sys.modules.pop("shape_peers", None)
    import shape_peers

    rows = shape_peers.measure(patients, only=shape_peers.BEFORE)
    judged = {(r["patient"], r["network"]): r["agrees"] for r in rows if "before" in r}
    assert len(judged) == len(shape_peers.BEFORE)
    assert all(judged.values()), judged
    kept = json.loads((BENCHMARKS / "results" / "shape_peers.json").read_text())["rows"]
    kept = {(r["patient"], r["scheme"], r["network"]): r["dice"] for r in kept}
    for row in rows:
        assert kept[row["patient"], row["scheme"], row["network"]] == pytest.approx(row["dice"], abs=1e-6)
    wrong = dict(rows[0], dice=rows[0]["dice"] + 0.002)
    assert shape_peers.agree(wrong) is False
