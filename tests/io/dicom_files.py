"""DICOM files made for the tests: X-ray images and CT series with known tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

XA_CLASS = "1.2.840.10008.5.1.4.1.1.12.1"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"


def new_dataset(sop_class: str, modality: str, syntax: str = ExplicitVRLittleEndian) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = modality
    return dataset


def put_pixels(dataset: Dataset, pixels: np.ndarray, bits: int = 16, signed: bool = False) -> None:
    stored = np.asarray(pixels)
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        dataset.NumberOfFrames = stored.shape[0]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 if bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dtype = np.uint8 if bits <= 8 else (np.int16 if signed else np.uint16)
    data = stored.astype(dtype).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)


def picture(shape: tuple[int, ...] = (24, 20), seed: int = 0, top: int = 4000) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, top, size=shape).astype(np.uint16)


def write_xa(path: Path, pixels: np.ndarray | None = None, **tags: Any) -> Path:
    """Write a plain XA image; tags are added, or left out where None."""
    dataset = new_dataset(XA_CLASS, tags.pop("Modality", "XA"))
    bits = tags.pop("bits", 12)
    put_pixels(dataset, picture() if pixels is None else pixels, bits)
    known = {
        "DistanceSourceToDetector": 1020.0,
        "DistanceSourceToPatient": 510.0,
        "PositionerPrimaryAngle": 30.0,
        "PositionerSecondaryAngle": -12.5,
        "ImagerPixelSpacing": [0.31, 0.29],
        "PixelIntensityRelationship": "LIN",
        "PixelIntensityRelationshipSign": 1,
        **tags,
    }
    for name, value in known.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def item(**tags: Any) -> Dataset:
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset
