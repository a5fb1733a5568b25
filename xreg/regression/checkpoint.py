"""Pose networks on disk, in a folder as `xreg.training` describes it."""

from __future__ import annotations

from xreg.training import FACTS, LOG, MODEL, TRAINING, NetworkFiles, read_log, require

__all__ = ["FACTS", "FILES", "LOG", "MODEL", "TRAINING", "load", "read_log", "require", "save", "save_facts"]

FILES = NetworkFiles("xreg.regressor/1", "xreg train")
save, load, save_facts = FILES.save, FILES.load, FILES.save_facts
