import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ldct.metrics.intervals import (
    ALPHA,
    Interval,
    Measured,
    by_patient,
    crossed,
    holm,
    over_patients,
    paired,
    undefined,
)

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


@pytest.mark.parametrize(("mean", "differs"), [(3.0, False), (3.3, True)])
def test_a_difference_is_found_where_its_interval_leaves_out_zero(mean, differs):
    """p = 0.057 and 0.043 of five patients: the level of the tests is that of the intervals."""
    spread = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) * 1.6
    first = measured({name: [mean + value] for name, value in zip("ABCDE", spread, strict=True)})
    test = paired(first, measured({name: [0] for name in "ABCDE"}), "x")
    assert (test.p < ALPHA) is (test.estimate.ci95_half_width < test.estimate.mean) is differs
    assert 0.04 < test.p < 0.06


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
    above = measured({"A": [2], "B": [3], "C": [4]})
    assert math.isnan(paired(above, side, "x").p)  # differences without spread: t would be infinite


def test_holm_on_a_known_example():
    """Holm's steps by hand: 4 x 0.005, 3 x 0.01, then 2 x 0.03 and 1 x 0.04, which may not fall below it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_holm_does_not_count_what_was_not_tested():
    corrected = holm([0.01, NAN, 0.02])
    assert corrected[::2] == pytest.approx([0.02, 0.02]) and math.isnan(corrected[1])
    assert holm([]) == []


def of_seeds(values):
    """An interval of seeds alone: five patients that are alike."""
    return crossed(np.repeat(np.array(values)[:, None], 5, axis=1))


def test_p_of_an_interval_agrees_with_a_t_test_and_its_own_width():
    values = [0.1, 0.3, 0.2, 0.5]
    interval = of_seeds(values)
    assert interval.p_above(0.05) == pytest.approx(scipy_stats.ttest_1samp(values, 0.05, alternative="greater").pvalue)
    assert interval.p_below(0.05) == pytest.approx(1 - interval.p_above(0.05))
    edge = interval.mean - interval.ci95_half_width
    assert interval.p_above(edge) == pytest.approx(0.025)


def test_equivalence_is_two_one_sided_tests():
    interval = of_seeds([0.01, -0.01, 0.02, 0.0])
    low = scipy_stats.ttest_1samp([0.01, -0.01, 0.02, 0.0], -0.1, alternative="greater").pvalue
    high = scipy_stats.ttest_1samp([0.01, -0.01, 0.02, 0.0], 0.1, alternative="less").pvalue
    assert interval.p_within(0.1) == pytest.approx(max(low, high))
    assert interval.p_within(0.001) > 0.5  # a margin narrower than the spread proves nothing


def test_seeds_and_patients_are_both_drawn_from_many():
    """Variance of the mean and Satterthwaite's degrees of freedom, by hand.

    Three seeds with the means 2, 4, 6: 4 / 3; four patients with the means 1, 5, 4, 6: (14 / 3) / 4 = 7 / 6.
    """
    values = np.array([[-1.0, 3, 2, 4], [1, 5, 4, 6], [3, 7, 6, 8]])
    interval = crossed(values)
    assert (interval.mean, interval.seeds, interval.patients) == (4.0, 3, 4)
    assert interval.standard_error == pytest.approx(math.sqrt(4 / 3 + 7 / 6))
    assert interval.freedom == pytest.approx((4 / 3 + 7 / 6) ** 2 / ((4 / 3) ** 2 / 2 + (7 / 6) ** 2 / 3))
    assert (interval.of_seeds, interval.of_patients) == (pytest.approx(4 / 3), pytest.approx(7 / 6))
    half = scipy_stats.t.ppf(0.975, interval.freedom) * math.sqrt(2.5)
    assert interval.ci95_half_width == pytest.approx(half)
    assert crossed(values[:, :3]).ci95_half_width is not None  # three of each are enough


def test_how_many_patients_would_tell_an_effect_from_zero():
    """Half an SD over patients is told from zero four times in five by 34 of them, as every table of the t test has."""
    interval = Interval(0.0, 1.0, 3.0, seeds=3, patients=4, of_seeds=0.0, of_patients=0.2**2 / 4)
    assert interval.patients_for(0.1) == 34
    assert interval.patients_for(0.1, alpha=0.05 / 17) > 50
    assert interval.patients_for(3.0) == 3  # two would do, but have no interval
    assert math.isnan(crossed(np.ones((3, 2))).patients_for(9.0))


def test_where_the_seeds_alone_spread_too_much_no_number_of_patients_would_do():
    """Three seeds have two degrees of freedom: the mean must be 4.303 + 1.061 of their standard errors from zero."""
    interval = Interval(0.0, 1.0, 3.0, seeds=3, patients=4, of_seeds=1.0, of_patients=1e-9)
    assert interval.patients_for(5.34) == math.inf
    assert interval.patients_for(5.38) == 3
    assert interval.patients_for(3.0, seeds=4) == math.inf  # (3.182 + 0.978) times the root of 3 / 4: 3.60
    assert interval.patients_for(3.0, seeds=5) == 3  # (2.776 + 0.941) times the root of 3 / 5: 2.88


@pytest.mark.parametrize("bad", [np.ones((2, 3)), np.ones((3, 2)), np.diag([1, 2, math.inf])])
def test_a_mean_without_an_interval_says_its_numbers(bad):
    interval = crossed(bad)
    assert (interval.mean, interval.seeds, interval.patients) == (bad.mean(), *bad.shape)
    assert interval.standard_error is None and math.isnan(interval.freedom)


def test_no_values_have_no_mean():
    interval = crossed(np.empty((0, 4)))
    assert math.isnan(interval.mean) and (interval.seeds, interval.patients) == (0, 4)


def test_values_without_spread_are_certain():
    interval = crossed(np.full((3, 3), 2.0))
    assert (interval.mean, interval.ci95_half_width, interval.freedom) == (2.0, 0.0, 1.0)
    assert [interval.p_above(threshold) for threshold in (1.0, 2.0, 3.0)] == [0.0, 0.5, 1.0]


def test_a_value_that_is_infinite_has_no_interval_and_no_test():
    """PSNR of equal images."""
    slices = measured({"A": [1], "B": [2], "C": [math.inf]})
    estimate = over_patients(by_patient(slices))["x"]
    assert estimate.mean == math.inf and estimate.ci95_half_width is None
    assert math.isnan(paired(slices, measured({"A": [0], "B": [0], "C": [0]}), "x").p)


def test_every_metric_has_its_own_mean_and_what_is_undefined_everywhere_is_nan():
    slices = [Measured("A", "0", {"x": 1.0, "y": NAN}), Measured("A", "1", {"x": 3.0, "y": NAN})]
    patients = by_patient(slices)
    assert patients["A"]["x"] == 2.0 and math.isnan(patients["A"]["y"])
    estimates = over_patients(patients)
    assert estimates["x"].mean == 2.0 and math.isnan(estimates["y"].mean)
    assert undefined(slices) == {"y": 2}


def test_patients_of_both_methods_are_compared_and_no_other():
    first = measured({"A": [1], "B": [3], "C": [5], "D": [9], "E": [NAN]})
    second = measured({"A": [0], "B": [1], "C": [1], "E": [0], "F": [7]})
    test = paired(first, second, "x")
    assert test.patients == 3 and test.estimate.mean == pytest.approx((1 + 2 + 4) / 3)
    assert test.p == pytest.approx(scipy_stats.ttest_1samp([1, 2, 4], 0).pvalue)


def test_without_enough_seeds_or_patients_there_is_no_p():
    for interval in (crossed(np.ones((3, 2))), crossed(np.ones((2, 5)))):
        assert interval.ci95_half_width is None
        assert math.isnan(interval.p_above(0)) and math.isnan(interval.p_within(1))
