import math
import os

import numpy as np
import pydicom
import pytest
import torch
from dicom_files import item, new_dataset, picture, put_pixels, write_xa
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from xreg.errors import BackendError, FileError, GeometryError, ImageError, InputWarning
from xreg.geometry import Camera
from xreg.io import load_radiograph

ENHANCED_XA = "1.2.840.10008.5.1.4.1.1.12.1.1"
NO_SPACING = {"ImagerPixelSpacing": None}


def bundled(name: str) -> str:
    return get_testdata_file(name, download=False)


def test_plain_xa(tmp_path):
    film = load_radiograph(write_xa(tmp_path / "a.dcm"))
    assert film.image.dtype == torch.float32
    np.testing.assert_array_equal(film.image.numpy(), picture())
    assert film.size == (24, 20)
    assert film.spacing == (0.31, 0.29)
    assert (film.sdd, film.sod, film.primary, film.secondary) == (1020.0, 510.0, 30.0, -12.5)
    assert film.mask.all()
    expected = Camera.c_arm(
        sdd=1020, sod=510, primary=30, secondary=-12.5, size=(24, 20), spacing=(0.31, 0.29), mirrored=True
    )
    torch.testing.assert_close(film.camera.projection_matrix, expected.projection_matrix)
    assert film.camera.mirrored
    sources = {
        name: film.provenance[name].source for name in ("spacing", "sdd", "sod", "primary", "mirrored")
    }
    assert sources == {
        "spacing": "header",
        "sdd": "header",
        "sod": "header",
        "primary": "header",
        "mirrored": "default",
    }
    assert film.provenance["sdd"].tag == "(0018,1110)"
    assert "1020" in repr(film)
    assert "\n" not in repr(film)


def test_arguments_win_over_the_header(tmp_path):
    path = write_xa(tmp_path / "a.dcm")
    film = load_radiograph(
        path, sdd=1000, sod=600, spacing=0.5, isocenter=(10, 20, 30), mirrored=False, primary=0
    )
    assert (film.sdd, film.sod, film.spacing, film.primary) == (1000, 600, (0.5, 0.5), 0)
    assert film.provenance["sdd"].source == "argument"
    center = film.camera.project(torch.tensor([[10.0, 20.0, 30.0]]).double())
    torch.testing.assert_close(center, torch.tensor([[9.5, 11.5]]).double())
    assert film.to("cpu").camera.size == film.size
    moved = film.with_geometry(isocenter=torch.tensor([0.0, 0.0, 0.0]), principal_point=(3.0, 4.0))
    pixel = moved.camera.project(torch.zeros(1, 3, dtype=torch.float64))
    torch.testing.assert_close(pixel, torch.tensor([[3.0, 4.0]]).double())
    assert moved.sdd == 1000
    given_camera = Camera.c_arm(sdd=900, sod=500, size=(24, 20), spacing=1.0)
    assert film.with_geometry(camera=given_camera).camera is given_camera
    with pytest.raises(ImageError, match="camera is for images"):
        film.with_geometry(camera=Camera.c_arm(sdd=900, sod=500, size=(4, 4), spacing=1.0))
    for bad in ({"sdd": -1}, {"spacing": (1, 2, 3)}, {"isocenter": (1, 2)}, {"primary": float("nan")}):
        with pytest.raises(ImageError, match=next(iter(bad))):
            film.with_geometry(**bad)
    with pytest.raises(ImageError, match="geometry has no"):
        load_radiograph(path, sid=1000)
    with pytest.raises(GeometryError):
        load_radiograph(path, camera=Camera.c_arm(sdd=900, sod=-500, size=(24, 20), spacing=1.0))


def test_spacing_rules(tmp_path):
    path = tmp_path / "a.dcm"
    with pytest.warns(InputWarning, match="no CalibrationType"):
        film = load_radiograph(write_xa(path, **NO_SPACING, PixelSpacing=[0.2, 0.25]))
    assert film.spacing == (0.2, 0.25)
    assert film.provenance["spacing"].source == "fallback"
    with pytest.warns(InputWarning, match="GEOMETRY"):
        film = load_radiograph(
            write_xa(path, **NO_SPACING, PixelSpacing=[0.2, 0.25], PixelSpacingCalibrationType="GEOMETRY")
        )
    assert film.spacing == pytest.approx((0.4, 0.5))
    assert film.provenance["spacing"].source == "computed"
    film = load_radiograph(write_xa(path, PixelSpacing=[9, 9]))
    assert film.spacing == (0.31, 0.29)
    with pytest.warns(InputWarning, match="NominalScannedPixelSpacing"):
        film = load_radiograph(write_xa(path, **NO_SPACING, NominalScannedPixelSpacing=[0.1, 0.1]))
    assert film.spacing == (0.1, 0.1)
    film = load_radiograph(write_xa(path, **NO_SPACING))
    assert film.spacing is None
    assert film.camera is None
    assert film.with_geometry(spacing=0.3).camera is not None
    with pytest.warns(InputWarning, match="positive mm"):
        film = load_radiograph(write_xa(path, ImagerPixelSpacing=[0.2, -0.2]))
    assert film.spacing is None


