import os

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xreg.errors import FileError, ImageError
from xreg.io import field_mask, linearise, load_radiograph, read_image, save_image, save_png16


def picture(shape=(12, 16), top=60000, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, top, size=shape)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("a.png", np.uint8),
        ("a.png", np.uint16),
        ("a.tif", np.uint8),
        ("a.tif", np.uint16),
        ("a.tif", np.float32),
    ],
)
def test_grey_files(tmp_path, name, dtype):
    pixels = (picture() % 255 if dtype == np.uint8 else picture()).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / name)
    film = load_radiograph(tmp_path / name)
    np.testing.assert_array_equal(film.image.numpy(), pixels)
    assert film.full_scale == (None if dtype == np.float32 else np.iinfo(dtype).max)
    assert (film.spacing, film.camera) == (None, None)
    camera = load_radiograph(tmp_path / name, sdd=1000, sod=700, spacing=(0.2, 0.3)).camera
    assert not camera.mirrored


def test_stacks(tmp_path):
    pages = picture((4, 12, 16)).astype(np.uint16)
    first, *others = [Image.fromarray(page) for page in pages]
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    np.save(tmp_path / "a.npy", pages)
    for name in ("a.tif", "a.npy"):
        np.testing.assert_array_equal(load_radiograph(tmp_path / name, frame=2).image.numpy(), pages[2])
        assert read_image(tmp_path / name).frames == 4
        with pytest.raises(ImageError, match="from 0 to 3"):
            load_radiograph(tmp_path / name, frame=4)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint32", ">i4"])
def test_sign_of_wide_integers_counts_from_the_brightest_pixel(tmp_path, dtype):
    pixels = picture(top=4000)
    np.save(tmp_path / "wide.npy", pixels.astype(dtype))
    np.save(tmp_path / "float.npy", pixels.astype(np.float64))
    wide, real = (load_radiograph(tmp_path / name, sign=-1) for name in ("wide.npy", "float.npy"))
    assert wide.full_scale is None
    torch.testing.assert_close(wide.line_integrals, real.line_integrals)
    assert float(wide.line_integrals.std()) > 0.5


def test_arrays_with_channels(tmp_path):
    grey = picture().astype(np.uint16)
    for channels in (1, 3):
        np.save(tmp_path / "a.npy", np.stack([grey] * channels, -1))
        np.testing.assert_array_equal(load_radiograph(tmp_path / "a.npy").image.numpy(), grey)
        assert read_image(tmp_path / "a.npy").frames == 1
    np.save(tmp_path / "a.npy", np.stack([grey, grey, grey + 1], -1))
    with pytest.raises(ImageError, match="colour image"):
        load_radiograph(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.ones((3, 12, 3)))
    with pytest.raises(ImageError, match=r"a\.npy: shape \(3, 12, 3\) may be frames"):
        load_radiograph(tmp_path / "a.npy")


def test_masks_as_arrays(tmp_path):
    Image.fromarray(picture().astype(np.uint16)).save(tmp_path / "a.png")
    keep = picture(seed=1) > 30000
    np.save(tmp_path / "bool.npy", keep)
    np.save(tmp_path / "bytes.npy", keep.astype(np.uint8) * 255)
    masks = [tmp_path / "bool.npy", tmp_path / "bytes.npy", keep, keep[:, ::-1].copy()[:, ::-1]]
    masks += [keep.astype(np.uint8) * 255, keep.astype(">i2"), torch.from_numpy(keep.astype(np.int64))]
    for mask in masks:
        np.testing.assert_array_equal(load_radiograph(tmp_path / "a.png", mask=mask).mask.numpy(), keep)
    with pytest.raises(ImageError, match="mask must be a bool tensor"):
        load_radiograph(tmp_path / "a.png", mask=keep.astype(np.float32))


def test_npy_in_capitals(tmp_path):
    save_image(tmp_path / "A.NPY", picture().astype(np.float32))
    np.testing.assert_array_equal(np.load(tmp_path / "A.NPY"), picture())
    assert os.listdir(tmp_path) == ["A.NPY"]


