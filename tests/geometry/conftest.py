"""What the tests of the converters share: points in the patient, and a checker."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xreg.geometry import CONVENTIONS, Camera


@pytest.fixture
def points() -> np.ndarray:
    """Forty world points (RAS mm) around (4, −7, 9), well before every source."""
    return np.random.default_rng(11).normal(size=(40, 3)) * 45 + [4.0, -7.0, 9.0]


@pytest.fixture
def check(points: np.ndarray) -> Callable[..., Camera]:
    """Compare a converter with the tool's own formula, and the parameters with their round trip."""

    def run(params: Any, formula: Callable[[np.ndarray], np.ndarray], **options: Any) -> Camera:
        """``formula`` maps world points [N, 3] (RAS mm) to (column, row) of the array as stored."""
        convention = CONVENTIONS[params.tool]
        assert isinstance(params, convention.params)
        camera = convention.to_camera(params)
        np.testing.assert_allclose(camera.project(points).numpy(), formula(points), atol=1e-6, rtol=0)
        again = convention.from_camera(camera, **options)
        np.testing.assert_allclose(
            convention.to_camera(again).project(points).numpy(), formula(points), atol=1e-6, rtol=0
        )
        assert params.from_dict(params.to_dict()) == params
        return camera

    return run
