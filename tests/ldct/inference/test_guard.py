"""Which series no network should denoise."""

import numpy as np
import pytest
from phantom import images, write_series, write_slice

from ldct.inference.dicom import denoise_series
from ldct.inference.guard import check_images, doubts
from ldct.inference.series import find_series


def of(folder):
    (series,), _ = find_series(folder, folder.parent / "nowhere")
    return list(doubts(series.slices))


def test_a_scan_in_hu_is_taken(tmp_path):
    write_series(tmp_path / "in", "L067", "quarter", 3)
    assert of(tmp_path / "in") == []


def test_without_rescale_it_is_left_out_unless_forced(tmp_path):
    write_series(tmp_path / "in", "L067", "quarter", 3, RescaleIntercept=None)
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    (left_out,), (forced,) = check_images(series, force=False), check_images(series, force=True)
    why = (
        "3 of 3 slices have no RescaleSlope or RescaleIntercept: are the values HU?; its darkest percent lies at 0 HU, "
        "air near -1000: are the values HU, is there no air?"
    )
    assert left_out.left_out == f"{tmp_path / 'in'}: {why}; --force denoises it" and not left_out.note
    assert forced.note == f", in spite of: {why}" and not forced.left_out


def test_values_a_thousand_too_high(tmp_path):
    """As a converter writes that drops the intercept: air would pass for soft tissue."""
    write_series(tmp_path / "in", "L067", "quarter", 3, RescaleIntercept=0)
    assert of(tmp_path / "in") == [
        "its darkest percent lies at 0 HU, air near -1000: are the values HU, is there no air?"
    ]


def test_air_alone(tmp_path):
    hu = np.random.default_rng(0).normal(-1000, 10, (64, 64)).astype(np.int16)
    write_slice(tmp_path / "in" / "a.dcm", hu)
    assert of(tmp_path / "in") == ["it shows no body: less than 1 % of the pixels lie from -200 to 300 HU"]


def test_what_was_denoised_is_not_denoised_again(tmp_path):
    write_series(tmp_path / "in", "L067", "quarter", 2)
    series, _ = find_series(tmp_path / "in", tmp_path / "out")
    denoise_series(series, lambda low: low, "a", "b")
    assert of(tmp_path / "out") == ["it was denoised before"]


@pytest.mark.parametrize("unit", ["MGML", "Z_EFF"])
def test_other_units_are_no_ct_in_hu(tmp_path, unit):
    write_slice(tmp_path / "in" / "a.dcm", images("L001", "quarter", 1, size=64)[0], RescaleType=unit)
    write_series(tmp_path / "in", "L067", "quarter", 2, RescaleType="HU")
    series, passed = find_series(tmp_path / "in", tmp_path / "out")
    assert len(series) == 1 and passed == {f"its values are not HU: RescaleType {unit}": [tmp_path / "in" / "a.dcm"]}
