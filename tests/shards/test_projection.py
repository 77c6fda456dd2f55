"""Both directions of the linogram method against their sums, written out."""

import numpy as np
import pytest

from shards.projection import Fan, back_project, project

FAN = Fan((7, 4), 1.5, 6)
ODD = Fan((12, 13), 0.8, 5)
"""Of 25 samples a view: an odd number, for which a spectrum alone does not say it."""


def shifted(spectrum, samples, columns):
    """A view or a row of ``samples``, given as its rfft, read ``columns`` further to the right."""
    turns = np.arange(len(spectrum)) / samples * columns
    return np.fft.irfft(spectrum * np.exp(2j * np.pi * turns), samples)


def middle(count):
    return np.arange(count) - (count - 1) / 2


def test_the_views_are_at_equal_tangents_and_make_a_quarter_turn():
    assert FAN.samples == 12
    assert FAN.tangents == pytest.approx([-5 / 6, -1 / 2, -1 / 6, 1 / 6, 1 / 2, 5 / 6])
    assert FAN.cosines == pytest.approx(np.cos(np.arctan(FAN.tangents)))
    assert FAN.steps.sum() == pytest.approx(np.pi / 2) and FAN.steps[0] == pytest.approx(
        np.arctan(1) - np.arctan(2 / 3)
    )
    assert FAN.positions.shape == (6, 12)
    columns = [-1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, -5.5, -4.5, -3.5, -2.5]  # what lies left stands at the end
    assert FAN.positions[3] / FAN.cosines[3] == pytest.approx(1.5 * np.array(columns))
    assert FAN.frequencies() == pytest.approx(np.arange(7) / (12 * 1.5))
    assert FAN.frequencies(2) == pytest.approx(np.arange(13) / (12 * 1.5))


@pytest.mark.parametrize("fan", [FAN, ODD])
def test_a_projection_is_the_sum_of_shifted_rows(fan):
    image = np.random.default_rng(0).random(fan.shape)
    rows = np.fft.rfft(image, fan.samples, axis=1)
    expected = [
        sum(shifted(row, fan.samples, tangent * y) for row, y in zip(rows, middle(fan.shape[0]), strict=True))
        * (fan.spacing / cosine)
        for tangent, cosine in zip(fan.tangents, fan.cosines, strict=True)
    ]
    sums = project(image, fan)
    assert sums.dtype == np.float32
    np.testing.assert_allclose(sums, expected, atol=2e-5)


@pytest.mark.parametrize("fan", [FAN, ODD])
@pytest.mark.parametrize("fine", [1, 3])
@pytest.mark.parametrize("left_out", [0, 2])
def test_a_back_projection_is_the_sum_of_the_views_at_the_pixels_ray(fan, fine, left_out):
    samples = fan.samples * fine
    spectra = np.fft.rfft(np.random.default_rng(1).standard_normal((fan.views, samples)), axis=1)
    spectra[:, spectra.shape[1] - left_out :] = 0
    expected = [
        sum(shifted(view, samples, -tangent * y * fine) for view, tangent in zip(spectra, fan.tangents, strict=True))
        for y in middle(fan.shape[0])
    ]
    given = spectra[:, : spectra.shape[1] - left_out].astype(np.complex64)
    image = back_project(given, fan, fine)
    assert image.shape == fan.shape and image.dtype == np.float32
    np.testing.assert_allclose(image, np.array(expected)[:, : fan.shape[1] * fine : fine], atol=1e-4)


def test_a_point_is_projected_to_its_distance_from_the_middle():
    """x cos - y sin, where x counts to the right and y downwards."""
    fan = Fan((41, 31), 2.0, 40)
    image = np.zeros(fan.shape)
    image[30, 20] = 1
    peaks = fan.positions[np.arange(40), project(image, fan).argmax(axis=1)]
    angles = np.arctan(fan.tangents)
    np.testing.assert_allclose(peaks, (20 - 15) * 2 * np.cos(angles) - (30 - 20) * 2 * np.sin(angles), atol=1.0)
