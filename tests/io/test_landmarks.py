"""Landmark files: Slicer's markups, tables, pixels on a film, and names that must agree."""

import json

import pytest
import torch

from xreg.errors import FileError, GeometryError
from xreg.io import (
    Landmarks,
    PixelLandmarks,
    load_landmarks,
    load_pixels,
    match_landmarks,
    save_landmarks,
)

POINTS = [[1.5, -2.25, 3.0], [-10.0, 20.125, -30.5], [0.1, 0.2, 0.3]]
NAMES = ("FH-l", "SPS, right", 'the "iliac" spine')
LPS = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)


def markups(system="LPS", units="mm", **more):
    points = [{"id": "1", "label": "a", "position": [1.0, 2.0, 3.0], "positionStatus": "defined"}]
    points += [{"id": "2", "label": "b", "position": [0.0, 0.0, 0.0], "positionStatus": "undefined"}]
    points += [{"id": "3", "label": " c ", "position": [4.0, 5.0, 6.0]}]
    one = {"type": "Fiducial", "coordinateSystem": system, "coordinateUnits": units, "controlPoints": points}
    return {"@schema": "markups-schema-v1.0.3.json#", "markups": [{**one, **more}]}


def written(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["points.mrk.json", "points.fcsv"])
def test_what_is_saved_is_loaded_again_to_the_last_digit(tmp_path, name):
    points = torch.tensor(POINTS, dtype=torch.float64) / 3
    save_landmarks(tmp_path / name, Landmarks(NAMES, points))
    again = load_landmarks(tmp_path / name)
    assert again.names == NAMES
    assert torch.equal(again.points, points)
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_a_saved_file_is_lps_as_slicer_writes_it(tmp_path):
    save_landmarks(tmp_path / "p.mrk.json", Landmarks(NAMES, POINTS))
    data = json.loads((tmp_path / "p.mrk.json").read_text())
    (one,) = data["markups"]
    assert "markups-schema" in data["@schema"]
    assert (one["type"], one["coordinateSystem"], one["coordinateUnits"]) == ("Fiducial", "LPS", "mm")
    assert one["controlPoints"][0]["position"] == [-1.5, 2.25, 3.0]
    assert one["controlPoints"][0]["positionStatus"] == "defined"
    save_landmarks(tmp_path / "p.fcsv", Landmarks(NAMES, POINTS))
    lines = (tmp_path / "p.fcsv").read_text().splitlines()
    assert lines[1] == "# CoordinateSystem = LPS"
    assert lines[3] == "1,-1.5,2.25,3.0,0,0,0,1,1,1,0,FH-l,,"


@pytest.mark.parametrize(("system", "sign"), [("LPS", -1), ("RAS", 1), ("1", -1), ("0", 1)])
def test_markups_say_their_own_frame(tmp_path, system, sign):
    found = load_landmarks(written(tmp_path, "m.mrk.json", markups(system)))
    assert found.names == ("a", "c")  # b is not placed
    assert found.points.tolist() == [[sign * 1.0, sign * 2.0, 3.0], [sign * 4.0, sign * 5.0, 6.0]]


def test_markups_are_lps_where_they_do_not_say_and_may_be_in_micrometres(tmp_path):
    data = markups(units=["um", "UCUM", "micrometer"])
    del data["markups"][0]["coordinateSystem"]
    found = load_landmarks(written(tmp_path, "m.json", data))
    torch.testing.assert_close(found.points[0], torch.tensor([-1e-3, -2e-3, 3e-3], dtype=torch.float64))


def test_several_lists_of_a_file_are_one(tmp_path):
    data = markups()
    data["markups"] += markups("RAS")["markups"]
    for n, point in enumerate(data["markups"][1]["controlPoints"]):
        point["label"] = f"second {n}"
    found = load_landmarks(written(tmp_path, "m.mrk.json", data))
    assert found.names == ("a", "c", "second 0", "second 2")
    torch.testing.assert_close(found.points[:2] * LPS, found.points[2:])


FCSV = """# Markups fiducial file version = 4.11
# CoordinateSystem = {system}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
,1,2,3,0,0,0,1,1,1,1,SPS-r, ,\x20

vtkMRMLMarkupsFiducialNode_1,4,5,6,0,0,0,1,1,1,0,"a, b",text,,2,0
vtkMRMLMarkupsFiducialNode_2,7,8,9,0,0,0,1,1,1,0,not placed,,,0,0
"""


