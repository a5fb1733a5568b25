"""Runs a script of benchmarks/ as a user would."""

import pathlib
import subprocess
import sys

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


def run(*words: str) -> str:
    """What a script prints; it must end well."""
    command = [sys.executable, str(FOLDER / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
