import itertools
import json
import os

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.errors import FileError, GeometryError
from xreg.geometry import Camera, Rig, se3
from xreg.io import (
    PoseRecord,
    load_camera,
    load_pose,
    load_rig,
    load_tfm,
    save_camera,
    save_pose,
    save_rig,
    save_tfm,
)
from xreg.io.files import write_json

tangents = st.tuples(*[st.floats(-3, 3)] * 3, *[st.floats(-500, 500)] * 3)
LPS = np.array([-1.0, -1.0, 1.0])


def pose_of(xi) -> torch.Tensor:
    return se3.exp(torch.tensor(xi, dtype=torch.float64))


def camera() -> Camera:
    return Camera.c_arm(
        sdd=1020.0, sod=510.0, size=(40, 30), spacing=(0.3, 0.31), primary=12.0, secondary=-7.0
    )


def same_camera(a: Camera, b: Camera) -> bool:
    return (a.K == b.K).all() and (a.camera_from_world == b.camera_from_world).all() and a.size == b.size


@settings(deadline=None, max_examples=25)
@given(tangents)
def test_pose_round_trip_keeps_every_digit(tmp_path_factory, xi):
    path = tmp_path_factory.mktemp("pose") / "a.json"
    pose = pose_of(xi)
    spread = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    record = PoseRecord(
        pose,
        camera=camera(),
        covariance=spread @ spread.T,
        center=(1.5, -2.25, 1000.1),
        score=0.123456789012345,
        accepted=False,
        reason="two minima",
        body="femur",
        world="ct",
        provenance={"method": "gauss-newton", "iterations": 12},
    )
    save_pose(path, record)
    back = load_pose(path)
    assert (back.world_from_body == pose).all()
    assert (back.covariance == record.covariance).all()
    assert (back.center == record.center).all()
    assert same_camera(back.camera, record.camera)
    for name in ("score", "accepted", "reason", "body", "world", "provenance"):
        assert getattr(back, name) == getattr(record, name)


def test_a_pose_says_what_it_means(tmp_path):
    path = tmp_path / "a.json"
    save_pose(path, torch.eye(4), score=1, accepted=True)
    data = json.loads(path.read_text())
    assert data["schema"] == "xreg.pose/1"
    assert data["name"] == "world_from_body"
    assert data["from"] == {"name": "body", "convention": "RAS mm"}
    assert data["to"] == {"name": "world", "convention": "RAS mm"}
    assert data["tangent"]["order"][0] == "rotation x, rad"
    assert data["matrix"][0] == [1.0, 0.0, 0.0, 0.0]
    assert load_pose(path).camera is None


def test_reflections_and_other_non_poses(tmp_path):
    path = tmp_path / "a.json"
    mirrored = torch.diag(torch.tensor([-1.0, 1, 1, 1]))
    with pytest.raises(GeometryError, match="mirrored"):
        save_pose(path, mirrored)
    with pytest.raises(GeometryError, match="mirrored"):
        save_tfm(tmp_path / "a.tfm", mirrored)
    for bad in (2 * torch.eye(4), torch.eye(3), torch.full((4, 4), float("nan")), "pose"):
        with pytest.raises(GeometryError, match="world_from_body"):
            save_pose(path, bad)
    with pytest.raises(GeometryError, match="center"):
        save_pose(path, torch.eye(4), covariance=torch.eye(6))
    with pytest.raises(GeometryError, match="symmetric"):
        save_pose(path, torch.eye(4), covariance=-torch.eye(6), center=(0, 0, 0))
    with pytest.raises(GeometryError, match="score"):
        save_pose(path, torch.eye(4), score=float("nan"))
    with pytest.raises(FileError, match="PoseRecord"):
        save_pose(path, PoseRecord(torch.eye(4)), score=1.0)
    with pytest.raises(FileError, match="provenance"):
        save_pose(path, torch.eye(4), provenance={"value": float("inf")})
    assert os.listdir(tmp_path) == []


