"""From slices to patients to a mean one can compare: the patient is the sample, slices of one patient are not.

Neighbouring slices resemble each other, so nothing here counts slices as if they were independent: values are averaged
over the slices of a patient first, and intervals and tests are over patients.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # scipy.stats takes 0.5 s to import, at its first use: the mirror of each run has none

LEAST_PATIENTS = 3
"""Fewer give no interval and no test."""
LEAST_SEEDS = 3
"""Fewer give no interval."""
ALPHA = 0.05
"""Level of the tests, over all tests of a table together."""


@dataclass
class Measured:
    """The metrics of one method on one slice."""

    patient: str
    key: str
    values: dict[str, float]
    """By name, e.g. ``abd400/psnr``."""


@dataclass(frozen=True)
class Estimate:
    """A mean over patients."""

    mean: float
    ci95_half_width: float | None
    """Half the width of the 95 % confidence interval; None with fewer than LEAST_PATIENTS patients."""


def by_patient(measured: Iterable[Measured]) -> dict[str, dict[str, float]]:
    """Mean over the slices of each patient; nan (a slice without flat tissue) is left out of a mean."""
    slices: dict[str, list[dict[str, float]]] = {}
    for result in measured:
        slices.setdefault(result.patient, []).append(result.values)
    return {
        patient: {key: _mean([values[key] for values in each]) for key in each[0]} for patient, each in slices.items()
    }


def undefined(measured: Iterable[Measured]) -> dict[str, int]:
    """Slices left out of a metric's mean because it is not defined on them (nan); metrics defined on all are absent."""
    counts: dict[str, int] = {}
    for result in measured:
        for name, value in result.values.items():
            if math.isnan(value):
                counts[name] = counts.get(name, 0) + 1
    return counts


