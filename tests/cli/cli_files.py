"""Small files for the tests of the command line, and how to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from xreg.cli import main

XA_CLASS = "1.2.840.10008.5.1.4.1.1.12.1"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
VIEW = ["--sdd", "1020", "--sod", "850", "--size", "72", "64", "--spacing", "5.6", "5.4"]


def xreg(*words: Any) -> Result:
    """Run the command line in this process; stdout and stderr come apart."""
    return CliRunner().invoke(main, [str(word) for word in words])


def done(*words: Any) -> Result:
    """Run what has to succeed."""
    result = xreg(*words)
    assert result.exit_code == 0, result.output
    return result


def said(*words: Any, code: int = 0) -> dict[str, Any]:
    """Run with --json; the one object that stdout holds."""
    result = xreg(*words, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def refused(*words: Any) -> str:
    """Run what has to fail with exit code 1, by hand and for machines; the message."""
    plain, machine = xreg(*words), xreg(*words, "--json")
    assert plain.exit_code == machine.exit_code == 1, plain.output
    assert plain.stdout == ""
    errors = [line for line in plain.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in plain.output
    assert "unexpected" not in errors[0]
    answer = json.loads(machine.stdout)
    assert answer["status"] == "failed"
    assert answer["error"]["message"] == errors[0].removeprefix("error: ")
    return errors[0]


def files_below(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by name."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def pixels_of(path: Path) -> np.ndarray:
    """The pixels of an image file, as stored."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def write_dicom(path: Path, pixels: np.ndarray, sop_class: str, modality: str, **tags: Any) -> Path:
    """Write a 16-bit DICOM image with these tags."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.Modality = modality
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_slices(folder: Path, places: list[float]) -> Path:
    """Write CT slices at these positions along z (mm)."""
    folder.mkdir()
    series = generate_uid()
    rng = np.random.default_rng(0)
    for n, z in enumerate(places):
        write_dicom(
            folder / f"{n}.dcm",
            rng.integers(0, 2500, (12, 14)),
            CT_CLASS,
            "CT",
            SeriesInstanceUID=series,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            PixelSpacing=[4.0, 4.0],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[-26.0, -22.0, z],
        )
    return folder
