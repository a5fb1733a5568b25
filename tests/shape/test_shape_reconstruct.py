"""From films to a folder: what is written, what is decided, and what is refused."""

import inspect
import json
import re
from dataclasses import replace
from typing import ClassVar

import nibabel
import numpy as np
import pytest
import shape_case
import torch
import trimesh
from shape_oracle import Oracle

from xreg.errors import FileError, GeometryError, ImageError, InputWarning, ShapeError
from xreg.geometry import Camera
from xreg.io import VoxelGrid
from xreg.shape.atlas import build_atlas
from xreg.shape.film_checks import agreements, check_films, facing_point, seen_grid
from xreg.shape.level import decide_level
from xreg.shape.predict import ShapeModel
from xreg.shape.reconstruction import ReconstructSettings, fit_film, reconstruct
from xreg.shape.report import NOTICE, report_page, save_reconstruction
from xreg.shape.schemes import SCHEMES
from xreg.shape.sources import Member

SPINE = SCHEMES["spine"]
QUICK = ReconstructSettings(draws=2)


def run(case, model, films=None, cameras=None, **more):
    films, cameras = case.films if films is None else films, cameras or case.cameras
    known = {"grid": case.grid, "normalised": True, "settings": QUICK, **more}
    return reconstruct(list(films), cameras, model, **known)


@pytest.fixture(scope="module")
def case():
    return shape_case.sample("a")


@pytest.fixture(scope="module")
def oracle(case):
    return Oracle(case.labels, case.grid, "spine")


@pytest.fixture(scope="module")
def found(case, oracle):
    return run(case, oracle)


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    place = tmp_path_factory.mktemp("out") / "new"
    save_reconstruction(place, found, mesh_suffix=".ply", facts={"films": ["ap.png", "lat & b.png"]})
    return place


def centroid(case, number):
    index = (case.labels == number).nonzero().double().mean(0).flip(0)
    return (case.grid.affine[:3, :3] @ index + case.grid.affine[:3, 3]).numpy()


# ---- what is found and written ----


def test_the_oracle_stands_for_the_model() -> None:
    wanted = {"variants": 1, "normalised": True}
    inspect.signature(ShapeModel.predict).bind(None, None, None, None, **wanted)
    assert all(name in ShapeModel.__init__.__code__.co_varnames for name in ("facts", "source"))


def test_labels_and_names_lie_where_they_should(case, folder) -> None:
    image = nibabel.load(folder / "labels.nii.gz")
    values = np.asarray(image.dataobj)
    assert values.shape == case.grid.size
    for number in (20, 21, 22, 23):
        index = np.argwhere(values == number).mean(0)
        np.testing.assert_allclose(
            nibabel.affines.apply_affine(image.affine, index), centroid(case, number), atol=1.0
        )
    names = json.loads((folder / "labels.json").read_text())
    assert names["names"]["20"] == "L1"
    assert [bone["name"] for bone in names["found"]] == ["L1", "L2", "L3", "L4"]
    assert b"L1" in image.header.extensions[0].get_content()
    doubt = np.asarray(nibabel.load(folder / "uncertainty.nii.gz").dataobj)
    assert doubt.shape == values.shape
    assert doubt[values > 0].mean() > 5 * doubt[values == 0].mean() > 0


def test_meshes_are_closed_and_in_place(case, folder) -> None:
    assert sorted(f.name for f in (folder / "meshes").iterdir()) == [f"L{n}.ply" for n in (1, 2, 3, 4)]
    for number, name in zip((20, 21, 22, 23), ("L1", "L2", "L3", "L4"), strict=True):
        mesh = trimesh.load(folder / "meshes" / f"{name}.ply")
        assert mesh.is_watertight
        np.testing.assert_allclose(mesh.center_mass, centroid(case, number), atol=1.0)
        voxels = int((case.labels == number).sum()) * case.grid.voxel_mm3
        assert mesh.volume == pytest.approx(voxels, rel=0.03)


