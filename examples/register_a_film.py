"""A CT registered to a radiograph, in the words of the Python API.

    python examples/register_a_film.py [ct.nii.gz]

Without a CT the built-in phantom serves.  The film is rendered from a pose that registration is not told.
"""

import math
import sys

import torch

import xreg
from xreg.phantom import chest_phantom


def main() -> None:
    vol = xreg.Volume.load(sys.argv[1]) if len(sys.argv) > 1 else chest_phantom()
    cam = xreg.Camera.c_arm(
        sdd=1020, sod=850, primary=20, secondary=-5,  # mm, degrees
        size=(256, 256), spacing=(1.56, 1.56), isocenter=vol.center,
    )  # fmt: skip

    # The truth: 6 degrees and 17 mm from where the CT's header says.
    step = torch.tensor([0.06, -0.04, 0.07, 10.0, -6.0, 12.0], dtype=torch.float64)
    truth = xreg.se3.retract(torch.eye(4, dtype=torch.float64), step, vol.center)
    film = xreg.drr(vol, cam, truth, integrator="siddon", storage="float")

    out = xreg.register(vol, film, cam)

    angle, _ = xreg.se3.geodesic_distance(out.world_from_body, truth)
    middle = vol.center[None]
    apart = xreg.se3.apply(out.world_from_body, middle) - xreg.se3.apply(truth, middle)
    print(f"{'accepted' if out.accepted else 'rejected'}: {out.reason}")
    print(f"{math.degrees(float(angle)):.3f}° and {float(apart.norm()):.3f} mm off, {out.renders} renders")
    xreg.save_pose("pose.json", out.world_from_body, camera=cam)
    print("wrote pose.json; `xreg info pose.json` explains it")


if __name__ == "__main__":
    main()
