"""The report before any work: a table of the patients, and what speaks against pairing them so."""

import collections
import math
import shlex
from collections.abc import Iterator
from typing import Any

import numpy as np

from shards.common.command import InputError
from shards.common.pool import Workers
from shards.common.table import text_table
from shards.dicom import Slice
from shards.dose_comparison import Comparison, compare
from shards.matching import Pair, Patient, person
from shards.pairing import Pairing

SAME_LEVEL = 5.0
"""Largest difference of the doses' levels in HU. Measured on 22 real pairs of four patients: at most 0.3."""
AIR = (-1100.0, -850.0)
"""Where the darkest percent of a slice has to end, in HU. Measured on the same: -1022 to -1019."""
BODY = 0.01
"""Least share of soft tissue in a slice of a body."""
NAMES = {"kernel": "kernel", "thickness": "thickness in mm", "kvp": "kVp"}
"""What both doses of a scan have alike."""
SAMPLED = 3
"""Slices of each patient in which noise and anatomy are compared."""
SAME_ANATOMY = 0.9
"""Least correlation of a pair. Measured on real CT: 0.999 for a slice and its quarter dose, 0.965 with 200 HU
of noise (a tenth of the dose, lung kernel), 0.89 a centimetre away in the abdomen, 0.2 to 0.6 two away in the chest."""


def _sampled(patient: Patient) -> list[tuple[Pair, dict[str, Slice]]]:
    """Some pairs, evenly from bottom to top, each with the full dose of its neighbours."""
    pairs, count = patient.pairs, min(SAMPLED, len(patient.pairs))
    chosen = [int((i + 0.5) * len(pairs) / count) for i in range(count)]
    near = [{"the full-dose slice below": i - 1, "the full-dose slice above": i + 1} for i in chosen]
    return [
        (pairs[i], {name: pairs[j].full for name, j in names.items() if 0 <= j < len(pairs)})
        for i, names in zip(chosen, near, strict=True)
    ]


def _median(values: list[float]) -> float | None:
    """Median of those that are numbers, to 3 decimals; None if none is."""
    numbers = [value for value in values if not math.isnan(value)]
    return round(float(np.median(numbers)), 3) if numbers else None


def patient_rows(pairing: Pairing, workers: Workers) -> list[dict[str, Any]]:
    """One row for each patient: what is there, and what was measured in a few slices."""
    sampled = [(patient.name, item) for patient in pairing.patients for item in _sampled(patient)]
    comparisons: dict[str, list[Comparison]] = collections.defaultdict(list)
    for (name, _), comparison in zip(sampled, workers.each(compare, [item for _, item in sampled]), strict=True):
        if comparison is not None:
            comparisons[name].append(comparison)
    twins = _twins(pairing.patients, comparisons)
    return [_row(patient, comparisons[patient.name], twins[patient.name]) for patient in pairing.patients]


def _twins(patients: list[Patient], comparisons: dict[str, list[Comparison]]) -> dict[str, list[str]]:
    """For each patient the others that share a StudyInstanceUID or an image, by SOPInstanceUID or pixels compared.

    A study that all patients share was named by whoever took their names away.
    """
    owners: dict[str, set[str]] = collections.defaultdict(set)
    images: dict[str, set[str]] = {}
    for patient in patients:
        uids = {
            uid for pair in patient.pairs for piece in (pair.full, pair.low) for uid in (piece.sop_uid, piece.study_uid)
        }
        uids.discard("")
        images[patient.name] = uids | {look.digest for look in comparisons[patient.name] if look.tissue >= BODY}
        for image in images[patient.name]:
            owners[image].add(patient.name)
    everybodys = {image for image, names in owners.items() if len(names) == len(patients) > 2}
    everybodys &= {pair.full.study_uid for patient in patients for pair in patient.pairs}
    return {
        name: sorted({twin for image in some - everybodys for twin in owners[image] if person(twin) != person(name)})
        for name, some in images.items()
    }


def _row(patient: Patient, comparisons: list[Comparison], twins: list[str]) -> dict[str, Any]:
    """The facts of one patient."""
    pairs = patient.pairs
    doses = sorted({pair.dose for pair in pairs if pair.dose is not None})

    def both(name: str) -> list[Any]:
        return sorted({getattr(piece, name) for pair in pairs for piece in (pair.full, pair.low)}, key=str)

    def median(name: str) -> float | None:
        return _median([getattr(comparison, name) for comparison in comparisons])

    def same(name: str) -> int:
        return sum(getattr(pair.full, name) == getattr(pair.low, name) != "" for pair in pairs)

    noise_full, noise_reduced = median("noise_full"), median("noise_reduced")
    places = collections.Counter(comparison.misplaced for comparison in comparisons)
    return {
        "patient": patient.name,
        "layout": patient.layout,
        "series": patient.variant,
        "full": patient.full,
        "reduced": patient.low,
        "paired": len(pairs),
        "small": patient.small,
        "z": [pairs[0].full.z, pairs[-1].full.z] if pairs else [],
        "spacing": list(pairs[0].full.spacing) if pairs else [],
        "matrix": list(pairs[0].full.shape) if pairs else [],
        "kernel": both("kernel"),
        "thickness": both("thickness"),
        "kvp": both("kvp"),
        "dose": [doses[0], doses[-1]] if doses else [],
        "noise_full": noise_full,
        "noise_reduced": noise_reduced,
        "noise_ratio": round(noise_reduced / noise_full, 3) if noise_full and noise_reduced is not None else None,
        "correlation": median("correlation"),
        "level": {"soft": median("level_soft"), "fat": median("level_fat")},
        "air": {"full": median("air_full"), "reduced": median("air_reduced")},
        "tissue": median("tissue"),
        "twins": twins,
        "identical": sum(comparison.identical for comparison in comparisons),
        "same_instance": same("sop_uid"),
        "same_series": same("series_uid"),
        "misplaced": next((name for name, count in places.items() if name and 2 * count >= len(comparisons)), ""),
        "denoised": sum(piece.denoised for pair in pairs for piece in (pair.full, pair.low)),
        "differing": _differing(pairs),
        "no_rescale": sum(not piece.coding.rescaled for pair in pairs for piece in (pair.full, pair.low)),
    }