def test_old_meshes_do_not_stay(found, tmp_path) -> None:
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "sacrum.stl").write_bytes(b"old")
    (tmp_path / "meshes" / "my_implant.stl").write_bytes(b"mine")
    (tmp_path / "labels.json").write_text('{"names": {"25": "sacrum"}}')  # of something else
    save_reconstruction(tmp_path, found)
    assert (
        tmp_path / "meshes" / "sacrum.stl"
    ).read_bytes() == b"old"  # no earlier run is known to have made it
    save_reconstruction(tmp_path, found)
    assert sorted(f.stem for f in (tmp_path / "meshes").iterdir()) == ["L1", "L2", "L3", "L4", "my_implant"]
    with pytest.raises(FileError, match="mesh_suffix"):
        save_reconstruction(tmp_path, found, mesh_suffix=".obj")


def test_the_record_and_the_page(found, folder) -> None:
    told = json.loads((folder / "measures.json").read_text())
    assert told["model"]["patients"] == ["p1", "<p2>"]
    assert told["notice"] == NOTICE
    assert told["rejected"] == []
    bone = found.prediction.labels > 0
    assert told["mean_doubt_nats"] == pytest.approx(float(found.prediction.entropy[bone].mean()))
    by_name = {m["name"]: m for m in told["measures"]}
    assert by_name["pelvic_incidence"]["value"] is None
    assert by_name["pelvic_incidence"]["reason"].startswith("not in view")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "url(" not in page
    for text in (NOTICE, "pelvic incidence", "not in view", "p1, &lt;p2&gt;", "L1 to L4", "lat &amp; b.png"):
        assert text in page
    assert "<p2>" not in page
    for measure in found.measures:
        assert measure.name.replace("_", " ") in page


def test_warnings_come_first(found) -> None:
    loud = replace(found, warnings=("mind the gap",), rejected=("do not use",))
    page = report_page(loud, {})
    assert page.index("do not use") < page.index("mind the gap") < page.index("Level of the vertebrae")


def test_films_show_the_bones_that_are_there_and_not_others(case, found) -> None:
    assert min(fit.correlation for fit in found.fits) > 0.6  # films without what a median takes for speckle
    wrong = Oracle(case.labels.roll((5, 6, 6), (0, 1, 2)), case.grid, "spine")
    other = run(case, wrong)
    assert any("does not show the bones" in reason for reason in other.rejected)


def test_measures_have_a_spread_where_the_network_doubts(case) -> None:
    unsure = Oracle(case.labels, case.grid, "spine", level_doubt=0.2)
    made = run(case, unsure)
    assert any(m.sd is not None and m.sd > 0 for m in made.measures if m.value is not None) or all(
        m.value is None for m in made.measures
    )


# ---- the level ----


@pytest.mark.parametrize(("doubt", "sure"), [(0.05, True), (0.45, False)])
def test_the_level_is_a_decision_with_alternatives(case, doubt: float, sure: bool) -> None:
    p = Oracle(case.labels, case.grid, "spine", level_doubt=doubt).predict(None, None, case.grid)
    level = decide_level(p.labels, p.shares, case.grid, SPINE)
    assert level.shift == 0
    assert level.sure is sure
    assert sum(level.shares.values()) == pytest.approx(1.0)
    ratio = level.shares[1] / level.shares[0]  # what the oracle gave to the next one down
    assert ratio == pytest.approx(doubt / (1 - doubt), rel=0.15)
    assert level.named(1) == "L2 to L5"
    assert "else L2 to L5" in level.text


def test_an_uncertain_level_is_rejected(case) -> None:
    unsure = Oracle(case.labels, case.grid, "spine", level_doubt=0.45)
    made = run(case, unsure)
    assert any("level is not certain" in reason for reason in made.rejected)


def test_vertebrae_left_out_or_upside_down(case) -> None:
    gap = torch.where(case.labels == 23, 24, case.labels)
    p = Oracle(gap, case.grid, "spine").predict(None, None, case.grid)
    level = decide_level(p.labels, p.shares, case.grid, SPINE)
    assert level.notes == ("L4 is missing between L3 and L5",)
    assert not level.sure
    p = Oracle(case.labels.flip(0), case.grid, "spine").predict(None, None, case.grid)
    notes = decide_level(p.labels, p.shares, case.grid, SPINE).notes
    assert "L2 lies above L1" in notes


# ---- films and cameras ----


