"""MayaCam 2.0 text, and the row direction on Autoscoper's sample wrist."""

import numpy as np
import pytest
import torch

from xreg.errors import GeometryError
from xreg.geometry import Rig
from xreg.geometry.conventions import autoscoper

TEXT = """\
image size
1530,1760

camera matrix
6167.35342293,0,803.741292437
0,6165.63244754,865.698104164
0,0,1

rotation
0.792589225007,-0.0592057161733,-0.606874784099
0.0545361218268,0.998169197702,-0.0261546205154
0.607312219389,-0.0123667267546,0.794367000982

translation
-16.6293306327
-77.8355084182
901.390251307
"""

# Centres of eleven metal beads (column, row) in cam01_0002.tif and cam02_0002.tif of the sample wrist.
BEADS_1 = [
    (859.2, 1293.8),
    (882.2, 1320.1),
    (839.9, 1322.1),
    (837.2, 1347.0),
    (868.0, 1350.3),
    (855.1, 1373.0),
    (967.8, 1447.0),
    (978.6, 1448.2),
    (976.6, 1486.9),
    (977.5, 1511.5),
    (970.2, 1513.0),
]
BEADS_2 = [
    (799.7, 1339.0),
    (801.8, 1368.1),
    (780.7, 1363.4),
    (799.8, 1393.4),
    (787.3, 1395.7),
    (792.7, 1420.1),
    (507.8, 1437.2),
    (526.7, 1444.0),
    (526.3, 1482.8),
    (531.9, 1509.7),
    (506.2, 1503.8),
]


def test_text_to_camera_and_back(points, check) -> None:
    params = autoscoper.parse(TEXT)
    assert params.image_size == (1530, 1760)  # width, height
    rotation, translation = np.array(params.rotation), np.array(params.translation)

    def pixels(world: np.ndarray) -> np.ndarray:
        h = (world @ rotation.T + translation) @ np.array(params.camera_matrix).T
        return h[:, :2] / h[:, 2:]

    camera = check(params, pixels)
    assert camera.size == (1760, 1530)
    assert camera.sdd is None
    assert autoscoper.parse(autoscoper.write(params)) == params
    np.testing.assert_allclose(autoscoper.from_camera(camera).rotation, rotation, atol=1e-11)


def test_line_ends_of_other_systems_and_blank_lines_do_not_matter() -> None:
    assert autoscoper.parse(TEXT.replace("\n", "\r\n")) == autoscoper.parse(TEXT)
    assert autoscoper.parse(TEXT.replace("\n\n", "\n")) == autoscoper.parse(TEXT)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rotation", "rotatoin", "rotation"),
        ("0,0,1\n", "0,0\n", "camera_matrix|regular|numbers"),
        ("-77.8355084182", "minus 77", "translation"),
        ("1530,1760", "1530", "image_size"),
        ("0.792589225007", "0.9", "nearest_rigid"),
    ],
)
def test_a_spoiled_file_is_explained(old: str, new: str, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        autoscoper.to_camera(autoscoper.parse(TEXT.replace(old, new, 1)))


def test_rows_run_down_from_the_top_in_the_sample_data(shared_data) -> None:
    files = [shared_data / "wrist" / f"xr_calib_wrist_cam0{i}.txt" for i in (1, 2)]
    if not all(file.is_file() for file in files):
        pytest.skip("the sample wrist is not among the shared data")
    rig = Rig(tuple(autoscoper.to_camera(autoscoper.parse(file.read_text())) for file in files))
    beads = [torch.tensor(b, dtype=torch.float64) for b in (BEADS_1, BEADS_2)]
    world, misfit = rig.triangulate(beads)
    assert float(misfit.norm(dim=-1).max()) < 0.7
    # The six beads on one bone and the five on the other lie within two centimetres of each other.
    for group in (world[:6], world[6:]):
        assert float((group - group.mean(0)).norm(dim=-1).max()) < 20
    flips = (
        lambda p: torch.stack([p[:, 0], 1759 - p[:, 1]], -1),
        lambda p: torch.stack([1759 - p[:, 0], p[:, 1]], -1),
    )
    for flip in flips:
        _, wrong = rig.triangulate([flip(b) for b in beads])
        assert float(wrong.norm(dim=-1).median()) > 5
