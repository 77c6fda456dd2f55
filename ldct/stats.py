"""From slices to patients to a mean one can compare: the patient is the sample, slices of one patient are not."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST_PATIENTS = 3
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
    half: float | None
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