def test_films_of_one_patient_agree_and_those_of_two_do_not(case) -> None:
    (good,) = agreements(case.films, case.cameras, case.grid.center)
    assert good.correlation > 0.9
    assert not good.warning
    other = torch.stack([case.films[0], case.films[1].roll(5, 0)])
    (bad,) = agreements(other, case.cameras, case.grid.center)
    assert "of two patients" in bad.warning
    with pytest.warns(InputWarning, match="films 0 and 1 disagree"):
        made = run(case, Oracle(case.labels, case.grid, "spine"), other)
    assert any("disagree" in text for text in made.warnings)


@pytest.mark.parametrize("scale", [0.75, 1.33])
def test_another_scale_is_named(scale: float) -> None:
    known = {"size": (128, 128), "spacing": 2.0, "sdd": 400, "isocenter": (10.0, -5.0, 20.0)}
    cameras = [Camera.parallel_beam(direction=d, **known) for d in ((0, -1, 0), (-1, 0, 0))]
    wrong = Camera.parallel_beam(direction=(-1, 0, 0), **{**known, "spacing": 2.0 / scale})
    films = shape_case.films_of(shape_case.body(), shape_case.grid(), (cameras[0], wrong))
    (found,) = agreements(films, cameras, torch.tensor([10.0, -5.0, 20.0], dtype=torch.float64))
    assert found.scale == pytest.approx(scale, rel=0.02)
    assert "pixel spacings" in found.warning


def test_perspective_films_of_one_patient_agree() -> None:
    case = shape_case.sample("a", cameras=shape_case.c_arms())
    point = facing_point(case.cameras)
    torch.testing.assert_close(point, torch.tensor([10.0, -5.0, 20.0], dtype=torch.float64))
    (found,) = agreements(case.films, case.cameras, point)
    assert not found.warning


def test_cameras_that_do_not_face_one_point(case) -> None:
    far = torch.eye(4, dtype=torch.float64)
    far[2, 3] = 700.0
    with pytest.raises(GeometryError, match=r"do not face one point.*pass each other by 700 mm"):
        facing_point((case.cameras[0], case.cameras[1].moved(far)))
    with pytest.raises(GeometryError, match="run the same way"):
        facing_point((case.cameras[0], case.cameras[0]))
    with pytest.raises(GeometryError, match="center="):
        facing_point(shape_case.c_arms()[:1])
    assert facing_point(shape_case.c_arms()[:1], (10, -5, 20)).tolist() == [10, -5, 20]


def test_a_grid_outside_the_films_is_not_blamed_on_the_cameras(case, oracle) -> None:
    said = r"the middle of the grid, \[10, 495, 20\] \(RAS mm\), lies outside what film 1 shows"
    with pytest.raises(GeometryError, match=said):  # to the front, which the film from the front cannot tell
        run(case, oracle, grid=None, center=(10, 495, 20))
    with pytest.raises(GeometryError, match=said):
        run(case, oracle, grid=replace(case.grid, affine=moved_to_the_front(case.grid.affine)))
    with pytest.raises(GeometryError, match=r"\[900, -5, 20\] .* outside what film 0 shows") as error:
        facing_point(shape_case.c_arms()[:1], (900, -5, 20))
    assert "camera" not in str(error.value)


def moved_to_the_front(affine: torch.Tensor) -> torch.Tensor:
    moved = affine.clone()
    moved[1, 3] += 500.0
    return moved


def test_a_single_film_works(case, oracle) -> None:
    made = run(case, oracle, case.films[:1], case.cameras[:1])
    assert made.agreement == ()
    assert len(made.fits) == 1


def test_sizes_that_differ(case, oracle) -> None:
    with pytest.raises(ImageError, match="film 1 has 10×10 px"):
        check_films([case.films[0], case.films[1][:10, :10]], case.cameras)
    with pytest.raises(ImageError, match="one camera a film, got 2 films and 1"):
        run(case, oracle, cameras=case.cameras[:1])
    small = case.cameras[1].bin(2)
    with pytest.raises(ImageError, match="films must have one size"):
        check_films([case.films[0], torch.zeros(small.size)], (case.cameras[0], small))


@pytest.mark.parametrize(("trained", "edge"), [(32, 160), (64, 128), (80, 160), (100, 200), (320, 320)])
def test_voxels_are_by_default_a_whole_number_to_one_of_the_training(case, trained: int, edge: int) -> None:
    class StoppedError(Exception):
        pass

    class Asked:
        facts: ClassVar = {"voxels": trained}

        def predict(self, films, cameras, grid, **known):
            assert max(grid.shape) == edge
            raise StoppedError

    with pytest.raises(StoppedError):
        run(case, Asked(), grid=None)


