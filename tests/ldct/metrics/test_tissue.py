import numpy as np
import pytest

from ldct.metrics import fidelity, tissue
from ldct.metrics.slice_pair import SlicePair, Target

HU = {"air": -1000, "lung": -800, "fat": -100, "soft": 50, "bone": 600}


def phantom(size=240):
    """A disc of soft tissue in air with a square of each other tissue in it, and a hole of air; noiseless HU."""
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size), HU["air"], float)
    image[(y - size / 2) ** 2 + (x - size / 2) ** 2 < 110**2] = HU["soft"]
    for number, name in enumerate(("lung", "fat", "bone")):
        image[100:140, 30 + 65 * number : 70 + 65 * number] = HU[name]
    image[30:60, 105:135] = HU["air"]  # gas
    return image


def noise(sd, seed):
    return np.random.default_rng(seed).normal(0, sd, (240, 240))


@pytest.mark.parametrize("name", HU)
def test_bias_and_sd_are_what_was_added_to_a_class(name):
    """Also where the full dose is noisy: its noise must not choose the pixels."""
    clean = phantom()
    full = clean + noise(15, 1)
    output = full + np.where(clean == HU[name], 7.0, -3.0) + noise(9, 2)
    pair = SlicePair(output, full)
    assert tissue.bias(name, pair) == pytest.approx(7, abs=0.8)
    assert tissue.sd(name, pair) == pytest.approx(9, rel=0.06)
    for other in HU.keys() - {name}:
        assert tissue.bias(other, pair) == pytest.approx(-3, abs=0.8)


def test_a_denoised_output_has_no_bias_of_the_noises_making():
    """Pixels picked by the noisy full dose itself would show one: here 5 HU and more, in fat."""
    clean = phantom()
    pair = SlicePair(clean, clean + noise(25, 3))
    assert all(abs(tissue.bias(name, pair)) < 2 for name in HU)


def test_a_class_that_a_slice_does_not_have_is_nan():
    soft = SlicePair(np.full((64, 64), 51.0), np.full((64, 64), 50.0))
    assert tissue.bias("soft", soft) == 1
    assert np.isnan(tissue.bias("bone", soft)) and np.isnan(tissue.sd("lung", soft))


def test_the_body_is_its_largest_piece_with_all_inside():
    clean = phantom()
    clean[5:10, 5:60] = 100  # the table
    y, x = np.mgrid[:240, :240]
    disc = (y - 120) ** 2 + (x - 120) ** 2 < 110**2
    mask = tissue.body(Target(clean + noise(15, 4)))
    assert np.count_nonzero(mask != disc) < 0.05 * disc.sum()
    assert not mask[5:10, 5:60].any() and mask[45, 120] and mask[120, 50]


def test_the_rmse_of_the_body_is_of_the_body_alone():
    clean = phantom()
    inside = tissue.body(Target(clean))
    assert tissue.body_rmse(SlicePair(clean + np.where(inside, 4.0, 100.0), clean)) == pytest.approx(4)
    air = np.full((64, 64), -1000.0)
    assert np.isnan(tissue.body_rmse(SlicePair(air, air)))


@pytest.mark.parametrize("dose", [0.1, 0.25, 0.5, 0.9])
def test_the_dose_equivalent_of_a_dose_is_that_dose(dose):
    """A full dose of 10 HU of noise; a dose r adds a variance of 100 (1/r - 1)."""
    full = phantom() + noise(10, 5)
    low = full + noise(10 * np.sqrt(1 / 0.25 - 1), 6)
    other = full + noise(10 * np.sqrt(1 / dose - 1), 7)
    assert tissue.dose_equivalent(SlicePair(other, Target(full, low=low, dose=0.25))) == pytest.approx(dose, rel=0.03)
    assert tissue.dose_equivalent(SlicePair(low, Target(full, low=low, dose=0.25))) == pytest.approx(0.25)
    assert tissue.dose_equivalent(SlicePair(full, Target(full, low=low, dose=0.25))) == 1


@pytest.mark.parametrize(("low", "dose"), [(None, 0.25), (phantom(), None), (phantom(), 0.25), (phantom() + 1, 1.0)])
def test_without_a_known_reduced_dose_there_is_no_equivalent(low, dose):
    assert np.isnan(tissue.dose_equivalent(SlicePair(phantom(), Target(phantom(), low=low, dose=dose))))


def test_psnr_and_ssim_of_the_body_leave_the_air_out():
    clean = phantom()
    soft = np.where(tissue.body(Target(clean)), 50.0, -1000.0)
    inside = tissue.body(Target(soft))
    pair = SlicePair(np.where(inside, soft + 4, 200.0), soft)
    assert tissue.body_psnr(pair) == pytest.approx(20 * np.log10(400 / 4), abs=0.01)
    far = soft.copy()
    far[:20, :20] = 200
    assert tissue.body_ssim(SlicePair(far, soft)) == 1
    windows = fidelity.similarity(pair.under(tissue.BODY_PROTOCOL))[0]
    assert windows.mean() < tissue.body_ssim(pair) == windows[inside[5:-5, 5:-5]].mean() < 1
    air = np.full((64, 64), -1000.0)
    assert np.isnan(tissue.body_psnr(SlicePair(air, air))) and np.isnan(tissue.body_ssim(SlicePair(air, air)))
