"""`xreg splat simulate` and `xreg recon`: from a CT to projections and back."""

import json
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from xreg import Volume
from xreg.cli import main
from xreg.cli.scans import grid_of
from xreg.cli.splat_fit import CHECKPOINT
from xreg.io import VoxelGrid, load_projections, save_projections, save_volume
from xreg.io.projections import ProjectionSet
from xreg.phantom import chest_phantom
from xreg.splat.report import FILES
from xreg.splat.start import FEWEST
from xreg.tomography import Filter, fdk


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
    (tmp_path / "empty").mkdir()
    done = run("recon", tmp_path / "empty", "-o", tmp_path / "a.nii")
    assert done.exit_code == 1
    assert "projections.json" in done.output
    done = run("recon", scan[0], "-o", tmp_path / "a.nii", "--unit-mm", 3)
    assert done.exit_code == 1
    assert "unit_mm" in done.output


def test_fdk_continues_rows_that_the_detector_cuts(scan, tmp_path):
    cut = tmp_path / "cut"
    done = run(
        "splat", "simulate", scan[0].parent / "ct.nii.gz", "-o", cut, "--size", 16, "--views", 30,
        "--detector", 24, 24, "--detector-side", 4, 1.8, "--noise", "none",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = load_projections(cut)
    psnr = {}
    for part in (None, 0, 0.25):
        more = () if part is None else ("--extend", part)
        done = run("recon", cut, "-o", tmp_path / "a.nii", "--method", "fdk", *more, "--json")
        assert done.exit_code == 0, done.output
        psnr[part] = json.loads(done.stdout)["quality"]["psnr_db"]
        made = fdk(found.images, found.cameras, found.grid, filter=Filter("hann", extend=part or 0.0))
        assert torch.equal(Volume.load(tmp_path / "a.nii", units="mu").mu, made)
    assert psnr[None] == psnr[0] < psnr[0.25] - 2


def test_fine_pixels_are_averaged_first(scan, tmp_path):
    words = ("recon", scan[0], "-o", tmp_path / "a.nii", "--size", 8)
    one = ("--iterations", 1)
    for more, wanted in ((one, 2), ((*one, "--bin", 1), 1), (("--method", "fdk"), 1)):
        done = run(*words, *more, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["binning"] == wanted
    done = run(*words, *one)
    assert "20 views of 18×20 px, means of 2×2" in done.output
    assert run(*words, "--bin", 0).exit_code == 2


@pytest.fixture
def apart(scan):
    """The scan about another place than the world's origin, with its grid and without."""
    found = load_projections(scan[0])
    move = torch.eye(4, dtype=torch.float64)
    move[:3, 3] = torch.tensor([-100.0, 50.0, -30.0])
    rig = found.cameras.map(lambda camera: camera.moved(move))
    own = found.grid.affine.clone()
    own[:3, 3] -= move[:3, 3]
    return ProjectionSet(found.images, rig, VoxelGrid(found.grid.shape, own)), found.images, rig


BOX = {"size": None, "side_mm": None, "center": None}


def test_the_grid_that_the_set_states_says_what_options_leave_out(apart):
    own = apart[0].grid
    middle = own.center.tolist()
    assert middle != pytest.approx([0.0, 0.0, 0.0], abs=20)
    assert grid_of(apart[0], BOX) is own
    for given, shape, edge in (
        ({"size": 12, "side_mm": 90.0}, (12, 12, 12), 90.0),
        ({"size": 12}, (12, 12, 12), 360.0),
        ({"side_mm": 90.0}, (24, 24, 24), 90.0),
    ):
        grid = grid_of(apart[0], BOX | given)
        assert (grid.shape, grid.center.tolist()) == (shape, pytest.approx(middle))
        assert grid.extent == pytest.approx((edge,) * 3, rel=1e-4)
    for given in ({"center": (1.0, 2.0, 3.0)}, {"center": (1.0, 2.0, 3.0), "size": 10}):
        assert grid_of(apart[0], BOX | given).center.tolist() == pytest.approx([1.0, 2.0, 3.0])
    bare = ProjectionSet(apart[1], apart[2])
    for given in ({}, {"size": 12}, {"side_mm": 90.0}, {"center": (0.0, 0.0, 0.0)}):
        with pytest.raises(click.UsageError, match="states no grid: give --size and --side-mm"):
            grid_of(bare, BOX | given)
    assert grid_of(bare, BOX | {"size": 4, "side_mm": 9.0}).center.tolist() == [0.0, 0.0, 0.0]


def test_a_cube_that_no_ray_meets_is_refused_by_every_method(apart, tmp_path):
    save_projections(tmp_path / "scan", apart[0])
    words = ("recon", tmp_path / "scan", "-o", tmp_path / "a.nii", "--size", 4, "--side-mm", 20)
    for method in ("fdk", "sirt", "os-sart", "cgls", "fista-tv"):
        done = run(*words, "--center", 100, 0, 1500, "--method", method)
        assert done.exit_code == 1
        assert "no ray of any view meets the grid" in done.output
    assert not (tmp_path / "a.nii").exists()


def test_nothing_is_written_over_the_projections_that_are_read(scan, tmp_path, monkeypatch):
    before = (scan[0] / "truth.nii.gz").read_bytes()
    (tmp_path / "link").symlink_to(scan[0])
    for out in (scan[0] / "truth.nii.gz", scan[0] / "held_out" / "a.nii", tmp_path / "link" / "a.nii"):
        done = run("recon", scan[0], "-o", out, "--method", "fdk")
        assert done.exit_code == 2
        assert "lies inside PROJECTIONS" in done.output
    monkeypatch.chdir(scan[0])
    assert run("recon", ".", "-o", "truth.nii.gz", "--method", "fdk").exit_code == 2
    assert run("splat", "fit", ".", "-o", "fitted", *FAST).exit_code == 2
    done = run("splat", "fit", scan[0], "-o", scan[0], *FAST)
    assert done.exit_code == 2
    assert "-o would write over" in done.output
    assert (scan[0] / "truth.nii.gz").read_bytes() == before
    assert not (scan[0] / "fitted").exists()


def test_nothing_is_written_over_other_files_that_are_read(scan, tmp_path):
    stack, prior = tmp_path / "stack.nii", tmp_path / "fitted" / "volume.nii.gz"
    prior.parent.mkdir()
    for path in (stack, prior):
        path.write_bytes(b"mine")
    done = run("recon", scan[0], "-o", stack, "--projections", stack)
    assert done.exit_code == 2
    assert "which --projections reads" in done.output
    done = run("splat", "fit", scan[0], "-o", prior.parent, "--prior", prior, "--overwrite")
    assert done.exit_code == 2
    assert "which --prior reads" in " ".join(done.output.split())
    done = run("splat", "render", stack, "-o", tmp_path / "camera.tif", "--camera", tmp_path / "camera.tif")
    assert done.exit_code == 2
    assert "which --camera reads" in done.output
    assert stack.read_bytes() == prior.read_bytes() == b"mine"


def test_options_that_a_method_does_not_have_are_refused(scan, tmp_path):
    words = ("recon", scan[0], "-o", tmp_path / "a.nii")
    for more, said in (
        (("--iterations", 0), "0 is not in the range"),
        (("--subsets", 0), "0 is not in the range"),
        (("--seconds", 0), "0.0 is not in the range"),
        (("--method", "fdk", "--seconds", 3), "--seconds is for sirt, os-sart, cgls, fista-tv"),
        (("--method", "cgls", "--subsets", 3), "--subsets is for os-sart, fista-tv, and not for cgls"),
        (("--method", "sirt", "--weight", 0.1), "--weight is for fista-tv, and not for sirt"),
        (("--window", "hann"), "--window is for fdk, and not for fista-tv"),
        (("--extend", 0.2), "--extend is for fdk, and not for fista-tv"),
        (("--method", "fdk", "--extend", 3), "3.0 is not in the range 0<=x<=2"),
    ):
        done = run(*words, *more)
        assert done.exit_code == 2, more
        assert said in " ".join(done.output.split())


def test_simulate_asks_for_its_folder_before_the_march(scan, tmp_path):
    ct = scan[0].parent / "ct.nii.gz"
    done = run("splat", "simulate", ct, "-o", tmp_path / "missing" / "dir" / "scan", "--size", 4096)
    assert done.exit_code == 1
    assert "missing/dir does not exist; make it first" in done.output


def test_a_cube_of_too_many_fine_voxels_is_refused(tmp_path):
    words = ("-o", tmp_path / "scan", "--size", 256, "--finer", 40)
    done = run("splat", "simulate", tmp_path / "ct.nii", *words)
    assert done.exit_code == 2
    assert "--size 256 times --finer 40 is 10240 voxels along the cube" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", -1), "'--size': -1 is not in the range 1<=x<=10000."),
        (("--size", 100000), "'--size': 100000 is not in the range 1<=x<=10000."),
        (("--views", 0), "'--views': 0 is not in the range x>=1."),
        (("--held-out", -1), "'--held-out': -1 is not in the range x>=0."),
        (("--finer", 0), "'--finer': 0 is not in the range x>=1."),
        (("--detector", 36, 0), "'--detector': 0 is not in the range 1<=x<=10000."),
    ],
)
def test_simulate_refuses_counts_that_cannot_be(tmp_path, words, said):
    done = run("splat", "simulate", tmp_path / "ct.nii", "-o", tmp_path / "scan", *words)
    assert done.exit_code == 2
    assert said in done.output


