"""On phantoms whose blur, noise and geometry are known."""

import numpy as np
import pytest
from scipy import ndimage

from ldct.metrics import edges
from ldct.metrics.noise_texture import FREQUENCY
from ldct.metrics.slice_pair import SlicePair, Target


def bones(size=256):
    """Discs of 1000 HU in soft tissue, in air; edges are a pixel wide."""
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size), -1000.0)
    image[(y - size / 2) ** 2 + (x - size / 2) ** 2 < (0.46 * size) ** 2] = 50
    for row in range(60, 200, 40):
        for column in range(60, 200, 40):
            image[(y - row) ** 2 + (x - column) ** 2 < 10**2] = 1000
    return ndimage.gaussian_filter(image, 0.5)


def noise(sd, seed, shape=(256, 256)):
    return np.random.default_rng(seed).normal(0, sd, shape)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.5])
def test_the_transfer_function_is_that_of_the_blur(sigma):
    """A Gaussian's is a Gaussian, 1/2 at 0.187 / SD; noise of the output, however much, is not in it."""
    full = bones() + noise(3, 1)
    output = ndimage.gaussian_filter(full, sigma) + noise(10, 2)
    pair = SlicePair(output, Target(full, spacing=0.5))
    curve = edges.transfer(pair)
    low = FREQUENCY <= 0.25
    np.testing.assert_allclose(curve[low], np.exp(-2 * (np.pi * sigma * FREQUENCY[low]) ** 2), atol=0.06)
    assert edges.half_frequency(pair) == pytest.approx(0.1874 / sigma / 0.5, rel=0.1)
    assert edges.sharpness(pair) == pytest.approx(np.exp(-2 * (np.pi * sigma * 0.2) ** 2), abs=0.05)


def test_noise_removed_and_edges_kept_is_as_sharp_as_the_full_dose():
    full = bones() + noise(5, 1)
    pair = SlicePair(bones(), Target(full, spacing=0.5))
    assert edges.sharpness(pair) == pytest.approx(1, abs=0.02)
    assert edges.half_frequency(pair) == pytest.approx(1.0)  # Nyquist's: 1 / (2 * 0.5 mm)


def test_enhanced_edges_are_above_1():
    full = bones()
    assert edges.sharpness(SlicePair(full + 0.5 * (full - ndimage.gaussian_filter(full, 1)), full)) > 1.1


def test_without_edges_or_the_size_of_a_pixel_there_is_none():
    flat = 50 + noise(10, 1)
    assert np.isnan(edges.sharpness(SlicePair(flat, flat)))
    assert np.isnan(edges.half_frequency(SlicePair(bones(), bones())))
    assert np.isnan(edges.sharpness(SlicePair(bones()[:20, :20], bones()[:20, :20])))


def test_removed_noise_knows_no_anatomy_and_a_blur_does():
    clean, extra = bones(), noise(20, 3)
    full = clean + noise(5, 4)
    ideal = SlicePair(full, Target(full, low=full + extra))
    blurred = SlicePair(ndimage.gaussian_filter(full + extra, 1.5), Target(full, low=full + extra))
    assert edges.residual_follows_edges(ideal) == pytest.approx(0, abs=0.02)
    assert edges.residual_follows_edges(blurred) > 0.5
    assert np.isnan(edges.residual_follows_edges(SlicePair(full, Target(full, low=full))))
    assert np.isnan(edges.residual_follows_edges(SlicePair(full, full)))
