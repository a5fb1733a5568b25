"""What a verb reads it does not write over, and a record never tells of other files than its own."""

import json

import numpy as np
import pytest
from cli_files import VIEW, refused, said, xreg
from PIL import Image

from xreg.errors import FileError, GeometryError
from xreg.io import load_pose, load_radiograph, read_json


@pytest.fixture(scope="module")
def made(chest, tmp_path_factory):
    """A film of the chest with its camera."""
    folder = tmp_path_factory.mktemp("made")
    said("drr", chest / "ct.nii.gz", "-o", folder / "a.tif", *VIEW, "--save-camera", folder / "cam.json")
    return folder


def usage(*words) -> str:
    """What a usage error says."""
    result = xreg(*words)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


QUICK = ["--intensity", "line_integral", "--restarts", "0"]


def test_a_start_is_not_written_over(chest, made, tmp_path):
    words = [made / "a.tif", "--camera", made / "cam.json", *QUICK]
    said("register", chest / "ct.nii.gz", *words, "--init", chest / "truth.json", "-o", tmp_path)
    before = (tmp_path / "pose.json").read_bytes()
    again = ["--init", tmp_path / "pose.json", "-o", tmp_path]
    message = usage("register", chest / "ct.nii.gz", *words, *again)
    assert "would write its pose.json" in message
    assert "--init reads" in message
    assert (tmp_path / "pose.json").read_bytes() == before


def test_the_record_goes_before_what_it_tells_of(chest, made, tmp_path):
    words = [
        made / "a.tif",
        "--camera",
        made / "cam.json",
        *QUICK,
        "--init",
        chest / "truth.json",
        "-o",
        tmp_path,
    ]
    said("register", chest / "ct.nii.gz", *words)
    (tmp_path / "overlay.png").unlink()
    (tmp_path / "overlay.png").mkdir()  # in the way of the second run
    refused("register", chest / "ct.nii.gz", *words)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("verb", ["draw", "train", "train-spine", "prepare"])
def test_samples_are_not_written_into(verb, tmp_path):
    more = {"draw": ["--count", "1"], "train": ["--steps", "1"], "train-spine": ["--steps", "1"],
            "prepare": ["--dataset", "plain"]}  # fmt: skip
    assert "is read too" in usage("shape", verb, tmp_path, "-o", tmp_path, *more[verb])
    assert not list(tmp_path.iterdir())


def test_json_of_any_kind_is_read_or_refused(tmp_path, chest):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(FileError, match="nested too deeply"):
        read_json(tmp_path / "deep.json")
    (tmp_path / "bom.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "bom.json") == {"a": 1}
    pose = json.loads((chest / "truth.json").read_text())
    for change, error in (({"score": "good"}, GeometryError), ({"tangent": [1]}, FileError)):
        (tmp_path / "p.json").write_text(json.dumps({**pose, **change}))
        with pytest.raises(error, match=next(iter(change))):
            load_pose(tmp_path / "p.json")
    assert "isocenter" in refused(
        "convert", chest / "camera.json", "--to", "diffdrr", "--set", "isocenter=abc"
    )


@pytest.mark.parametrize("kind", [np.uint8, bool])
def test_a_tiff_whose_white_is_zero_is_read_as_stored(kind, tmp_path):
    stored = np.arange(63).reshape(7, 9) % 5 > 2 if kind is bool else np.arange(63, dtype=kind).reshape(7, 9)
    image = Image.fromarray(stored)
    image.save(tmp_path / "black.tif")
    image.save(tmp_path / "white.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "white.tif") as picture:
        assert picture.tag_v2[262] == 0
        shown = np.asarray(picture)  # Pillow inverts it, whatever it wrote
    found = load_radiograph(tmp_path / "white.tif", intensity="line_integral").image
    np.testing.assert_array_equal(found, np.logical_not(shown) if kind is bool else 255 - shown)
