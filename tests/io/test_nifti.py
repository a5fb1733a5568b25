import gzip
import itertools
import os
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.errors import FileError, InputWarning, VolumeError
from xreg.io import load_labels, load_volume, read_nifti, save_volume, write_nifti
from xreg.volume import Volume

quick = settings(deadline=None, max_examples=20)


def hu_block(shape=(6, 5, 4), seed=0) -> np.ndarray:
    """CT numbers [i, j, k] with air and bone in them."""
    hu = np.random.default_rng(seed).integers(-1000, 1500, size=shape).astype(np.int16)
    hu[0, 0, 0], hu[-1, -1, -1] = -1024, 2000
    return hu


def save(path, array, affine=None, **header):
    image = nib.Nifti1Image(array, np.diag([1.0, 2, 3, 1]) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patch(path, offset, data):
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(data)] = data
    path.write_bytes(bytes(raw))


def marked_world(volume: Volume) -> np.ndarray:
    k, j, i = np.argwhere(volume.mu.numpy() == float(volume.mu.max()))[0]
    return (volume.affine.numpy() @ [i, j, k, 1])[:3]


def test_a_marked_voxel_stays_put_in_all_48_orientations(tmp_path):
    base = hu_block()
    base[4, 1, 2] = 3000
    affine = np.array([[0.9, 0.1, 0, -20], [-0.1, 1.2, 0.2, 7], [0, -0.3, 2.5, 90], [0, 0, 0, 1]])
    expected = (affine @ [4, 1, 2, 1])[:3]
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            ornt = np.array([[axis, -1 if flip else 1] for axis, flip in zip(order, flips, strict=True)])
            array = nib.orientations.apply_orientation(base, ornt)
            turned = affine @ nib.orientations.inv_ornt_aff(ornt, base.shape)
            volume = load_volume(save(tmp_path / "a.nii", array, turned))
            np.testing.assert_allclose(marked_world(volume), expected, atol=1e-4)
            np.testing.assert_allclose(marked_world(volume.reoriented()), expected, atol=1e-4)
            np.testing.assert_allclose(volume.hu.numpy().transpose(2, 1, 0), array.clip(-1000), atol=0.01)


@quick
@given(
    st.integers(0, 10_000),
    st.tuples(*[st.floats(0.2, 5.0)] * 3),
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.booleans(),
    st.sampled_from(["mu", "hu"]),
)
def test_saved_files_mean_the_same_to_nibabel_and_simpleitk(
    tmp_path_factory, seed, spacing, origin, flip, units
):
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 0] *= -1 if flip else 1
    affine[:3, 3] = origin
    hu = torch.from_numpy(hu_block(seed=seed).transpose(2, 1, 0).copy())
    volume = Volume.from_hu(hu, torch.from_numpy(affine), energy_kev=60)
    path = tmp_path_factory.mktemp("nifti") / "a.nii.gz"
    save_volume(path, volume, units=units)
    stored = volume.mu.numpy() if units == "mu" else hu.numpy().clip(-1000)

    seen = nib.load(path)
    np.testing.assert_allclose(seen.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(seen.dataobj).transpose(2, 1, 0), stored)

    itk = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk), stored)
    for index in [(0, 0, 0), (5, 0, 0), (0, 4, 0), (0, 0, 3), (5, 4, 3)]:
        lps = np.array(itk.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(lps * [-1, -1, 1], (affine @ [*index, 1])[:3], atol=1e-3)

    back = load_volume(path, units=units, energy_kev=60)
    torch.testing.assert_close(back.mu, volume.mu, atol=1e-6, rtol=0)
    torch.testing.assert_close(back.affine, volume.affine, atol=1e-4, rtol=0)


def test_slope_and_intercept(tmp_path):
    raw = (hu_block().astype(np.int32) + 1024).astype(np.uint16)
    path = save(tmp_path / "a.nii", raw)
    patch(path, 112, struct.pack("<2f", 1.0, -1024.0))
    np.testing.assert_allclose(read_nifti(path).values.transpose(2, 1, 0), raw - 1024.0)
    patch(path, 112, struct.pack("<2f", 0.5, 3.0))
    np.testing.assert_allclose(read_nifti(path).values.transpose(2, 1, 0), raw * 0.5 + 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64, ">i2", ">f4"])
def test_dtypes(tmp_path, dtype):
    array = hu_block().clip(0, 200).astype(dtype)
    values = read_nifti(save(tmp_path / "a.nii.gz", array)).values
    assert values.dtype.isnative
    np.testing.assert_array_equal(values.transpose(2, 1, 0), array)
    assert values.flags.c_contiguous


def test_nifti2(tmp_path):
    nib.save(nib.Nifti2Image(hu_block(), np.eye(4)), tmp_path / "a.nii")
    assert load_volume(tmp_path / "a.nii").size == (6, 5, 4)


