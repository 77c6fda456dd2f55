import numpy as np
import pytest
from scipy import ndimage

from ldct.metrics.noise_texture import (
    BLOCK,
    flat_blocks,
    high_band,
    mean_frequency,
    mean_per_mm,
    peak_per_mm,
    spectrum,
)
from ldct.metrics.slice_pair import SlicePair, Target


def noise(sigma=0.0, sd=10.0, seed=0):
    """Noise of one SD, blurred by ``sigma`` pixels before it is scaled."""
    image = np.random.default_rng(seed).standard_normal((256, 256))
    image = ndimage.gaussian_filter(image, sigma) if sigma else image
    return sd * image / image.std()


def test_blocks_lie_in_flat_soft_tissue_only():
    full = np.full((256, 256), -1000.0)
    full[:128] = 60  # flat
    full[128:, :128] = 60 + 60 * np.sin(np.arange(128) / 5)  # soft tissue, but not flat
    blocks = flat_blocks((full + noise()).astype(np.int16))
    assert len(blocks) >= 20
    assert all(rows.stop <= 128 for rows, _ in blocks)


def test_white_noise_has_an_even_spectrum_and_its_mean_in_the_middle():
    blocks = [(slice(r, r + BLOCK), slice(c, c + BLOCK)) for r in range(0, 256, BLOCK) for c in range(0, 256, BLOCK)]
    rings = spectrum(noise(), blocks)[2:]
    assert rings.std() / rings.mean() < 0.1


def test_texture_tells_a_blur_from_the_full_dose():
    full = (60 + noise(0.7, seed=1)).round().astype(np.int16)
    low = (full + noise(0.7, 17, seed=2)).round().astype(np.int16)
    blurred = ndimage.gaussian_filter(low.astype(float), 1.5)
    same, noisy, smooth = (SlicePair(output, full) for output in (full, low, blurred))
    assert high_band(same) == 1
    assert np.isnan(mean_frequency(same))  # no difference, no spectrum
    assert high_band(noisy) == pytest.approx(1 + 17**2 / 10**2, rel=0.1)  # powers of independent noises add
    assert high_band(smooth) < 0.05
    assert mean_frequency(smooth) < mean_frequency(noisy) - 0.02


def test_the_mean_frequency_is_that_of_the_noise_added():
    full = np.full((256, 256), 60, np.int16)
    x = np.arange(256)
    wave = 10 * np.cos(2 * np.pi * x * 8 / BLOCK)[None] * np.ones((256, 1))
    pair = SlicePair(np.rint(full + wave).astype(np.int16), full)
    assert mean_frequency(pair) == pytest.approx(8 / BLOCK, abs=0.01)
    assert np.isnan(high_band(pair))  # a full dose without noise is no measure


def test_a_slice_without_soft_tissue_has_no_texture():
    air = np.full((128, 128), -1000, np.int16)
    assert np.isnan([mean_frequency(SlicePair(air + 1, air)), high_band(SlicePair(air + 1, air))]).all()


def test_frequencies_in_mm_are_those_of_the_noise():
    """A wave of 6 / 32 cycles per pixel of 0.75 mm, in flat tissue."""
    full = np.full((256, 256), 60.0)
    wave = 10 * np.cos(2 * np.pi * np.arange(256) * 6 / BLOCK)[:, None] * np.ones(256)
    pair = SlicePair(full + wave, Target(full, spacing=0.75))
    assert peak_per_mm(pair) == 6 / BLOCK / 0.75
    assert mean_per_mm(pair) == pytest.approx(6 / BLOCK / 0.75, rel=0.02)
    assert np.isnan(peak_per_mm(SlicePair(full + wave, full)))  # the size of a pixel is not known
    assert np.isnan(mean_per_mm(SlicePair(full, Target(full, spacing=0.75))))  # no noise


def test_the_mean_frequency_of_white_noise_is_two_thirds_of_the_highest():
    """Power is per area of the frequency plane, which grows with the frequency: mean 2/3 of the disc's radius."""
    pair = SlicePair(60 + noise(sd=10), Target(np.full((256, 256), 60.0), spacing=1.0))
    assert mean_per_mm(pair) == pytest.approx(2 / 3 * 0.5, rel=0.03)
