"""Projection sets: what they hold, and their folder."""

import json

import pytest
import torch
from projection_sets import GRID, images, rig, same_cameras, whole

from xreg.errors import FileError, GeometryError, ImageError, InputWarning
from xreg.io import ProjectionSet, VoxelGrid, load_projections, save_projections


def test_a_folder_gives_it_back(tmp_path):
    made = whole()
    save_projections(tmp_path / "set", made)
    found = load_projections(tmp_path / "set")
    assert torch.equal(found.images, made.images)
    assert torch.equal(found.truth.mu, made.truth.mu)
    assert torch.equal(found.grid.affine, made.grid.affine)
    assert torch.equal(found.held_out.images, made.held_out.images)
    assert (found.scale, found.provenance, found.truth.energy_kev) == (0.01, {"made": "here"}, 60.0)
    same_cameras(found.cameras, made.cameras)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_nothing_is_overwritten_unasked(tmp_path):
    save_projections(tmp_path / "set", whole())
    with pytest.raises(FileError, match="overwrite"):
        save_projections(tmp_path / "set", whole())
    save_projections(tmp_path / "set", ProjectionSet(images(), rig()), overwrite=True)
    assert load_projections(tmp_path / "set").truth is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileError, match="not such a set"):
        save_projections(tmp_path / "mine", whole(), overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "xreg.io.projections.write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(FileError, match="full"):
        save_projections(tmp_path / "set", whole())
    assert not list(tmp_path.iterdir())


def test_damage_is_found(tmp_path):
    folder = tmp_path / "set"
    save_projections(folder, whole())
    data = (folder / "projections.npy").read_bytes()
    (folder / "projections.npy").write_bytes(data[:-9])
    with pytest.raises(FileError, match="truncated"):
        load_projections(folder)
    (folder / "projections.npy").write_bytes(data[:-4] + b"\1\2\3\4")
    with pytest.raises(FileError, match="sha256"):
        load_projections(folder)
    (folder / "projections.json").unlink()
    with pytest.raises(FileError, match="never finished"):
        load_projections(folder)
    with pytest.raises(FileError, match="no such"):
        load_projections(tmp_path / "other")


def test_another_truth_is_found(tmp_path):
    folder = tmp_path / "set"
    made = whole()
    save_projections(folder, made)
    truth = (folder / "truth.nii.gz").read_bytes()
    other = ProjectionSet(images(), rig(), truth=GRID.volume(made.truth.mu * 2))
    save_projections(tmp_path / "other", other)
    (folder / "truth.nii.gz").write_bytes((tmp_path / "other" / "truth.nii.gz").read_bytes())
    with pytest.raises(FileError, match=r"truth\.nii\.gz: differs .*sha256"):
        load_projections(folder)
    (folder / "truth.nii.gz").unlink()
    with pytest.raises(FileError, match=r"truth\.nii\.gz: no such file"):
        load_projections(folder)
    (folder / "truth.nii.gz").write_bytes(truth)
    assert torch.equal(load_projections(folder).truth.mu, made.truth.mu)


def test_a_truth_without_a_digest_is_read(tmp_path):
    """Sets had none of it once."""
    made = whole()
    save_projections(tmp_path / "set", made)
    file = tmp_path / "set" / "projections.json"
    data = json.loads(file.read_text())
    assert len(data["truth"].pop("sha256")) == 64
    file.write_text(json.dumps(data))
    assert torch.equal(load_projections(tmp_path / "set").truth.mu, made.truth.mu)
    file.write_text(json.dumps(data | {"truth": "truth.nii.gz"}))
    with pytest.raises(FileError, match="an entry is missing or wrong"):
        load_projections(tmp_path / "set")


def test_what_is_no_projection_is_refused():
    bad = images()
    bad[1, 2, 3] = torch.nan
    with pytest.raises(ImageError, match=r"views \[1\]"):
        ProjectionSet(bad, rig())
    with pytest.raises(ImageError, match="intensities"):
        ProjectionSet(images() * 2e4, rig())
    with pytest.raises(GeometryError, match="as many cameras"):
        ProjectionSet(images(4), rig(3))
    with pytest.raises(GeometryError, match="sizes"):
        ProjectionSet(images(), rig(size=(9, 10)))
    through = torch.exp(-images()).clone()
    through[:, :, 3:7] *= 0.1
    through[:, :, :2] = through[:, :, -2:] = 1.0
    with pytest.warns(InputWarning, match="intensities"):
        ProjectionSet(through, rig())


def test_parts_of_a_set():
    made = whole()
    assert torch.equal(made.subset([2, 0]).images, made.images[[2, 0]])
    same_cameras(made.subset([2, 0]).cameras, [made.cameras[2], made.cameras[0]])
    halved = made.binned(2)
    assert float(halved.images[1, 0, 0]) == pytest.approx(float(made.images[1, :2, :2].mean()), rel=1e-6)
    assert halved.cameras[0].size == (4, 5)
    assert halved.held_out.images.shape == (2, 4, 5)
    with pytest.raises(GeometryError, match="cannot be binned 33×33"):
        made.binned(33)


def test_a_grid():
    assert GRID.size == (7, 6, 5)
    assert GRID.spacing == pytest.approx((10.0, 10.0, 10.0))
    torch.testing.assert_close(GRID.center, torch.tensor([1.0, 2.0, 3.0]).double())
    assert GRID.box_corners.amin(0).tolist() == pytest.approx([-34.0, -28.0, -22.0])
    assert GRID.contains(torch.tensor([[1.0, 2, 3], [35.9, 2, 3], [36.1, 2, 3]])).tolist() == [
        True,
        True,
        False,
    ]
    torch.testing.assert_close(VoxelGrid.box(8, 80.0).binned(2).center, torch.zeros(3).double())
