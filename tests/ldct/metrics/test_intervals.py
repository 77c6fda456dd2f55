import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ldct.metrics.intervals import Measured, by_patient, crossed, holm, over_patients, over_seeds, paired, undefined

NAN = float("nan")


def measured(values):
    """Slices of patients: {"A": [1, 2]}."""
    return [Measured(p, f"{p}{i}", {"x": float(v)}) for p, each in values.items() for i, v in enumerate(each)]


def test_each_patient_counts_once_however_many_slices():
    patients = by_patient(measured({"A": [1, 2, 3], "B": [10]}))
    assert patients == {"A": {"x": 2.0}, "B": {"x": 10.0}}
    assert over_patients(patients)["x"].mean == 6.0


def test_the_interval_is_students_and_needs_three_patients():
    values = {"A": [1], "B": [2], "C": [4]}
    estimate = over_patients(by_patient(measured(values)))["x"]
    low, high = scipy_stats.t.interval(0.95, 2, loc=np.mean([1, 2, 4]), scale=scipy_stats.sem([1, 2, 4]))
    assert estimate.ci95_half_width == pytest.approx((high - low) / 2)
    assert estimate.mean == pytest.approx((high + low) / 2)
    values.pop("C")
    assert over_patients(by_patient(measured(values)))["x"].ci95_half_width is None


def test_nan_is_left_out_of_means_and_counted():
    slices = measured({"A": [1, NAN], "B": [NAN]})
    patients = by_patient(slices)
    assert patients["A"]["x"] == 1.0
    assert over_patients(patients)["x"].mean == 1.0
    assert undefined(slices) == {"x": 2}
    assert undefined(measured({"A": [1]})) == {}


def test_a_test_is_over_patients_and_agrees_with_its_interval():
    base = {p: [i, i + 1] for i, p in enumerate("ABCDEF")}
    better = {p: [v + 0.5 + 0.01 * i for v in each] for i, (p, each) in enumerate(base.items())}
    test = paired(measured(better), measured(base), "x")
    expected = scipy_stats.ttest_rel([np.mean(v) for v in better.values()], [np.mean(v) for v in base.values()])
    assert test.patients == 6
    assert test.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert test.estimate.mean == pytest.approx((interval.low + interval.high) / 2)
    assert test.estimate.ci95_half_width == pytest.approx((interval.high - interval.low) / 2)


def test_the_difference_is_that_of_the_means_however_many_slices_a_patient_has():
    first, second = (
        measured({"A": [5, 6, 10], "B": [1], "C": [2, 2]}),
        measured({"A": [1, 1, 1], "B": [3], "C": [1, 1]}),
    )
    means = [over_patients(by_patient(side))["x"].mean for side in (first, second)]
    assert paired(first, second, "x").estimate.mean == pytest.approx(means[0] - means[1])


@pytest.mark.parametrize("patients", [{"A": range(1, 50)}, {"A": range(1, 9), "B": range(2, 9)}])
def test_slices_of_too_few_patients_are_not_tested_however_many_they_are(patients):
    test = paired(measured(patients), measured({p: [0] * len(each) for p, each in patients.items()}), "x")
    assert (test.patients, test.estimate.ci95_half_width) == (len(patients), None)
    assert math.isnan(test.p)


def test_two_equal_methods_are_not_tested():
    side = measured({"A": [1], "B": [2], "C": [3]})
    assert math.isnan(paired(side, side, "x").p)


def test_holm_on_a_known_example():
    """Holm's steps by hand: 4 x 0.005, 3 x 0.01, then 2 x 0.03 and 1 x 0.04, which may not fall below it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_holm_does_not_count_what_was_not_tested():
    corrected = holm([0.01, NAN, 0.02])
    assert corrected[::2] == pytest.approx([0.02, 0.02]) and math.isnan(corrected[1])
    assert holm([]) == []


def test_p_of_an_interval_agrees_with_a_t_test_and_its_own_width():
    values = [0.1, 0.3, 0.2, 0.5]
    interval = over_seeds(values, patients=5)
    assert interval.p_above(0.05) == pytest.approx(scipy_stats.ttest_1samp(values, 0.05, alternative="greater").pvalue)
    assert interval.p_below(0.05) == pytest.approx(1 - interval.p_above(0.05))
    edge = interval.mean - interval.ci95_half_width
    assert interval.p_above(edge) == pytest.approx(0.025)


def test_equivalence_is_two_one_sided_tests():
    interval = over_seeds([0.01, -0.01, 0.02, 0.0], patients=5)
    low = scipy_stats.ttest_1samp([0.01, -0.01, 0.02, 0.0], -0.1, alternative="greater").pvalue
    high = scipy_stats.ttest_1samp([0.01, -0.01, 0.02, 0.0], 0.1, alternative="less").pvalue
    assert interval.p_within(0.1) == pytest.approx(max(low, high))
    assert interval.p_within(0.001) > 0.5  # a margin narrower than the spread proves nothing


def test_without_enough_seeds_or_patients_there_is_no_p():
    for interval in (over_seeds([1.0, 2.0], 9), over_seeds([1.0, 2.0, 3.0], 2), crossed(np.ones((2, 5)))):
        assert interval.ci95_half_width is None
        assert math.isnan(interval.p_above(0)) and math.isnan(interval.p_within(1))