def test_the_grid_is_what_all_films_show(case) -> None:
    grid = seen_grid(case.cameras, facing_point(case.cameras), 4.0)
    torch.testing.assert_close(grid.center, case.grid.center)
    assert grid.shape == case.grid.shape
    assert grid.affine.diagonal().tolist() == [-4.0, 4.0, 4.0, 1.0]
    assert max(seen_grid(case.cameras, case.grid.center).shape) == 160
    one = seen_grid(case.cameras[:1], facing_point(case.cameras[:1]), 4.0)
    assert one.shape[1] == max(one.shape)
    with pytest.raises(GeometryError, match="voxel_mm"):
        seen_grid(case.cameras, case.grid.center, 1e-3)


def test_no_bone_is_an_error(case) -> None:
    with pytest.raises(ShapeError, match="finds no bone"):
        run(case, Oracle(0 * case.labels, case.grid, "spine"))
    with pytest.raises(ShapeError, match="draws"):
        ReconstructSettings(draws=1)


# ---- with an atlas ----


def test_an_atlas_refines_and_is_told_of(case, oracle, tmp_path) -> None:
    atlas = build_atlas([Member("p7", "spine", case.labels, case.grid)])
    known = {"grid": case.grid, "normalised": True, "settings": QUICK, "atlas": atlas}
    made = reconstruct(list(case.films), case.cameras, oracle, **known)
    assert made.prediction is made.refined.prediction
    assert {bone.name for bone in made.refined.bones} <= {"L1", "L2", "L3", "L4"}
    assert any(bone.used for bone in made.refined.bones)
    save_reconstruction(tmp_path / "out", made)
    told = json.loads((tmp_path / "out" / "measures.json").read_text())["refinement"]
    assert told["patients"] == ["p7"]
    assert len(told["edge_correlation"]) == 2
    assert "Shapes of p7 were fitted" in (tmp_path / "out" / "report.html").read_text()


def test_a_reference_without_a_bone_is_a_warning(case, oracle) -> None:
    known = {"grid": case.grid, "normalised": True, "settings": QUICK}
    references = {"T4": trimesh.creation.box((10, 10, 10))}
    found = reconstruct(list(case.films), case.cameras, oracle, references=references, **known)
    assert found.references == ()
    assert "references of bones that were not found: T4" in found.warnings


def test_films_of_any_kind_are_taken_and_holes_in_them_are_not(case, oracle, found) -> None:
    for films in (case.films, case.films.double().numpy(), [film.numpy() for film in case.films]):
        same = run(case, oracle, films=films) if isinstance(films, list) else reconstruct(
            films, case.cameras, oracle, grid=case.grid, normalised=True, settings=QUICK
        )  # fmt: skip
        assert torch.equal(same.prediction.labels, found.prediction.labels)
    holes = case.films.clone()
    holes[1, 3, 4] = torch.nan
    with pytest.raises(ImageError, match="film 1 has 1 values that are not finite"):
        run(case, oracle, films=holes)


def test_a_film_that_does_not_show_the_bones_is_told_of_and_written(case, oracle, tmp_path) -> None:
    low = case.cameras[0].crop(31, 0, 1, 24).pad(0, 31, 0, 0)  # its lowest row, and what lies beneath
    fit = fit_film(case.films[0].flip(0), low, run(case, oracle).prediction)
    assert fit.residual_rms is None
    found = run(case, oracle)
    made = replace(found, fits=(*found.fits, fit))
    save_reconstruction(tmp_path, made)
    told = json.loads((tmp_path / "measures.json").read_text())
    assert told["films"][2]["residual_rms"] is None
    assert (tmp_path / "report.html").is_file()


def test_a_grid_too_large_is_refused(case, oracle) -> None:
    huge = VoxelGrid.box((1024, 1024, 1024), (90.0, 90.0, 90.0), case.grid.center)
    with pytest.raises(GeometryError, match="has more than 67,108,864; give a coarser one"):
        reconstruct(list(case.films), case.cameras, oracle, grid=huge, normalised=True)