@pytest.mark.parametrize("spacing", [[0, 0], 0.3, [0.3, "nan"]])
@pytest.mark.filterwarnings("ignore:Invalid value for VR DS", "ignore:Value .* is not valid")
def test_an_unusable_spacing_is_passed_over(tmp_path, spacing):
    path = write_xa(tmp_path / "a.dcm", ImagerPixelSpacing=spacing)
    with pytest.warns(InputWarning, match=r"ImagerPixelSpacing \(0018,1164\) must be .*ignored"):
        film = load_radiograph(path, spacing=0.3)
    assert film.spacing == (0.3, 0.3)
    assert film.camera is not None
    write_xa(path, ImagerPixelSpacing=spacing, PixelSpacing=[0.2, 0.25])
    with pytest.warns(InputWarning, match="ImagerPixelSpacing"):
        film = load_radiograph(path)
    assert film.spacing == (0.2, 0.25)
    assert "ignored: ImagerPixelSpacing" in film.provenance["spacing"].note


def test_other_unusable_values_are_passed_over(tmp_path):
    path = tmp_path / "a.dcm"
    write_xa(path, PositionerPrimaryAngle=[30.0, 31.0])
    with pytest.warns(InputWarning, match=r"PositionerPrimaryAngle .*ignored"):
        film = load_radiograph(path, primary=12.0)
    assert film.primary == 12.0
    with pytest.warns(InputWarning, match="PositionerPrimaryAngle"):
        film = load_radiograph(path)
    assert film.primary == 0.0
    assert "ignored" in film.provenance["primary"].note
    write_xa(path, DistanceSourceToPatient=[510.0, 520.0])
    with pytest.warns(InputWarning, match="DistanceSourceToPatient"):
        assert load_radiograph(path, sod=500).sod == 500
    write_xa(path, PositionOfIsocenterProjection=[3.0, 4.0], FieldOfViewRotation=45)
    with pytest.warns(InputWarning, match="0, 90, 180 or 270"):
        film = load_radiograph(path)
    assert film.provenance["principal_point"].value is None
    write_xa(path, ShutterShape="CIRCULAR", CenterOfCircularShutter=[12, 10], RadiusOfCircularShutter=[5, 6])
    with pytest.warns(InputWarning, match="RadiusOfCircularShutter"):
        assert load_radiograph(path).mask.all()
    write_xa(path, ShutterShape="CIRCULAR", CenterOfCircularShutter=[99, 99], RadiusOfCircularShutter=5)
    with pytest.raises(ImageError, match="mask=None"):
        load_radiograph(path)
    assert load_radiograph(path, mask=None).mask.all()


def test_distances(tmp_path):
    path = tmp_path / "a.dcm"
    film = load_radiograph(
        write_xa(path, DistanceSourceToPatient=None, EstimatedRadiographicMagnificationFactor=1.5)
    )
    assert film.sod == pytest.approx(680.0)
    assert film.provenance["sod"].source == "computed"
    film = load_radiograph(write_xa(path, DistanceSourceToPatient=None))
    assert film.sod is None
    assert film.camera is None
    with pytest.warns(InputWarning, match="not a distance"):
        film = load_radiograph(write_xa(path, DistanceSourceToDetector=0))
    assert film.sdd is None
    with pytest.warns(InputWarning, match="ignored"):
        film = load_radiograph(write_xa(path, DistanceSourceToPatient=1500))
    assert film.sod is None


