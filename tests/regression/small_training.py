"""A body and a training small enough for tests."""

from dataclasses import replace

import torch

from xreg.phantom import chest_phantom
from xreg.regression import NetworkSettings, PoseRange, TrainSettings
from xreg.volume import Volume
from xreg.xray import AugmentSettings

BOX = PoseRange((-20, 20), (-10, 10), (-8, 8), (-30, 30), (-30, 30), (-40, 40))
TINY = NetworkSettings(width=8, depths=(1, 1), features=8, hidden=32)


def body() -> Volume:
    return chest_phantom(spacing=8.0)


def settings(**changes) -> TrainSettings:
    """A tiny network on films of 32 px."""
    known = {"size": 32, "batch": 8, "steps": 6, "grid_mm": 16.0, "held_out": 8, "validations": 3}
    known |= {"groups": 2, "network": TINY, "augment": AugmentSettings.none()}
    return TrainSettings(**{**known, **changes})


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors hold the same bits."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def narrow() -> PoseRange:
    """A range that a tiny network learns within seconds."""
    return replace(BOX, secondary=(-5, 5), roll=(-5, 5), depth=(-20, 20))