def test_trailing_dimensions(tmp_path):
    assert load_volume(save(tmp_path / "a.nii", hu_block()[..., None])).size == (6, 5, 4)
    assert load_volume(save(tmp_path / "a.nii", hu_block()[..., None, None])).size == (6, 5, 4)
    for shape in ((6, 5, 4, 2), (6, 5)):
        path = save(tmp_path / "b.nii", np.zeros(shape, np.int16))
        with pytest.raises(VolumeError, match="wrong dimension"):
            load_volume(path)


def test_truncated_and_damaged_files(tmp_path):
    good = save(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(30, 30, 30)).astype(np.float32))
    data = good.read_bytes()
    bad = tmp_path / "b.nii.gz"
    for keep in (5, 100, len(data) // 2, len(data) - 3):
        bad.write_bytes(data[:keep])
        with pytest.raises(FileError, match="truncated"):
            load_volume(bad)
    broken = bytearray(data)
    broken[5000] ^= 0xFF
    bad.write_bytes(bytes(broken))
    with pytest.raises(FileError, match="damaged"):
        load_volume(bad)
    plain = gzip.decompress(data)
    for keep in (100, 347, 360, len(plain) // 2):
        bad.write_bytes(plain[:keep])
        with pytest.raises(FileError, match="truncated"):
            load_volume(bad)
    bad.write_bytes(b"not an image at all " * 50)
    with pytest.raises(FileError, match="expected a NIfTI file"):
        load_volume(bad)
    bad.write_bytes(b"")
    with pytest.raises(FileError, match="0 bytes"):
        load_volume(bad)
    with pytest.raises(FileError, match="no such file"):
        load_volume(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_bad_spacing(tmp_path, size):
    path = save(tmp_path / "a.nii", hu_block())
    patch(path, 80, struct.pack("<f", size))
    with pytest.raises(VolumeError, match="must be positive mm"):
        load_volume(path)


def test_bad_affines(tmp_path):
    path = save(tmp_path / "a.nii", hu_block())
    patch(path, 280, struct.pack("<4f", 0, 0, 0, 0))
    with pytest.raises(VolumeError, match="singular"):
        load_volume(path)
    patch(path, 280, struct.pack("<4f", float("nan"), 0, 0, 0))
    with pytest.raises(VolumeError, match="finite"):
        load_volume(path)


def test_the_source_of_the_affine_is_stated(tmp_path):
    path = save(tmp_path / "a.nii", hu_block(), np.diag([-1.0, 2, 3, 1]))
    assert load_volume(path).provenance["affine_from"] == "sform"
    image = nib.load(path)
    image.set_sform(None, 0)
    image.set_qform(np.diag([1.0, -2, 3, 1]), 1)
    nib.save(image, tmp_path / "q.nii")
    volume = load_volume(tmp_path / "q.nii")
    assert volume.provenance["affine_from"] == "qform"
    assert volume.axis_codes == "RPS"
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "p.nii")
    with pytest.warns(InputWarning, match="neither sform nor qform"):
        volume = load_volume(tmp_path / "p.nii")
    assert volume.provenance["affine_from"] == "pixdim"
    assert volume.axis_codes == "LAS"
    torch.testing.assert_close(volume.center, torch.zeros(3, dtype=torch.float64))


def test_spacing_that_disagrees_is_told(tmp_path):
    path = save(tmp_path / "a.nii", hu_block())
    patch(path, 80, struct.pack("<f", 1.5))
    with pytest.warns(InputWarning, match="pixdim says"):
        assert load_volume(path).spacing == pytest.approx((1, 2, 3))


def test_length_units(tmp_path):
    image = nib.Nifti1Image(hu_block(), np.diag([1e-3, 2e-3, 3e-3, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert load_volume(tmp_path / "a.nii").spacing == pytest.approx((1, 2, 3))


def test_nan_and_air(tmp_path):
    array = hu_block().astype(np.float32)
    array[1, 1, 1] = np.nan
    with pytest.raises(VolumeError, match="1 NaN"):
        load_volume(save(tmp_path / "a.nii", array))
    with pytest.raises(VolumeError, match="all-air"):
        load_volume(save(tmp_path / "a.nii", np.full((3, 3, 3), -1000, np.int16)))
    with pytest.raises(VolumeError, match="colour"):
        load_volume(save(tmp_path / "a.nii", np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])))


def test_units(tmp_path):
    picture = save(tmp_path / "p.nii", hu_block().clip(0, 230).astype(np.uint8))
    with pytest.raises(VolumeError, match="8-bit export"):
        load_volume(picture)
    with pytest.raises(VolumeError, match="say units="):
        load_volume(picture, units="auto")
    volume = load_volume(picture, rescale=(15.0, -1000.0))
    assert float(volume.hu.max()) == pytest.approx(230 * 15 - 1000, abs=0.1)
    assert volume.provenance["rescale"] == (15.0, -1000.0)

    attenuation = save(tmp_path / "m.nii", np.linspace(0, 0.06, 27, dtype=np.float32).reshape(3, 3, 3))
    with pytest.raises(VolumeError, match="attenuation in 1/mm"):
        load_volume(attenuation)
    for units in ("mu", "auto"):
        volume = load_volume(attenuation, units=units, energy_kev=60)
        assert float(volume.mu.max()) == pytest.approx(0.06)
        assert volume.energy_kev == 60
        assert volume.provenance["units"] == "mu"

    shifted = save(tmp_path / "s.nii", (hu_block().astype(np.int32) + 1024).astype(np.int16))
    with pytest.warns(InputWarning, match="offset by 1000 or 1024"):
        load_volume(shifted)
    ct = save(tmp_path / "c.nii", hu_block())
    assert load_volume(ct, units="auto").provenance["units"] == "hu"
    with pytest.raises(VolumeError, match="cannot be attenuation"):
        load_volume(ct, units="mu")
    with pytest.raises(VolumeError, match="units must be"):
        load_volume(ct, units="HU")
    with pytest.raises(VolumeError, match="rescale"):
        load_volume(ct, rescale=(0.0, 1.0))
    with pytest.raises(VolumeError, match="dtype"):
        load_volume(ct, dtype=torch.float16)


def test_a_nifti_has_no_series(tmp_path):
    with pytest.raises(VolumeError, match="has no series; series_uid is for DICOM"):
        load_volume(save(tmp_path / "ct.nii", hu_block()), series_uid="1.2.3")


def test_what_looks_like_another_unit_is_warned_of(tmp_path):
    water = np.full((3, 3, 3), 0.2, dtype=np.float32)
    with pytest.warns(InputWarning, match="100 % of the voxels .* look like 1/cm"):
        load_volume(save(tmp_path / "cm.nii", water), units="mu")
    load_volume(save(tmp_path / "mm.nii", water / 10), units="mu")
    with pytest.raises(VolumeError, match="or 1/cm, to be divided by 10"):
        load_volume(save(tmp_path / "cm.nii", water))
    with pytest.warns(InputWarning, match="0.6×0.5×0.4 mm large; its affine"):
        load_volume(save(tmp_path / "m.nii", hu_block(), np.diag([0.1, 0.1, 0.1, 1.0])))


def test_labels_and_names(tmp_path):
    ct = save(tmp_path / "ct.nii", hu_block())
    array = (np.arange(120).reshape(6, 5, 4) % 4).astype(np.uint8)
    mask = save(tmp_path / "mask.nii", array)
    csv = tmp_path / "structures.csv"
    csv.write_text("group,original_idx,structure,id\norgans,1,spleen,1\nbones,25,sacrum,2\n")
    volume = load_volume(ct, mask=mask, label_names=csv)
    assert volume.label_names == {1: "spleen", 2: "sacrum"}
    np.testing.assert_array_equal(volume.labels.numpy().transpose(2, 1, 0), array)
    assert volume.labels.dtype == torch.uint8

    (tmp_path / "n.json").write_text('{"labels": {"background": 0, "hip": 3}}')
    assert load_labels(mask, names=tmp_path / "n.json").names == {0: "background", 3: "hip"}
    (tmp_path / "n.json").write_text('{"1": "hip"}')
    assert load_labels(mask, names=tmp_path / "n.json").names == {1: "hip"}
    (tmp_path / "n.csv").write_text("1,hip\n2,knee\n")
    assert load_labels(mask, names=tmp_path / "n.csv").names == {1: "hip", 2: "knee"}
    assert load_labels(mask, names={"4": "toe"}).names == {4: "toe"}

    for text, message in [
        ("a,b\nc,d\n", "expected a column"),
        ("id,name\n1\n", "too few"),
        ("id,name\nx,y\n", "whole"),
    ]:
        (tmp_path / "n.csv").write_text(text)
        with pytest.raises(FileError, match=message):
            load_labels(mask, names=tmp_path / "n.csv")
    (tmp_path / "n.json").write_text("[1]")
    with pytest.raises(FileError, match="expected an object"):
        load_labels(mask, names=tmp_path / "n.json")


def test_labels_that_are_none(tmp_path):
    fractional = save(tmp_path / "a.nii", np.full((3, 3, 3), 0.5, np.float32))
    with pytest.raises(VolumeError, match="whole numbers"):
        load_labels(fractional)
    negative = save(tmp_path / "a.nii", np.full((3, 3, 3), -1, np.int16))
    with pytest.raises(VolumeError, match="between 0"):
        load_labels(negative)
    whole = save(tmp_path / "a.nii", np.full((3, 3, 3), 300.0, np.float32))
    assert load_labels(whole).labels.dtype == torch.int32


def test_a_mask_of_another_grid_names_both(tmp_path):
    ct = save(tmp_path / "ct.nii", hu_block())
    for array, affine in [
        (np.ones((6, 5, 3), np.uint8), np.diag([1.0, 2, 3, 1])),
        (np.ones((6, 5, 4), np.uint8), np.diag([-1.0, 2, 3, 1])),
        (np.ones((6, 5, 4), np.uint8), np.diag([1.02, 2, 3, 1])),
    ]:
        with pytest.raises(VolumeError, match=r"mask.nii.*not on the grid.*ct.nii.*6×5×4.*affine"):
            load_volume(ct, mask=save(tmp_path / "mask.nii", array, affine))
    near = np.diag([1.0 + 1e-6, 2, 3, 1])
    assert (
        load_volume(ct, mask=save(tmp_path / "m.nii", np.ones((6, 5, 4), np.uint8), near)).labels is not None
    )


def test_saved_labels_keep_their_names(tmp_path):
    hu = torch.from_numpy(hu_block().transpose(2, 1, 0).copy())
    labels = torch.arange(120).reshape(4, 5, 6)
    names = {7: "femur & <tibia>", 119: "Wirbelsäule"}
    volume = Volume.from_hu(hu, torch.eye(4), labels=labels, label_names=names)
    volume.save(tmp_path / "ct.nii.gz", units="hu", labels=tmp_path / "mask.nii.gz")
    back = Volume.load(tmp_path / "ct.nii.gz", mask=tmp_path / "mask.nii.gz")
    assert back.label_names == names
    assert (back.labels == labels).all()
    assert sitk.ReadImage(str(tmp_path / "mask.nii.gz")).GetSize() == (6, 5, 4)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "bool", "float16", "complex64"])
def test_values_that_nifti_does_not_hold_are_named(tmp_path, dtype):
    with pytest.raises(VolumeError, match=rf"a\.nii: values must be .*int32, float32, float64, got {dtype}"):
        write_nifti(tmp_path / "a.nii", np.ones((2, 3, 4), dtype), torch.eye(4))
    with pytest.raises(VolumeError, match=r"of shape \(3, 4\)"):
        write_nifti(tmp_path / "a.nii", np.ones((3, 4), np.float32), torch.eye(4))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "int8", ">i2", "uint16", "int32", "uint32", ">f4", "float64"])
