import json

import nibabel as nib
import numpy as np
import pytest
from cli_files import VIEW, done, files_below, pixels_of, refused, said, xreg

import xreg as package
from xreg.io import load_camera


def test_values_are_those_of_the_library(chest, tmp_path):
    words = [*VIEW, "--primary", 20, "--secondary", -5, "--mirrored", "-o", tmp_path / "a.npy"]
    answer = said("drr", chest / "ct.nii.gz", *words, "--save-camera", tmp_path / "cam.json")
    volume = package.Volume.load(chest / "ct.nii.gz")
    camera = package.Camera.c_arm(
        sdd=1020, sod=850, size=(72, 64), spacing=(5.6, 5.4), primary=20, secondary=-5, mirrored=True,
        isocenter=volume.center,
    )  # fmt: skip
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), package.drr(volume, camera).numpy())
    assert load_camera(tmp_path / "cam.json").to_dict() == camera.to_dict() == answer["camera"]
    assert answer["shape"] == [72, 64]
    assert answer["status"] == "done"


def test_every_kind_of_file_holds_the_same_image(chest, tmp_path):
    for name in ("a.npy", "a.tif", "a.nii.gz", "a.png"):
        done("drr", chest / "ct.nii.gz", "--camera", chest / "camera.json", "-o", tmp_path / name)
    image = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.tif"), image)
    stored = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(stored.dataobj)[:, :, 0].T, image)
    np.testing.assert_allclose(stored.header.get_zooms()[:2], (5.4, 5.6), rtol=1e-6)
    png = pixels_of(tmp_path / "a.png")
    assert png.dtype == np.uint16
    np.testing.assert_allclose(png / 65535 * image.max(), image, atol=image.max() / 65535)


def test_npy_in_capitals(chest, tmp_path):
    done("drr", chest / "ct.nii.gz", "--camera", chest / "camera.json", "-o", tmp_path / "A.NPY")
    assert list(files_below(tmp_path)) == ["A.NPY"]
    assert np.load(tmp_path / "A.NPY").shape == (72, 64)


def test_window_and_sidecar(chest, tmp_path):
    path = tmp_path / "a.png"
    words = ["--camera", chest / "camera.json", "-o", path, "--window", 1, 2.5, "--sidecar"]
    result = done("drr", chest / "ct.nii.gz", *words)
    assert "1 is black and 2.5 white" in result.stdout
    assert "kernels" in result.stdout
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert sidecar["window"] == [1.0, 2.5]
    assert sidecar["schema"] == "xreg.drr/1"
    pixels = pixels_of(path)
    assert pixels.min() == 0
    assert pixels.max() == 65535


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("name", ["labels.npy", "labels.nii.gz"])
def test_label_channels_add_up(chest, tmp_path, kind, name):
    view = ["--camera", chest / "camera.json", "--integrator", "trilinear"]
    stack = ["--mask", chest / "mask.nii.gz", "--labels", kind, "-o", tmp_path / name]
    answer = said("drr", chest / "ct.nii.gz", *view, *stack)
    done("drr", chest / "ct.nii.gz", *view, "-o", tmp_path / "a.npy")
    channels = (
        np.load(tmp_path / name)
        if name.endswith("npy")
        else np.asarray(nib.load(tmp_path / name).dataobj).transpose(2, 1, 0)
    )
    assert channels.shape == (9, 72, 64)
    inner = slice(12, -12)  # rays here leave the grid by faces where there is only air
    image = np.load(tmp_path / "a.npy")
    np.testing.assert_allclose(channels.sum(0)[inner, inner], image[inner, inner], atol=2e-4)
    assert answer["labels"]["names"]["6"] == "ribs"


