"""Each bad input: exit code 1, one clear line, and nothing written."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from cli_files import VIEW, done, files_below, refused, write_slices, xreg
from PIL import Image

from xreg.errors import VolumeError, XregError
from xreg.geometry import Camera
from xreg.io import save_camera, save_pose
from xreg.volume import Volume

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def hu(shape=(14, 12, 10)):
    return np.random.default_rng(0).integers(-1000, 1500, shape).astype(np.int16)


def nifti(path, values, affine=AFFINE):
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def truncated(folder):
    whole = nifti(folder / "whole.nii.gz", hu((40, 40, 40)))
    data = whole.read_bytes()
    (folder / "ct.nii.gz").write_bytes(data[: len(data) // 2])
    return folder / "ct.nii.gz"


def no_gzip(folder):
    (folder / "ct.nii.gz").write_bytes(gzip.compress(b"nothing of the kind"))
    return folder / "ct.nii.gz"


def with_nan(folder):
    values = hu().astype(np.float32)
    values[3, 4, 5] = np.nan
    return nifti(folder / "ct.nii", values)


def singular(folder):
    path = nifti(folder / "ct.nii", hu())
    data = bytearray(path.read_bytes())
    data[252:256] = (0).to_bytes(2, "little") + (1).to_bytes(2, "little")  # qform 0, sform 1
    data[280:328] = np.zeros(12, dtype="<f4").tobytes()
    path.write_bytes(bytes(data))
    return path


def empty_folder(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


CTS = {
    "truncated gzip": (truncated, "truncated|damaged|end"),
    "not NIfTI": (no_gzip, "NIfTI"),
    "two dimensions": (lambda f: nifti(f / "ct.nii", hu((14, 12))), "3D|dimension"),
    "four dimensions": (lambda f: nifti(f / "ct.nii", hu((6, 5, 4, 3))), "3D|dimension"),
    "NaN": (with_nan, "finite|NaN"),
    "all air": (lambda f: nifti(f / "ct.nii", np.full((8, 8, 8), -1000, np.int16)), "air|zero|above"),
    "singular affine": (singular, "singular|affine"),
    "a slice missing": (lambda f: write_slices(f / "s", [0.0, 2.0, 4.0, 8.0]), "missing"),
    "a slice twice": (lambda f: write_slices(f / "s", [0.0, 2.0, 2.0, 4.0]), "twice|same"),
    "empty folder": (empty_folder, "empty"),
    "no such file": (lambda f: f / "none.nii.gz", "no such"),
    "an image": (lambda f: f / "film.png", "CT"),
}


@pytest.fixture
def bench(tmp_path, chest):
    """A folder with the good rest of the inputs, and where the output would go."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    Image.fromarray(np.random.default_rng(1).integers(1, 4000, (72, 64)).astype(np.uint16)).save(
        tmp_path / "in" / "film.png"
    )
    return tmp_path


def assert_matches(hints, message):
    assert any(hint in message for hint in hints.split("|")), message


@pytest.mark.parametrize("name", CTS)
def test_a_bad_ct(name, bench, chest):
    make, hints = CTS[name]
    ct, out = make(bench / "in"), bench / "out"
    film, view = chest / "film.tif", ["--camera", chest / "camera.json"]
    for words in (
        ["drr", ct, *VIEW, "-o", out / "drr.png", "--sidecar", "--save-camera", out / "c.json"],
        ["register", ct, film, *view, "-o", out / "r"],
        ["demo", "--ct", ct, "-o", out / "d"],
    ):
        message = refused(*words)
        assert_matches(hints, message)
        assert str(ct) in message
        assert not list((bench / "out").iterdir())


@pytest.mark.parametrize("name", CTS)
def test_a_bad_ct_in_python(name, bench):
    """The library names the file as well, once."""
    make, hints = CTS[name]
    ct = make(bench / "in")
    with pytest.raises(XregError) as found:
        Volume.load(ct)
    assert_matches(hints, str(found.value))
    assert str(found.value).count(str(ct)) == 1


@pytest.mark.parametrize("units", ["hu", "mu"])
def test_all_air_in_either_unit(units, bench):
    value = -1000 if units == "hu" else 0
    ct = nifti(bench / "in" / "ct.nii", np.full((8, 8, 8), value, np.int16))
    with pytest.raises(VolumeError, match="all-air") as found:
        Volume.load(ct, units=units)
    assert str(found.value).startswith(f"{ct}: ")


def test_an_energy_that_cannot_be_is_told_before_the_file_is_read(bench):
    for name in ("energy_kev", "ct_energy_kev"):
        with pytest.raises(VolumeError, match=f"{name} must lie between"):
            Volume.load(bench / "none.nii.gz", **{name: 500.0})


def test_an_integer_mu(bench):
    ct = nifti(bench / "in" / "ct.nii", hu())  # whole numbers are CT numbers, and no attenuation in 1/mm
    message = refused("drr", ct, *VIEW, "--units", "mu", "-o", bench / "out" / "a.png")
    assert_matches("attenuation|1/mm", message)
    assert not list((bench / "out").iterdir())