def test_values_are_written_as_they_are(tmp_path, dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)[::-1]
    write_nifti(tmp_path / "a.nii", values, torch.eye(4))
    found = read_nifti(tmp_path / "a.nii").values
    np.testing.assert_array_equal(found, values)
    assert np.asarray(found).dtype == values.dtype.newbyteorder("=")


def test_nothing_is_written_on_failure(tmp_path):
    volume = Volume.from_hu(torch.from_numpy(hu_block()), torch.eye(4))
    with pytest.raises(FileError, match="must end in"):
        volume.save(tmp_path / "a.nrrd")
    with pytest.raises(VolumeError, match="units"):
        volume.save(tmp_path / "a.nii", units="cm")
    with pytest.raises(VolumeError, match="no labels"):
        volume.save(tmp_path / "a.nii", labels=tmp_path / "b.nii")
    with pytest.raises(FileError, match="does not exist"):
        volume.save(tmp_path / "no" / "a.nii")
    with pytest.raises(VolumeError, match="singular"):
        write_nifti(tmp_path / "a.nii", np.zeros((2, 2, 2)), torch.diag(torch.tensor([0.0, 1, 1, 1])))
    assert os.listdir(tmp_path) == []


def test_a_sheared_affine_survives(tmp_path):
    affine = torch.eye(4, dtype=torch.float64)
    affine[1, 2] = 0.4
    write_nifti(tmp_path / "a.nii", hu_block(), affine)
    torch.testing.assert_close(load_volume(tmp_path / "a.nii").affine, affine, atol=1e-6, rtol=0)


def test_totalsegmentator_files(shared_data):
    folder = shared_data / "totalseg"
    volume = Volume.load(folder / "ct.nii.gz", mask=folder / "label.nii.gz")
    assert volume.size == (122, 101, 112)
    assert volume.axis_codes == "RAS"
    assert (volume.label_names[25], volume.label_names[77]) == ("sacrum", "hip_left")
    left, right = (volume.crop(labels=name).center for name in ("hip_left", "hip_right"))
    assert left[0] < right[0]  # RAS: x grows to the patient's right


def test_an_8_bit_export_is_refused(shared_data):
    with pytest.raises(VolumeError, match="8-bit export"):
        Volume.load(shared_data / "swinx2s" / "0532" / "ct.nii.gz")
    assert Volume.load(shared_data / "swinx2s" / "verse083" / "ct.nii.gz").axis_codes == "LPS"
