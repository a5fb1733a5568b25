"""Patient-specific pose regressors: from a CT to a network that starts its registrations."""

from xreg.regression.canonical import Canonical, normalise
from xreg.regression.network import NetworkSettings, PoseNet
from xreg.regression.ranges import PRESETS, PoseRange, parse_range
from xreg.regression.regressor import PoseGuess, Regressor
from xreg.regression.settings import TrainSettings, Weights
from xreg.regression.start import Guessed, register_guessed
from xreg.regression.train import Report, Trained, train
from xreg.regression.validation import Validation

__all__ = [
    "PRESETS",
    "Canonical",
    "Guessed",
    "NetworkSettings",
    "PoseGuess",
    "PoseNet",
    "PoseRange",
    "Regressor",
    "Report",
    "TrainSettings",
    "Trained",
    "Validation",
    "Weights",
    "normalise",
    "parse_range",
    "register_guessed",
    "train",
]
