"""Networks of labels on disk, in a folder as `xreg.training` describes it."""

from __future__ import annotations

from pathlib import Path

from xreg.training import FACTS, LOG, MODEL, TRAINING, NetworkFiles

FILES = NetworkFiles("xreg.shape-network/1", "xreg shape train")
save, load = FILES.save, FILES.load
NAMES = (TRAINING, MODEL, FACTS, LOG)  # what to go on with is the first to be removed


def forget(folder: Path) -> None:
    """Remove an earlier training from a folder, so that nothing goes on with it once another began there."""
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
