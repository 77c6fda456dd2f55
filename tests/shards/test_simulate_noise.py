"""Noise that simulate.py adds, on water: its size, spectrum and place are those of theory."""

import dataclasses

import numpy as np
import pytest
from phantom import water

from shards import noise_model
from shards.noise_model import Scan
from shards.projection import Fan, back_project, project

MU = 0.0192


def scan(kernel=noise_model.SOFT, i0=3e5, **changes):
    """A plain scan: a steady tube without bowtie."""
    return dataclasses.replace(Scan(kernel, kernel, i0, bowtie=0.0, modulation=0.0), **changes)


def added(hu, spacing, made, dose=0.25, seed=0):
    """What the low dose gets on top of the target."""
    target, low = noise_model.noise(hu, spacing, 120, made, 1.0, dose, [(1.0, [seed])])
    assert not target.any()
    return low


def expected_sd(kernel, dose, i0, radius):
    """SD in HU at the centre of a disc of water, from Yu's noise per ray and the theory of filtered back-projection.

    Every ray through the centre sees 2 * radius of water. White noise of variance v per bin has power v * d per
    frequency; FBP filters it and sums pi / VIEWS times the views.
    """
    ray = (1 - dose) / dose * np.exp(2 * radius * MU) / i0
    f = np.linspace(0, 1 / (2 * noise_model.PITCH), 20001)
    variance = np.pi**2 / noise_model.VIEWS * ray * noise_model.PITCH * 2 * np.trapezoid(f**2 * kernel.power(f), f)
    return np.sqrt(variance) * 1000 / MU


@pytest.mark.parametrize("spacing", [2.0, 0.9])
@pytest.mark.parametrize("kernel, dose", [(noise_model.SOFT, 0.25), (noise_model.SOFT, 0.1), (noise_model.SHARP, 0.25)])
def test_noise_in_water_is_what_the_formula_says(kernel, dose, spacing):
    hu = water(round(256 / spacing), 100.0, spacing)
    made = scan(kernel, noise_model.PHOTONS_PER_MAS * 200)
    noises = [added(hu, spacing, made, dose, seed) for seed in range(3)]
    middle, reach = len(hu) // 2, round(16 / spacing)
    centre = [noise[middle - reach : middle + reach, middle - reach : middle + reach] for noise in noises]
    assert np.std(centre) == pytest.approx(expected_sd(kernel, dose, made.i0, 100.0), rel=0.1)
    inside = hu == 0
    assert abs(np.mean([noise[inside].mean() for noise in noises])) < 0.5


def radial_power(noise, spacing, step=0.02):
    """Noise power in HU^2 mm^2 by frequency, in rings of ``step`` per mm up to 0.62."""
    part = noise[64:192, 64:192]
    power = np.abs(np.fft.fft2(part - part.mean())) ** 2 * spacing**2 / part.size
    f = np.hypot(*np.meshgrid(*[np.fft.fftfreq(128, spacing)] * 2))
    rings = (f / step).astype(int).ravel()
    return np.bincount(rings, power.ravel())[:31] / np.bincount(rings)[:31]


def test_noise_has_the_spectrum_of_a_soft_kernel():
    """Mean frequency of the radial noise power spectrum: 0.25 per mm in real B30f quarter-dose scans."""
    power = radial_power(added(water(256, 90.0, 0.8), 0.8, scan()), 0.8)
    assert (power * (np.arange(31) + 0.5) * 0.02).sum() / power.sum() == pytest.approx(0.25, abs=0.015)


def test_noise_power_per_mm_does_not_depend_on_the_pixels():
    powers = [radial_power(np.mean([added(water(256, 60.0, s), s, scan(), seed=i) for i in range(4)], axis=0), s)
              for s in (0.6, 0.8)]  # fmt: skip
    low, high = powers[0][4:25], powers[1][4:25]  # 0.08 to 0.5 per mm; both grids show these
    assert high.sum() / low.sum() == pytest.approx(1, abs=0.1)
    assert np.corrcoef(low, high)[0, 1] > 0.95


