import numpy as np
import pytest
from scipy import stats as scipy_stats

from ldct.metrics.intervals import Measured, by_patient, over_patients, paired


def measured(values):
    """Slices of patients: {"A": [1, 2]}."""
    return [Measured(p, f"{p}{i}", {"x": float(v)}) for p, each in values.items() for i, v in enumerate(each)]


def test_each_patient_counts_once_however_many_slices():
    patients = by_patient(measured({"A": [1, 2, 3], "B": [10]}))
    assert patients == {"A": {"x": 2.0}, "B": {"x": 10.0}}
    assert over_patients(patients)["x"].mean == 6.0


def test_the_interval_is_students_and_needs_three_patients():
    values = {"A": [1], "B": [2], "C": [4]}
    found = over_patients(by_patient(measured(values)))["x"]
    low, high = scipy_stats.t.interval(0.95, 2, loc=np.mean([1, 2, 4]), scale=scipy_stats.sem([1, 2, 4]))
    assert found.ci95_half_width == pytest.approx((high - low) / 2)
    assert found.mean == pytest.approx((high + low) / 2)
    values.pop("C")
    assert over_patients(by_patient(measured(values)))["x"].ci95_half_width is None


def test_nan_is_left_out_of_means():
    patients = by_patient(measured({"A": [1, float("nan")], "B": [float("nan")]}))
    assert patients["A"]["x"] == 1.0
    assert over_patients(patients)["x"].mean == 1.0


def test_the_paired_test_is_over_patients_where_there_are_six():
    base = {p: [i, i + 1] for i, p in enumerate("ABCDEF")}
    better = {p: [v + 0.5 + 0.01 * i for v in each] for i, (p, each) in enumerate(base.items())}
    found = paired(measured(better), measured(base), "x")
    assert (found.unit, found.count) == ("patients", 6)
    assert found.difference == pytest.approx(0.525)
    assert found.p == pytest.approx(2 / 2**6)  # all six of one sign, exact


def test_with_fewer_patients_it_is_over_slices_and_with_fewer_slices_there_is_none():
    found = paired(measured({"A": range(1, 9)}), measured({"A": [0] * 8}), "x")
    assert (found.unit, found.count, found.p) == ("slices", 8, pytest.approx(2 / 2**8))
    assert np.isnan(paired(measured({"A": [1, 2]}), measured({"A": [0, 0]}), "x").p)
