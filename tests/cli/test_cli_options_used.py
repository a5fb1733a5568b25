"""Options that would be without effect are refused; and what --json says where a verb does not end well."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_files import VIEW, done, said, xreg

from xreg.io import load_projections, save_volume
from xreg.phantom import chest_phantom

SCAN = ["--size", 8, "--views", 2, "--detector", 8, 8]


def misused(*words: object) -> str:
    """Run what has to end with exit code 2, by hand and for machines; the message."""
    plain, machine = xreg(*words), xreg(*words, "--json")
    assert plain.exit_code == machine.exit_code == 2, plain.output
    assert plain.stdout == ""
    assert machine.stderr == plain.stderr
    assert "Usage: " in machine.stderr
    answer = json.loads(machine.stdout)
    assert answer["status"] == "failed"
    assert set(answer) == {"xreg", "verb", "status", "error"}
    message = answer["error"]["message"]
    assert plain.stderr.rstrip().endswith("Error: " + message)
    return message


# A shell's background job ignores Ctrl-C, and so would a process that is started from one.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from xreg.cli import main; main(prog_name='xreg')"
)


def process(*words: object, **known: object) -> subprocess.Popen:
    """The command line as a process of its own."""
    command = [sys.executable, "-c", START, *map(str, words)]
    known = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **known}
    return subprocess.Popen(command, **known)


@pytest.mark.parametrize(
    ("words", "name", "kind"),
    [
        (["drr"], "drr", "MissingParameter"),
        (["drr", "ct.nii", "--sdd", "far"], "drr", "BadParameter"),
        (["drr", "ct.nii", "--none"], "drr", "NoSuchOption"),
        (["drr", "ct.nii", "-o", "a.png"], "drr", "UsageError"),
        (["splat", "fit"], "splat fit", "MissingParameter"),
        (["shape", "evaluate", "a"], "shape evaluate", "MissingParameter"),
    ],
)
def test_wrong_usage_is_json_too(words, name, kind):
    misused(*words)
    answer = said(*words, code=2)
    assert (answer["verb"], answer["error"]["type"]) == (name, kind)


def test_json_after_two_dashes_is_an_argument():
    assert xreg("drr", "--none", "--", "--json").stdout == ""


def test_a_verb_in_json_is_named_by_all_its_words(chest, tmp_path):
    scan = ["splat", "simulate", chest / "ct.nii.gz", "-o", tmp_path / "scan", *SCAN]
    assert said(*scan)["verb"] == "splat simulate"
    assert said(*scan, code=1)["verb"] == "splat simulate"
    assert said("info", chest / "camera.json")["verb"] == "info"


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_has_its_own_exit_code(chest, tmp_path, monkeypatch):
    monkeypatch.setattr("xreg.cli.drr.load_ct", interrupted)
    monkeypatch.setattr("xreg.cli.train.load_ct", interrupted)
    words = ["drr", chest / "ct.nii.gz", *VIEW, "-o", tmp_path / "a.png"]
    plain, answer = xreg(*words), said(*words, code=130)
    assert (plain.exit_code, plain.stdout) == (130, "")
    assert plain.stderr.endswith("error: interrupted\n")
    assert (answer["status"], answer["error"]["message"]) == ("interrupted", "interrupted")
    answer = said("train", chest / "ct.nii.gz", "-o", tmp_path / "net", code=130)
    assert "--resume goes on" in answer["error"]["message"]
    monkeypatch.setattr("xreg.cli.options._Device.convert", interrupted)  # as where it loads torch
    assert said("train", "ct.nii", "-o", tmp_path / "net", code=130)["status"] == "interrupted"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_a_process_with_one_object(chest, tmp_path):
    words = ["splat", "simulate", chest / "ct.nii.gz", "-o", tmp_path / "scan", "--size", 256, "--json"]
    with process(*words) as run:
        assert "reading" in run.stderr.readline()
        assert "marching" in run.stderr.readline()  # all that is imported is, and the work goes on for long
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert json.loads(out)["status"] == "interrupted"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("words", "code"), [(["camera.json"], 1), (["none.json"], 1), ([], 2)])
def test_an_output_that_takes_nothing_is_told(chest, words, code):
    with open("/dev/full", "w") as full, process("info", *words, "--json", cwd=chest, stdout=full) as run:
        _, err = run.communicate(timeout=60)
    assert run.returncode == code
    assert "error: stdout: No space left on device" in err
    assert "Traceback" not in err
    assert "Exception" not in err


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux")
def test_json_is_utf8_whatever_a_file_is_called(chest, tmp_path):
    name = os.fsencode(tmp_path) + b"/a\xff.json"
    Path(os.fsdecode(name)).write_bytes((chest / "camera.json").read_bytes())
    with process("info", os.fsdecode(name), "--json", text=False) as run:
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 0
    assert json.loads(out.decode("utf-8", "strict"))["file"].endswith("a\ufffd.json")


@pytest.mark.parametrize(
    ("file", "words", "message"),
    [
        ("film.tif", ["--rescale", 1, 0, "--series", "1"], "--rescale, --series: not for a radiograph"),
        ("film.tif", ["--energy", 60], "--energy: not for a radiograph"),
        ("film.tif", ["--energy", 70], "--energy: not for a radiograph"),
        ("camera.json", ["--frame", 0, "--mask", "m"], "--frame, --mask: not for a camera"),
        ("truth.json", ["--units", "mu"], "--units: not for a pose"),
        ("truth.tfm", ["--units", "mu"], "--units: not for a pose"),
        ("mask.nii.gz", ["--mask", "mask.nii.gz"], "--mask: not for a label map"),
        ("ct.nii.gz", ["--as", "ct", "--frame", 1], "--frame: not for a CT"),
    ],
)
def test_info_refuses_options_of_another_kind(chest, file, words, message):
    assert message in misused("info", chest / file, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", 500, "--integrator", "siddon"], "--samples is for --integrator trilinear"),
        (["--mask", "mask.nii.gz"], "--mask is for --labels"),
        (["--label-names", "names.csv"], "--label-names is for --labels"),
    ],
)
def test_drr_refuses_what_it_would_not_use(words, message):
    assert message in misused("drr", "ct.nii", *VIEW, "-o", "a.npy", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--angle", 5, "--views", 50], "leave out --views"),
        (["--angle", 5, "--arc", 90, "--start", 3], "leave out --arc, --start"),
        (["--noise", "none", "--photons", 100, "--seed", 1], "--photons, --seed: for noise"),
        (["--noise", "none", "--held-out", 2, "--seed", 1, "--electronic", 1], "--electronic: for noise"),
    ],
)
def test_simulate_refuses_what_it_would_not_use(tmp_path, words, message):
    assert message in misused("splat", "simulate", "ct.nii", "-o", tmp_path / "scan", *words)


def test_the_truth_of_a_simulation_is_at_the_energy_of_its_ct_numbers(tmp_path):
    ct = chest_phantom(spacing=8.0)
    save_volume(tmp_path / "hu.nii", ct, units="hu")
    save_volume(tmp_path / "mu.nii", ct.at_energy(50.0), units="mu")
    words = ["splat", "simulate", tmp_path / "hu.nii", *SCAN, "-o"]
    assert "--energy changes nothing" in misused(*words, tmp_path / "x", "--energy", 50)
    done(*words, tmp_path / "a", "--ct-energy", 80)
    done(*words, tmp_path / "b")
    of_mu = ["splat", "simulate", tmp_path / "mu.nii", "--units", "mu", *SCAN, "-o"]
    assert "--ct-energy changes nothing" in misused(*of_mu, tmp_path / "x", "--ct-energy", 50)
    done(*of_mu, tmp_path / "c", "--energy", 50)
    first, second, third = (load_projections(tmp_path / name).truth for name in "abc")
    assert [first.energy_kev, second.energy_kev, third.energy_kev] == [80.0, 70.0, 70.0]
    torch.testing.assert_close(first.mu, second.mu)
    torch.testing.assert_close(third.mu, second.mu, atol=2e-5, rtol=0)


def test_fit_train_and_evaluate_refuse_what_they_would_not_use(tmp_path):
    fit = ["splat", "fit", "scan", "-o", tmp_path / "fit", "--prior", "ct.nii"]
    assert "--prior takes the place of --init" in misused(*fit, "--init", "tv")
    train = ["train", "ct.nii", "-o", tmp_path / "net"]
    assert "--mask holds structures for --dice" in misused(*train, "--mask", "mask.nii")
    assert "give --dice" in misused(*train, "--mask", "mask.nii", "--label", "spine")
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).touch()
    compare = ["shape", "evaluate", tmp_path / "a.nii", tmp_path / "b.nii", "--names", "names.csv"]
    assert "leave out --scheme" in misused(*compare, "--scheme", "all")
    assert "leave out --prediction-scheme" in misused(*compare, "--prediction-scheme", "all")


def test_convert_takes_a_word_once(chest):
    words = ["convert", chest / "camera.json", "--to", "diffdrr"]
    both = ["--isocenter", 0, 0, 1, "--set", "isocenter=[0,0,2]"]
    assert "--isocenter and --set isocenter=... exclude" in misused(*words, *both)
    twice = ["--set", "isocenter=[0,0,1]", "--set", "isocenter=[0,0,2]"]
    assert "--set gives isocenter twice" in misused(*words, *twice)