def test_target_and_low_dose_share_noise_as_theory_says():
    """Variance of the target's noise (1/f - 1) s^2; of the low dose's (1/(f a) - 1) s^2; covariance the target's."""
    hu, full, dose = water(128, 100.0, 2.0), 0.4, 0.25
    pairs = [noise_model.noise(hu, 2.0, 120, scan(), full, dose, [(1.0, [seed])]) for seed in range(4)]
    target, low = (np.ravel([pair[which][48:80, 48:80] for pair in pairs]) for which in (0, 1))
    variance = expected_sd(noise_model.SOFT, 0.5, 3e5, 100.0) ** 2  # at half dose (1 - a) / a is one
    assert target.var() == pytest.approx((1 / full - 1) * variance, rel=0.15)
    assert low.var() == pytest.approx((1 / (full * dose) - 1) * variance, rel=0.15)
    assert np.mean(target * low) == pytest.approx(target.var(), rel=0.15)


def test_a_sharper_kernel_keeps_the_ratio_of_doses_at_every_frequency():
    """A slice with a soft kernel's noise becomes a pair of a sharp one: the low dose has 4 times the target's power."""
    hu, spacing = water(256, 60.0, 0.7), 0.7
    own = added(hu, spacing, scan(), 0.5, seed=9)  # at half dose: the noise of the slice itself
    made = scan(kernel=noise_model.SHARP, own=noise_model.SOFT)
    assert (own.std(), noise_model.noise(hu, spacing, 120, made, 0.01, 0.25, [(1.0, [0])])[0].std() / 10) == (
        pytest.approx(own.std()), pytest.approx(own.std(), rel=0.05))  # fmt: skip
    powers = []
    for seed in range(4):
        target, low = own + noise_model.noise(hu, spacing, 120, made, 0.5, 0.25, [(1.0, [seed])])
        powers.append([radial_power(target, spacing), radial_power(low, spacing)])
    target, low = np.mean(powers, axis=0)[:, 10:31]
    np.testing.assert_allclose(low / target, 4, rtol=0.35)
    assert (target[-5:] > 5 * radial_power(own, spacing)[26:31]).all()  # where a soft kernel leaves next to nothing


def test_noise_is_strongest_along_the_thick_direction_and_modulation_evens_it():
    """A body wider than high is noisier across: streaks lie along the long rays."""
    axis = (np.arange(128) - 63.5) * 3
    x, y = np.meshgrid(axis, axis)
    hu = np.where((x / 180) ** 2 + (y / 90) ** 2 < 1, 0, -1000)

    def ratio(made):
        parts = np.array([added(hu, 3.0, made, seed=seed)[48:80, 48:80] for seed in range(4)])
        return parts.mean(axis=2).std() / parts.mean(axis=1).std()

    assert ratio(scan()) > 1.4 and ratio(scan(modulation=1.0)) < 0.8 * ratio(scan())


def test_a_bowtie_leaves_the_middle_and_adds_at_the_side():
    hu = water(128, 150.0, 3.0)
    plain, filtered = ([added(hu, 3.0, made, seed=s) for s in range(3)] for made in (scan(), scan(bowtie=1.0)))

    def sd(noises, column):
        return np.std([noise[56:72, column : column + 8] for noise in noises])

    assert sd(filtered, 60) == pytest.approx(sd(plain, 60), rel=0.1)
    assert sd(filtered, 102) > 1.05 * sd(plain, 102)


def test_projection_and_back_projection_are_inverse():
    """The geometry of both halves fits: an off-centre object comes back where it was, at its contrast."""
    hu = water(128, 110, 2.0)
    hu[30:50, 80:95] = 300
    attenuation = np.maximum(hu.astype(float) / 1000 + 1, 0) * MU
    back = np.zeros(hu.shape)
    for image, turn in ((attenuation, np.asarray), (attenuation.T, np.transpose)):
        fan = Fan(image.shape, 2.0, 576)
        sums = project(image, fan)
        assert sums.shape == (576, 256) and sums.max() == pytest.approx(2 * 110 * MU, rel=0.1)
        ramp = fan.frequencies() / fan.cosines[:, None] * fan.steps[:, None]
        back += turn(back_project((np.fft.rfft(sums, axis=1) * ramp).astype(np.complex64), fan))
    back = back * 1000 / MU
    assert back[33:47, 83:92].mean() - back[80:95, 30:50].mean() == pytest.approx(300, abs=15)
