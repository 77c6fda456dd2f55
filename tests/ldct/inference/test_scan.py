"""What is measured of a scan, on images whose answer is known, and what is made of it."""

import math

import numpy as np
import pytest
from phantom import write_series

from ldct.inference import pretrained
from ldct.inference.scan import judge, measure_series, measure_slice, medians, trained_on, uneven_noise
from ldct.inference.series import find_series

RANGES = {
    "noise_hu": (14, 60), "frequency_per_mm": (0.18, 0.35), "spacing_mm": (0.6, 1.0), "body_mm": (250, 420),
    "bone": (0.007, 0.037),
}  # fmt: skip
USUAL = {"noise_hu": 25, "frequency_per_mm": 0.25, "spacing_mm": 0.7, "body_mm": 310, "bone": 0.013}


def disc(radius, sd=20.0, size=256, inside=40):
    """A disc of soft tissue in air, with white noise: int16 HU."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    noise = np.random.default_rng(0).normal(0, sd, (size, size))
    return np.where(np.hypot(x, y) < radius, inside + noise, -1000).astype(np.int16)


def test_white_noise_in_a_disc():
    traits = measure_slice(disc(100), 0.8)
    assert traits["noise_hu"] == pytest.approx(20, rel=0.06)  # the lower quartile of the local SD lies a little below
    rings = np.arange(1, 17) / 32  # per pixel; the constant, ring 0, leaves with the plane
    assert traits["frequency_per_mm"] == pytest.approx(rings.mean() / 0.8, rel=0.03)
    assert traits["body_mm"] == pytest.approx(200 * 0.8, rel=0.01)
    assert traits["spacing_mm"] == 0.8


def test_lungs_belong_to_the_body_and_the_table_does_not():
    hu = disc(100)
    hu[100:160, 60:110] = -850
    hu[250:254] = 100
    assert measure_slice(hu, 1.0)["body_mm"] == pytest.approx(200, rel=0.01)


def test_air_has_no_noise_and_no_body():
    traits = measure_slice(np.full((128, 128), -1000, np.int16), 0.7)
    assert math.isnan(traits["noise_hu"]) and math.isnan(traits["frequency_per_mm"]) and traits["body_mm"] == 0


def test_a_series_has_the_median_of_its_slices(tmp_path):
    write_series(tmp_path / "in", "L001", "quarter", 4, size=128)
    (series,), _ = find_series(tmp_path / "in", tmp_path / "out")
    traits = measure_series(series.slices)
    assert traits["noise_hu"] == pytest.approx(20, rel=0.1)  # 10 of the full dose, sqrt(3) times as much inserted
    assert traits["spacing_mm"] == 0.7
    assert 128 * 0.7 * 0.6 < traits["body_mm"] < 128 * 0.7


def test_ranges_are_those_of_the_low_dose_that_was_trained_on(tiny_shards):
    ranges, kernels = trained_on(tiny_shards)
    assert kernels == ["B30f"] and ranges["spacing_mm"] == (0.7, 0.7)
    least, most = ranges["noise_hu"]
    assert 17 < least < most < 21


def judged(**changes):
    return judge(USUAL | changes, RANGES, {"Br40"}, {"B30f", "D45f"})


def test_what_was_trained_on_is_told_and_taken():
    judgement = judged()
    assert judgement.line == (
        "noise 25 HU (14 to 60); texture 0.25/mm (0.18 to 0.35); pixels 0.70 mm (0.60 to 1.00); "
        "body 310 mm (250 to 420); bone 0.013 of the body (0.007 to 0.037); kernel Br40 (B30f, D45f)"
    )
    assert (judgement.outside, judgement.refused) == ([], False)


@pytest.mark.parametrize(
    ("changes", "outside"),
    [
        ({"noise_hu": 9}, "noise 9 HU, trained on 14 to 60: a full dose, or denoised before?"),
        ({"spacing_mm": 0.3}, "pixels 0.30 mm, trained on 0.60 to 1.00: a small field of view?"),
        ({"frequency_per_mm": 0.6}, "texture 0.60/mm, trained on 0.18 to 0.35: a sharper kernel?"),
        ({"body_mm": 165}, "body 165 mm, trained on 250 to 420: a head, a limb or a child?"),
    ],
)
def test_what_is_far_outside_is_refused(changes, outside):
    """A full dose, pixels of 0.3 mm, a bone kernel, a head."""
    judgement = judged(**changes)
    assert (judgement.outside, judgement.refused) == ([outside], True)


def test_what_is_a_little_outside_is_a_warning_and_noise_that_cannot_be_measured_is_refused():
    assert judged(noise_hu=13).outside == ["noise 13 HU, trained on 14 to 60: a full dose, or denoised before?"]
    assert judged(noise_hu=math.nan).outside == ["noise not measurable: no flat soft tissue?"]
    assert not judged(noise_hu=13).refused and judged(noise_hu=math.nan).refused
    assert not judged(frequency_per_mm=math.nan).refused
    assert judged(noise_hu=13.9).outside == []


def head(sd):
    """A skull of 7 mm around a brain of 130 by 170 mm, in pixels of 0.7 mm."""
    y, x = (np.mgrid[:320, :320] - 159.5) * 0.7
    hu = np.full((320, 320), -1000.0)
    for half_width, half_length, value in ((76, 96, 40), (72, 92, 900), (65, 85, 35)):
        hu[np.hypot(x / half_width, y / half_length) < 1] = value
    return (hu + np.random.default_rng(0).normal(0, sd, hu.shape)).astype(np.int16)


def test_a_head_is_known_by_its_bone():
    """Its size is that of a slim trunk, and thin slices have the noise of a low dose."""
    card = pretrained.read_card(pretrained.find("redcnn-general"))
    traits = measure_slice(head(30.0), 0.7)
    assert traits["bone"] == pytest.approx(0.17, abs=0.02) and 126 < traits["body_mm"] < 300
    (bone,) = (why for why in judge(traits, card.ranges, [], []).outside if why.startswith("bone"))
    assert bone.endswith("of the body, trained on 0.007 to 0.037: a head or a limb?")
    assert judge(USUAL | {"bone": traits["bone"]}, RANGES, [], []).refused
    assert measure_slice(disc(100, sd=200.0), 0.7)["bone"] < 0.005  # of noise alone


def test_noise_that_changes_along_z_is_said_where_the_median_is_usual():
    measured = {float(z): USUAL | {"noise_hu": sd} for z, sd in enumerate((25, 30, 8, 28, 95, math.nan))}
    assert not judge(medians(measured.values()), RANGES, [], []).outside
    assert uneven_noise(measured, RANGES) == (
        "the noise of 2 of 6 slices looked at is far from 14 to 60 HU: 8 HU at z 2 mm, 95 HU at z 4 mm"
    )
    assert uneven_noise({0.0: USUAL}, RANGES) == ""


def test_a_body_far_larger_is_a_warning_only():
    """What it changes for a network is the noise, and that is judged by itself."""
    judgement = judged(body_mm=600)
    assert judgement.outside == ["body 600 mm, trained on 250 to 420: a larger body?"]
    assert not judgement.refused