def test_pose_energy_and_integrator_change_the_image(chest, tmp_path):
    base = ["drr", chest / "ct.nii.gz", "--camera", chest / "camera.json", "-o"]
    images = []
    for n, extra in enumerate(
        [[], ["--pose", chest / "truth.json"], ["--pose", chest / "truth.tfm"], ["--energy", 40]]
    ):
        done(*base, tmp_path / f"{n}.npy", *extra)
        images.append(np.load(tmp_path / f"{n}.npy"))
    plain, moved, same, soft = images
    assert np.abs(moved - plain).max() > 0.3
    np.testing.assert_allclose(moved, same, atol=1e-5)
    assert soft.max() > 1.2 * plain.max()
    done(*base, tmp_path / "e.npy", "--integrator", "exact")
    assert 0 < np.abs(np.load(tmp_path / "e.npy") - plain).max() < 0.02 * plain.max()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ([], "--sdd, --sod, --size, --spacing"),
        (["--sdd", 1000, "--sod", 700, "--size", 8, 8], "--spacing"),
        (["--camera", "cam.json", "--sdd", 1000], "leave out --sdd"),
        ([*VIEW, "-o", "drr.jpg"], "must end in"),
        ([*VIEW, "-o", "drr.npy", "--labels", "hard"], "needs --mask"),
        ([*VIEW, "-o", "drr.png", "--labels", "hard"], "stack of labels"),
        ([*VIEW, "-o", "drr.npy", "--window", 0, 1], "--window is for .png"),
    ],
)
def test_options_that_do_not_go_together(words, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = words if "-o" in words else [*words, "-o", "drr.png"]
    result = xreg("drr", "ct.nii.gz", *words)
    assert result.exit_code == 2
    assert hint in " ".join(result.stderr.split())
    assert not files_below(tmp_path)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (
            ["-o", "film.png", "--save-camera", "film.json", "--sidecar"],
            "--sidecar would write over film.json",
        ),
        (["-o", "ct.nii.gz"], "which CT reads"),
        (["-o", "sub/../ct.nii.gz"], "which CT reads"),
        (["-o", "film.png", "--save-camera", "film.png"], "which -o writes"),
        (["-o", "mask.nii.gz", "--mask", "mask.nii.gz", "--labels", "hard"], "which --mask reads"),
        (["-o", "truth.png", "--pose", "truth.json", "--sidecar"], "which --pose reads"),
    ],
)
def test_no_file_is_written_over(chest, tmp_path, monkeypatch, words, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("ct.nii.gz", "mask.nii.gz", "truth.json"):
        (tmp_path / name).write_bytes((chest / name).read_bytes())
    before = files_below(tmp_path)
    result = xreg("drr", "ct.nii.gz", *VIEW, *words)
    assert result.exit_code == 2
    assert hint in " ".join(result.stderr.split())
    assert files_below(tmp_path) == before


def test_small_mistakes_are_told_before_the_ct_is_read(chest, tmp_path, monkeypatch):
    from xreg.volume import Volume

    monkeypatch.setattr(Volume, "load", lambda *_, **__: pytest.fail("the CT was read"))
    bad = tmp_path / "cam.json"
    data = json.loads((chest / "camera.json").read_text())
    bad.write_text(json.dumps({**data, "size": [0, 4]}))
    tool, pose = tmp_path / "diffdrr.json", tmp_path / "pose.json"
    tool.write_text('{"tool": "diffdrr", "sdd": 1000}')
    data = json.loads((chest / "truth.json").read_text())
    pose.write_text(json.dumps({**data, "matrix": [[2, 0, 0, 0], *data["matrix"][1:]]}))
    for verb, more in (("drr", ["-o", tmp_path / "a.png"]), ("project", ["--mask", "m", "-o", tmp_path])):
        assert f"error: {bad}: size" in refused(verb, "ct", "--camera", bad, *more)
        assert f"error: {tool}: diffdrr parameters" in refused(verb, "ct", "--camera", tool, *more)
        assert f"error: {pose}: " in refused(verb, "ct", *VIEW, "--pose", pose, *more)
        assert "sod" in refused(verb, "ct", *VIEW, "--sod", 2000, *more)
    for words, hint in ((["--window", 2, 1], "--window"), (["--samples", 1], "--samples")):
        result = xreg("drr", "ct", *VIEW, "-o", tmp_path / "a.png", *words)
        assert result.exit_code == 2
        assert hint in result.stderr


def test_a_missing_folder_is_told_before_the_work(tmp_path):
    assert "does not exist" in refused("drr", tmp_path / "none.nii", *VIEW, "-o", tmp_path / "no" / "a.png")
