"""Projections of other tools: NAF, R²-Gaussian, TIGRE, RTK, DICOM."""

import json
import math
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dicom_files import write_xa
from projection_sets import images, same_cameras

from xreg.cli import main
from xreg.errors import FileError, GeometryError, ImageError
from xreg.geometry import Camera
from xreg.geometry.conventions import CONVENTIONS
from xreg.io import VoxelGrid, from_tigre, load_projections
from xreg.tomography import Projector, sirt


def naf_data(**more):
    angles = np.linspace(0, math.pi, 3)
    return {
        "DSD": 1500.0, "DSO": 1000.0, "nDetector": [10, 8], "dDetector": [2.0, 3.0], "nVoxel": [4, 5, 6],
        "dVoxel": [10.0, 10.0, 10.0], "offOrigin": [0.0, 0.0, 0.0], "offDetector": [1.5, -2.0],
        "mode": "cone", "totalAngle": 180.0, "startAngle": 0.0, "numTrain": 3, "numVal": 2, "accuracy": 0.5,
        "image": np.random.default_rng(0).random((4, 5, 6), dtype=np.float32),
        "train": {"projections": images().numpy(), "angles": angles},
        "val": {"projections": images(2, seed=1).numpy(), "angles": angles[:2] + 0.1}, **more,
    }  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_naf_pickle(tmp_path, protocol):
    import pickle

    data = naf_data()
    (tmp_path / "chest.pickle").write_bytes(pickle.dumps(data, protocol=protocol))
    found = load_projections(tmp_path / "chest.pickle")
    assert torch.equal(found.images, images())
    assert torch.equal(found.held_out.images, images(2, seed=1))
    tool = CONVENTIONS["naf"]
    params = tool.params(
        DSD=1500.0,
        DSO=1000.0,
        nDetector=(10, 8),
        dDetector=(2.0, 3.0),
        angle=math.pi / 2,
        offDetector=(1.5, -2.0),
    )
    same_cameras([found.cameras[1]], [tool.to_camera(params)])
    assert found.scale == 1e-3
    assert found.truth.size == (4, 5, 6)
    assert float(found.truth.mu[3, 2, 1]) == pytest.approx(1e-3 * float(data["image"][1, 2, 3]))


def test_a_pickle_of_something_else(tmp_path):
    import pickle

    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"weights": [1, 2]}))
    with pytest.raises(FileError, match="NAF"):
        load_projections(tmp_path / "a.pkl")
    data = naf_data()
    data["train"]["projections"] = [np.zeros((3, 3)), np.zeros((3, 4))]
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(data))
    with pytest.raises(ImageError, match="one size"):
        load_projections(tmp_path / "b.pkl")


def r2_folder(root, **scanner):
    (root / "proj_train").mkdir(parents=True)
    known = {
        "mode": "cone", "filter": None, "DSD": 7.0, "DSO": 5.0, "nDetector": [8, 10], "sDetector": [4.0, 4.0],
        "nVoxel": [4, 4, 4], "sVoxel": [2.0, 2.0, 2.0], "offOrigin": [0, 0, 0], "offDetector": [0, 0],
        "totalAngle": 360.0, "startAngle": 0.0, "noise": True, **scanner,
    }  # fmt: skip
    views = []
    for n, image in enumerate(images().numpy()):
        name = f"proj_train/{n:04d}.npy"
        np.save(root / name, image)
        views.append({"file_path": name, "angle": 0.7 * n})
    np.save(root / "vol_gt.npy", np.random.default_rng(1).random((4, 4, 4), dtype=np.float32))
    meta = {
        "scanner": known,
        "vol": "vol_gt.npy",
        "bbox": [[-1] * 3, [1] * 3],
        "proj_train": views,
        "proj_test": [],
    }
    (root / "meta_data.json").write_text(json.dumps(meta))
    return root


