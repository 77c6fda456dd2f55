"""One HTML page that compares runs and opens without a network: tables, charts, slices, provenance, all inside it."""

import base64
import math
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ldct import config as configuration
from ldct.evaluation.baselines import LOW
from ldct.evaluation.results import FULL, REGION, Evaluation
from ldct.metrics import intervals, names, protocols, registry
from ldct.reports import charts, comparison, tables
from ldct.reports.charts import Curve
from ldct.reports.comparison import Run
from ldct.reports.tables import Row

GROUP = 1000
"""Steps averaged into one point of the grouped curves; a tenth of the longest run where that is shorter."""
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
ATTENTION = {
    "channel_sd": "SD of channel weights",
    "spatial_edges": "spatial map against edges (r)",
    "spatial_texture": "spatial map against texture (r)",
}
"""Statistics drawn over depth. A large SD: the network selects channels there."""


@dataclass
class Page:
    """What the page shows, gathered once."""

    runs: list[Run]
    found: Evaluation | None
    rows: list[Row]

    @property
    def looks(self) -> dict[str, charts.Look]:
        """Look of each run, by label."""
        return {one.label: charts.look(number) for number, one in enumerate(self.runs)}


def build(roots: list[Path], split: str) -> Page:
    """Gather the runs at or below ``roots``.

    Raises
    ------
    InputError
        If there is none, or their evaluations do not belong together.
    """
    found = comparison.gather(roots, split)
    joined = comparison.joined(found)
    rows = tables.rows(joined, {one.name: one.config for one in found}) if joined else []
    return Page(found, joined, rows)


def render(page: Page, title: str) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ldct.reports", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["value"] = tables.text
    return environment.get_template("page.html").render(
        title=title,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        runs=page.runs,
        looks=page.looks,
        alarms=alarms(page),
        about=tables.about(page.found) if page.found else "",
        ranking=ranking(page),
        table=every_protocol(page),
        definitions=definitions(page),
        tests=tables.tests(page.found, page.rows) if page.found else [],
        viewer=viewer(page),
        differing=tables.differing([one.config for one in page.runs]),
        flats={one.name: configuration.flat(one.config) for one in page.runs},
        charts=draw(page),
        maps=maps(page),
        cost=[cost(one) for one in page.runs],
        downloads=downloads(page),
    )


def alarms(page: Page) -> list[str]:
    """What a reader must know before believing a number."""
    lines = []
    for one in page.runs:
        if one.state != "finished":
            why = f": {one.status.error}" if one.status.error else ""
            lines.append(f"{one.label} is {one.state} at step {one.status.step} of {one.status.steps}{why}")
        if one.evaluation is None:
            lines.append(f"{one.label} has no evaluation; run launch/evaluate.py")
        lines += [f"{one.label}: {flag}" for flag in one.status.flags]
    if page.found:
        protocol = page.found.protocols[0]
        psnr = {row.label: row.values[names.metric(protocol, "psnr")].mean for row in page.rows}
        rivals = [row for row in page.rows if not row.is_run]
        for row in page.rows:
            beaten = [r.label for r in rivals if row.is_run and not psnr[row.label] >= psnr[r.label]]
            if beaten:
                lines.append(f"{row.label} scores below: {', '.join(beaten)}")
        if "not by patient" in page.found.note or "slab" in page.found.note:
            lines.append(f"{page.found.note[0].upper()}{page.found.note[1:]}")
    return lines


def ranking(page: Page) -> list[dict[str, Any]]:
    """Rows of the main table: text and sort value of each cell."""
    if not page.found:
        return []
    first = page.found.protocols[0]
    shown = registry.main_names(first)
    state = {one.name: one.state for one in page.runs}
    lines = []
    for row in page.rows:
        cells = [{"text": f"{row.gain:+.2f}", "sort": row.gain}]
        cells += [{"text": tables.cell(row.values[c], c), "sort": row.values[c].mean} for c in shown]
        speed = f"{row.rate:.1f}" if math.isfinite(row.rate) else "-"
        cells.append({"text": speed, "sort": row.rate})
        lines.append({"row": row, "cells": cells, "state": state.get(row.name, "")})
    return lines


def every_protocol(page: Page) -> list[dict[str, Any]]:
    """Rows of the table of all protocols: PSNR, SSIM and RMSE of each."""
    if not page.found:
        return []
    metrics = [names.metric(p, m) for p in page.found.protocols for m in ("psnr", "ssim", "rmse")]
    runs = [row for row in page.rows if row.is_run]
    best = {
        name: (max if registry.find(name).higher_is_better else min)(row.values[name].mean for row in runs)
        for name in metrics
    }
    return [
        {
            "row": row,
            "cells": [
                {
                    "text": tables.number(row.values[n].mean, n),
                    "sort": row.values[n].mean,
                    "best": row.is_run and row.values[n].mean == best[n],
                }
                for n in metrics
            ],
        }
        for row in page.rows
    ]


def definitions(page: Page) -> dict[str, str]:
    """What each name in the tables means."""
    if not page.found:
        return {}
    named = {name: protocols.get(name).text for name in page.found.protocols}
    plain = {metric.label: metric.definition for metric in registry.METRICS if not metric.per_protocol}
    means = f"mean over the slices of a patient, then over patients; ± half the 95 % interval over patients; {REGION}"
    methods = {row.label: row.detail for row in page.rows}
    return named | plain | {"values": means} | methods


