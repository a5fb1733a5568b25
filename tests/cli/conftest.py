from pathlib import Path

import pytest
from cli_files import VIEW, done

from xreg.cli.demo import hidden_pose
from xreg.io import save_pose, save_tfm
from xreg.phantom import chest_phantom


@pytest.fixture(scope="session")
def chest(tmp_path_factory) -> Path:
    """A folder with a CT, its labels, a camera, a hidden pose, and two films of line integrals."""
    folder = tmp_path_factory.mktemp("chest")
    volume = chest_phantom(spacing=5.0)
    volume.save(folder / "ct.nii.gz", units="hu", labels=folder / "mask.nii.gz")
    truth = hidden_pose(volume.center, 1)
    save_pose(folder / "truth.json", truth)
    save_tfm(folder / "truth.tfm", truth)
    ct, camera = folder / "ct.nii.gz", folder / "camera.json"
    film = ["--pose", folder / "truth.json", "--integrator", "siddon", "-o", folder / "film.tif"]
    done("drr", ct, *VIEW, *film, "--save-camera", camera)
    done("drr", ct, *VIEW, "-o", folder / "film.npy")
    return folder
