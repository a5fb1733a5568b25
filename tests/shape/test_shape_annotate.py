"""Annotated radiographs: masks, boxes and maps against geometry worked out by hand, and what people get."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from xreg.cli import main
from xreg.errors import GeometryError, ShapeError
from xreg.geometry import Camera, se3
from xreg.io import save_volume
from xreg.io.tensors import load_tensors
from xreg.renderer import drr
from xreg.shape.annotate import SCHEMA, annotate, overlay, save_annotated
from xreg.volume import Volume

NAMES = {3: "cube", 9: "small/ball", 200: "outside"}


def labelled() -> Volume:
    """A cube (3), a block (9) behind it in the frontal view, and one far to the head (200): 2 mm, LPS."""
    affine = torch.diag(torch.tensor([-2.0, -2.0, 2.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([31.0, 31.0, -39.0])  # the middle of the box is 0, 0, 0
    labels = torch.zeros(40, 32, 32, dtype=torch.uint8)
    labels[16:24, 6:14, 12:20] = 3
    labels[18:22, 22:26, 14:24] = 9
    labels[36:39, 14:18, 14:18] = 200
    mu = torch.where(labels > 0, 0.05, 0.01)
    return Volume(mu, affine, labels, NAMES, 70.0)


def frontal(height: int = 60) -> Camera:
    """Pixels of 1 mm, beam to the back, columns to the left, rows to the feet."""
    return Camera.parallel_beam(size=(height, 64), spacing=1.0, sdd=200.0, direction=(0.0, -1.0, 0.0))


def test_masks_boxes_and_maps_of_blocks() -> None:
    found = annotate(labelled(), frontal())
    cube, ball, outside = found.structures
    assert [s.number for s in found.structures] == [3, 9, 200]
    assert [s.name for s in found.structures] == ["cube", "small/ball", "outside"]
    # i 12..19 is x = 31 - 2i, 7 … -7 mm, faces 8 and -8: columns 31.5 ± 8; rows likewise about 29.5.
    # A soft border of half a voxel leaves more than 1 mm in one pixel more on each side.
    assert cube.box == (23, 21, 40, 38)
    assert cube.pixels == 18 * 18
    assert ball.box == (27, 25, 48, 34)
    torch.testing.assert_close(torch.tensor(cube.pixel), torch.tensor([31.5, 29.5]))
    torch.testing.assert_close(torch.tensor(cube.center), torch.tensor([0.0, 12.0, 0.0]))
    inner = (slice(25, 35), slice(27, 36))
    torch.testing.assert_close(found.thickness[0][inner], torch.full((10, 9), 16.0), atol=0.05, rtol=0)
    # The beam starts 100 mm before the middle, at y = 100; the cube's middle is at 12, the block's at -16.
    torch.testing.assert_close(found.depth[0][inner], torch.full((10, 9), 88.0), atol=0.1, rtol=0)
    assert ball.mean_depth_mm == pytest.approx(116.0, abs=0.2)
    assert ball.mean_thickness_mm == pytest.approx(20 * 8 * 8.0 / ball.pixels, rel=0.02)  # volume
    assert not cube.cut
    assert cube.in_film
    assert (outside.pixels, outside.box, outside.in_film) == (0, None, False)
    assert outside.pixel[1] < 0
    masks = found.masks
    assert int((masks[0] & masks[1]).sum()) > 40  # shadows overlap
    torch.testing.assert_close(found.film, drr(labelled(), frontal(), integrator="joseph").float())


def test_what_the_border_cuts_says_so() -> None:
    found = annotate(labelled(), frontal(height=14))
    cube = found.structures[0]
    assert cube.cut
    assert cube.in_film
    assert cube.box[1] == 0
    assert cube.box[3] == 13


def test_a_pose_moves_annotations_with_the_film() -> None:
    camera = Camera.c_arm(sdd=900.0, sod=600.0, size=(60, 64), spacing=2.0, primary=20.0)
    pose = se3.exp(torch.tensor([0.2, -0.1, 0.3, 6.0, -4.0, 5.0]).double())
    found = annotate(labelled(), camera, pose)
    # The volume itself carried to that place gives the same.
    volume = labelled()
    carried = annotate(replace(volume, affine=pose @ volume.affine), camera)
    torch.testing.assert_close(found.film, carried.film, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.thickness, carried.thickness, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.depth, carried.depth, atol=0.2, rtol=0)
    for one, other in zip(found.structures, carried.structures, strict=True):
        assert one.center == pytest.approx(other.center, abs=1e-6)
        assert one.pixel == pytest.approx(other.pixel, abs=1e-6)
        assert one.box == other.box
    # A structure's mask lies about the image of its centroid, at its depth.
    cube = found.structures[0]
    rows, columns = found.masks[0].nonzero().double().mean(0)
    assert cube.pixel == pytest.approx((float(columns), float(rows)), abs=0.7)
    depth = camera.project(torch.tensor([cube.center]), return_depth=True)[1]
    assert cube.mean_depth_mm == pytest.approx(float(depth), abs=1.0)


@pytest.mark.parametrize("kind", ["float32", "list", "big-endian"])
def test_a_pose_of_any_form(kind) -> None:
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = 12.0
    given = {"float32": pose.float(), "list": pose.tolist(), "big-endian": pose.numpy().astype(">f8")}[kind]
    plain, found = (annotate(labelled(), frontal(), p) for p in (pose, given))
    assert torch.equal(found.film, plain.film)
    assert torch.equal(found.thickness, plain.thickness)


def test_files_for_people_and_programs(tmp_path) -> None:
    found = annotate(labelled(), frontal())
    files = save_annotated(tmp_path / "out", found, facts={"ct": "x"})
    place = tmp_path / "out"
    record = json.loads((place / files["annotation"]).read_text())
    assert record["schema"] == SCHEMA
    assert record["structures"][0]["mask"] == "masks/003_cube.png"
    assert record["structures"][1]["mask"] == "masks/009_small_ball.png"
    assert record["structures"][2]["mask"] is None
    mask = np.asarray(Image.open(place / "masks" / "003_cube.png"))
    assert set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask > 0, found.masks[0].numpy())
    maps, order = load_tensors(place / "maps.safetensors", schema=SCHEMA, what="maps", remedy="")
    assert order["numbers"] == [3, 9, 200]
    torch.testing.assert_close(maps["thickness_mm"].float(), found.thickness, atol=0.02, rtol=1e-3)
    assert Camera.from_dict(record["camera"]).size == (60, 64)
    assert np.array_equal(np.load(place / "film.npy"), found.film.numpy())
    picture = np.asarray(Image.open(place / files["overlay"]))
    assert np.array_equal(picture, overlay(found))
    grey = np.ptp(picture.astype(int), axis=2) < 3
    assert not grey[found.masks[0].numpy()].mean() > 0.3  # tinted
    assert grey[:, :10].all()


def test_masks_of_another_film_do_not_stay(tmp_path) -> None:
    save_annotated(tmp_path, annotate(labelled(), frontal()))
    (tmp_path / "masks" / "mine.png").write_bytes(b"mine")
    save_annotated(tmp_path, annotate(labelled(), frontal(), only=[9]))
    assert sorted(f.name for f in (tmp_path / "masks").iterdir()) == ["009_small_ball.png", "mine.png"]
    (tmp_path / "annotation.json").write_text("[]")
    save_annotated(tmp_path, annotate(labelled(), frontal()))
    assert len(list((tmp_path / "masks").iterdir())) == 3


def test_views_and_volumes_that_give_nothing() -> None:
    volume = labelled()
    with pytest.raises(ShapeError, match="no labelled voxel"):
        annotate(replace(volume, labels=None), frontal())
    with pytest.raises(ShapeError, match="none of the structures"):
        annotate(volume, frontal(), only=[4])
    corner = frontal().crop(0, 0, 12, 12)
    with pytest.raises(ShapeError, match="shows in this view"):
        annotate(volume, corner, only=[3])
    away = Camera.parallel_beam(
        size=(9, 9), spacing=1.0, sdd=9.0, direction=(0, 1, 0), isocenter=(500.0, 0, 0)
    )
    with pytest.raises(GeometryError, match="outside the beam"):
        annotate(volume, away)


def test_the_verb_project(tmp_path) -> None:
    save_volume(tmp_path / "ct.nii.gz", labelled(), units="hu", labels=tmp_path / "labels.nii.gz")
    words = ["project", str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path / "film")]
    view = [
        "--sdd",
        "900",
        "--sod",
        "600",
        "--size",
        "50",
        "60",
        "--spacing",
        "1.5",
        "1.5",
        "--only",
        "cube,9",
    ]
    mask = ["--mask", str(tmp_path / "labels.nii.gz")]
    done = CliRunner().invoke(main, [*words, *view, *mask, "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "film" / "annotation.json").read_text())
    assert [s["name"] for s in record["structures"]] == ["cube", "small/ball"]
    assert record["ct"].endswith("ct.nii.gz")
    assert CliRunner().invoke(main, [*words, *view]).exit_code == 2
    unknown = CliRunner().invoke(main, [*words, *view[:-1], "cubus", *mask])
    assert unknown.exit_code == 1
    assert "did you mean cube" in unknown.output
    far = CliRunner().invoke(main, [*words, *view, *mask, "--isocenter", "900", "0", "0"])
    assert far.exit_code == 1