def _mean(values: list[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return float(np.mean(kept)) if kept else math.nan


def over_patients(patients: dict[str, dict[str, float]]) -> dict[str, Estimate]:
    """Mean over patients with its interval (Student's t), by metric."""
    return {key: estimate([values[key] for values in patients.values()]) for key in next(iter(patients.values()))}


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of one value per patient with its interval (Student's t); nan is left out."""
    kept = np.array([value for value in values if not math.isnan(value)])
    half = None
    if len(kept) >= LEAST_PATIENTS and np.isfinite(kept).all():
        half = float(scipy.stats.t.ppf(0.975, len(kept) - 1) * np.std(kept, ddof=1) / math.sqrt(len(kept)))
    return Estimate(float(kept.mean()) if len(kept) else math.nan, half)


@dataclass(frozen=True)
class Difference:
    """Two methods compared on the same patients."""

    patients: int
    estimate: Estimate
    """Mean over patients of first minus second."""
    p: float
    """Two-sided, paired t test over patients, which the interval belongs to. nan where there is nothing to test: fewer
    than LEAST_PATIENTS patients, or the same difference in all of them."""


def paired(first: Iterable[Measured], second: Iterable[Measured], name: str) -> Difference:
    """Difference of ``first`` and ``second`` in the metric called ``name``, on the patients that both have."""
    sides = [{patient: values[name] for patient, values in by_patient(side).items()} for side in (first, second)]
    both = [patient for patient in sides[0] if patient in sides[1]]
    differences = [d for patient in both if not math.isnan(d := sides[0][patient] - sides[1][patient])]
    p = math.nan
    if len(differences) >= LEAST_PATIENTS and np.isfinite(differences).all() and np.ptp(differences) > 0:
        p = float(scipy.stats.ttest_1samp(differences, 0).pvalue)
    return Difference(len(differences), estimate(differences), p)


def holm(p: Sequence[float]) -> list[float]:
    """``p`` corrected for their number (Holm 1979, Scand J Stat 6:65); nan is no test, and stays nan.

    Rejecting where the corrected value is below ALPHA keeps the chance of any false finding among them below ALPHA.
    """
    corrected, running = [math.nan] * len(p), 0.0
    order = sorted((index for index in range(len(p)) if not math.isnan(p[index])), key=lambda index: p[index])
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[index]))
        corrected[index] = running
    return corrected


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and patients."""

    mean: float
    standard_error: float | None
    """None with fewer than LEAST_SEEDS seeds or LEAST_PATIENTS patients."""
    freedom: float
    """Degrees of freedom of ``standard_error``."""
    seeds: int
    patients: int
    of_seeds: float = math.nan
    """The part of the squared standard error that more seeds would lower."""
    of_patients: float = math.nan
    """The part that more patients would lower; nan where their spread is not known."""

    def patients_for(self, effect: float, alpha: float = ALPHA, seeds: int | None = None) -> float:
        """Patients with whom a mean of ``effect`` would be told from zero four times in five, with ``seeds`` (as many).

        Two-sided at ``alpha``, by the t distribution with the degrees of freedom that there would be; infinite where a
        thousand would not do, as the seeds alone spread too much; nan where the spread of patients is not known.
        """
        if math.isnan(self.of_patients):
            return math.nan
        seeds = seeds or self.seeds
        patients = np.arange(LEAST_PATIENTS, 1001)
        of_patients = self.of_patients * self.patients / patients
        of_seeds = self.of_seeds * self.seeds / seeds
        freedom = _freedom(of_seeds, seeds, of_patients, patients)
        needed = scipy.stats.t.ppf(1 - alpha / 2, freedom) + scipy.stats.t.ppf(0.8, freedom)
        enough = needed * np.sqrt(of_seeds + of_patients) <= effect
        return int(patients[np.argmax(enough)]) if enough.any() else math.inf

    @property
    def ci95_half_width(self) -> float | None:
        """Half the width of the 95 % interval; None without a standard error."""
        error = self.standard_error
        return None if error is None else float(scipy.stats.t.ppf(0.975, self.freedom) * error)

    def p_above(self, threshold: float) -> float:
        """One-sided p of the mean lying above ``threshold``: small where it surely does; nan without an interval."""
        if self.standard_error is None:
            return math.nan
        if self.standard_error == 0:
            return 0.5 if self.mean == threshold else float(self.mean < threshold)
        return float(scipy.stats.t.sf((self.mean - threshold) / self.standard_error, self.freedom))

    def p_below(self, threshold: float) -> float:
        """One-sided p of the mean lying below ``threshold``; nan without an interval."""
        return 1 - self.p_above(threshold)

    def p_within(self, margin: float) -> float:
        """p of the mean lying within ± ``margin`` (two one-sided tests; Schuirmann 1987, J Pharmacokinet Biopharm
        15:657); nan without an interval."""
        return max(self.p_above(-margin), self.p_below(margin))


def crossed(values: np.ndarray) -> Interval:
    """Mean and interval of ``values`` of shape (seeds, patients), every seed measured on every patient.

    Seeds and patients are both drawn from many, so the variance of the mean is that of the seeds' means over their
    number plus that of the patients' means over theirs. This counts the variance within a cell twice, to the careful
    side. Degrees of freedom after Satterthwaite (1946, Biometrics Bulletin 2:110).
    """
    seeds, patients = values.shape
    mean = float(values.mean()) if values.size else math.nan
    if seeds < LEAST_SEEDS or patients < LEAST_PATIENTS or not np.isfinite(values).all():
        return Interval(mean, None, math.nan, seeds, patients)
    parts = [values.mean(1).var(ddof=1) / seeds, values.mean(0).var(ddof=1) / patients]
    total = sum(parts)
    freedom = float(_freedom(parts[0], seeds, parts[1], patients)) if total else 1.0
    return Interval(mean, math.sqrt(total), freedom, seeds, patients, *map(float, parts))


def _freedom(of_seeds: Any, seeds: Any, of_patients: Any, patients: Any) -> Any:
    """Degrees of freedom of the sum of two squared standard errors (Satterthwaite)."""
    return (of_seeds + of_patients) ** 2 / (of_seeds**2 / (seeds - 1) + of_patients**2 / (patients - 1))
