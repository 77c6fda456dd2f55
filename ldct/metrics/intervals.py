"""From slices to patients to a mean one can compare: the patient is the sample, slices of one patient are not."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST_PATIENTS = 3
"""Fewer give no interval."""
LEAST_SEEDS = 3
"""Fewer give no interval."""
LEAST_PAIRS = 6
"""Pairs a signed-rank test needs before its two-sided p can fall below 0.05."""


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
    for one in measured:
        slices.setdefault(one.patient, []).append(one.values)
    return {
        patient: {key: _mean([values[key] for values in each]) for key in each[0]} for patient, each in slices.items()
    }


def _mean(values: list[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return float(np.mean(kept)) if kept else math.nan


def over_patients(patients: dict[str, dict[str, float]]) -> dict[str, Estimate]:
    """Mean over patients with its interval (Student's t), by metric."""
    found = {}
    for key in next(iter(patients.values())):
        values = [value for p in patients.values() if not math.isnan(value := p[key])]
        half = None
        if len(values) >= LEAST_PATIENTS and np.isfinite(values).all():
            half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
        found[key] = Estimate(_mean(values), half)
    return found


@dataclass(frozen=True)
class Paired:
    """Two methods compared on the same patients or slices."""

    unit: str
    """patients, or slices where there are too few patients: neighbours resemble each other, so p is then too small."""
    count: int
    difference: float
    """Mean of first minus second."""
    p: float
    """Two-sided, Wilcoxon signed-rank; nan where fewer than LEAST_PAIRS pairs, or all of them equal."""


def paired(first: list[Measured], second: list[Measured], key: str) -> Paired:
    """Test whether ``first`` and ``second`` differ in the metric ``key``: over patients where there are enough."""
    patients = [by_patient(side) for side in (first, second)]
    unit, values = "patients", [{name: p[key] for name, p in side.items()} for side in patients]
    if len(values[0]) < LEAST_PAIRS:
        unit, values = "slices", [{m.key: m.values[key] for m in side} for side in (first, second)]
    both = sorted(values[0].keys() & values[1].keys())
    differences = np.array([values[0][name] - values[1][name] for name in both])
    differences = differences[np.isfinite(differences)]
    p = math.nan
    if len(differences) >= LEAST_PAIRS and differences.any():
        p = float(stats.wilcoxon(differences).pvalue)
    return Paired(unit, len(differences), float(differences.mean()) if len(differences) else math.nan, p)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and patients."""

    mean: float
    ci95_half_width: float | None
    """Half the width of the 95 % interval; None with fewer than LEAST_SEEDS seeds or LEAST_PATIENTS patients."""
    seeds: int
    patients: int


def crossed(values: np.ndarray) -> Interval:
    """Mean and interval of ``values`` of shape (seeds, patients), every seed measured on every patient.

    Seeds and patients are both drawn from many, so the variance of the mean is that of the seeds' means over their
    number plus that of the patients' means over theirs. This counts the variance within a cell twice, to the careful
    side. Degrees of freedom after Satterthwaite (1946, Biometrics Bulletin 2:110).
    """
    seeds, patients = values.shape
    mean = float(values.mean()) if values.size else math.nan
    if seeds < LEAST_SEEDS or patients < LEAST_PATIENTS or not np.isfinite(values).all():
        return Interval(mean, None, seeds, patients)
    parts = [values.mean(1).var(ddof=1) / seeds, values.mean(0).var(ddof=1) / patients]
    total = sum(parts)
    if total == 0:
        return Interval(mean, 0.0, seeds, patients)
    freedom = total**2 / (parts[0] ** 2 / (seeds - 1) + parts[1] ** 2 / (patients - 1))
    return Interval(mean, float(stats.t.ppf(0.975, freedom) * math.sqrt(total)), seeds, patients)


def over_seeds(values: list[float], patients: int) -> Interval:
    """As ``crossed``, of what each seed gives as one mean over ``patients`` patients: their spread is not known."""
    found = np.array(values)
    mean = float(found.mean()) if len(found) else math.nan
    if len(found) < LEAST_SEEDS or patients < LEAST_PATIENTS:
        return Interval(mean, None, len(found), patients)
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return Interval(mean, half, len(found), patients)