def test_a_size_beyond_any_machine_is_refused_as_such(scan, tmp_path):
    for verb in (("recon",), ("splat", "fit")):
        done = run(*verb, scan[0], "-o", tmp_path / "a.nii", "--size", 100000)
        assert done.exit_code == 2
        assert "'--size': 100000 is not in the range 1<=x<=10000." in done.output


FAST = ("--iterations", 1, "--count", 100, "--init", "fdk", "--size", 10)


def test_a_fit_that_is_there_is_not_overwritten_without_a_word(scan, tmp_path):
    out = tmp_path / "fitted"
    words = ("splat", "fit", scan[0], "-o", out, *FAST)
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    for more in ((), ("--resume", "--overwrite")):
        again = run(*words, *more, "--seed", 1)
        assert again.exit_code == 2
        assert "--resume" in again.output
        assert "--overwrite" in again.output
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    (out / "notes.txt").write_text("mine")
    again = run(*words[:5], "--overwrite", "--size", 10, "--prior", tmp_path / "none.nii")
    assert again.exit_code == 1  # nothing is lost where the options are wrong
    again = run(*words, "--overwrite", "--seed", 1, "--center", 100, 0, 5000)
    assert again.exit_code == 1
    assert "no ray of any view meets the grid" in again.output
    (out / "notes.txt").unlink()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    (out / "notes.txt").write_text("mine")
    again = run(*words, "--overwrite", "--seed", 1)
    assert again.exit_code == 0, again.output
    assert (out / "notes.txt").is_file()
    assert (out / "gaussians.ply").read_bytes() != first["gaussians.ply"]
    other = run(*words[:-1], 11, "--resume", "--seed", 1)
    assert other.exit_code == 1
    assert "another grid" in other.output