def test_an_r2_folder(tmp_path):
    root = r2_folder(tmp_path / "r2")
    found = load_projections(root, unit_mm=100.0)
    assert torch.equal(found.images, images())
    tool = CONVENTIONS["r2_gaussian"]
    params = tool.params(
        DSD=700.0, DSO=500.0, nDetector=(8, 10), sDetector=(400.0, 400.0), sVoxel=(200.0,) * 3, angle=1.4
    )
    same_cameras([found.cameras[2]], [tool.to_camera(params)])
    assert found.grid.extent == pytest.approx((200.0,) * 3)
    assert found.scale == pytest.approx(0.01)
    raw = np.load(root / "vol_gt.npy")
    assert float(found.truth.mu[3, 1, 0]) == pytest.approx(0.01 * float(raw[0, 1, 3]))


def test_an_r2_folder_that_is_wrong(tmp_path):
    with pytest.raises(GeometryError, match="offDetector"):
        load_projections(r2_folder(tmp_path / "a", offDetector=[0.1, 0.0]))
    root = r2_folder(tmp_path / "b")
    (root / "proj_train" / "0001.npy").unlink()
    with pytest.raises(FileError, match=r"0001\.npy"):
        load_projections(root)
    root = r2_folder(tmp_path / "c")
    text = (root / "meta_data.json").read_text()
    (root / "meta_data.json").write_text(text.replace("proj_train/0001.npy", "../b/vol_gt.npy"))
    with pytest.raises(FileError, match="outside"):
        load_projections(root)
    root = r2_folder(tmp_path / "d")
    np.save(root / "proj_train" / "0000.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(FileError, match="objects"):
        load_projections(root)


def test_tigre_objects():
    tool = CONVENTIONS["tigre"]
    known = {
        "DSD": 1500.0,
        "DSO": 1000.0,
        "dDetector": [3.0, 2.0],
        "offDetector": [1.0, -2.0],
        "mode": "cone",
    }
    geometry = types.SimpleNamespace(**known, nVoxel=[4, 5, 6], sVoxel=[40.0, 50.0, 60.0], nDetector=[8, 10])
    turns = np.array([0.1, 0.5, 0.9])
    found = from_tigre(images().numpy(), geometry, turns)
    expected = [tool.to_camera(tool.params(nDetector=(8, 10), angles=(a, 0, 0), **known)) for a in turns]
    same_cameras(found.cameras, expected)
    assert found.grid.shape == (4, 5, 6)
    each = {**known, "DSO": [1000.0, 1001.0, 1002.0], "offDetector": [[0, 0], [1, 1], [2, 2]]}
    same = from_tigre(images().numpy(), each, turns)
    last = tool.params(
        **{**known, "DSO": 1002.0, "offDetector": (2, 2)}, nDetector=(8, 10), angles=(0.9, 0, 0)
    )
    same_cameras([same.cameras[2]], [tool.to_camera(last)])
    with pytest.raises(ImageError, match="angles"):
        from_tigre(images().numpy(), geometry, turns[:2])


RTK_XML = """<?xml version="1.0"?>
<!DOCTYPE RTKGEOMETRY>
<RTKThreeDCircularGeometry version="3">
    <SourceToIsocenterDistance>600</SourceToIsocenterDistance>
    <SourceToDetectorDistance>900</SourceToDetectorDistance>
    <ProjectionOffsetX>3</ProjectionOffsetX>
  <Projection><GantryAngle>0</GantryAngle><Matrix>-900 0 -3 1800 0 -900 -4 2400 0 0 1
  -600</Matrix></Projection>
  <Projection><GantryAngle>10</GantryAngle><ProjectionOffsetY>4</ProjectionOffsetY></Projection>
  <Projection><GantryAngle>20</GantryAngle><SourceToDetectorDistance>950</SourceToDetectorDistance></Projection>
  </RTKThreeDCircularGeometry>
"""


def test_rtk_geometry_and_stack(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    stack = sitk.GetImageFromArray(images().numpy())
    stack.SetSpacing((2.0, 3.0, 1.0))
    stack.SetOrigin((-9.0, -10.5, 0.0))
    sitk.WriteImage(stack, str(tmp_path / "p.mha"))
    (tmp_path / "g.xml").write_text(RTK_XML)
    found = load_projections(tmp_path / "g.xml")
    assert torch.equal(found.images, images())
    tool = CONVENTIONS["rtk"]
    known = {
        "sid": 600.0,
        "size": (10, 8),
        "spacing": (2.0, 3.0),
        "origin": (-9.0, -10.5),
        "proj_offset_x": 3.0,
    }
    expected = [
        tool.params(sdd=900.0, gantry_angle=0.0, **known),
        tool.params(sdd=900.0, gantry_angle=10.0, proj_offset_y=4.0, **known),
        tool.params(sdd=950.0, gantry_angle=20.0, **known),
    ]
    same_cameras(found.cameras, [tool.to_camera(p) for p in expected])
    fixed = load_projections(tmp_path / "g.xml", patient_position=None)
    matrix = torch.tensor([[-900.0, 0, -3, 1800], [0, -900, 0, 0], [0, 0, 1, -600]], dtype=torch.float64)
    point = torch.tensor([12.0, -20.0, 31.0, 1.0], dtype=torch.float64)
    u, v, w = (matrix @ point).tolist()  # RTK's own matrix, fixed frame to mm on the detector
    pixel = fixed.cameras[0].project(point[None, :3])[0]
    assert pixel.tolist() == pytest.approx([(u / w + 9.0) / 2.0, (v / w + 10.5) / 3.0])


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('version="3"', 'version="1"', "version"),
        ("</RTKThreeDCircularGeometry>", "", "whole XML"),
        ("<GantryAngle>0<", "<GantryAngle>zero<", "number"),
        ("<DOCTYPE", "<DOCTYPE", None),
        ("<!DOCTYPE RTKGEOMETRY>", '<!DOCTYPE a [<!ENTITY b "c">]>', "entities"),
        (
            "<ProjectionOffsetX>3</ProjectionOffsetX>",
            "<RadiusCylindricalDetector>9</RadiusCylindricalDetector>",
            "flat",
        ),
        (
            "<ProjectionOffsetX>3</ProjectionOffsetX>",
            "<RadiusCylindricalDetector>wide</RadiusCylindricalDetector>",
            r"g\.xml: RadiusCylindricalDetector must be a number, got 'wide'",
        ),
    ],
)
def test_rtk_geometry_that_is_wrong(tmp_path, old, new, why):
    from xreg.io.projections_rtk import read_rtk_geometry

    (tmp_path / "g.xml").write_text(RTK_XML.replace(old, new))
    if why is None:
        assert len(read_rtk_geometry(tmp_path / "g.xml")) == 3
        return
    with pytest.raises(FileError, match=why):
        read_rtk_geometry(tmp_path / "g.xml")


