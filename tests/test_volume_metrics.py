"""PSNR and SSIM of volumes by their formulas."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from xreg.errors import VolumeError
from xreg.metrics import psnr, ssim_volume


def pair(seed=0):
    random = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(random.random((14, 15, 16)), 1.5)
    return truth + 0.03 * random.standard_normal(truth.shape), truth


def slice_ssim(x, y):
    """Wang's formula, with a dense 2D window."""
    away = np.arange(11) - 5
    window = np.exp(-(away**2) / 4.5)
    window = np.outer(window, window) / window.sum() ** 2

    def mean(a):
        return ndimage.correlate(a, window, mode="constant")

    a, b = mean(x), mean(y)
    va, vb, cov = mean(x * x) - a * a, mean(y * y) - b * b, mean(x * y) - a * b
    return ((2 * a * b + 1e-4) * (2 * cov + 9e-4) / ((a * a + b * b + 1e-4) * (va + vb + 9e-4))).mean()


def test_psnr():
    truth = np.zeros((4, 5, 6))
    assert psnr(truth + 0.1, truth) == pytest.approx(20.0)
    assert psnr(truth + 0.1, truth, data_range=2.0) == pytest.approx(20.0 + 20 * math.log10(2))
    assert psnr(truth, truth) == math.inf


def test_ssim_is_the_mean_over_slices_of_three_axes():
    noisy, truth = pair()
    truth[3] = 0.0
    expected = []
    for axis in range(3):
        slices = [(np.take(noisy, i, axis), np.take(truth, i, axis)) for i in range(truth.shape[axis])]
        expected.append(np.mean([slice_ssim(x, y) for x, y in slices if y.max() > 0]))
    assert ssim_volume(noisy, truth) == pytest.approx(np.mean(expected), rel=1e-9)
    assert ssim_volume(5 * noisy, 5 * truth, data_range=5.0) == pytest.approx(np.mean(expected), rel=1e-9)
    assert ssim_volume(truth, truth) == pytest.approx(1.0)


def test_what_cannot_be_compared():
    noisy, truth = pair()
    with pytest.raises(VolumeError, match="one shape"):
        psnr(noisy[1:], truth)
    with pytest.raises(VolumeError, match="finite"):
        psnr(np.full_like(truth, np.nan), truth)
    with pytest.raises(VolumeError, match="D, H, W"):
        ssim_volume(torch.ones(3, 3), torch.ones(3, 3))