def viewer(page: Page) -> dict[str, Any] | None:
    """The slices as the page's script reads them: HU packed as by ``pack``; captions with the slice's own PSNR."""
    if not page.found or not page.found.full:
        return None
    first = page.found.protocols[0]
    best = [row for row in page.rows if row.is_run][:VIEWED]
    others = [row for row in page.rows if not row.is_run and row.name != LOW]
    results = [page.found.get(LOW)] + [page.found.get(row.name) for row in [*best, *others]]
    labels = {row.name: row.label for row in page.rows}
    keys = [key for key in page.found.full if all(key in result.pictures for result in results)]
    slices = []
    for key in keys:
        panels = [{"label": FULL, "note": "", "data": pack(page.found.full[key])}]
        for result in results:
            values = next(one.values for one in result.slices if one.key == key)
            psnr, ssim = (values[names.metric(first, key)] for key in ("psnr", "ssim"))
            note = f"{psnr:.2f} dB, SSIM {ssim:.3f}"
            panels.append({"label": labels[result.name], "note": note, "data": pack(result.pictures[key])})
        height, width = page.found.full[key].shape
        view = around_body(page.found.full[key])
        slices.append({"key": key, "height": height, "width": width, "view": view, "panels": panels})
    hidden = sum(row.is_run for row in page.rows) - len(best)
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


def draw(page: Page) -> dict[str, str]:
    """Charts by name; those without data are left out."""
    made = {}
    protocol = max((one.config.val.protocol for one in page.runs), key=[o.config.val.protocol for o in page.runs].count)
    key = names.metric(protocol, "psnr")
    psnr = [Curve(one.label, page.looks[one.label], *one.curve(names.validation(key))) for one in page.runs]
    if any(curve.x for curve in psnr):
        low = [v for one in page.runs for v in one.curve(names.low_dose_validation(key))[1][-1:]]
        text = f"validation PSNR, {protocol} (dB)"
        made["validation"] = charts.curves("validation", psnr, "step", text, low=low[0] if low else None)
    loss = [grouped(one, page) for one in page.runs]
    if any(curve.x for curve in loss):
        made["loss"] = charts.curves("loss", loss, "step", f"training loss, mean of {group_size(page)} steps", log=True)
    if page.found:
        made["patients"] = _patients(page, page.found)
    for stat, text in ATTENTION.items():
        profiles = [(one, one.attention(stat)) for one in page.runs]
        drawn = [Curve(one.label, page.looks[one.label], list(p), list(p.values())) for one, p in profiles if p]
        if drawn:
            made[stat] = charts.curves(stat, drawn, "relative depth (0 = first, 1 = deepest encoder stage)", text)
    return made


def _patients(page: Page, found: Evaluation) -> str:
    """Dots per patient; of a single patient, per slice."""
    key, labels = names.metric(found.protocols[0], "psnr"), {row.name: row.label for row in page.rows}
    groups: dict[str, dict[str, float]] = {}
    alone = len(found.patients) == 1
    for result in found.results:
        values = (
            {one.key: one.values[key] for one in result.slices}
            if alone
            else {patient: means[key] for patient, means in intervals.by_patient(result.slices).items()}
        )
        for group, value in values.items():
            groups.setdefault(group, {})[labels[result.name]] = value
    return charts.dots("patients", groups, page.looks, f"PSNR, {found.protocols[0]} (dB)")


def group_size(page: Page) -> int:
    """Steps of a group: GROUP, or a tenth of the longest run if that is less."""
    longest = max((one.metrics[-1]["step"] for one in page.runs if one.metrics), default=GROUP)
    return max(1, min(GROUP, longest // 10))


def grouped(one: Run, page: Page) -> Curve:
    """Mean and SD of the training loss in groups of steps."""
    size = group_size(page)
    groups: dict[int, list[float]] = {}
    for step, value in zip(*one.curve(names.TRAIN_LOSS), strict=True):
        groups.setdefault((step - 1) // size, []).append(value)
    x = [(number + 0.5) * size for number in groups]
    means, spread = ([f(values) for values in groups.values()] for f in (np.mean, np.std))
    return Curve(one.label, page.looks[one.label], x, [float(m) for m in means], [float(s) for s in spread])


def maps(page: Page) -> list[dict[str, str]]:
    """Pictures in the runs' eval/ (spatial maps, features), as data URIs."""
    return [
        {"label": one.label, "name": path.stem.replace("_", " "), "uri": _uri(path.read_bytes(), "image/png")}
        for one in page.runs
        for path in sorted((one.folder / "eval").glob("**/*.png"))
    ]


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def cost(one: Run) -> dict[str, Any]:
    """What the run took."""
    status = one.status
    pace = [value for _, value in zip(*one.curve("patches_per_s"), strict=True) if value > 0]
    gpu_hours = status.train_s * status.world_size / 3600
    on_gpu = status.device not in ("", "cpu")
    return {
        "run": one,
        "parameters": f"{one.parameters:,}",
        "steps": f"{status.step} of {status.steps}",
        "hours": f"{gpu_hours:.3g} GPU hours" if on_gpu else f"{status.train_s:.0f} s",
        "device": f"{status.world_size} x {status.device or 'unknown'}",
        "pace": f"{np.median(pace):.4g}" if pace else "-",
        "attempts": status.attempt,
    }


def downloads(page: Page) -> dict[str, str]:
    """The table as files, by name, as data URIs."""
    if not page.found:
        return {}
    return {
        "table.csv": _uri(tables.as_csv(page.found, page.rows).encode(), "text/csv"),
        "table.tex": _uri(tables.as_latex(page.found, page.rows).encode(), "text/x-tex"),
    }
