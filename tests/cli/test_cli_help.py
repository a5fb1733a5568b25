import subprocess
import sys

import pytest
from cli_files import done, xreg

import xreg as package
from xreg.cli import VERBS, convert, options
from xreg.geometry import CONVENTIONS
from xreg.ops.project import INTEGRATORS


def test_help_names_every_verb():
    text = done("--help").stdout
    assert all(f"\n  {verb} " in text for verb in VERBS)
    assert "3 done but rejected" in text


COMMANDS = [v for v in VERBS if v not in ("splat", "shape")] + ["splat simulate", "shape evaluate"]


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_explains_itself(verb):
    text = done(*verb.split(), "--help").stdout
    assert text.startswith(f"Usage: main {verb}") or f" {verb} " in text.splitlines()[0]
    assert "--json" in text
    assert len(text.splitlines()) > 8


def test_help_needs_no_torch():
    code = (
        "import sys; from click.testing import CliRunner; from xreg.cli import VERBS, main\n"
        "for words in (['--help'], *([v, '--help'] for v in VERBS)):\n"
        "    assert CliRunner().invoke(main, words).exit_code == 0, words\n"
        "loaded = {'torch', 'numpy', 'rich', 'nibabel', 'PIL'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_installed_command_answers():
    done = subprocess.run(
        [sys.executable, "-m", "xreg.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"xreg, version {package.__version__}"


@pytest.mark.parametrize(
    "words", [["cut"], ["drr"], ["drr", "ct.nii", "--sdd", "far"], ["info"], ["demo", "--size", "3"]]
)
def test_wrong_usage_is_exit_code_2(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = xreg(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage:" in result.stderr
    assert not list(tmp_path.iterdir())


def test_lists_that_help_repeats_are_the_library_s():
    assert tuple(CONVENTIONS) == convert.TOOLS
    assert set(options.INTEGRATORS) == set(INTEGRATORS)
    assert all(name in convert.FORMATS for name in (*convert.OWN, *convert.TOOLS))