def test_what_a_fit_writes_and_its_fewest_gaussians_are_told():
    said = " ".join(run("splat", "fit", "--help").output.split())
    told = (Path(__file__).parents[2] / "docs" / "splat.md").read_text(encoding="utf-8")
    assert CHECKPOINT in said
    assert all(f"`{name}`" in told for name in (CHECKPOINT, *FILES))
    assert f"at least {FEWEST}" in said
    assert f"at least {FEWEST}" in told


def test_a_fit_that_cannot_begin_leaves_no_folder(scan, tmp_path):
    words = ("splat", "fit", scan[0], *FAST, "--center", 100, 0, 5000)
    done = run(*words, "-o", tmp_path / "new" / "fitted")
    assert done.exit_code == 1
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    assert run(*words, "-o", tmp_path / "mine" / "fitted").exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert not list((tmp_path / "mine").iterdir())


def test_results_of_an_earlier_fit_go_once_the_next_has_begun(scan, tmp_path, monkeypatch):
    """So no earlier volume stands beside the checkpoint of another fit."""
    out = tmp_path / "fitted"
    out.mkdir()
    for name in ("checkpoint.safetensors", "volume.nii.gz", "metrics.json"):
        (out / name).write_bytes(b"earlier")
    monkeypatch.setattr("xreg.splat.report.write_report", lambda *_: 1 / 0)
    assert run("splat", "fit", scan[0], "-o", out, *FAST, "--overwrite").exit_code == 1
    assert [path.name for path in out.iterdir()] == ["checkpoint.safetensors"]
    assert (out / "checkpoint.safetensors").read_bytes() != b"earlier"


def test_a_fit_without_a_box_names_the_options_and_makes_no_folder(apart, tmp_path):
    save_projections(tmp_path / "scan", ProjectionSet(apart[1], apart[2]))
    words = ("splat", "fit", tmp_path / "scan", "-o", tmp_path / "out", "--iterations", 1, "--count", 100)
    done = run(*words)
    assert done.exit_code == 2
    assert "give --size and --side-mm (and --center)" in done.output
    assert not (tmp_path / "out").exists()
    middle = [round(v, 3) for v in apart[0].grid.center.tolist()]
    done = run(*words, "--init", "fdk", "--size", 10, "--side-mm", 360, "--center", *middle)
    assert done.exit_code == 0, done.output
    volume = Volume.load(tmp_path / "out" / "volume.nii.gz", units="mu")
    assert volume.center.tolist() == pytest.approx(middle, abs=0.01)


def test_a_reconstruction_is_a_prior(scan, tmp_path):
    """It is in 1/mm, which is told from its range; so is a CT, whose 1/mm are not the scan's."""
    done = run("recon", scan[0], "-o", tmp_path / "a.nii.gz", "--iterations", 2)
    assert done.exit_code == 0, done.output
    words = ("splat", "fit", scan[0], *FAST[:4], "--json")
    done = run(*words, "-o", tmp_path / "out", "--prior", tmp_path / "a.nii.gz")
    assert done.exit_code == 0, done.output
    assert "multiplied" not in done.stderr
    assert json.loads(done.stdout)["psnr_3d_db"] > 25
    done = run(*words, "-o", tmp_path / "out", "--overwrite", "--units", "mu")
    assert done.exit_code == 2
    assert "--units goes with --prior" in done.output
    done = run(*words, "-o", tmp_path / "ct", "--prior", scan[0].parent / "ct.nii.gz")
    assert done.exit_code == 0, done.output
    assert "the prior was multiplied by" in done.stderr
    assert json.loads(done.stdout)["psnr_3d_db"] > 25