def good_view(chest):
    return ["--camera", chest / "camera.json"]


def write_json(path, data):
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        (["--spacing", "-5.6", "5.4"], "spacing"),
        (["--sdd", "-1"], "sdd"),
        (["--sod", "2000"], "sod"),
        (["--size", "0", "10"], "size"),
        (["--isocenter", "9000", "0", "0"], "outside the beam"),
        (["--energy", "500"], "keV"),
        (["--camera", "none.json"], "no such file"),
        (["--mask", "mask.nii", "--labels", "hard"], "grid"),
        (["--mask", "float.nii", "--labels", "hard"], "whole numbers"),
        (["--pose", "mirror.json"], "det"),
        (["--pose", "mirror.tfm"], "det"),
        (["--pose", "film.png"], "JSON|text"),
    ],
)
def test_bad_words_and_files_beside_a_good_ct(words, hints, bench, chest, monkeypatch):
    folder = bench / "in"
    monkeypatch.chdir(folder)
    nifti(folder / "mask.nii", np.ones((3, 4, 5), dtype=np.uint8))
    nifti(folder / "float.nii", np.full((72, 52, 64), 0.5, dtype=np.float32), chest_affine(chest))
    save_pose(folder / "mirror.json", np.eye(4))
    data = json.loads((folder / "mirror.json").read_text())
    data["matrix"][0][0] = -1.0
    write_json(folder / "mirror.json", data)
    lines = ["#Insight Transform File V1.0", "#Transform 0", "Transform: AffineTransform_double_3_3"]
    lines += ["Parameters: -1 0 0 0 1 0 0 0 1 0 0 0", "FixedParameters: 0 0 0", ""]
    (folder / "mirror.tfm").write_text("\n".join(lines))
    view = [] if "--camera" in words else VIEW
    message = refused("drr", chest / "ct.nii.gz", *view, *words, "-o", bench / "out" / "a.npy", "--sidecar")
    assert_matches(hints, message)
    assert not list((bench / "out").iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["drr", "--isocenter", "nan", "0", "0"],
        ["drr", "--sdd", "inf"],
        ["train", "--rate", "nan"],
        ["evaluate", "--bin", "inf"],
        ["register", "--box-mm", "nan", "1", "1"],
        ["splat", "fit", "--held-out", "nan"],
        ["shape", "draw", "--tilt", "inf"],
    ],
    ids=lambda words: words[-1] + " " + words[0],
)
def test_numbers_of_options_are_finite(words):
    result = xreg(*words)
    assert result.exit_code == 2
    assert "is not a finite number" in result.stderr


@pytest.mark.parametrize("words", [["train", "--seed", "9" * 23], ["demo", "--seed", "9" * 23]])
def test_a_seed_has_a_range(words):
    assert "4294967295" in xreg(*words).stderr


def test_names_of_labels_need_a_label_map(bench, chest):
    named = ["--label-names", bench / "in" / "film.png"]
    result = xreg("info", chest / "ct.nii.gz", *named)
    assert result.exit_code == 2
    assert "give that as --mask" in result.stderr
    assert xreg("register", "ct", "film", "--mask", "m", "-o", "x").exit_code == 2  # nothing is done with one


def test_a_view_in_centimetres_is_warned_of(bench, chest):
    view = ["--sdd", "102", "--sod", "85", "--size", "24", "20", "--spacing", "2", "2"]
    told = done("drr", chest / "ct.nii.gz", *view, "-o", bench / "out" / "a.png").stderr
    assert "the source lies inside the CT; distances and spacing of a view are mm" in told
    told = done("drr", chest / "ct.nii.gz", *VIEW, "-o", bench / "out" / "a.png").stderr
    assert "source lies" not in told


def chest_affine(chest):
    return nib.load(chest / "ct.nii.gz").affine


def film_of(size, folder):
    np.save(folder / "film.npy", np.random.default_rng(0).random(size).astype(np.float32) + 0.1)
    return folder / "film.npy"