def test_frames_and_angle_increments(tmp_path):
    path = tmp_path / "a.dcm"
    frames = picture((3, 24, 20))
    write_xa(
        path,
        frames,
        PositionerMotion="DYNAMIC",
        PositionerPrimaryAngleIncrement=[0.0, 1.5, 3.5],
        PositionerSecondaryAngleIncrement=[0.0, -1.0, -2.0],
    )
    film = load_radiograph(path, frame=2)
    np.testing.assert_array_equal(film.image.numpy(), frames[2])
    assert (film.primary, film.secondary) == (33.5, -14.5)
    assert film.provenance["primary"].tag == "(0018,1510)(0018,1520)"
    np.testing.assert_array_equal(load_radiograph(path, frame=np.int64(1)).image.numpy(), frames[1])
    for bad in (3, -1, 1.0, True):
        with pytest.raises(ImageError, match="frame must be"):
            load_radiograph(path, frame=bad)
    for steps in ([0.0, 1.5], 10.0):
        write_xa(path, frames, PositionerPrimaryAngleIncrement=steps)
        for frame in (0, 2):
            with pytest.warns(InputWarning, match="for 3 frames, and is not used"):
                assert load_radiograph(path, frame=frame).primary == 30.0


def enhanced_xa(path, pixels, *, origin, turn, flip, position, element=0.154):
    """An Enhanced XA of two frames whose geometry lies in functional groups."""
    dataset = new_dataset(ENHANCED_XA, "XA")
    put_pixels(dataset, pixels, 12)
    dataset.DetectorElementSpacing = [element, element]
    dataset.PositionOfIsocenterProjection = list(position)
    shared = item(
        XRayGeometrySequence=[item(DistanceSourceToIsocenter=750.0, DistanceSourceToDetector=1200.0)],
        FieldOfViewSequence=[
            item(FieldOfViewOrigin=list(origin), FieldOfViewRotation=turn, FieldOfViewHorizontalFlip=flip)
        ],
        FramePixelDataPropertiesSequence=[
            item(
                PixelIntensityRelationship="LOG",
                PixelIntensityRelationshipSign=-1,
                ImagerPixelSpacing=[2 * element, 2 * element],
            )
        ],
    )
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(PositionerPositionSequence=[item(PositionerPrimaryAngle=p, PositionerSecondaryAngle=s)])
        for p, s in ((10.0, 1.0), (20.0, 2.0))
    ]
    dataset.save_as(path, enforce_file_format=True)
    return path


