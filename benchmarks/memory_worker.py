"""Peak memory of one renderer in a fresh process.  Started by `projector.py` with one JSON argument."""

import json
import sys

import numpy as np
import torch
from peak import Peak
from renderers import DiffDRR, NanoDRR, Xreg

from xreg.geometry import Camera
from xreg.renderer import Beam
from xreg.volume import Volume


def main() -> None:
    """Prepare the volume, warm up on a tiny view, then watch one call."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    volume = Volume(torch.from_numpy(np.load(task["mu"])), torch.tensor(task["affine"], dtype=torch.float64))
    camera, small = Camera.from_dict(task["camera"]), Camera.from_dict(task["small"])
    kinds = {"nanodrr": NanoDRR, "diffdrr": DiffDRR}
    kind = task["renderer"]
    renderer = Xreg(volume, Beam(*task["beam"])) if kind == "xreg" else kinds[kind](volume)
    weights = torch.ones(camera.size)
    call(renderer, task["mode"], small, torch.ones(small.size))
    with Peak() as peak:
        call(renderer, task["mode"], camera, weights)
    print(json.dumps({"mb": peak.mb, "exact": peak.exact}))


def call(renderer, mode: str, camera: Camera, weights: torch.Tensor) -> None:
    """One call of the mode."""
    if mode == "forward":
        renderer.image(camera)
    elif mode == "jacobian":
        renderer.jacobian(camera)
    else:
        getattr(renderer, mode)(camera, weights)


if __name__ == "__main__":
    main()
