"""What makes a rendered image look like a film: the physics of one film, what covers it, random looks."""

from xreg.xray.augment import Augment, AugmentSettings
from xreg.xray.film import FilmSettings, expose

__all__ = ["Augment", "AugmentSettings", "FilmSettings", "expose"]