@pytest.mark.parametrize(("system", "sign"), [("LPS", -1), ("RAS", 1), ("1", -1), ("0", 1)])
def test_fcsv_of_old_and_new_slicers(tmp_path, system, sign):
    found = load_landmarks(written(tmp_path, "p.fcsv", FCSV.format(system=system)))
    assert found.names == ("SPS-r", "a, b")
    assert found.points.tolist() == [[sign * 1.0, sign * 2.0, 3.0], [sign * 4.0, sign * 5.0, 6.0]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "name,x,y,z\na,1,2,3\nb,4,5,6\n"),
        ("p.csv", "\ufeffLabel,Z,Y,X\na,3,2,1\nb,6,5,4\n"),
        ("p.csv", "# a remark\n\na,1,2,3\nb , 4, 5, 6\n"),
        ("p.csv", "label,r,a,s,defined,selected\na,1,2,3,1,1\nb,4,5,6,1,1\n"),
        ("p.csv", "label,l,p,s\na,-1,-2,3\nb,-4,-5,6\n"),
        ("p.tsv", "name\tx\ty\tz\na\t1\t2\t3\nb\t4\t5\t6\n"),
        ("p.json", {"a": [1, 2, 3], "b": [4, 5, 6]}),
        ("p.json", [{"name": "a", "x": 1, "y": 2, "z": 3}, {"label": "b", "x": 4, "y": 5, "z": 6}]),
    ],
)
def test_tables_and_plain_json_are_ras(tmp_path, name, content):
    found = load_landmarks(written(tmp_path, name, content))
    assert found.names == ("a", "b")
    assert found.points.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.csv", "name,u,v\na,10.5,20\nb,0,63\n"),
        ("q.csv", "a,10.5,20\nb,0,63\n"),
        ("q.json", {"a": [10.5, 20], "b": [0, 63]}),
        ("q.json", [{"name": "a", "u": 10.5, "v": 20}, {"name": "b", "u": 0, "v": 63}]),
    ],
)
def test_pixels(tmp_path, name, content):
    found = load_pixels(written(tmp_path, name, content))
    assert found.names == ("a", "b")
    assert found.pixels.tolist() == [[10.5, 20.0], [0.0, 63.0]]


def test_markups_on_a_film_are_pixels_by_slicer_s_rule(tmp_path):
    """The rule is what an image reader of ITK says of a PNG: origin zero, a millimetre a pixel, LPS."""
    sitk = pytest.importorskip("SimpleITK")
    import numpy as np
    from PIL import Image

    Image.fromarray(np.zeros((40, 50), dtype=np.uint8)).save(tmp_path / "film.png")
    image = sitk.ReadImage(str(tmp_path / "film.png"))
    pixel = (31.25, 7.5)
    lps = [*image.TransformContinuousIndexToPhysicalPoint(pixel), 0.0]
    save_landmarks(tmp_path / "on.mrk.json", Landmarks(("a",), [[-lps[0], -lps[1], 0.0]]))
    assert load_pixels(tmp_path / "on.mrk.json").pixels.tolist() == [[31.25, 7.5]]
    found = load_pixels(tmp_path / "on.mrk.json", spacing=(0.5, 0.25))
    assert found.pixels.tolist() == [[125.0, 15.0]]


@pytest.mark.parametrize("point", [[-5.0, -5.0, 3.0], [5.0, -5.0, 0.0], [-5.0, 5.0, 0.0]])
def test_markups_beside_the_film_are_refused(tmp_path, point):
    save_landmarks(tmp_path / "on.mrk.json", Landmarks(("a",), [point]))
    with pytest.raises(FileError, match="not on a film"):
        load_pixels(tmp_path / "on.mrk.json")