def broken_png(folder):
    data = (folder / "film.png").read_bytes()
    (folder / "broken.png").write_bytes(data[: len(data) // 2])
    return folder / "broken.png"


def text_png(folder):
    (folder / "text.png").write_text("no image at all")
    return folder / "text.png"


def nan_film(folder):
    film = np.ones((72, 64), dtype=np.float32)
    film[3, 3] = np.nan
    np.save(folder / "nan.npy", film)
    return folder / "nan.npy"


def flat_film(folder):
    np.save(folder / "flat.npy", np.ones((72, 64), dtype=np.float32))
    return folder / "flat.npy"


@pytest.mark.parametrize(
    ("make", "hints"),
    [
        (lambda f: film_of((70, 64), f), "(70, 64)"),
        (lambda f: film_of((4, 5, 6, 7), f), "dimension"),
        (broken_png, "truncated"),
        (text_png, "not an image"),
        (nan_film, "finite"),
        (flat_film, "constant"),
        (lambda f: f / "none.tif", "no such file"),
        (lambda f: f, "folder"),
    ],
)
def test_a_bad_film(make, hints, bench, chest):
    film = make(bench / "in")
    words = ["--camera", chest / "camera.json", "-o", bench / "out" / "r"]
    assert_matches(hints, refused("register", chest / "ct.nii.gz", film, *words))
    assert not list((bench / "out").iterdir())


def test_a_start_that_misses_the_beam(bench, chest):
    far = np.eye(4)
    far[0, 3] = 5000.0
    save_pose(bench / "in" / "far.json", far)
    words = [
        "--camera",
        chest / "camera.json",
        "--init",
        bench / "in" / "far.json",
        "-o",
        bench / "out" / "r",
    ]
    assert "outside the beam" in refused("register", chest / "ct.nii.gz", chest / "film.tif", *words)
    assert not list((bench / "out").iterdir())


def test_a_film_mask_of_another_shape(bench, chest):
    Image.fromarray(np.full((10, 10), 255, np.uint8)).save(bench / "in" / "m.png")
    words = [
        "--camera",
        chest / "camera.json",
        "--film-mask",
        bench / "in" / "m.png",
        "-o",
        bench / "out" / "r",
    ]
    assert "mask must be" in refused("register", chest / "ct.nii.gz", chest / "film.tif", *words)
    assert not list((bench / "out").iterdir())


def test_an_output_that_cannot_be(bench, chest):
    (bench / "file").write_text("")
    words = ["--camera", chest / "camera.json", "-o", bench / "file" / "r"]
    assert "is a file" in refused("register", chest / "ct.nii.gz", chest / "film.tif", *words)
    (bench / "out" / "kept.png").write_bytes(b"kept")
    (bench / "out" / "kept.png").chmod(0o444)
    kept = bench / "out" / "kept.png"
    assert "is write-protected" in refused("drr", chest / "ct.nii.gz", *VIEW, "-o", kept)
    assert kept.read_bytes() == b"kept"
    kept.chmod(0o644)
    kept.unlink()
    assert "is a folder" in refused("drr", chest / "ct.nii.gz", *VIEW, "-o", make_folder(bench / "a.png"))
    before = files_below(bench)
    assert "does not exist" in refused(
        "convert", chest / "camera.json", "--to", "naf", "-o", bench / "no" / "a.json"
    )
    assert files_below(bench) == before


def make_folder(path):
    path.mkdir()
    return path


def test_a_camera_of_another_size(bench, chest):
    save_camera(bench / "in" / "cam.json", Camera.c_arm(sdd=1000, sod=700, size=(9, 9), spacing=1.0))
    words = ["--camera", bench / "in" / "cam.json", "-o", bench / "out" / "r"]
    message = refused("register", chest / "ct.nii.gz", chest / "film.tif", *words)
    assert_matches("(9, 9)", message)
    assert not list((bench / "out").iterdir())


def test_an_unforeseen_error_is_one_line_and_debug_shows_it(bench, chest, monkeypatch):
    from xreg import renderer

    def broken(*args, **known):
        raise RuntimeError("the wheel came off")

    monkeypatch.setattr(renderer, "drr", broken)
    words = ["drr", chest / "ct.nii.gz", *VIEW, "-o", bench / "out" / "a.png"]
    result = xreg(*words)
    assert result.exit_code == 1
    assert "error: unexpected RuntimeError: the wheel came off" in result.stderr
    assert "--debug" in result.stderr
    shown = xreg(*words, "--debug")
    assert isinstance(shown.exception, RuntimeError)
    assert not list((bench / "out").iterdir())


@pytest.mark.parametrize(
    "verb", [("train",), ("splat", "fit"), ("reconstruct",), ("shape", "train"), ("shape", "learn")]
)
@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda:99", "use cpu, or see xreg doctor"), ("gpu", "is none of cpu, cuda"), ("cuda:x", "is none of")],
)
def test_a_device_that_is_not_there_is_told_of_at_once(verb, device, said) -> None:
    result = xreg(*verb, "--device", device)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


@pytest.mark.parametrize(
    "words",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 288000000000 bytes",
        "CUDA out of memory. Tried to allocate 20.00 GiB",
        'torch_call_dispatcher( "aten::new_empty", "", stack.data()) API call failed',
    ],
)
def test_too_little_memory_is_said_as_such(bench, chest, monkeypatch, words) -> None:
    from xreg import renderer

    def broken(*args, **known):
        raise RuntimeError(words)

    monkeypatch.setattr(renderer, "drr", broken)
    result = xreg("drr", chest / "ct.nii.gz", *VIEW, "-o", bench / "out" / "a.png")
    assert result.exit_code == 1
    assert "error: not enough memory; take a smaller image" in result.stderr
