"""The registry: every tool listed, JSON in and out, and refusals that say what to do."""

import json

import numpy as np
import pytest
from geometry_views import awkward

from xreg.errors import GeometryError
from xreg.geometry import CONVENTIONS, Camera
from xreg.geometry.conventions import diffdrr, load, naf, save

# Whether the arrays of each tool can be a pinhole's (False) and its mirror image (True).
HANDED = dict.fromkeys(("diffdrr", "nanodrr", "xvr", "rg2_xreg"), (False, True))
HANDED |= dict.fromkeys(("deepfluoro", "rtk", "tigre"), (True,))
HANDED |= dict.fromkeys(("deepdrr", "naf", "r2_gaussian", "x_gaussian"), (False,))
HANDED |= dict.fromkeys(("plastimatch", "pytorch3d", "autoscoper"), (False,))
ALL = set(HANDED)


def test_all_tools_are_there_with_a_line_each() -> None:
    assert set(CONVENTIONS) == ALL
    for name, convention in CONVENTIONS.items():
        assert convention.name == convention.params.tool == name
        assert convention.description
        assert "\n" not in convention.description


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("name", sorted(ALL))
def test_json_of_each_tool_goes_through_a_file(name: str, mirrored: bool, points) -> None:
    camera = naf.to_camera(naf.NAF(1500.0, 1000.0, (64, 64), (5.0, 5.0), 0.8))
    camera = camera.flip_columns() if mirrored else camera
    if mirrored not in HANDED[name]:
        with pytest.raises(GeometryError, match=r"Flip the image"):
            save(name, camera)
        return
    data = save(name, camera)
    assert data["tool"] == name
    again = load(name, json.loads(json.dumps(data)))
    assert (again.size, again.mirrored) == (camera.size, camera.mirrored)
    np.testing.assert_allclose(again.project(points), camera.project(points), atol=1e-6)


def test_any_tool_to_any_other_keeps_every_pixel(points) -> None:
    general = ["diffdrr", "nanodrr", "deepdrr", "rg2_xreg", "plastimatch", "pytorch3d"]
    camera = awkward()
    expected = camera.project(points).numpy()
    for name in general:
        camera = load(name, save(name, camera))
        if camera.sdd is None:
            camera = camera.replace(sdd=1020.0)
        np.testing.assert_allclose(camera.project(points).numpy(), expected, atol=1e-6, err_msg=name)
    camera = camera.flip_rows()
    for name in ("rtk", "tigre", "deepfluoro", "nanodrr"):
        camera = load(name, save(name, camera))
        stored = camera.project(points).numpy()
        np.testing.assert_allclose(
            stored, np.c_[expected[:, 0], 199 - expected[:, 1]], atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        (Camera.stack([awkward(), awkward()]), "one camera at a time"),
        (Camera.parallel_beam(size=(9, 9), spacing=1.0, sdd=10.0), "no parallel beam"),
        (awkward().replace(sdd=None), "source-to-detector"),
        (awkward().replace(K=[[900.0, 3.0, 99], [0, 900, 99], [0, 0, 1]]), "skew"),
    ],
)
def test_what_no_tool_can_say_is_refused(camera: Camera, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        save("diffdrr", camera)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sdd": 0.0}, "sdd of diffdrr must be positive"),
        ({"delx": "wide"}, "delx of diffdrr must be numbers"),
        ({"height": 10.5}, "whole"),
        ({"rotation": [1.0, 2.0]}, "shape"),
        ({"rotation": [1.0, 2.0, float("inf")]}, "finite"),
        ({"reverse_x_axis": 1}, "must be a bool"),
        ({"convention": 5}, "must be a str"),
        ({"convention": "ZXQ"}, "three of the letters"),
        ({"orientation": "LAT"}, "must be one of"),
        ({"delz": 1.0}, r"unknown .'delz'"),
        ({"tool": "rtk"}, "'rtk'"),
    ],
)
def test_wrong_parameters_are_named(change: dict, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        load("diffdrr", save("diffdrr", awkward()) | change)


def test_missing_parameters_and_tools_are_named() -> None:
    with pytest.raises(GeometryError, match=r"missing .*'sdd'"):
        load("diffdrr", {"rotation": [0, 0, 0]})
    with pytest.raises(GeometryError, match="unknown convention 'diffrdr'; known: diffdrr"):
        load("diffrdr", {})
    with pytest.raises(GeometryError, match="must be an object"):
        load("diffdrr", [1])


def test_parameters_are_values() -> None:
    a, b = (diffdrr.from_camera(awkward()) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