def _differing(pairs: list[Pair]) -> dict[str, list[Any]]:
    """What the doses of most pairs differ in, by name: full dose and reduced dose."""
    differing = {}
    for name in NAMES:
        both = [(getattr(pair.full, name), getattr(pair.low, name)) for pair in pairs]
        other = [list(values) for values in both if values[0] != values[1] and "" not in values and None not in values]
        if 2 * len(other) > len(pairs):
            differing[name] = other[0]
    return differing


def _doubts(row: dict[str, Any]) -> Iterator[str]:
    """What speaks against the pairs of a patient, with numbers."""
    paired, full, reduced = (row[name] for name in ("paired", "full", "reduced"))
    if 2 * (paired + row["small"]) < min(full, reduced):
        yield f"only {paired} of {full} full-dose and {reduced} reduced-dose slices pair, see above"
    for name, values in row["differing"].items():
        yield f"the doses differ in {NAMES[name]}: {values[0]} and {values[1]}"
    if row["denoised"]:
        yield f"{row['denoised']} of {2 * row['paired']} slices were denoised by launch/denoise.py"
    if row["no_rescale"]:
        yield (
            f"{row['no_rescale']} of {2 * row['paired']} slices have no RescaleSlope or RescaleIntercept, so their "
            "values may not be HU"
        )
    for dose in ("full", "reduced"):
        air = row["air"][dose]
        if air is not None and not AIR[0] <= air <= AIR[1]:
            yield f"air lies at {air:.0f} HU at {dose} dose, expected near -1000: are the values HU?"
    if row["twins"]:
        twins = ", ".join(row["twins"])
        yield f"has images or the study of {twins}: one patient under two names would stand in two splits"
    if row["tissue"] is not None and row["tissue"] < BODY:
        yield "its slices show no body (less than 1 % of the pixels from -200 to 300 HU): are the values HU?"
    yield from _doubts_of_doses(row)


def _doubts_of_doses(row: dict[str, Any]) -> Iterator[str]:
    """What speaks against one dose beside the other."""
    full, low, correlation = row["noise_full"], row["noise_reduced"], row["correlation"]
    if row["identical"]:
        yield "full and reduced dose have the same pixels: one is a copy of the other"
        return
    for count, uid in ((row["same_instance"], "SOPInstanceUID"), (row["same_series"], "SeriesInstanceUID")):
        if count:
            yield f"{count} of {row['paired']} pairs have one {uid} at both doses: copies?"
            break
    if correlation is not None and correlation < SAME_ANATOMY:
        yield f"full and reduced dose do not show the same anatomy (correlation {correlation:.2f})"
        return
    if row["misplaced"]:
        yield f"the reduced dose is closer to {row['misplaced']} than to its mate: is one dose moved?"
    for tissue, name in (("soft", "soft tissue"), ("fat", "fat")):
        level = row["level"][tissue]
        if level is not None and abs(level) > SAME_LEVEL:
            yield f"the reduced dose lies {level:+.1f} HU from the full one in {name}, expected at most {SAME_LEVEL:g}"
    if full is not None and low is not None and low < full:
        yield f"the reduced dose is less noisy than the full one ({low:.1f} and {full:.1f} HU): swapped?"


def suspicions(rows: list[dict[str, Any]], problems: dict[str, str]) -> dict[str, str]:
    """Patients whose pairs cannot be right, and folders that could not be read; and why."""
    reasons = {name: [why] for name, why in problems.items()}
    for row in rows:
        if doubts := list(_doubts(row)):
            reasons.setdefault(row["patient"], []).extend(doubts)
    return {name: ", and ".join(why) for name, why in reasons.items()}


def refuse(rows: list[dict[str, Any]], pairing: Pairing, allowed: list[str]) -> None:
    """Stop for suspicious patients and unread folders that --allow does not name; without rows for the folders alone.

    Raises
    ------
    InputError
        Naming them and the remedy.
    """
    check_allowed(pairing, allowed)
    suspicious = {name: why for name, why in suspicions(rows, pairing.problems).items() if name not in allowed}
    if suspicious:
        raise InputError(
            "; ".join(f"{name}: {why}" for name, why in suspicious.items())
            + f"; put it right, or build all the same with --allow {shlex.join(suspicious)}"
        )


def check_allowed(pairing: Pairing, allowed: list[str]) -> None:
    """Raise an InputError for a name in --allow that nobody has."""
    names = {patient.name for patient in pairing.patients} | set(pairing.problems)
    unknown = sorted(set(allowed) - names)
    if unknown:
        raise InputError(f"--allow {unknown[0]}: no such patient; there are {', '.join(sorted(names))}")


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
        "ratio",
        "level HU",
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
                "-" if row["noise_ratio"] is None else f"{row['noise_ratio']:.2f}",
                _range([level for level in row["level"].values() if level is not None], "+.1f"),
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


def as_json(
    folder: str, rows: list[dict[str, Any]], left_out: list[dict[str, str]], problems: dict[str, str]
) -> dict[str, Any]:
    """The whole report for programs."""
    return {"input": folder, "patients": rows, "suspicious": suspicions(rows, problems), "left_out": left_out}
