"""What both benchmarks share: the volume, a description of the machine, results as JSON."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from xreg.io import atomic_write
from xreg.ops import registry
from xreg.volume import Volume

PHANTOM = "phantom"
PACKAGES = ("xreg", "torch", "numpy", "nanodrr", "diffdrr", "itk", "itk-rtk", "plastimatch")
RESULTS = Path(__file__).resolve().parent / "results"


def find_ct(given: str | None) -> str:
    """The CT to use: --ct, else XREG_CHEST_CT, else the cached (or fetched) chest of `xreg demo`."""
    if given or os.environ.get("XREG_CHEST_CT"):
        return given or os.environ["XREG_CHEST_CT"]
    local = Path(".cache") / "cxr.nii.gz"
    if local.is_file():
        return str(local)
    from xreg.cli.chest import chest_files

    return str(chest_files().ct)


def load_ct(path: str) -> Volume:
    """The volume at a path, or the built-in phantom (coarse, for a quick look) for the word 'phantom'."""
    if path == PHANTOM:
        from xreg.phantom import chest_phantom

        return chest_phantom(spacing=4.0)
    return Volume.load(path)


def describe_run(ct: str, volume: Volume) -> dict[str, Any]:
    """The machine, the versions and the command, without names of hosts, users or folders."""
    return {
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": _command(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": [round(x, 2) for x in os.getloadavg()],
        "memory_gb": _memory_gb(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "kernels": registry.backend(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "volume": {
            "name": Path(ct).name,
            "sha256": None if ct == PHANTOM else hashlib.sha256(Path(ct).read_bytes()).hexdigest(),
            "size": list(volume.size),
            "spacing_mm": [round(s, 6) for s in volume.spacing],
        },
    }


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a result, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _command() -> str:
    words = [Path(w).name if os.sep in w and Path(w).is_absolute() else w for w in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