def test_a_dicom_rotation(tmp_path):
    lines = images(4, 24, 20) / 2
    lines[:, :, :2] = 0.0
    stored = (60000 * torch.exp(-lines)).round().numpy().astype(np.uint16)
    steps = [0.0, 15.0, 30.0, 45.0]
    angles = {"PositionerPrimaryAngle": -20.0, "PositionerPrimaryAngleIncrement": steps}
    angles |= {"PositionerSecondaryAngle": 0.0, "PositionerSecondaryAngleIncrement": [0.0] * 4}
    path = write_xa(tmp_path / "run.dcm", stored, bits=16, **angles)
    found = load_projections(path, i0=60000.0)
    torch.testing.assert_close(found.images, lines, rtol=0, atol=2e-4)
    turns = [float(camera.angles[0]) for camera in found.cameras]
    assert turns == pytest.approx([-20.0, -5.0, 10.0, 25.0])
    known = {"sdd": 1020.0, "sod": 510.0, "size": (24, 20), "spacing": (0.31, 0.29), "mirrored": True}
    same_cameras([found.cameras[2]], [Camera.c_arm(primary=10.0, **known)])


def test_a_dicom_rotation_of_logarithms(tmp_path):
    lines = images(3, 24, 20) / 2
    lines[:, :, :2] = 0.0
    steps = {"PositionerPrimaryAngleIncrement": [0.0, 15.0, 30.0]}
    log = {"PixelIntensityRelationship": "LOG", **steps}
    stored = (4000 - 1000 * lines).round().numpy().astype(np.uint16)
    path = write_xa(tmp_path / "run.dcm", stored, bits=12, **log)
    with pytest.raises(ImageError, match=r"run\.dcm: .*pass log_gain="):
        load_projections(path)
    found = load_projections(path, log_gain=1000.0)
    torch.testing.assert_close(found.images, lines, rtol=0, atol=6e-4)
    assert found.provenance["log_gain"] == 1000.0
    stored = (1000 * lines).round().numpy().astype(np.uint16)
    write_xa(path, stored, bits=12, **steps)  # the header says linear, and a higher value more beam
    found = load_projections(path, log_gain=1000.0, relationship="log", sign=-1, i0=0.0)
    torch.testing.assert_close(found.images, lines, rtol=0, atol=6e-4)
    with pytest.raises(ImageError, match=r"run\.dcm: relationship must be one of"):
        load_projections(path, relationship="LOG")


