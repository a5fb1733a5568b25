import os
import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from dicom_files import CT_CLASS, item, new_dataset, put_pixels, write_xa
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import JPEGLSLossless, generate_uid

from xreg.errors import BackendError, FileError, InputWarning, VolumeError
from xreg.io import load_dicom_ct, load_volume
from xreg.volume import Volume

AXIAL = np.eye(3)
SHAPE = (6, 5, 7)  # slices, rows, columns


def hu_stack(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, SHAPE)


def write_series(folder, hu=None, *, turn=AXIAL, step=2.5, places=None, **tags):
    """Write axial-like slices; turn holds column direction, row direction and normal (LPS) as its columns."""
    hu = hu_stack() if hu is None else hu
    folder.mkdir(exist_ok=True)
    series = tags.pop("SeriesInstanceUID", generate_uid())
    shift = tags.pop("shift", np.zeros(3))
    places = [step * k for k in range(len(hu))] if places is None else places
    order = np.random.default_rng(1).permutation(len(hu))
    for name, k in enumerate(order):
        dataset = new_dataset(CT_CLASS, tags.get("Modality", "CT"))
        put_pixels(dataset, hu[k] + 1024)
        dataset.SeriesInstanceUID = series
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.RescaleType = "HU"
        dataset.PixelSpacing = [0.75, 0.5]
        dataset.ImageOrientationPatient = [*turn[:, 0], *turn[:, 1]]
        position = np.array([10.0, -20.0, 30.0]) + places[k] * turn[:, 2] + k * shift
        dataset.ImagePositionPatient = [round(float(p), 9) for p in position]
        for tag, value in tags.items():
            setattr(dataset, tag, value)
        dataset.save_as(folder / f"{series[-6:]}_{name}.dcm", enforce_file_format=True)
    return series


def assert_like_simpleitk(folder, values, affine):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values.numpy())
    width, height, depth = image.GetSize()
    for index in [(0, 0, 0), (width - 1, 0, 0), (0, height - 1, 0), (0, 0, depth - 1)]:
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose((affine.numpy() @ [*index, 1])[:3], lps * [-1, -1, 1], atol=1e-5)


def test_a_real_series_agrees_with_simpleitk(shared_data):
    folder = shared_data / "totalseg" / "dicom"
    values, affine, notes = load_dicom_ct(folder)
    assert values.dtype == torch.int16
    assert_like_simpleitk(folder, values, affine)
    assert notes["slices"] == 20
    volume = Volume.load(folder)
    assert volume.axis_codes == "LPS"
    torch.testing.assert_close(volume.hu, values.clamp_min(-1000).float(), atol=0.01, rtol=0)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.booleans())
def test_any_orientation_agrees_with_simpleitk(tmp_path_factory, seed, flip):
    folder = tmp_path_factory.mktemp("series")
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0].round(6)
    turn[:, 2] = np.cross(turn[:, 0], turn[:, 1]) * (-1 if flip else 1)
    hu = hu_stack(seed)
    write_series(folder, hu, turn=turn)
    values, affine, _ = load_dicom_ct(folder)
    np.testing.assert_array_equal(values.numpy(), hu[::-1] if flip else hu)
    assert_like_simpleitk(folder, values, affine)


def test_rescaling_slice_by_slice(tmp_path):
    write_series(tmp_path)
    for n, file in enumerate(sorted(tmp_path.iterdir())):
        from pydicom import dcmread

        dataset = dcmread(file)
        stored = dataset.pixel_array.astype(np.float64)
        dataset.RescaleSlope = 0.5 + n / 8
        hu = stored - 1024
        dataset.RescaleIntercept = float(hu[0, 0] - stored[0, 0] * dataset.RescaleSlope)
        dataset.save_as(file)
    values, _, _ = load_dicom_ct(tmp_path)
    assert values.dtype == torch.float32
    np.testing.assert_allclose(values[:, 0, 0].numpy(), hu_stack()[:, 0, 0], atol=1e-3)


