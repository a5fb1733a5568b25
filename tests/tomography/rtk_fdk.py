"""FDK by itk-rtk with a plain ramp, in a process of its own: python rtk_fdk.py IN.npz OUT.npy."""

import sys

import itk
import numpy as np
from itk import RTK as rtk

KIND = itk.Image[itk.F, 3]


def main(source: str, target: str) -> None:
    """Views are rows (sid, sdd, gantry, offset x, offset y); the grid lies in RTK's fixed frame."""
    data = np.load(source)
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    for view in data["views"].tolist():
        geometry.AddProjection(*view, 0.0, 0.0, 0.0, 0.0)
    stack = itk.image_from_array(np.ascontiguousarray(data["images"]))
    stack.SetSpacing([*data["spacing"].tolist(), 1.0])
    stack.SetOrigin([*data["origin"].tolist(), 0.0])
    weights = [rtk.DisplacedDetectorImageFilter] * bool(data["displaced"])
    for kind in weights + [rtk.ParkerShortScanImageFilter] * bool(data["short"]):
        step = kind[KIND].New()
        step.SetInput(stack)
        step.SetGeometry(geometry)
        step.Update()
        stack = step.GetOutput()
    empty = rtk.ConstantImageSource[KIND].New()
    empty.SetSpacing(data["voxel"].tolist())
    empty.SetSize(data["size"].tolist())
    empty.SetOrigin(data["first"].tolist())
    whole = rtk.FDKConeBeamReconstructionFilter[KIND].New()
    whole.SetInput(0, empty.GetOutput())
    whole.SetInput(1, stack)
    whole.SetGeometry(geometry)
    whole.Update()
    np.save(target, itk.array_from_image(whole.GetOutput()))


if __name__ == "__main__":
    main(*sys.argv[1:])
