"""Where a fit stands, on disk: one .safetensors file with its state as JSON, see `xreg.io.tensors`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import FileError, GaussianError
from xreg.geometry import Camera
from xreg.io.tensors import checksum, load_tensors, save_tensors
from xreg.io.voxel_grid import VoxelGrid
from xreg.splat.adam import NAMES, Parameters
from xreg.splat.gaussians import Gaussians
from xreg.splat.settings import FitSettings
from xreg.volume import Volume

SCHEMA = "xreg.gaussian_fit/6"
GAIN = 0.01  # of the misfit of held-out rays, from one look to a later one
_PRIOR = {  # by whether there was none, and whether there is none now
    (False, False): "another prior",
    (False, True): "a prior (there is none now)",
    (True, False): "no prior (there is one now)",
}
FREE = ("seconds", "iterations", "patience")  # settings that may change when a fit goes on


def identity(
    films: Float[Tensor, "V H W"], cameras: Sequence[Camera], grid: VoxelGrid, prior: Volume | None
) -> dict[str, Any]:
    """What a fit is of, as plain JSON values: its grid, hashes of its films, nominal cameras and prior."""
    rig = json.dumps([camera.to_dict() for camera in cameras], sort_keys=True)
    return {
        "grid": grid.to_dict(),
        "films": checksum({"films": films}),
        "cameras": hashlib.sha256(rig.encode()).hexdigest(),
        "prior": None if prior is None else checksum({"mu": prior.mu, "affine": prior.affine}),
    }


def require_same(path: str | PathLike, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """GaussianError, naming what differs, where a checkpoint is not of these films, cameras, grid, prior."""
    other = [name for name in now if was.get(name) != now[name]]
    if not other:
        return
    said = {
        "grid": f"another grid (it was {_grid_said(was.get('grid'))}, now {_grid_said(now['grid'])})",
        "films": "other films", "cameras": "other cameras",
        "prior": _PRIOR.get((was.get("prior") is None, now["prior"] is None)),
    }  # fmt: skip
    raise GaussianError(
        f"{path}: belongs to a fit with {' and '.join(said[name] for name in other)}; use the same, or fit "
        "without resume"
    )


def _grid_said(grid: Mapping[str, Any] | None) -> str:
    if grid is None:
        return "unknown"
    known = VoxelGrid.from_dict(grid)
    size, edges, middle = (
        " ".join(f"{v:.6g}" for v in each) for each in (known.shape, known.extent, known.center.tolist())
    )
    return f"{size} voxels (D, H, W) with edges of {edges} mm about {middle} mm"


@dataclass
class Progress:
    """Steps done, looks taken, the best so far, and the order of what comes."""

    generator: torch.Generator
    step: int = 0
    order: list[int] = field(default_factory=list)
    history: list[tuple[int, int, float, float]] = field(default_factory=list)
    best: Gaussians | None = None
    least: float = float("inf")
    since: int = 0
    seconds_before: float = 0.0

    def next_views(self, views: int, count: int) -> list[int]:
        """Numbers of views for a step: each comes once before any comes again."""
        if len(self.order) < count:
            self.order = torch.randperm(views, generator=self.generator).tolist()
        picked, self.order = self.order[:count], self.order[count:]
        return picked

    def note(self, body: Gaussians, look: tuple[int, int, float, float]) -> None:
        """Take down a look, and the Gaussians where it is the best; below GAIN it is no gain."""
        self.history.append(look)
        self.since = 0 if look[3] < (1 - GAIN) * self.least else self.since + 1
        if look[3] < self.least:
            self.best, self.least = body, look[3]

    def worse_for(self, looks: int) -> bool:
        """Whether that many looks have passed without a gain."""
        return self.since >= looks


@dataclass
class Checkpoint:
    """What `read_checkpoint` found."""

    progress: Progress
    now: Gaussians
    moments: dict[str, tuple[Tensor, Tensor]]
    adam_steps: int
    state: dict[str, Any]
    first: Tensor | None = None
    pull: Tensor | None = None

    def restore(self, parameters: Parameters) -> None:
        """Give Adam its moments back."""
        parameters.steps = self.adam_steps
        for name, pair in self.moments.items():
            parameters.moments[name] = tuple(m.to(parameters.values[name].device) for m in pair)


def check_file(checkpoint: str | PathLike | None, resume: bool) -> None:
    """Before any work: GaussianError to resume from nothing, FileError where no checkpoint can be written."""
    if checkpoint is None:
        if resume:
            raise GaussianError("resume=True needs checkpoint=, the file to go on from")
        return
    folder = Path(checkpoint).parent
    if not folder.is_dir():
        raise FileError(f"{checkpoint}: the folder {folder} does not exist; make it first")


def write_checkpoint(
    path: str | PathLike,
    progress: Progress,
    parameters: Parameters,
    settings: FitSettings,
    state: dict[str, Any],
    *,
    first: Tensor | None = None,
    pull: Tensor | None = None,
) -> None:
    """Write where a fit stands; first: the volume that it began from; pull: that of `split_and_prune`.

    Raises FileError.
    """
    tensors = {f"now.{n}": v.detach() for n, v in parameters.values.items()}
    for n, (mean, square) in parameters.moments.items():
        tensors |= {f"mean.{n}": mean, f"square.{n}": square}
    if progress.best is not None:
        tensors |= {f"best.{n}": v for n, v in progress.best.items()}
    tensors |= {name: value for name, value in (("first", first), ("pull", pull)) if value is not None}
    tensors["generator"] = progress.generator.get_state()
    about = {
        "settings": settings.to_dict(), "state": state, "step": progress.step, "order": progress.order,
        "history": progress.history, "least": progress.least, "since": progress.since,
        "adam_steps": parameters.steps,
    }  # fmt: skip
    save_tensors(path, tensors, about, schema=SCHEMA)


def read_checkpoint(path: str | PathLike, settings: FitSettings) -> Checkpoint:
    """Read where a fit stands.  FileError where the file is damaged; GaussianError for other settings."""
    remedy = "fit without resume"
    tensors, about = load_tensors(path, schema=SCHEMA, what="a fit's checkpoint", remedy=remedy)
    try:
        generator = torch.Generator()
        generator.set_state(tensors["generator"])
        now, best = (
            Gaussians(**{n: tensors[f"{word}.{n}"] for n in NAMES}) if f"{word}.mean" in tensors else None
            for word in ("now", "best")
        )
        moments = {n: (tensors[f"mean.{n}"], tensors[f"square.{n}"]) for n in NAMES}
        progress = Progress(
            generator, about["step"], about["order"], [tuple(h) for h in about["history"]], best,
            about["least"], about["since"], about["state"]["seconds"],
        )  # fmt: skip
        found = Checkpoint(
            progress, now, moments, about["adam_steps"], about["state"], tensors.get("first"),
            tensors.get("pull"),
        )  # fmt: skip
    except (KeyError, TypeError, RuntimeError) as error:
        raise FileError(f"{path}: is damaged or no checkpoint ({error}); {remedy}") from error
    mine = settings.to_dict()
    other = [n for n, v in about["settings"].items() if n not in FREE and mine.get(n) != v]
    if other:
        named = ", ".join(f"{n} was {about['settings'][n]!r}, now {mine.get(n)!r}" for n in other)
        raise GaussianError(
            f"{path}: belongs to a fit with other settings ({named}); use these, or begin anew"
        )
    return found
