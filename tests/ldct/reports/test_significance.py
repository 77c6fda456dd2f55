"""Which differences are more than chance: tested on patients, corrected for how many tests are made."""

import math

import numpy as np
import pytest
from scipy import stats

from ldct import config as configuration
from ldct.evaluation.baselines import NAMES
from ldct.evaluation.results import Evaluation, Result
from ldct.metrics import registry
from ldct.metrics.intervals import Measured
from ldct.reports import significance, tables

GAINS = {"low dose": 0.0, "Gaussian blur": 1.0, "non-local means": 2.0, "0-a": 3.0, "1-b": 2.0}
CONFIGS = {"0-a": configuration.from_dict({}), "1-b": configuration.from_dict({"model": {"name": "unet"}})}


def evaluation(patients, slices=3):
    """Methods that gain GAINS dB, on patients that differ by decibels and agree on a gain within tenths."""
    rng = np.random.default_rng(0)
    level = {f"P{number}": 30 + 2 * number for number in range(patients)}
    results = []
    for name, gain in GAINS.items():
        measured = [
            Measured(patient, f"{patient}-{index}", values(psnr + index + gain + rng.normal(0, 0.1)))
            for patient, psnr in level.items()
            for index in range(slices)
        ]
        results.append(Result(name, "made", measured, 1.0, "CPU"))
    return Evaluation("test", "d", "made up", ["abd400"], results)


def values(psnr):
    """All results of a slice; only PSNR matters here."""
    return dict.fromkeys(registry.names(["abd400"]), 1.0) | {"abd400/psnr": psnr}


def test_every_run_is_tested_against_the_baselines_and_the_best_run():
    measured = evaluation(5)
    tests = significance.tests(measured, tables.rows(measured, CONFIGS))
    assert [(test.row.name, test.against) for test in tests] == [
        *(("0-a", name) for name in NAMES),
        *(("1-b", name) for name in NAMES),
        ("1-b", "RED-CNN"),
    ]
    by_pair = {(test.row.name, test.against): test for test in tests}
    assert by_pair["1-b", "low dose"].difference.estimate.mean == pytest.approx(2, abs=0.1)
    assert by_pair["1-b", "low dose"].significant
    assert by_pair["1-b", "RED-CNN"].difference.estimate.mean == pytest.approx(-1, abs=0.1)
    assert not by_pair["1-b", "non-local means"].significant  # they gain the same


def test_p_is_of_patients_and_corrected_for_the_number_of_tests():
    measured = evaluation(5)
    tests = significance.tests(measured, tables.rows(measured, CONFIGS))

    def means(name):
        slices = [slice.values["abd400/psnr"] for slice in measured.get(name).slices]
        return np.reshape(slices, (5, 3)).mean(1)

    plain = [
        stats.ttest_rel(means(test.row.name), means(name)).pvalue
        for test, name in zip(tests[:6], NAMES * 2, strict=True)
    ]
    smallest = int(np.argmin([test.p for test in tests]))
    assert tests[smallest].p == pytest.approx(7 * min(plain), rel=1e-6)
    assert all(test.p >= p for test, p in zip(tests[:6], plain, strict=True))
    assert "p corrected for 7 tests (Holm)" in significance.note(measured, tables.rows(measured, CONFIGS))


@pytest.mark.parametrize("patients", [1, 2])
def test_too_few_patients_are_not_tested_however_many_slices(patients):
    measured = evaluation(patients, slices=40)
    rows = tables.rows(measured, CONFIGS)
    assert all(math.isnan(test.p) for test in significance.tests(measured, rows))
    text = significance.as_text(measured, rows)
    assert "not tested" in text and "a test needs 3" in text and "p =" not in text and "p <" not in text


def test_the_difference_in_a_row_is_that_of_the_means_in_the_table():
    measured = evaluation(4)
    rows = tables.rows(measured, CONFIGS)
    mean = {row.name: row.values["abd400/psnr"].mean for row in rows}
    for row in rows:
        assert row.gain.mean == pytest.approx(mean[row.name] - mean["low dose"])
    for test in significance.tests(measured, rows)[:6]:
        assert test.difference.estimate.mean == pytest.approx(mean[test.row.name] - mean[test.against])


def test_without_a_run_there_is_nothing_to_test():
    measured = evaluation(3)
    measured.results = measured.results[:3]
    assert significance.as_text(measured, tables.rows(measured, {})) == ""


def test_a_method_that_does_not_look_like_ct_is_flagged_but_not_the_low_dose():
    measured = evaluation(3)
    for name, value in (("low dose", 9.0), ("0-a", 0.05), ("1-b", 1.0)):
        for slice in measured.get(name).slices:
            slice.values["texture/high_band"] = value
    rows = tables.rows(measured, CONFIGS)
    assert tables.warnings(rows) == ["warning: RED-CNN: smoothed: high band 0.05, expected 0.20 to 2.00"]


def test_a_run_whose_best_checkpoint_is_its_start_is_named_and_no_other():
    measured = evaluation(3)
    measured.get("0-a").detail = "best checkpoint (step 0), whole slice"
    measured.get("1-b").detail = "best checkpoint (step 20), whole slice"
    (line,) = tables.warnings(tables.rows(measured, CONFIGS))
    assert line.startswith("warning: RED-CNN: untrained: its best checkpoint is of step 0")


def test_slices_without_flat_tissue_are_counted():
    measured = evaluation(3)
    assert tables.left_out(measured, measured.metrics) == []
    for result in measured.results:
        result.slices[0].values["texture/high_band"] = math.nan
        result.slices[0].values["texture/frequency"] = math.nan
    (line,) = tables.left_out(measured, measured.metrics)
    assert line.startswith("noise frequency and high band left out on 1 of 9 slices, which have no flat soft tissue")
    assert line in tables.about(measured)
