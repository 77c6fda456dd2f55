import math

import numpy as np
import pytest
from scipy import ndimage

from ldct.metrics.noise_texture import spectrum
from ldct.metrics.observer import detectability_of, disc, disc_detectability, dose_equivalent
from ldct.metrics.slice_pair import SlicePair, Target


def phantom(size=512):
    """Flat soft tissue beside discs of bone, whose edges are a pixel wide; noiseless HU."""
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size), 50.0)
    for row in range(40, size // 2, 48):
        for column in range(40, size, 48):
            image[(y - row) ** 2 + (x - column) ** 2 < 12**2] = 1000
    return ndimage.gaussian_filter(image, 0.5)


def noise(sd, seed):
    return np.random.default_rng(seed).normal(0, sd, (512, 512))


@pytest.mark.parametrize(("sd", "spacing"), [(10, 0.7), (20, 0.7), (10, 0.5)])
def test_in_white_noise_it_is_the_matched_filters(sd, spacing):
    """d' = contrast * sqrt(area) / (SD * side of a pixel), by Parseval."""
    full = phantom()
    expected = 10 * math.sqrt(math.pi * 2.5**2) / (sd * spacing)
    assert disc_detectability(SlicePair(full + noise(sd, 1), Target(full, spacing))) == pytest.approx(
        expected, rel=0.05
    )


def test_a_blur_of_white_noise_gains_little_where_half_the_noise_gains_double():
    """Blurring takes the disc's own frequencies with the noise's: no more than a matched filter sees."""
    full, grain = phantom(), noise(20, 2)
    noisy, blurred, halved = (
        disc_detectability(SlicePair(output, Target(full, 0.7)))
        for output in (full + grain, ndimage.gaussian_filter(full + grain, 2), full + grain / 2)
    )
    assert halved == pytest.approx(2 * noisy, rel=0.01)
    assert blurred < 1.3 * noisy


@pytest.mark.parametrize("dose", [0.1, 0.5, 0.8])
def test_the_dose_equivalent_of_a_dose_is_that_dose(dose):
    """A full dose of 10 HU of noise; a dose r has a variance of 100 / r."""
    full = phantom() + noise(10, 4)
    low, other = (full + noise(10 * math.sqrt(1 / r - 1), seed) for r, seed in ((0.25, 5), (dose, 6)))
    assert dose_equivalent(SlicePair(other, Target(full, 0.7, low, 0.25))) == pytest.approx(
        dose, rel=0.2
    )  # of one slice's noise
    assert dose_equivalent(SlicePair(low, Target(full, 0.7, low, 0.25))) == pytest.approx(0.25, rel=1e-3)
    assert dose_equivalent(SlicePair(full, Target(full, 0.7, low, 0.25))) == pytest.approx(1, rel=0.1)
    assert math.isnan(dose_equivalent(SlicePair(other, Target(full, 0.7, low))))
    assert math.isnan(dose_equivalent(SlicePair(other, Target(full, None, low, 0.25))))


def test_what_it_needs_is_missing():
    full = phantom()
    assert math.isnan(disc_detectability(SlicePair(full + noise(10, 3), full)))
    flat = np.full((512, 512), 50.0)
    assert math.isnan(disc_detectability(SlicePair(flat + noise(10, 3), Target(flat, 0.7))))


@pytest.mark.parametrize("spacing", [0.5, 0.7])
def test_a_disc_covers_its_area(spacing):
    drawn = disc(32, spacing)
    assert drawn.sum() * spacing**2 == pytest.approx(10 * math.pi * 2.5**2, rel=0.02)
    assert drawn[15:17, 15:17].tolist() == [[10, 10], [10, 10]] and not drawn[:, :8].any()
    assert (drawn == drawn.T).all() and (drawn == drawn[::-1]).all()


@pytest.mark.parametrize("sd", [5, 20])
def test_a_known_signal_in_white_noise_has_the_matched_filters_detectability(sd):
    signal = disc(32, 0.7)
    grain = noise(sd, 7)
    blocks = [(slice(r, r + 32), slice(c, c + 32)) for r in range(0, 480, 32) for c in range(0, 480, 32)]
    found = detectability_of(signal, spectrum(grain, blocks))
    tilted = signal + np.mgrid[:32, :32][0] - 100  # a plane, which the spectrum has not
    assert detectability_of(tilted, spectrum(grain, blocks)) == pytest.approx(found)
    assert found == pytest.approx(math.sqrt(np.square(signal).sum()) / sd, rel=0.03)
    assert detectability_of(signal / 2, spectrum(grain, blocks)) == pytest.approx(found / 2)
    assert math.isnan(detectability_of(0 * signal, spectrum(grain, blocks)))
