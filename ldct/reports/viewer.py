"""Slices as the page's viewer reads them: the worst and the median of every method first, then as many as fit."""

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from ldct.evaluation.baselines import LOW
from ldct.evaluation.results import FULL, Evaluation, Result
from ldct.metrics import registry
from ldct.metrics.judged import WHICH, median_and_worst
from ldct.metrics.names import metric as name_under
from ldct.reports.tables import Row
from ldct.runs.slices_file import steps

VIEWED = 8
"""Runs whose slices are on the page, the best first."""
WINDOWS = [
    ("Abdomen", 50, 400),
    ("abd400", 40, 400),
    ("Liver", 90, 150),
    ("Lung", -600, 1500),
    ("Bone", 400, 1800),
    ("Brain", 40, 80),
]
"""Display windows: name, centre and width in HU. abd400 is what that protocol sees."""
BODY_HU = -500
"""The body is what is denser than this in the full dose, and what that encloses."""


@dataclass(frozen=True)
class Extreme:
    """A slice to look at before a method is believed."""

    method: str
    which: str
    """median or worst."""
    key: str
    text: str
    """Value of registry.JUDGED on it, with its unit."""


def extremes(evaluation: Evaluation, rows: list[Row]) -> list[Extreme]:
    """The median and the worst slice of every method by registry.JUDGED under the ranking protocol."""
    protocol = evaluation.protocols[0]
    metric, chosen = registry.find(registry.JUDGED), []
    for row in rows:
        slices = median_and_worst(evaluation.get(row.name).slices, protocol)
        for which, measured in zip(WHICH, slices, strict=False):
            text = f"{metric.text(measured.values[name_under(protocol, metric.key)])} {metric.unit}".strip()
            chosen.append(Extreme(row.name, which, measured.key, text))
    return chosen


def content(evaluation: Evaluation, rows: list[Row], budget: int) -> dict[str, Any] | None:
    """Cases with their slices, HU packed as by ``pack``; None if there are no pictures.

    They take up to ``budget`` bytes, one slice at least; a slice has 0.2 to 0.3 MB for each method.
    """
    best = [row for row in rows if row.is_run][:VIEWED]
    shown = [row for row in rows if row.name == LOW] + best
    shown += [row for row in rows if not row.is_run and row.name != LOW]
    results = [evaluation.get(row.name) for row in shown]
    kept = [m.key for m in results[0].slices if m.key in evaluation.full and all(m.key in r.pictures for r in results)]
    first = list(dict.fromkeys(extreme.key for extreme in extremes(evaluation, rows) if extreme.key in kept))
    packed: dict[str, dict[str, Any]] = {}
    spent = 0
    for key in [*first, *spaced([key for key in kept if key not in first])]:
        entry = packed_slice(evaluation, results, key)
        spent += sum(map(len, entry["panels"]))
        if packed and spent > budget:
            break
        packed[key] = entry
    if not packed:
        return None
    cases: dict[str, list[dict[str, Any]]] = {}
    for measured in results[0].slices:
        if measured.key in packed:
            cases.setdefault(measured.patient, []).append(packed[measured.key])
    return {
        "methods": [FULL, *(row.label for row in shown)],
        "cases": [{"name": name, "slices": slices} for name, slices in cases.items()],
        "windows": WINDOWS,
        "hidden": sum(row.is_run for row in rows) - len(best),
        "of": len(results[0].slices),
    }


def spaced(keys: list[str]) -> list[str]:
    """``keys`` in an order whose every beginning is spread over all of them: halves, then quarters, and so on."""
    order: dict[str, None] = {}
    parts = 2
    while len(order) < len(keys):
        for part in range(1, parts):
            order.setdefault(keys[min(len(keys) - 1, part * len(keys) // parts)])
        parts *= 2
        if parts > 4 * len(keys):
            order |= dict.fromkeys(keys)
    return list(order)


def packed_slice(evaluation: Evaluation, results: list[Result], key: str) -> dict[str, Any]:
    """One slice of the full dose and of every method, captions with the slice's own metrics."""
    full = evaluation.full[key]
    names = [name_under(evaluation.protocols[0], name) for name in registry.BRIEF]
    panels, notes = [pack(full)], [""]
    for result in results:
        values = next(measured.values for measured in result.slices if measured.key == key)
        panels.append(pack(result.pictures[key]))
        notes.append(
            ", ".join(f"{registry.find(name).label} {registry.find(name).text(values[name])}" for name in names)
        )
    every = [measured.key for measured in results[0].slices]
    height, width = full.shape
    return {
        "key": key,
        "number": every.index(key) + 1,
        "height": height,
        "width": width,
        "view": around_body(full),
        "body": pack_bits(body(full)),
        "panels": panels,
        "notes": notes,
    }


def body(full: np.ndarray) -> np.ndarray:
    """The patient in a full-dose slice (HU, shape (H, W)), table and air left out: bool, the same shape."""
    dense = ndimage.binary_opening(full > BODY_HU, iterations=2)
    parts, count = ndimage.label(dense)
    if not count:
        return np.zeros(full.shape, bool)
    largest = 1 + int(np.argmax(ndimage.sum_labels(dense, parts, range(1, count + 1))))
    return ndimage.binary_fill_holes(parts == largest)


def around_body(full: np.ndarray) -> dict[str, float]:
    """The view that just shows the body: its middle as shares of the sides, the zoom, and height over width."""
    rows, columns = (np.flatnonzero((full > BODY_HU).mean(axis) > 0.05) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return {"x": 0.5, "y": 0.5, "zoom": 1.0, "aspect": full.shape[0] / full.shape[1]}
    (top, bottom), (left, right) = ((int(line[0]), int(line[-1]) + 1) for line in (rows, columns))
    aspect = float(np.clip((bottom - top) / (right - left), 0.6, 1.2))
    shown = 1.04 * max(right - left, (bottom - top) / aspect)  # columns
    return {
        "x": (left + right) / 2 / full.shape[1],
        "y": (top + bottom) / 2 / full.shape[0],
        "zoom": round(float(np.clip(full.shape[1] / shown, 1, 4)), 2),
        "aspect": round(aspect, 3),
    }


def pack(hu: np.ndarray) -> str:
    """An int16 image as base64 of zlib of its ``steps``: a slice at full dose takes 0.23 MB."""
    return base64.b64encode(zlib.compress(steps(hu).tobytes())).decode()


def pack_bits(mask: np.ndarray) -> str:
    """A mask as base64 of zlib of its bits, row by row, the first pixel in the highest bit."""
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode()