def test_other_files_are_skipped_and_counted(tmp_path):
    folder = tmp_path / "a"
    write_series(folder)
    (folder / "notes.txt").write_text("hello")
    (folder / "empty").touch()
    write_xa(folder / "film.dcm")
    scout = tmp_path / "scout"
    write_series(scout, hu_stack()[:1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    shutil.move(next(iter(scout.iterdir())), folder / "scout.dcm")
    (folder / "sub").mkdir()
    shutil.copy(get_testdata_file("MR_small.dcm", download=False), folder / "sub" / "mr")
    values, _, notes = load_dicom_ct(folder)
    assert values.shape == SHAPE
    assert notes["skipped"] == {"not DICOM": 2, "modality XA": 1, "scout": 1, "modality MR": 1}
    assert "modality MR" not in load_dicom_ct(folder, recursive=False)[2]["skipped"]
    assert load_volume(folder).provenance["slices"] == 6


def test_several_series_have_to_be_chosen_from(tmp_path):
    one = write_series(tmp_path, SeriesNumber=3, SeriesDescription="bone")
    two = write_series(tmp_path, hu_stack(7), SeriesNumber=4, SeriesDescription="soft")
    with pytest.raises(FileError, match="2 CT series") as caught:
        load_dicom_ct(tmp_path)
    for part in (one, two, "3 bone", "4 soft", "6 slices"):
        assert part in str(caught.value)
    values, _, notes = load_dicom_ct(tmp_path, series_uid=two)
    np.testing.assert_array_equal(values.numpy(), hu_stack(7))
    assert notes["skipped"] == {"of another series": 6}
    with pytest.raises(FileError, match=r"no CT series 1\.2\.3"):
        load_volume(tmp_path, series_uid="1.2.3")


def test_missing_and_duplicate_slices(tmp_path):
    hu = hu_stack()
    write_series(tmp_path / "gap", hu[:5], places=[0, 2.5, 5, 10, 15])
    with pytest.raises(
        VolumeError, match=r"2 slices are missing, at 37\.50, 42\.50 mm.*30\.00 to 45\.00.*2\.5"
    ):
        load_dicom_ct(tmp_path / "gap")
    write_series(tmp_path / "twice", places=[0, 2.5, 5, 5, 7.5, 10])
    with pytest.raises(
        VolumeError, match=r"1 slice positions occur twice, first 35\.00 mm \(.*dcm and .*dcm"
    ):
        load_dicom_ct(tmp_path / "twice")
    write_series(tmp_path / "uneven", places=[0, 2.5, 5, 7.5, 10.8, 13])
    with pytest.raises(VolumeError, match="not evenly spaced"):
        load_dicom_ct(tmp_path / "uneven")
    write_series(tmp_path / "rounded", places=[0, 2.51, 4.99, 7.5, 10.01, 12.5])
    assert load_dicom_ct(tmp_path / "rounded")[0].shape == SHAPE


def test_gantry_tilt(tmp_path):
    tilt = np.radians(15)
    write_series(tmp_path / "tilt", shift=np.array([0.0, 2.5 * np.tan(tilt), 0]), GantryDetectorTilt=15)
    with pytest.raises(VolumeError, match=r"tilted gantry.*15\.00° off.*says 15"):
        load_dicom_ct(tmp_path / "tilt")
    write_series(tmp_path / "straight", GantryDetectorTilt=15)
    assert load_dicom_ct(tmp_path / "straight")[2]["gantry_tilt"] == 15


def test_slices_that_differ(tmp_path):
    series = write_series(tmp_path, hu_stack()[:3])
    write_series(
        tmp_path, hu_stack()[:2], places=[100, 102.5], SeriesInstanceUID=series, PixelSpacing=[0.75, 0.6]
    )
    with pytest.raises(VolumeError, match="differ in pixel spacing"):
        load_dicom_ct(tmp_path)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"PixelSpacing": [-0.5, 0.5]}, "two positive mm"),
        ({"PixelSpacing": None}, "has no PixelSpacing"),
        ({"ImagePositionPatient": None}, "no place in the patient"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "unit vectors at 90"),
    ],
)
def test_headers_that_place_nothing(tmp_path, tags, message):
    write_series(tmp_path, **tags)
    with pytest.raises(VolumeError, match=message):
        load_dicom_ct(tmp_path)


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileError, match="folder is empty"):
        load_volume(tmp_path)
    with pytest.raises(FileError, match="no such file or folder"):
        load_volume(tmp_path / "gone")
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.txt").write_text("hello")
    with pytest.raises(FileError, match=r"no CT slice among 2 files \(2 not DICOM\)"):
        load_volume(tmp_path)
    with pytest.raises(FileError, match="is no CT image"):
        load_volume(tmp_path / "a.txt")
    write_xa(tmp_path / "c.dcm")
    with pytest.raises(FileError, match="1 modality XA"):
        load_volume(tmp_path)
    write_series(tmp_path / "one", hu_stack()[:1])
    with pytest.raises(VolumeError, match="one slice"):
        load_volume(tmp_path / "one")
    with pytest.raises(VolumeError, match="units"):
        load_volume(tmp_path / "one", units="mu")


