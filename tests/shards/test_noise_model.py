"""Numbers that the noise model must go on giving; what it means stands in test_simulate_noise.py."""

import numpy as np
import pytest

from shards.noise_model import PHOTONS_PER_MAS, SHARP, SOFT, Scan, mu_water, noise


def body():
    """A slice of 24 x 40 pixels: tissue with bone in air."""
    hu = np.full((24, 40), -1000, np.int16)
    hu[6:20, 8:30] = 40
    hu[10:14, 12:16] = 900
    return hu


@pytest.mark.parametrize(
    ("spacing", "sd", "target", "low"),
    [
        (2.0, [1.8565, 4.6333], [0.55147, -2.2419, -1.6275], [-3.5831, 0.97926, -0.79898]),
        (0.6, [1.5407, 3.7783], [1.8681, -0.51195, -2.7152], [6.3100, 2.8908, -3.6361]),
    ],
)
def test_a_seed_gives_the_same_noise_in_every_version(spacing, sd, target, low):
    """So that shards can be made again: a soft slice as a sharp pair, with bowtie and modulated current."""
    pair = noise(body(), spacing, 100, Scan(SOFT, SHARP, 2e5), full=0.5, dose=0.25, rays=[(1.0, [3, 1])])
    assert pair.shape == (2, 24, 40) and pair.dtype == np.float32
    assert pair.std((1, 2)) == pytest.approx(sd, rel=1e-3)
    rows, columns = [7, 12, 23], [9, 31, 0]
    assert pair[0, rows, columns] == pytest.approx(target, rel=1e-3)
    assert pair[1, rows, columns] == pytest.approx(low, rel=1e-3)


def test_noise_is_inserted_in_the_target_where_it_lacks_some():
    scans = [(SOFT, 1.0), (SOFT, 0.999), (SHARP, 1.0)]
    targets = [noise(body(), 1.0, 120, Scan(SOFT, kernel, 2e5), full, 0.25, [(1.0, [0])])[0] for kernel, full in scans]
    assert [target.any() for target in targets] == [False, True, True]
    assert targets[0].dtype == np.float32


def test_the_full_dose_as_low_dose_adds_nothing():
    pair = noise(body(), 1.0, 120, Scan(SOFT, SOFT, 2e5), full=0.5, dose=1.0, rays=[(1.0, [0])])
    np.testing.assert_array_equal(pair[0], pair[1])


def test_water_attenuates_less_at_a_higher_voltage_and_120_kv_is_meant_where_none_is_said():
    voltages = [None, 80, 100, 110, 120, 140]
    assert [mu_water(kvp) for kvp in voltages] == pytest.approx([0.0192, 0.0206, 0.0206, 0.0199, 0.0192, 0.0192])


def test_photons_are_those_of_the_calibration():
    """With real pairs of both kernels (docs/data.md); another number is another dose."""
    assert PHOTONS_PER_MAS * 200 == 375_000
