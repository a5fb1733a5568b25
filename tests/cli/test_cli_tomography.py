"""`xreg splat simulate` and `xreg recon`: from a CT to projections and back."""

import json

import pytest
from click.testing import CliRunner

from xreg import Volume
from xreg.cli import main
from xreg.io import load_projections, save_volume
from xreg.phantom import chest_phantom


def run(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    ct = chest_phantom(spacing=8.0)
    save_volume(folder / "ct.nii.gz", ct, units="hu")
    done = run(
        "splat", "simulate", folder / "ct.nii.gz", "-o", folder / "scan", "--size", 24, "--views", 20,
        "--detector", 36, 40, "--held-out", 2, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder / "scan", json.loads(done.stdout)


def test_simulate(scan):
    folder, said = scan
    found = load_projections(folder)
    assert said["shape"] == [20, 36, 40] == list(found.images.shape)
    assert said["held_out"] == len(found.held_out) == 2
    assert said["protocol"]["photons"] == 1e4
    assert said["scale"] == pytest.approx(2 / 360, rel=1e-4)
    assert found.truth.shape == (24, 24, 24)
    again = run("splat", "simulate", folder.parent / "ct.nii.gz", "-o", folder)
    assert again.exit_code == 1
    assert "exists already" in again.output


@pytest.mark.parametrize(("method", "least"), [("fdk", 22), ("os-sart", 25), ("fista-tv", 25)])
def test_recon(scan, tmp_path, method, least):
    done = run("recon", scan[0], "-o", tmp_path / "a.nii.gz", "--method", method, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["quality"]["psnr_db"] > least
    volume = Volume.load(tmp_path / "a.nii.gz", units="mu")
    assert volume.shape == (24, 24, 24)
    assert said["range"][1] == pytest.approx(float(volume.mu.max()), rel=1e-5)


def test_recon_on_another_grid(scan, tmp_path):
    done = run("recon", scan[0], "-o", tmp_path / "a.nii", "--method", "fdk", "--size", 10, "--bin", 2)
    assert done.exit_code == 0, done.output
    assert "against the truth" not in done.output
    assert Volume.load(tmp_path / "a.nii", units="mu").shape == (10, 10, 10)


def test_what_is_wrong(scan, tmp_path):
    assert run("recon", scan[0], "-o", tmp_path / "a.png").exit_code == 2
    done = run("recon", tmp_path, "-o", tmp_path / "a.nii")
    assert done.exit_code == 1
    assert "projections.json" in done.output
    done = run("recon", scan[0], "-o", tmp_path / "a.nii", "--unit-mm", 3)
    assert done.exit_code == 1
    assert "unit_mm" in done.output


def test_fine_pixels_are_averaged_first(scan, tmp_path):
    words = ("recon", scan[0], "-o", tmp_path / "a.nii", "--size", 8, "--iterations", 1)
    for more, wanted in (((), 2), (("--bin", 1), 1), (("--method", "fdk"), 1)):
        done = run(*words, *more, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["binning"] == wanted
    done = run(*words)
    assert "20 views of 18×20 px, means of 2×2" in done.output
    assert run(*words, "--bin", 0).exit_code == 2
