"""The renderers under test that run as programs of their own: itk-rtk's Joseph and plastimatch.

RTK answers from a worker process, because its libraries take long to load and bring a thread pool; the worker
times its own filter and only the figure crosses over.  plastimatch reports its own time, which leaves out
reading the volume.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xreg.geometry import Camera
from xreg.volume import Volume

WORKER = Path(__file__).resolve().parent / "rtk_worker.py"
SETTLE = 0.05  # seconds for this process's threads to go to sleep before another's are timed
FIXED_FROM_RAS = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # head first supine


class RTK:
    """itk-rtk's Joseph forward projector and its adjoint."""

    clips_at_detector = False
    name = "itk-rtk Joseph"

    def __init__(self, volume: Volume, threads: int) -> None:
        self.modes = ["forward", "volume"]
        self.folder = tempfile.TemporaryDirectory(prefix="xreg-rtk-")
        np.save(Path(self.folder.name) / "mu.npy", volume.mu.detach().numpy())
        command = [sys.executable, str(WORKER), self.folder.name, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._ask({"do": "volume", "affine": (FIXED_FROM_RAS @ volume.affine.numpy()).tolist()})

    def _ask(self, question: dict) -> dict:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:  # libraries may print lines of their own
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the RTK worker ended with status {self.process.wait()}")

    def _camera(self, camera: Camera) -> dict:
        from xreg.geometry.conventions import rtk

        return rtk.from_camera(camera.flip_rows()).to_dict()

    def image(self, camera: Camera) -> Tensor:
        """One forward projection."""
        self._ask({"do": "forward", "camera": self._camera(camera), "keep": True})
        return torch.from_numpy(np.load(Path(self.folder.name) / "image.npy")[::-1].copy())

    def seconds(self, mode: str, camera: Camera) -> float:
        """Time of one call, as the worker saw it."""
        time.sleep(SETTLE)
        return self._ask({"do": mode, "camera": self._camera(camera), "keep": False})["seconds"]

    def peak_mb(self, camera: Camera, small: Camera) -> float:
        """Memory beyond the volume that one forward projection needs at most, in MB."""
        self._ask({"do": "forward", "camera": self._camera(small), "keep": False})
        return self._ask({"do": "forward", "camera": self._camera(camera), "keep": False})["peak_mb"]

    def close(self) -> None:
        """End the worker and remove its files."""
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.folder.cleanup()


class Plastimatch:
    """plastimatch's `drr -i exact`: voxels of constant value along the exact path (Siddon)."""

    clips_at_detector = False
    name = "plastimatch exact"

    def __init__(self, volume: Volume, program: str) -> None:
        import SimpleITK as sitk

        self.modes = ["forward"]
        self.program = program
        self.folder = tempfile.TemporaryDirectory(prefix="xreg-plastimatch-")
        upright = volume.reoriented()
        linear = upright.affine[:3, :3].numpy()
        if not np.allclose(linear, np.diag(np.diag(linear)), atol=1e-6):
            raise ValueError("plastimatch drr reads no direction cosines, and this volume is oblique")
        corner = (
            upright.affine @ torch.tensor([upright.size[0] - 1, upright.size[1] - 1, 0, 1.0]).double()
        ).numpy()
        image = sitk.GetImageFromArray(upright.mu.detach().numpy()[:, ::-1, ::-1].copy())  # RAS to LPS
        image.SetSpacing(upright.spacing)
        image.SetOrigin((-corner[0], -corner[1], corner[2]))
        sitk.WriteImage(image, str(Path(self.folder.name) / "ct.mha"))

    def _run(self, camera: Camera) -> float:
        c2w = torch.linalg.inv(camera.camera_from_world).numpy()
        lps = np.array([-1.0, -1.0, 1.0])
        height, width = camera.size
        sdd = float(camera.sdd)
        pitch_u, pitch_v = sdd / float(camera.K[0, 0]), sdd / float(camera.K[1, 1])
        source, beam, up = lps * c2w[:3, 3], lps * c2w[:3, 2], -lps * c2w[:3, 1]
        options = {  # -r, -z and -c want columns first, whatever the help says
            "-n": -beam, "--vup": up, "--sad": [0.8 * sdd], "--sid": [sdd], "-o": source + 0.8 * sdd * beam,
            "-r": [width, height], "-z": [width * pitch_u, height * pitch_v],
            "-c": [float(camera.K[0, 2]), float(camera.K[1, 2])],
        }  # fmt: skip
        words = [w for key, values in options.items() for w in (key, " ".join(f"{x:.9g}" for x in values))]
        where = Path(self.folder.name)
        command = [self.program, "drr", "-t", "pfm", "-P", "none", "-i", "exact", *words]
        command += ["-O", str(where / "out"), "-I", str(where / "ct.mha")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = re.search(r"Total time: ([\d.]+)", done.stdout)
        if not found:
            raise RuntimeError("plastimatch printed no time")
        return float(found.group(1))

    def image(self, camera: Camera) -> Tensor:
        """One forward projection; plastimatch counts lengths in cm."""
        self._run(camera)
        raw = (Path(self.folder.name) / "out0000.pfm").read_bytes().split(b"\n", 3)
        width, height = map(int, raw[1].split())
        return torch.from_numpy(np.frombuffer(raw[3], "<f4").reshape(height, width) * np.float32(10.0))

    def seconds(self, mode: str, camera: Camera) -> float:
        """Time of one call as the program reports it, without reading the volume."""
        time.sleep(SETTLE)
        return self._run(camera)

    def close(self) -> None:
        """Remove the files."""
        self.folder.cleanup()