def recon(path, *words):
    box = ("--size", 4, "--side-mm", 20, "--method", "sirt", "--iterations", 1, "--json")
    words = ("recon", path, "-o", path.parent / "a.nii", *box, *words)
    done = CliRunner().invoke(main, [str(word) for word in words])
    said = json.loads(done.stdout)
    return said if done.exit_code == 0 else said["error"]["message"]


def test_recon_names_its_options_for_a_dicom_run_and_takes_them(tmp_path):
    lines = images(3, 24, 20) / 2
    lines[:, :, :2] = 0.0
    stored = (4000 - 1000 * lines).round().numpy().astype(np.uint16)
    tags = {"PixelIntensityRelationship": "LOG", "PositionerPrimaryAngleIncrement": [0.0, 15.0, 30.0]}
    path = write_xa(tmp_path / "run.dcm", stored, bits=12, DistanceSourceToPatient=None, **tags)
    said = recon(path)
    assert "does not state sod (mm); give sod= [options here: --sod]" in said
    said = recon(path, "--sod", 510)
    assert said.endswith("how many stored units a factor e takes [options here: --log-gain]")
    with_spacing = ("--sod", 510, "--log-gain", 1000, "--i0", 4000, "--sdd", 1100, "--spacing", 0.5, 0.4)
    scan = load_projections(path, sod=510.0, log_gain=1000.0, i0=4000.0, sdd=1100.0, spacing=(0.5, 0.4))
    projector = Projector(scan.cameras, VoxelGrid.box(4, 20.0), adjoint="voxel")
    made = sirt(projector, scan.images, iterations=1)
    assert recon(path, "--bin", 1, *with_spacing)["range"][1] == pytest.approx(float(made.max()), rel=1e-4)
    camera = Camera.c_arm(sdd=1100.0, sod=510.0, size=(24, 20), spacing=(0.5, 0.4), primary=45.0,
                          secondary=-12.5, mirrored=True)  # fmt: skip
    same_cameras([scan.cameras[1]], [camera])


def test_recon_takes_the_stack_of_an_rtk_geometry(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for name, factor in (("p.mha", 1), ("q.mha", 2)):
        stack = sitk.GetImageFromArray((images() * factor).numpy())
        stack.SetSpacing((2.0, 3.0, 1.0))
        stack.SetOrigin((-9.0, -10.5, 0.0))
        sitk.WriteImage(stack, str(tmp_path / name))
    (tmp_path / "g.xml").write_text(RTK_XML)
    assert "2 lie beside it, so name the one with projections= [options here: --proj" in recon(
        tmp_path / "g.xml"
    )
    one, two = (recon(tmp_path / "g.xml", "--projections", tmp_path / n)["range"] for n in ("p.mha", "q.mha"))
    assert two[1] == pytest.approx(2 * one[1], rel=1e-5)
    assert one[1] > 0


def test_a_dicom_file_that_does_not_turn(tmp_path):
    with pytest.raises(ImageError, match="same angles"):
        load_projections(write_xa(tmp_path / "still.dcm", (images(3, 24, 20) * 500).numpy()))
    with pytest.raises(ImageError, match="multi-frame"):
        load_projections(write_xa(tmp_path / "one.dcm"))
    steps = [0.0, 5.0, 10.0]
    pixels = (images(3, 24, 20) * 500).numpy()
    path = write_xa(
        tmp_path / "no.dcm", pixels, DistanceSourceToPatient=None, PositionerPrimaryAngleIncrement=steps
    )
    with pytest.raises(ImageError, match="sod"):
        load_projections(path)
    assert len(load_projections(path, sod=600.0)) == 3


def test_another_file(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x" * 200)
    with pytest.raises(FileError, match="no projection set"):
        load_projections(tmp_path / "a.bin")