def test_bad_pose_files(tmp_path):
    path = tmp_path / "a.json"
    save_pose(path, torch.eye(4))
    good = json.loads(path.read_text())

    def load_with(**changes):
        path.write_text(json.dumps({**good, **changes}))
        return load_pose(path)

    mirrored = np.diag([1.0, 1, -1, 1]).tolist()
    with pytest.raises(GeometryError, match=r"a.json.*mirrored"):
        load_with(matrix=mirrored)
    with pytest.raises(GeometryError, match="shape"):
        load_with(matrix=[[1, 2], [3, 4]])
    with pytest.raises(FileError, match="update xreg"):
        load_with(schema="xreg.pose/7")
    with pytest.raises(FileError, match="schema"):
        load_with(schema="xreg.camera/1")
    with pytest.raises(GeometryError, match="mm and rad"):
        load_with(units={"length": "m", "angle": "rad"})
    with pytest.raises(GeometryError, match="RAS mm"):
        load_with(to={"name": "world", "convention": "LPS mm"})
    with pytest.raises(GeometryError, match="ordered"):
        load_with(tangent={"order": ["translation x, mm"]})
    del good["matrix"]
    with pytest.raises(FileError, match="matrix"):
        load_with()
    path.write_text("[]")
    with pytest.raises(FileError, match="schema"):
        load_pose(path)
    with pytest.raises(FileError, match="no such file"):
        load_pose(tmp_path / "gone.json")


@settings(deadline=None, max_examples=25)
@given(tangents, st.tuples(*[st.floats(-300, 300)] * 3))
def test_itk_maps_world_points_to_body_points(tmp_path_factory, xi, body):
    path = tmp_path_factory.mktemp("tfm") / "a.tfm"
    pose = pose_of(xi)
    save_tfm(path, pose)
    world = (pose.numpy() @ [*body, 1.0])[:3]
    mapped = sitk.ReadTransform(str(path)).TransformPoint((world * LPS).tolist())
    np.testing.assert_allclose(np.array(mapped) * LPS, body, atol=1e-8)
    torch.testing.assert_close(load_tfm(path), pose, atol=1e-9, rtol=0)


def test_resampling_with_the_file_moves_the_ct(tmp_path):
    """A bright voxel of the CT appears where world_from_body puts it, as in a viewer."""
    ct = sitk.Image([20, 20, 20], sitk.sitkFloat32)
    ct.SetOrigin([-10.0, -10.0, -10.0])
    ct[12, 7, 5] = 1.0
    pose = se3.from_rt(
        torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64),
        torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64),
    )
    save_tfm(tmp_path / "a.tfm", pose)
    moved = sitk.Resample(ct, ct, sitk.ReadTransform(str(tmp_path / "a.tfm")), sitk.sitkNearestNeighbor)
    k, j, i = np.argwhere(sitk.GetArrayFromImage(moved) == 1)[0].tolist()
    seen = np.array(moved.TransformIndexToPhysicalPoint([i, j, k])) * LPS
    body = np.array(ct.TransformIndexToPhysicalPoint([12, 7, 5])) * LPS
    np.testing.assert_allclose(seen, (pose.numpy() @ [*body, 1.0])[:3], atol=1e-9)


def test_tfm_written_by_itk_with_a_centre(tmp_path):
    pose = pose_of((0.2, -0.4, 0.6, 10, 20, 30))
    itk = sitk.AffineTransform(3)
    itk.SetCenter([5.0, -40.0, 12.0])
    lps = np.diag([*LPS, 1]) @ np.linalg.inv(pose.numpy()) @ np.diag([*LPS, 1])
    itk.SetMatrix(lps[:3, :3].ravel().tolist())
    c = np.array(itk.GetCenter())
    itk.SetTranslation((lps[:3, 3] - c + lps[:3, :3] @ c).tolist())
    sitk.WriteTransform(itk, str(tmp_path / "a.tfm"))
    torch.testing.assert_close(load_tfm(tmp_path / "a.tfm"), pose, atol=1e-9, rtol=0)


