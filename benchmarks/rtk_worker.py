"""Answers one JSON line with another: itk-rtk in a process of its own.  Started by `programs.RTK`."""

import json
import sys
import time
from pathlib import Path

import itk
import numpy as np
from itk import RTK as rtk
from peak import Peak

IMAGE = itk.Image[itk.F, 3]


def make_volume(mu: np.ndarray, affine: np.ndarray):
    """The voxels as an ITK image in RTK's fixed frame."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(mu, dtype=np.float32))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(affine[:3, :3] / spacing)))
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def make_geometry(camera: dict):
    """RTK's geometry of one projection."""
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    names = (
        "sid", "sdd", "gantry_angle", "proj_offset_x", "proj_offset_y", "out_of_plane_angle",
        "in_plane_angle", "source_offset_x", "source_offset_y",
    )  # fmt: skip
    geometry.AddProjection(*(float(camera[name]) for name in names))
    return geometry


def make_projection(camera: dict, value: float):
    """A projection image of one value."""
    source = rtk.ConstantImageSource[IMAGE].New()
    source.SetSpacing([*camera["spacing"], 1.0])
    source.SetSize([*(int(n) for n in camera["size"]), 1])
    source.SetOrigin([*camera["origin"], 0.0])
    source.SetConstant(value)
    source.Update()
    return source.GetOutput()


def make_empty(volume):
    """A volume of zeros on the same grid, for the adjoint."""
    source = rtk.ConstantImageSource[IMAGE].New()
    source.SetInformationFromImage(volume)
    source.SetConstant(0.0)
    source.Update()
    return source.GetOutput()


def run(question: dict, volume, folder: Path) -> dict:
    """Project, or transpose the projection, and time it."""
    camera = question["camera"]
    kind = rtk.JosephForwardProjectionImageFilter
    with Peak() as peak:
        first, second = make_projection(camera, 0.0), volume
        if question["do"] == "volume":
            kind = rtk.JosephBackProjectionImageFilter
            first, second = make_empty(volume), make_projection(camera, 1.0)
        step = kind[IMAGE, IMAGE].New()
        step.SetInput(0, first)
        step.SetInput(1, second)
        step.SetGeometry(make_geometry(camera))
        start = time.perf_counter()
        step.Update()
        seconds = time.perf_counter() - start
    if question["keep"]:
        np.save(folder / "image.npy", itk.array_from_image(step.GetOutput())[0])
    return {"seconds": seconds, "peak_mb": peak.mb}


def main() -> None:
    """Serve until the input ends."""
    folder = Path(sys.argv[1])
    itk.MultiThreaderBase.SetGlobalMaximumNumberOfThreads(int(sys.argv[2]))
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(int(sys.argv[2]))
    volume = None
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "volume" and volume is None:
            volume = make_volume(np.load(folder / "mu.npy"), np.array(question["affine"]))
            answer = {"threads": itk.MultiThreaderBase.GetGlobalDefaultNumberOfThreads()}
        else:
            answer = run(question, volume, folder)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
