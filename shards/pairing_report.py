"""The report before any work: a table of the patients, and what speaks against pairing them so."""

import collections
import math
from pathlib import Path
from typing import Any

import numpy as np

from shards.common.command import InputError
from shards.common.pool import Workers
from shards.common.table import text_table
from shards.dicom import Unusable
from shards.noise_level import noise_sd, soft_tissue
from shards.pairing import Pair, Pairing, Patient
from shards.pixels import read_hu

SAMPLED = 3
"""Slices of each patient in which noise and anatomy are compared."""
SAME_ANATOMY = 0.9
"""Least correlation of a pair. Measured on real CT: 0.999 for a slice and its quarter dose, 0.965 with 200 HU
of noise (a tenth of the dose, lung kernel), 0.89 a centimetre away in the abdomen, 0.2 to 0.6 two away in the chest."""


def anatomy_correlation(full: np.ndarray, low: np.ndarray) -> float:
    """Correlation of two slices, shape (H, W), in HU, as far as it is anatomy.

    Soft tissue range, means of 8 x 8 pixels against the noise, within the body of either. nan if there is no body
    or no structure.
    """
    rows, columns = full.shape[0] // 8, full.shape[1] // 8
    a, b = (
        np.clip(hu[: 8 * rows, : 8 * columns], -200, 300).reshape(rows, 8, columns, 8).mean(axis=(1, 3))
        for hu in (full, low)
    )
    inside = (a > -190) | (b > -190)
    if np.count_nonzero(inside) < 20 or a[inside].std() == 0 or b[inside].std() == 0:
        return math.nan
    return float(np.corrcoef(a[inside], b[inside])[0, 1])


def _compare(pair: Pair) -> tuple[float, float, float] | None:
    """Noise of full and reduced dose in HU, and their correlation; None if the pair cannot be read."""
    try:
        full, low = read_hu(pair.full)[0], read_hu(pair.low)[0]
    except Unusable:
        return None
    mask = soft_tissue(full)
    return noise_sd(full, mask), noise_sd(low, mask), anatomy_correlation(full, low)


def _sampled(patient: Patient) -> list[Pair]:
    """Some pairs, evenly from bottom to top."""
    count = min(SAMPLED, len(patient.pairs))
    return [patient.pairs[int((i + 0.5) * len(patient.pairs) / count)] for i in range(count)]


def _median(values: list[float]) -> float | None:
    """Median of those that are numbers, to 3 decimals; None if none is."""
    numbers = [value for value in values if not math.isnan(value)]
    return round(float(np.median(numbers)), 3) if numbers else None


def patient_rows(pairing: Pairing, workers: Workers) -> list[dict[str, Any]]:
    """One row for each patient: what is there, and what was measured in a few slices."""
    sampled = [(patient.name, pair) for patient in pairing.patients for pair in _sampled(patient)]
    comparisons: dict[str, list[tuple[float, float, float]]] = collections.defaultdict(list)
    for (name, _), comparison in zip(sampled, workers.each(_compare, [pair for _, pair in sampled]), strict=True):
        if comparison is not None:
            comparisons[name].append(comparison)
    return [_row(patient, comparisons[patient.name]) for patient in pairing.patients]


def _row(patient: Patient, comparisons: list[tuple[float, float, float]]) -> dict[str, Any]:
    """The facts of one patient."""
    pairs = patient.pairs
    doses = sorted({pair.dose for pair in pairs if pair.dose is not None})

    def both(name: str) -> list[Any]:
        return sorted({getattr(piece, name) for pair in pairs for piece in (pair.full, pair.low)}, key=str)

    return {
        "patient": patient.name,
        "layout": patient.layout,
        "series": patient.variant,
        "full": patient.full,
        "reduced": patient.low,
        "paired": len(pairs),
        "z": [pairs[0].full.z, pairs[-1].full.z] if pairs else [],
        "spacing": list(pairs[0].full.spacing) if pairs else [],
        "matrix": list(pairs[0].full.shape) if pairs else [],
        "kernel": both("kernel"),
        "thickness": both("thickness"),
        "kvp": both("kvp"),
        "dose": [doses[0], doses[-1]] if doses else [],
        "noise_full": _median([noise for noise, _, _ in comparisons]),
        "noise_reduced": _median([noise for _, noise, _ in comparisons]),
        "correlation": _median([same for _, _, same in comparisons]),
    }


def suspicions(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Patients whose pairs cannot be right, and why."""
    reasons = {}
    for row in rows:
        full, low, correlation = row["noise_full"], row["noise_reduced"], row["correlation"]
        if correlation is not None and correlation < SAME_ANATOMY:
            reasons[row["patient"]] = (
                f"full and reduced dose do not show the same anatomy (correlation {correlation:.2f})"
            )
        elif full is not None and low is not None and low < full:
            reasons[row["patient"]] = (
                f"the reduced dose is less noisy than the full one ({low:.1f} and {full:.1f} HU): swapped?"
            )
    return reasons


def refuse(rows: list[dict[str, Any]], allowed: list[str]) -> None:
    """Stop for suspicious patients that the user did not name.

    Raises
    ------
    InputError
        Naming them and the remedy.
    """
    unknown = sorted(set(allowed) - {row["patient"] for row in rows})
    if unknown:
        raise InputError(
            f"--allow {unknown[0]}: no such patient; there are {', '.join(row['patient'] for row in rows)}"
        )
    suspicious = {name: why for name, why in suspicions(rows).items() if name not in allowed}
    if suspicious:
        raise InputError(
            "; ".join(f"{name}: {why}" for name, why in suspicious.items())
            + f"; put it right, or build all the same with --allow {' '.join(suspicious)}"
        )


def _range(values: list[Any], form: str = "g") -> str:
    """Numbers or texts for a cell of the table."""
    return "/".join(format(v, form) if isinstance(v, float) else str(v) for v in values if v not in (None, "")) or "-"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people, one line for each patient."""
    head = (
        "patient",
        "full",
        "reduced",
        "paired",
        "z in mm",
        "pixel",
        "mm",
        "kernel",
        "kVp",
        "noise HU",
        "same",
        "layout",
    )
    lines = []
    for row in rows:
        noise = " -> ".join("-" if row[k] is None else f"{row[k]:.1f}" for k in ("noise_full", "noise_reduced"))
        lines.append(
            (
                row["patient"],
                str(row["full"]),
                str(row["reduced"]),
                str(row["paired"]),
                " to ".join(f"{z:g}" for z in row["z"]) or "-",
                f"{row['spacing'][0]:.3f}" if row["spacing"] else "-",
                _range(row["thickness"]),
                _range(row["kernel"]),
                _range(row["kvp"]),
                noise,
                "-" if row["correlation"] is None else f"{row['correlation']:.2f}",
                row["layout"] + (f", {row['series']}" if row["series"] else ""),
            )
        )
    return text_table(head, lines, left=[head.index(name) for name in ("patient", "z in mm", "kernel", "layout")])


def reasons(left_out: list[dict[str, str]]) -> str:
    """What was left out for people: one line for each reason, with its number and an example."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for out in left_out:
        groups[out["why"]].append(out["what"])
    return "\n".join(
        f"left out {len(what)}: {why} ({what[0]}{', ...' if len(what) > 1 else ''})" for why, what in groups.items()
    )


def as_json(folder: Path, rows: list[dict[str, Any]], left_out: list[dict[str, str]]) -> dict[str, Any]:
    """The whole report for programs."""
    return {"input": str(folder), "patients": rows, "suspicious": suspicions(rows), "left_out": left_out}