@settings(deadline=None, max_examples=24)
@given(st.sampled_from([0, 90, 180, 270]), st.booleans(), st.tuples(st.integers(0, 30), st.integers(0, 30)))
def test_enhanced_xa_isocentre_follows_the_detector(tmp_path_factory, turn, flip, origin):
    """A lit detector element lies in the pixel that the principal point names, whatever was done since."""
    path = tmp_path_factory.mktemp("xa") / "a.dcm"
    height, width = 24, 20  # image pixels of 2×2 elements, before the turn
    element = (origin[0] + 2 * 5, origin[1] + 2 * 13)  # the first element of image pixel (5, 13)
    before = picture((height, width))
    before[5, 13] = 4095
    stored = np.rot90(before, k=-turn // 90)  # clockwise
    stored = stored[:, ::-1] if flip else stored
    position = (element[0] + 0.5, element[1] + 0.5)  # the middle of the 2×2 elements
    enhanced_xa(
        path,
        np.stack([stored, stored]),
        origin=origin,
        turn=turn,
        flip="YES" if flip else "NO",
        position=position,
    )
    film = load_radiograph(path, frame=1)
    u, v = film.provenance["principal_point"].value
    assert film.image[round(v), round(u)] == 4095
    assert (u, v) == pytest.approx((round(u), round(v)))
    pixel = film.camera.project(torch.zeros(1, 3, dtype=torch.float64))
    torch.testing.assert_close(pixel, torch.tensor([[u, v]], dtype=torch.float64))
    assert (film.sdd, film.sod, film.primary, film.secondary) == (1200.0, 750.0, 20.0, 2.0)
    assert (film.relationship, film.sign) == ("log", -1)
    assert film.camera.mirrored is not flip
    assert film.spacing == pytest.approx((0.308, 0.308))


def test_an_unusable_spacing_leaves_the_isocentre_in_the_middle(tmp_path):
    """Elements of .154 mm may be binned, which only the spacing of the pixels tells."""
    path = enhanced_xa(
        tmp_path / "a.dcm",
        np.stack([picture((24, 20))] * 2),
        origin=(0, 0),
        turn=0,
        flip="NO",
        position=(20, 24),
    )
    assert load_radiograph(path, frame=1).provenance["principal_point"].value == pytest.approx((11.75, 9.75))
    dataset = pydicom.dcmread(path)
    frame = dataset.SharedFunctionalGroupsSequence[0].FramePixelDataPropertiesSequence[0]
    frame.ImagerPixelSpacing = [0.0, 0.0]
    dataset.save_as(path)
    with pytest.warns(InputWarning, match="ImagerPixelSpacing"):
        film = load_radiograph(path, frame=1, spacing=0.3)
    assert film.provenance["principal_point"].source == "default"
    assert "says nothing of binning" in film.provenance["principal_point"].note
    middle = film.camera.project(torch.zeros(1, 3, dtype=torch.float64))
    torch.testing.assert_close(middle, torch.tensor([[9.5, 11.5]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("orientation", "primary", "mirrored", "roll"),
    [
        ("L\\F", 0.0, True, 0.0),
        ("R\\F", 0.0, False, 0.0),
        ("R\\H", 0.0, True, 180.0),
        ("L\\H", 0.0, False, 180.0),
        ("LP\\F", 30.0, True, 0.0),
        ("L\\F", 180.0, False, 0.0),
        ("F\\R", 0.0, True, 270.0),
    ],
)
def test_patient_orientation_decides_mirroring(tmp_path, orientation, primary, mirrored, roll):
    path = write_xa(
        tmp_path / "a.dcm",
        PatientOrientation=orientation,
        PositionerPrimaryAngle=primary,
        PositionerSecondaryAngle=0.0,
    )
    film = load_radiograph(path)
    assert film.camera.mirrored is mirrored
    assert film.provenance["roll"].value % 360 == roll
    # the letters hold in the image: a point on that side of the patient lies on that side of the image
    direction = {"L": (-50.0, 0, 0), "R": (50.0, 0, 0), "F": (0, 0, -50.0), "H": (0, 0, 50.0)}
    column, row = (part[0] for part in orientation.split("\\"))
    points = torch.tensor([direction[column], direction[row]], dtype=torch.float64)
    pixels = film.camera.project(points) - film.camera.principal_point
    assert pixels[0, 0] > 20
    assert pixels[1, 1] > 20


def test_mirroring_given_keeps_the_roll_of_the_letters(tmp_path):
    angles = {"PositionerPrimaryAngle": 0.0, "PositionerSecondaryAngle": 0.0}
    path = write_xa(tmp_path / "a.dcm", PatientOrientation="F\\R", **angles)
    stated, given = load_radiograph(path), load_radiograph(path, mirrored=True)
    assert given.provenance["roll"].value % 360 == 270
    assert given.provenance["mirrored"].source == "argument"
    torch.testing.assert_close(given.camera.projection_matrix, stated.camera.projection_matrix)
    assert load_radiograph(path, mirrored=True, roll=5.0).provenance["roll"].value == 5.0
    # flipped left to right since: R is still below, and F is now on the left
    flipped = load_radiograph(path, mirrored=False).camera
    ends = torch.tensor([[0, 0, -50.0], [50.0, 0, 0]], dtype=torch.float64)
    pixels = flipped.project(ends) - flipped.principal_point
    assert pixels[0, 0] < -20
    assert pixels[1, 1] > 20


def test_views_by_name(tmp_path):
    def read(**tags):
        path = tmp_path / "a.dcm"
        absent = {"PositionerPrimaryAngle": None, "PositionerSecondaryAngle": None}
        return load_radiograph(write_xa(path, Modality="DX", **absent, **tags))

    film = read(ViewPosition="AP")
    assert (film.primary, film.secondary) == (180.0, 0.0)
    assert film.provenance["primary"].source == "computed"
    left = film.camera.project(torch.tensor([[-50.0, 0, 0]]).double())[0, 0]
    assert left > 9.5  # the patient's left is on the right, as for a viewer who faces the patient
    film = read(ViewPosition="PA")
    assert film.primary == 0.0
    assert film.camera.project(torch.tensor([[-50.0, 0, 0]]).double())[0, 0] > 9.5
    assert read().provenance["primary"].source == "default"


def test_intensity(tmp_path):
    path = tmp_path / "a.dcm"
    film = load_radiograph(
        write_xa(path, PixelIntensityRelationshipSign=-1, PhotometricInterpretation="MONOCHROME1")
    )
    assert (film.relationship, film.sign, film.full_scale) == ("linear", -1, 4095.0)
    np.testing.assert_array_equal(film.image.numpy(), picture())
    beam = 4095.0 - picture()
    order = np.argsort(film.line_integrals.numpy().ravel())
    assert (np.diff(beam.ravel()[order]) <= 0).all()
    with pytest.warns(InputWarning, match="DISP"):
        assert load_radiograph(write_xa(path, PixelIntensityRelationship="DISP")).relationship == "linear"
    with pytest.warns(InputWarning, match="sign=-1"):
        load_radiograph(write_xa(path, Modality="CR", PixelIntensityRelationshipSign=None))
    film = load_radiograph(write_xa(path), intensity="line_integral", sign=-1)
    torch.testing.assert_close(film.line_integrals, -film.image)
    assert film.provenance["sign"].source == "argument"
    with pytest.raises(ImageError, match="intensity must be"):
        load_radiograph(path, intensity="LIN")
    with pytest.raises(ImageError, match="sign must be"):
        load_radiograph(path, sign=0)


def test_shutters_and_padding(tmp_path):
    path = tmp_path / "a.dcm"
    edges = {
        "LeftVerticalEdge": 3,
        "RightVerticalEdge": 15,
        "UpperHorizontalEdge": 2,
        "LowerHorizontalEdge": 20,
    }
    film = load_radiograph(
        write_xa(path, ShutterShape="RECTANGULAR", **{f"Shutter{k}": v for k, v in edges.items()})
    )
    expected = torch.zeros(24, 20, dtype=torch.bool)
    expected[2:19, 3:14] = True
    assert (film.mask == expected).all()
    film = load_radiograph(
        write_xa(
            path,
            CollimatorShape="CIRCULAR",
            CenterOfCircularCollimator=[12, 10],
            RadiusOfCircularCollimator=5,
        )
    )
    assert film.mask[11, 9]
    assert int(film.mask.sum()) == 81
    film = load_radiograph(
        write_xa(path, ShutterShape="POLYGONAL", VerticesOfThePolygonalShutter=[1, 1, 1, 20, 24, 1])
    )
    assert film.mask[5, 3]
    assert not film.mask[20, 15]
    pixels = picture()
    pixels[:4] = 0
    film = load_radiograph(write_xa(path, pixels, PixelPaddingValue=0))
    assert int((~film.mask).sum()) == 80
    assert load_radiograph(path, mask=None).mask.all()
    keep = torch.zeros(24, 20, dtype=torch.bool)
    keep[3:5] = True
    assert (load_radiograph(path, mask=keep).mask == keep).all()
    with pytest.raises(ImageError, match="mask must be"):
        load_radiograph(path, mask=keep[:5])
    with pytest.raises(ImageError, match="no valid pixel"):
        load_radiograph(path, mask=torch.zeros(24, 20, dtype=torch.bool))


def test_files_that_pydicom_ships():
    with pytest.raises(ImageError, match="load_volume"):
        load_radiograph(bundled("CT_small.dcm"))
    with pytest.raises(ImageError, match="MR has no"):
        load_radiograph(bundled("MR_small.dcm"))
    with pytest.raises(ImageError, match="RTDOSE"):
        load_radiograph(bundled("rtdose.dcm"))
    with pytest.raises(ImageError, match="SR"):
        load_radiograph(bundled("test-SR.dcm"))
    with pytest.raises(ImageError, match="colour image"):
        load_radiograph(bundled("SC_rgb_rle.dcm"))
    with pytest.warns(InputWarning, match="modality CR"):
        film = load_radiograph(bundled("dicomdirtests/77654033/CR1/6154"))
    assert film.size == (16, 16)
    assert film.full_scale == 4095
    with pytest.raises(BackendError, match=r"JPEG Lossless.*pip install"):
        load_radiograph(bundled("SC_rgb_jpeg_gdcm.dcm"))


def test_bad_files(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        load_radiograph(tmp_path / "gone.dcm")
    with pytest.raises(FileError, match="is a folder"):
        load_radiograph(tmp_path)
    text = tmp_path / "notes.dcm"
    text.write_text("this is no image" * 40)
    with pytest.raises(FileError, match="not a DICOM"):
        load_radiograph(text)
    with pytest.raises(ImageError, match="not an image"):
        load_radiograph(text.rename(tmp_path / "notes.txt"))
    good = write_xa(tmp_path / "a.dcm")
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(good.read_bytes()[:-200])
    with pytest.raises(FileError, match="truncated"):
        load_radiograph(cut)
    with pytest.raises(ImageError, match="constant"):
        load_radiograph(write_xa(tmp_path / "b.dcm", np.full((24, 20), 7)))
    assert math.isfinite(float(load_radiograph(good).line_integrals.max()))
    assert "notes.txt" in os.listdir(tmp_path)