def test_bad_transform_files(tmp_path):
    path = tmp_path / "a.tfm"
    save_tfm(path, torch.eye(4))
    good = path.read_text()
    for text, message in [
        ("hello: world", "expected an ITK text transform"),
        (good.replace("AffineTransform", "BSplineTransform"), "BSplineTransform"),
        (good.replace("Parameters: 1.0", "Parameters: one", 1), "not numbers"),
        (good.replace("Parameters: 1.0", "Parameters:", 1), "got 11"),
        (good + good.partition("\n")[2], "got 2"),
    ]:
        path.write_text(text)
        with pytest.raises(FileError, match=message):
            load_tfm(path)
    path.write_text(good.replace("Parameters: 1.0", "Parameters: -1.0", 1))
    with pytest.raises(GeometryError, match="mirrored"):
        load_tfm(path)
    path.write_text(good.replace("Parameters: 1.0", "Parameters: 2.0", 1))
    with pytest.raises(GeometryError, match="rotation"):
        load_tfm(path)
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(FileError, match="not text"):
        load_tfm(path)
    with pytest.raises(FileError, match="must end in"):
        save_tfm(tmp_path / "a.h5", torch.eye(4))
    with pytest.raises(FileError, match="no such file"):
        load_tfm(tmp_path / "gone.tfm")


def test_cameras_and_rigs(tmp_path):
    one, two = camera(), camera().flip_columns()
    save_camera(tmp_path / "c.json", one)
    assert same_camera(load_camera(tmp_path / "c.json"), one)
    save_rig(tmp_path / "r.json", Rig((one, two)))
    for a, b in itertools.zip_longest(load_rig(tmp_path / "r.json"), (one, two)):
        assert same_camera(a, b)
        assert a.mirrored == b.mirrored
    with pytest.raises(FileError, match="schema"):
        load_camera(tmp_path / "r.json")
    text = (tmp_path / "c.json").read_text().replace("xreg.camera/1", "xreg.camera/2")
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(FileError, match="update xreg"):
        load_camera(tmp_path / "c.json")


def test_errors_about_cameras_name_the_file(tmp_path):
    good = camera().to_dict()
    for change, message in (({"size": [0, 4]}, "size"), ({"K": "no"}, "K"), ({"sdd": -1}, "sdd")):
        path = tmp_path / "cam.json"
        write_json(path, {**good, **change})
        with pytest.raises(GeometryError, match=rf"cam\.json: .*{message}"):
            load_camera(path)
        path = tmp_path / "rig.json"
        write_json(path, {"schema": "xreg.rig/1", "cameras": [good, {**good, **change}]})
        with pytest.raises(GeometryError, match=rf"rig\.json: .*{message}"):
            load_rig(path)
        path = tmp_path / "pose.json"
        save_pose(path, torch.eye(4, dtype=torch.float64), camera=camera())
        data = json.loads(path.read_text())
        write_json(path, {**data, "camera": {**good, **change}})
        with pytest.raises(GeometryError, match=rf"pose\.json: .*{message}") as found:
            load_pose(path)
        assert str(found.value).count("pose.json") == 1


def test_a_matrix_that_says_it_is_the_inverse_is_refused(tmp_path):
    save_pose(tmp_path / "a.json", np.eye(4))
    data = json.loads((tmp_path / "a.json").read_text())
    write_json(tmp_path / "b.json", {**data, "name": "body_from_world"})
    with pytest.raises(GeometryError, match="must be world_from_body, got 'body_from_world'; invert it"):
        load_pose(tmp_path / "b.json")


def test_rows_of_tensors_are_rows(tmp_path):
    pose = se3.exp(torch.tensor([0.2, -0.1, 0.3, 5.0, 6.0, 7.0], dtype=torch.float64))
    save_pose(tmp_path / "a.json", list(pose))
    torch.testing.assert_close(load_pose(tmp_path / "a.json").world_from_body, pose)
    torch.testing.assert_close(Camera(list(torch.eye(3)), list(pose), (4, 4)).camera_from_world, pose)
