"""Damaged files of every kind end in an error of xreg or in a result, never otherwise."""

import random
import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import CT_CLASS, new_dataset, picture, put_pixels, write_xa
from PIL import Image

from xreg.errors import XregError
from xreg.io import load_pose, load_radiograph, load_tfm, load_volume, save_pose, save_tfm


def ct_folder(path):
    path.mkdir()
    for k in range(3):
        dataset = new_dataset(CT_CLASS, "CT")
        put_pixels(dataset, picture((6, 5), seed=k))
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelSpacing, dataset.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, 2 * k]
        dataset.save_as(path / f"{k}.dcm", enforce_file_format=True)
    return path / "1.dcm"


def film(path):
    orientation = {"PatientOrientation": "L\\F", "ShutterShape": "CIRCULAR"}
    return write_xa(path, CenterOfCircularShutter=[12, 10], RadiusOfCircularShutter=5, **orientation)


def nifti(path):
    hu = np.random.default_rng(0).integers(-1000, 1500, (6, 5, 4)).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, np.diag([1, 2, 3, 1.0])), path)
    return path


def numpy_file(path):
    np.save(path, picture())
    return path


def pillow_file(path):
    Image.fromarray(picture()).save(path)
    return path


def pose(path):
    save_pose(path, torch.eye(4), covariance=torch.eye(6), center=(0, 0, 0))
    return path


def transform(path):
    save_tfm(path, torch.eye(4))
    return path


@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("film.dcm", film, load_radiograph),
        ("series", ct_folder, lambda path: load_volume(path.parent)),
        ("ct.nii", nifti, load_volume),
        ("film.png", pillow_file, load_radiograph),
        ("film.tif", pillow_file, load_radiograph),
        ("film.npy", numpy_file, load_radiograph),
        ("pose.json", pose, load_pose),
        ("pose.tfm", transform, load_tfm),
    ],
)
def test_damage(tmp_path, name, write, read):
    target = write(tmp_path / name)
    good = target.read_bytes()
    draw = random.Random(name)
    told = 0
    for _ in range(60):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            if draw.random() < 0.2:
                data = data[: draw.randint(1, len(data))]
            else:
                data[draw.randrange(min(1200, len(data)))] = draw.randrange(256)
        target.write_bytes(bytes(data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(target)
            except XregError:
                told += 1
    assert told > 5
    shutil.rmtree(tmp_path)