def test_nifti(tmp_path):
    pixels = picture((12, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(pixels.T, np.diag([0.2, 0.3, 1, 1])), tmp_path / "a.nii.gz")
    film = load_radiograph(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(film.image.numpy(), pixels)
    assert film.spacing == pytest.approx((0.3, 0.2))
    assert film.provenance["spacing"].source == "fallback"
    nib.save(nib.Nifti1Image(np.stack([pixels.T, pixels.T + 1], -1), np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(load_radiograph(tmp_path / "a.nii", frame=1).image.numpy(), pixels + 1)


def test_colour_is_taken_only_where_it_is_grey(tmp_path):
    path = tmp_path / "a.png"
    pixels = (picture() % 255).astype(np.uint8)
    Image.fromarray(np.stack([pixels] * 3, -1)).save(path)
    np.testing.assert_array_equal(load_radiograph(path).image.numpy(), pixels)
    Image.fromarray(np.stack([pixels] * 3 + [np.full_like(pixels, 255)], -1)).save(path)
    np.testing.assert_array_equal(load_radiograph(path).image.numpy(), pixels)
    Image.fromarray(pixels).convert("P").save(path)
    np.testing.assert_array_equal(load_radiograph(path).image.numpy(), pixels)
    Image.fromarray(np.stack([pixels, pixels, pixels[::-1]], -1)).save(path)
    with pytest.raises(ImageError, match="channels differ"):
        load_radiograph(path)
    Image.fromarray(np.stack([pixels] * 4, -1)).save(path)
    with pytest.raises(ImageError, match="transparency"):
        load_radiograph(path)
    Image.fromarray(np.stack([pixels] * 4, -1), mode=None).convert("CMYK").save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="CMYK"):
        load_radiograph(tmp_path / "a.tif")


def test_16_bit_colour_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    raw = bytearray(path.read_bytes())
    raw[24] = 16
    path.write_bytes(bytes(raw))
    with pytest.raises(ImageError, match="16-bit PNG"):
        load_radiograph(path)


def test_bad_images(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"not an image" * 100)
    with pytest.raises(ImageError, match="not an image"):
        load_radiograph(path)
    Image.fromarray(picture((200, 300)).astype(np.uint16)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FileError, match="truncated"):
        load_radiograph(path)
    path.write_bytes(b"")
    with pytest.raises(FileError, match="0 bytes"):
        load_radiograph(path)
    flat = tmp_path / "flat.npy"
    np.save(flat, np.full((5, 5), 3.0))
    with pytest.raises(ImageError, match="constant"):
        load_radiograph(flat)
    hole = np.ones((5, 5))
    hole[1, 1], hole[2, 2] = np.nan, 3
    np.save(flat, hole)
    with pytest.raises(ImageError, match="1 NaN"):
        load_radiograph(flat)
    np.save(flat, np.ones((2, 3, 4, 5)))
    with pytest.raises(ImageError, match="wrong dimension"):
        load_radiograph(flat)
    np.save(flat, np.ones((3, 3), complex))
    with pytest.raises(ImageError, match="real numbers"):
        load_radiograph(flat)
    np.save(flat, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FileError, match="objects"):
        load_radiograph(flat)
    np.save(flat, np.ones((30, 30)))
    flat.write_bytes(flat.read_bytes()[:500])
    with pytest.raises(FileError, match="truncated"):
        load_radiograph(flat)


def test_saved_images(tmp_path):
    image = torch.rand(9, 7, generator=torch.Generator().manual_seed(0)) * 5 - 1
    save_png16(tmp_path / "a.png", image, window=(-1, 4))
    back = read_image(tmp_path / "a.png").pixels.astype(np.float64) / 65535 * 5 - 1
    np.testing.assert_allclose(back, image, atol=5 / 65535)
    save_image(tmp_path / "b.png", image)
    stored = read_image(tmp_path / "b.png").pixels
    assert (stored.min(), stored.max()) == (0, 65535)
    for name in ("a.tif", "a.npy"):
        save_image(tmp_path / name, image)
        np.testing.assert_array_equal(read_image(tmp_path / name).pixels, image)
    save_image(tmp_path / "c.png", torch.ones(3, 3))
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "a.png", "a.tif", "b.png", "c.png"]


def test_nothing_is_written_on_failure(tmp_path):
    for image, options, error, message in [
        (torch.full((3, 3), float("nan")), {}, ImageError, "finite"),
        (torch.ones(3), {}, ImageError, r"\[H, W\]"),
        (torch.ones(3, 3), {"window": (2, 1)}, ImageError, "low < high"),
    ]:
        with pytest.raises(error, match=message):
            save_image(tmp_path / "a.png", image, **options)
    with pytest.raises(FileError, match="ends in"):
        save_image(tmp_path / "a.gif", torch.ones(3, 3))
    with pytest.raises(FileError, match="ends in"):
        save_png16(tmp_path / "a.tif", torch.ones(3, 3))
    with pytest.raises(ImageError, match="window is for PNG"):
        save_image(tmp_path / "a.tif", torch.ones(3, 3), window=(0, 1))
    assert os.listdir(tmp_path) == []


@settings(deadline=None, max_examples=20)
@given(st.floats(10, 1e5), st.integers(0, 100))
def test_beer_lambert(i0, seed):
    p = 6 * torch.rand(20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    beam = i0 * torch.exp(-p)
    torch.testing.assert_close(linearise(beam, i0=i0), p)
    torch.testing.assert_close(linearise(1.2 * i0 - beam, sign=-1, i0=i0, full_scale=1.2 * i0), p)
    torch.testing.assert_close(linearise(800 - 100 * p, "log", i0=800, log_gain=100.0), p)
    torch.testing.assert_close(linearise(20 + 100 * p, "log", -1, i0=20, log_gain=100.0), p)
    torch.testing.assert_close(linearise(p, "line_integral"), p)


def test_automatic_i0_sees_air_and_not_the_speck():
    beam = torch.full((100, 100), 1000.0)
    beam[:50] = 300.0
    beam[99, :5] = 9000.0
    p = linearise(beam)
    assert float(p[60, 60]) == 0.0
    assert float(p[0, 0]) == pytest.approx(np.log(10 / 3))
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[:50] = True
    assert float(linearise(beam, mask=mask)[0, 0]) == 0.0


def test_floor_and_gradient():
    beam = torch.tensor([[0.0, -3.0, 1.0, 1000.0]], dtype=torch.float64, requires_grad=True)
    p = linearise(beam, i0=1000.0, floor=1e-2)
    assert p.flatten().tolist() == pytest.approx([np.log(100)] * 3 + [0.0])
    p.sum().backward()
    assert beam.grad.flatten().tolist() == pytest.approx([0, 0, 0, -1e-3])


def test_linearise_refusals():
    image = torch.rand(4, 4) + 1
    for options, message in [
        ({"relationship": "LIN"}, "relationship"),
        ({"sign": 2}, "sign"),
        ({"floor": 0.0}, "floor"),
        ({"log_gain": -1.0}, "log_gain"),
        ({"i0": 0.0}, "positive"),
        ({"i0": "max"}, "auto"),
        ({"mask": torch.zeros(4, 4, dtype=torch.bool)}, "no valid pixel"),
    ]:
        with pytest.raises(ImageError, match=message):
            linearise(image, **options)
    with pytest.raises(ImageError, match="floating"):
        linearise(torch.ones(3, 3, dtype=torch.int32))


def test_field_of_an_intensifier():
    y, x = torch.meshgrid(torch.arange(80.0), torch.arange(90.0), indexing="ij")
    inside = (y - 40) ** 2 + (x - 45) ** 2 < 35**2
    image = torch.where(inside, 50 + x, torch.zeros(()))
    image[40, 45] = 0.0  # a dead pixel inside stays valid
    mask = field_mask(image, margin_px=0)
    assert (mask == inside).all()
    assert int(field_mask(image).sum()) < int(inside.sum())
    assert field_mask((50 + x).repeat(1, 3) + torch.arange(270)).all()  # one dark column is no surround


def test_wrist_films(shared_data):
    for name in ("cam01_0002", "cam02_0099"):
        film = load_radiograph(shared_data / "wrist" / f"{name}.tif")
        assert film.size == (1760, 1760)
        assert not film.mask[0, 0]
        assert film.mask[880, 880]
        assert 0.7 < float(film.mask.float().mean()) < 0.9
        # the field is a disc: its rows are whole, and about as wide as it is high
        rows, columns = film.mask.any(1).sum(), film.mask.any(0).sum()
        assert abs(int(rows) - int(columns)) < 60
        p = film.line_integrals[film.mask]
        assert p.isfinite().all()
        assert float(p.median()) < 2.0
    film = load_radiograph(shared_data / "wrist" / "radius.tif", frame=60, mask=None)
    assert film.size == (86, 68)
    assert read_image(shared_data / "wrist" / "radius.tif").frames == 128


def test_whole_numbers_beyond_two_billion_stay_positive(tmp_path):
    pixels = np.arange(600, dtype=np.uint32).reshape(20, 30) + np.uint32(3_000_000_000)
    image = Image.fromarray(pixels.view(np.int32))
    image.save(tmp_path / "a.tif", tiffinfo={339: 1})  # sample format: not negative
    with Image.open(tmp_path / "a.tif") as stored:
        format_of = stored.tag_v2[339][0]
    found = read_image(tmp_path / "a.tif").pixels
    np.testing.assert_array_equal(found, pixels if format_of == 1 else pixels.view(np.int32))
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "b.tif", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif").pixels, pixels)
    tifffile.imwrite(tmp_path / "c.tif", pixels.view(np.int32))
    np.testing.assert_array_equal(read_image(tmp_path / "c.tif").pixels, pixels.view(np.int32))
