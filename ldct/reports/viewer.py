"""Slices as the page's viewer reads them."""

import base64
import zlib
from typing import Any

import numpy as np

from ldct.evaluation.baselines import LOW
from ldct.evaluation.results import FULL, Evaluation
from ldct.metrics import registry
from ldct.metrics.names import metric as name_under
from ldct.reports.tables import Row

VIEWED = 8
"""Runs whose slices are on the page, the best first; a slice takes 0.3 MB."""
WINDOWS = [
    ("Abdomen", 50, 400),
    ("abd400", 40, 400),
    ("Liver", 90, 150),
    ("Lung", -600, 1500),
    ("Bone", 400, 1800),
    ("Brain", 40, 80),
]
"""Display windows: name, centre and width in HU. abd400 is what that protocol sees."""


def content(evaluation: Evaluation, rows: list[Row]) -> dict[str, Any] | None:
    """The slices, HU packed as by ``pack``, captions with the slice's own metrics; None if there are no pictures."""
    if not evaluation.full:
        return None
    best = [row for row in rows if row.is_run][:VIEWED]
    others = [row for row in rows if not row.is_run and row.name != LOW]
    results = [evaluation.get(LOW)] + [evaluation.get(row.name) for row in [*best, *others]]
    labels = {row.name: row.label for row in rows}
    names = [name_under(evaluation.protocols[0], key) for key in registry.BRIEF]
    slices = []
    for key in (key for key in evaluation.full if all(key in result.pictures for result in results)):
        panels = [{"label": FULL, "note": "", "data": pack(evaluation.full[key])}]
        for result in results:
            values = next(measured.values for measured in result.slices if measured.key == key)
            notes = [f"{registry.find(name).label} {registry.find(name).text(values[name])}" for name in names]
            panels.append({"label": labels[result.name], "note": ", ".join(notes), "data": pack(result.pictures[key])})
        height, width = evaluation.full[key].shape
        view = around_body(evaluation.full[key])
        slices.append({"key": key, "height": height, "width": width, "view": view, "panels": panels})
    if not slices:
        return None
    hidden = sum(row.is_run for row in rows) - len(best)
    return {"slices": slices, "windows": WINDOWS, "hidden": hidden}


def around_body(full: np.ndarray) -> dict[str, float]:
    """The view that just shows the body: its middle as shares of the sides, the zoom, and height over width."""
    rows, columns = (np.flatnonzero((full > -500).mean(axis) > 0.05) for axis in (1, 0))
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
    """An int16 image as base64 of zlib of the steps along its rows, 0 -1 1 -2 2 ... as 0 1 2 3 4 ..., low bytes first.

    A third of the size of the pixels: a slice at full dose takes 0.23 MB.
    """
    steps: np.ndarray = np.diff(hu.astype(np.int16), axis=1, prepend=np.int16(0))
    unsigned = ((steps >> 15) ^ (steps << 1)).astype("<u2")
    return base64.b64encode(zlib.compress(unsigned.view(np.uint8).reshape(-1, 2).T.tobytes())).decode()