BAD = [
    ("m.mrk.json", markups("IJK"), "must be RAS or LPS, got 'IJK'"),
    ("m.mrk.json", markups(units="inch"), "coordinateUnits must be mm or um"),
    ("m.mrk.json", markups(controlPoints=[]), "holds no placed point"),
    (
        "m.mrk.json",
        markups(controlPoints=[{"label": "a", "position": [1, 2]}]),
        r"controlPoints\[0\]: needs 3",
    ),
    ("m.mrk.json", markups(controlPoints=[{"position": [1, 2, 3]}]), "point 1 has no name"),
    ("m.mrk.json", {"markups": ["x"]}, r"markups\[0\] must be an object"),
    (
        "p.fcsv",
        FCSV.format(system="LPS").replace("# CoordinateSystem = LPS\n", ""),
        "RAS or LPS; add the line",
    ),
    ("p.fcsv", FCSV.format(system="IJK"), "line 2: the coordinate system"),
    ("p.fcsv", "# CoordinateSystem = 0\n1,a,b,c,0,0,0,1,1,1,0,F-1,,\n", "line 2: needs 3 finite numbers"),
    ("p.fcsv", "# CoordinateSystem = 0\n1,2\n", "line 2: needs 3 finite numbers"),
    ("p.csv", "name,x,y,z\na,1,2,3\na,4,5,6\n", "'a' come more than once"),
    ("p.csv", "name,x,y,z\na,1,2\n", "line 2 has 3 entries"),
    ("p.csv", "name,x,y,z\na,1,2,nan\n", "line 2: needs 3 finite numbers"),
    ("p.csv", "name,x,y\na,1,2\n", "name,x,y,z"),
    ("p.csv", "", "is empty"),
    ("p.csv", "name,x,y,z\n", "holds no placed point"),
    ("p.json", {"a": [1, 2]}, "the entry 'a': needs 3"),
    ("p.json", {"a": "123"}, "the entry 'a': needs 3"),
    ("p.json", [1, 2], "expected"),
    ("p.json", "{", "not valid JSON"),
    ("p.txtx", "a,1,2,3", "read from"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD)
def test_a_bad_file_is_named_with_its_entry(tmp_path, name, content, said):
    path = written(tmp_path, name, content)
    with pytest.raises(FileError, match=said) as caught:
        load_landmarks(path)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(FileError, match="is not text"):
        load_landmarks(tmp_path / "p.csv")
    with pytest.raises(FileError, match="no such file"):
        load_landmarks(tmp_path / "missing.csv")


def test_pixels_are_refused_likewise(tmp_path):
    for name, content in [("q.csv", "name,x,y,z\na,1,2,3\n"), ("q.json", {"a": [1, 2, 3]}), ("q.bin", "a")]:
        with pytest.raises(FileError):
            load_pixels(written(tmp_path, name, content))
    with pytest.raises(FileError, match="spacing must be positive"):
        load_pixels(written(tmp_path, "m.mrk.json", markups()), spacing=(0.0, 1.0))
    for name, content in [("q.csv", "name,u,v\na,1,2\n"), ("q.json", {"a": [1, 2]})]:
        with pytest.raises(FileError, match="holds pixels, which need no spacing"):
            load_pixels(written(tmp_path, name, content), spacing=(0.5, 0.5))


def test_other_endings_are_not_written(tmp_path):
    with pytest.raises(FileError, match=r"\.mrk\.json or \.fcsv"):
        save_landmarks(tmp_path / "p.csv", Landmarks(NAMES, POINTS))


def test_landmarks_are_checked():
    with pytest.raises(GeometryError, match="as many rows"):
        Landmarks(("a", "a"), [[0, 0, 0], [1, 1, 1]])
    with pytest.raises(GeometryError, match="as many rows"):
        PixelLandmarks(("a",), [[0, 0, 0]])
    with pytest.raises(GeometryError, match="finite"):
        PixelLandmarks(("a",), [[0, float("nan")]])


def test_points_are_matched_by_name():
    body = Landmarks(("a", "b", "c", "d"), torch.arange(12.0).reshape(4, 3))
    first, second = PixelLandmarks(("c", "a"), [[3, 3], [1, 1]]), PixelLandmarks(("d", "a"), [[4, 4], [2, 2]])
    found = match_landmarks(body, first, second)
    assert found.names == ("a", "c", "d")
    assert found.left_out == ("b",)
    assert found.points.tolist() == body.points[[0, 2, 3]].tolist()
    assert found.seen.tolist() == [[True, True, False], [True, False, True]]
    assert found.pixels[0, :2].tolist() == [[1, 1], [3, 3]]
    assert found.pixels[1, 2].tolist() == [4, 4]


def test_a_name_that_the_body_lacks_is_an_error_that_lists_what_is_left():
    body = Landmarks(("ASIS-l", "ASIS-r"), torch.eye(3)[:2])
    with pytest.raises(FileError, match=r"'ASIS_l'.*without a pixel there: 'ASIS-l'"):
        match_landmarks(body, PixelLandmarks(("ASIS_l", "ASIS-r"), [[0, 0], [1, 1]]))


def test_points_of_a_table_that_are_not_placed_are_skipped(tmp_path):
    """As 3D Slicer writes the table of a template."""
    head = "label,l,p,s,defined,selected,visible,locked,description\n"
    path = written(tmp_path, "a.csv", head + "F-1,10,20,30,1,1,1,0,\nF-2,0,0,0,0,1,1,0,\n")
    found = load_landmarks(path)
    assert found.names == ("F-1",)
    assert found.points.tolist() == [[-10.0, -20.0, 30.0]]
