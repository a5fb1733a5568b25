"""Networks of labels on disk, in a folder as `xreg.training` describes it."""

from __future__ import annotations

from xreg.training import NetworkFiles

FILES = NetworkFiles("xreg.shape-network/1", "xreg shape train")
save, load = FILES.save, FILES.load
