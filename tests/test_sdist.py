"""The source distribution: everything that the kernels are built from is in it."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILT_FROM = [
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "constraints.txt",
    "Makefile",
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> set[str]:
    """The names in the source distribution of a copy of the tree, with one module of the package."""
    tree = tmp_path_factory.mktemp("tree")
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "cuda", tree / "cuda")
    (tree / "xreg").mkdir()
    shutil.copy(ROOT / "xreg" / "__init__.py", tree / "xreg")
    command = [sys.executable, "setup.py", "-q", "sdist", "--formats", "gztar"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").iterdir()
    with tarfile.open(archive) as file:
        return {name.partition("/")[2] for name in file.getnames()}


def test_the_sources_of_the_kernels_are_packed(packed):
    sources = {
        f"cuda/{path.relative_to(ROOT / 'cuda')}" for path in (ROOT / "cuda").rglob("*") if path.is_file()
    }
    assert len(sources) > 30
    assert sources <= packed


def test_what_builds_them_is_packed(packed):
    assert set(BUILT_FROM) <= packed
    assert "xreg/__init__.py" in packed