def test_compressed_without_a_plugin(tmp_path):
    write_series(tmp_path)
    for file in tmp_path.iterdir():
        from pydicom import dcmread
        from pydicom.encaps import encapsulate

        dataset = dcmread(file)
        dataset.PixelData = encapsulate([b"\xff\xd8\xff\xf7" + b"\0" * 40])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
        dataset.save_as(file)
    with pytest.raises(BackendError, match=r"JPEG-LS Lossless.*pip install pylibjpeg"):
        load_dicom_ct(tmp_path)


def test_truncated_pixels(tmp_path):
    write_series(tmp_path)
    file = sorted(tmp_path.iterdir())[2]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(FileError, match=rf"{file.name}.*truncated"):
        load_dicom_ct(tmp_path)


def test_doubtful_values_are_told(tmp_path):
    write_series(tmp_path / "unit", RescaleType="US")
    with pytest.warns(InputWarning, match="RescaleType is US"):
        load_dicom_ct(tmp_path / "unit")
    write_series(tmp_path / "none", RescaleSlope=None, RescaleIntercept=None)
    with pytest.warns(InputWarning, match="no rescale slope"):
        load_dicom_ct(tmp_path / "none")
    hu = hu_stack()
    hu[:, :2] = 0
    write_series(tmp_path / "padding", hu, PixelPaddingValue=1024)
    with pytest.warns(InputWarning, match=r"CT number 0, not air, in 4\d %"):
        load_dicom_ct(tmp_path / "padding")


def write_enhanced(file, hu, order, series):
    """Some slices of a stack as the frames of one enhanced object."""
    dataset = new_dataset("1.2.840.10008.5.1.4.1.1.2.1", "CT")
    put_pixels(dataset, hu[order] + 1024)
    dataset.SeriesInstanceUID = series
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelMeasuresSequence=[item(PixelSpacing=[0.75, 0.5])],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=[1.0, 2.0, 3.0 + 2.5 * k])]) for k in order
    ]
    dataset.save_as(file, enforce_file_format=True)


@pytest.mark.parametrize("orders", [[[0, 2, 4], [5, 1, 3]], [[k] for k in (2, 0, 5, 1, 4, 3)]])
def test_enhanced_in_several_files(tmp_path, orders):
    hu, series = hu_stack(), generate_uid()
    for number, order in enumerate(orders):
        write_enhanced(tmp_path / f"{number}.dcm", hu, order, series)
    values, affine, notes = load_dicom_ct(tmp_path)
    np.testing.assert_array_equal(values.numpy(), hu)
    torch.testing.assert_close(affine[:3, 3], torch.tensor([-1.0, -2.0, 3.0]).double())
    assert notes["slices"] == 6


def test_a_frame_that_the_pixels_lack(tmp_path):
    write_enhanced(tmp_path / "a.dcm", hu_stack(), [0, 1, 2], generate_uid())
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    put_pixels(dataset, hu_stack()[:2] + 1024)
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(VolumeError, match=r"a\.dcm: the header describes frame 2"):
        load_dicom_ct(tmp_path)


def test_enhanced_multi_frame(tmp_path):
    hu = hu_stack()
    write_enhanced(tmp_path / "a.dcm", hu, [3, 0, 5, 1, 4, 2], generate_uid())
    for path in (tmp_path, tmp_path / "a.dcm"):
        volume = load_volume(path)
        torch.testing.assert_close(volume.hu, torch.from_numpy(hu).float(), atol=0.01, rtol=0)
        assert volume.spacing == pytest.approx((0.5, 0.75, 2.5))
        torch.testing.assert_close(volume.affine[:3, 3], torch.tensor([-1.0, -2.0, 3.0]).double())
    assert os.listdir(tmp_path) == ["a.dcm"]
