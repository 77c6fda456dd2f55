"""One HTML page that compares runs and opens without a network: tables, charts, slices, provenance, all inside it."""

import base64
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from ldct import config as configuration
from ldct.evaluation import lesion
from ldct.evaluation.baselines import LOW
from ldct.evaluation.results import FULL, REGION, Evaluation
from ldct.metrics import intervals, names, observer, protocols, registry
from ldct.metrics.judged import WHICH
from ldct.reports import charts, comparison, page_charts, significance, tables, viewer
from ldct.reports.comparison import Run
from ldct.reports.labels import differing, text
from ldct.reports.tables import Row
from shards.common.command import InputError


@dataclass
class Page:
    """What the page shows, gathered once."""

    runs: list[Run]
    evaluation: Evaluation | None
    """All runs' evaluations and the baselines'; None if no run has one."""
    rows: list[Row]

    @property
    def looks(self) -> dict[str, charts.Look]:
        """Look of each run, by label."""
        return charts.looks([run.label for run in self.runs])


def build(roots: list[Path], split: str) -> Page:
    """Gather the runs at or below ``roots``, with their evaluation of ``split``.

    Raises
    ------
    InputError
        If there is none, their evaluations do not belong together, or there is nothing to show of any of them.
    """
    runs = comparison.gather(roots, split)
    evaluation = comparison.joined(runs)
    if evaluation is None and not any(run.metrics for run in runs):
        raise InputError(
            f"none of {len(runs)} runs has been trained or evaluated, so there is nothing to show; "
            "train them with launch/sweep.py or launch/train.py first"
        )
    rows = tables.rows(evaluation, {run.name: run.config for run in runs}) if evaluation else []
    return Page(runs, evaluation, rows)


def render(page: Page, title: str, budget: int) -> str:
    """The page as HTML, with slices of up to ``budget`` bytes."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ldct.reports", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["value"] = text
    environment.tests["wide"] = charts.is_wide
    evaluation, rows = page.evaluation, page.rows
    return environment.get_template("page.html").render(
        title=title,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        runs=page.runs,
        looks=page.looks,
        alarms=alarms(page),
        about=tables.about(evaluation) if evaluation else "",
        protocol=evaluation.protocols[0] if evaluation else "",
        protocols=evaluation.protocols if evaluation else [],
        metrics=compared(page),
        head=tables.head(evaluation) if evaluation else [],
        ranking=ranking(page),
        table=every_protocol(page),
        physics=physics(page),
        lesion=inserted(page),
        lesion_disc=(observer.DIAMETER_MM, observer.CONTRAST_HU),
        left_out=tables.left_out(evaluation, evaluation.metrics) if evaluation else [],
        definitions=definitions(page),
        tests=significance.matrix(evaluation, rows) if evaluation else None,
        tests_note=significance.note(evaluation, rows) if evaluation else "",
        viewer=viewer.content(evaluation, rows, budget) if evaluation else None,
        extremes=extremes(page),
        judged=registry.find(registry.JUDGED),
        differing=differing([run.config for run in page.runs]),
        flats={run.name: configuration.flat(run.config) for run in page.runs},
        charts=page_charts.of(page.runs, evaluation, rows),
        pictures=pictures(page),
        cost=[cost(run) for run in page.runs],
        downloads=downloads(page),
    )


def alarms(page: Page) -> list[str]:
    """What a reader must know before believing a number."""
    lines = []
    for run in page.runs:
        if run.state != "finished":
            why = f": {run.status.error}" if run.status.error else ""
            lines.append(f"{run.label} is {run.state} at step {run.status.step} of {run.status.steps}{why}")
        if run.evaluation is None:
            lines.append(f"{run.label} has no evaluation of these slices; run launch/evaluate.py")
        lines += [f"{run.label}: {flag}" for flag in run.flags]
    if page.evaluation:
        metric = registry.ranking(page.evaluation.protocols[0])
        rivals = [row for row in page.rows if not row.is_run]
        for row in page.rows:
            value = row.values[metric].mean
            beaten = [rival.label for rival in rivals if row.is_run and not value >= rival.values[metric].mean]
            if beaten:
                lines.append(f"{row.label} scores below: {', '.join(beaten)}")
        lines += [f"{row.label}: {doubt}" for row in page.rows for doubt in row.doubts]
        note = page.evaluation.note
        if "not by patient" in note or "slab" in note:
            lines.append(f"{note[0].upper()}{note[1:]}")
    return list(dict.fromkeys(lines))  # a run's status may hold the evaluation's flags too


def ranking(page: Page) -> list[dict[str, Any]]:
    """Rows of the main table: text and sort value of each cell."""
    state = {run.name: run.state for run in page.runs}
    return [
        {"row": row, "cells": tables.cells(row, page.evaluation), "state": state.get(row.name, "")}
        for row in page.rows
        if page.evaluation
    ]


def extremes(page: Page) -> list[tuple[Row, list[viewer.Extreme]]]:
    """The median and the worst slice of each method."""
    extremes = viewer.extremes(page.evaluation, page.rows) if page.evaluation else []
    pairs = [(row, [extreme for extreme in extremes if extreme.method == row.name]) for row in page.rows]
    return [(row, both) for row, both in pairs if both]


def compared(page: Page) -> list[registry.Metric]:
    """Metrics of the table of all protocols: those that the runs were measured by, maybe by earlier code."""
    if not page.evaluation:
        return []
    first, measured = page.evaluation.protocols[0], page.evaluation.metrics
    return [metric for metric in registry.per_protocol() if names.metric(first, metric.key) in measured]


def every_protocol(page: Page) -> list[dict[str, Any]]:
    """Rows of the table of all protocols: text, sort value, and whether it is the best run's, of each cell."""
    if not page.evaluation:
        return []
    columns = [names.metric(p, metric.key) for p in page.evaluation.protocols for metric in compared(page)]
    best = {column: tables.best(page.rows, column) for column in columns}
    return [
        {
            "row": row,
            "cells": [
                (registry.find(column).text(mean), mean, row is best[column])
                for column in columns
                for mean in [row.values[column].mean]
            ],
        }
        for row in page.rows
    ]


def physics(page: Page) -> tuple[list[registry.Metric], list[dict[str, Any]]]:
    """What no protocol changes: the metrics, and of every method text, sort value and whether it is flagged."""
    if not page.evaluation:
        return [], []
    metrics = [registry.find(name) for name in page.evaluation.metrics if not registry.find(name).per_protocol]
    lines = []
    for row in page.rows:
        estimates = [row.values[metric.key] for metric in metrics]
        flagged = [
            row.name != LOW and bool(registry.outside({metric.key: estimate.mean}))
            for metric, estimate in zip(metrics, estimates, strict=True)
        ]
        texts = [tables.cell(estimate, metric.key) for metric, estimate in zip(metrics, estimates, strict=True)]
        means = [estimate.mean for estimate in estimates]
        lines.append({"row": row, "cells": list(zip(texts, means, flagged, strict=True))})
    return metrics, lines


def inserted(page: Page) -> list[tuple[str, list[tuple[str, float]]]]:
    """Of every method that has it, what became of the inserted disc: text and sort value of d' and contrast kept."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for run in page.runs:
        for name, of_patients in lesion.load(run.folder, run.evaluation).items():
            found[run.name if name == run.folder.resolve().name else name] = of_patients
    labels = {FULL: FULL} | {row.name: row.label for row in page.rows}
    lines = []
    for name, label in labels.items():
        if of_patients := found.get(name, {}):
            estimates = [intervals.over_patients(of_patients)[key] for key in lesion.LESION]
            halves = ["" if e.ci95_half_width is None else f" ± {e.ci95_half_width:.2f}" for e in estimates]
            cells = [(f"{e.mean:.2f}{half}", e.mean) for e, half in zip(estimates, halves, strict=True)]
            lines.append((label, cells))
    return sorted(lines, key=lambda line: np.nan_to_num(-line[1][0][1], nan=np.inf))


def definitions(page: Page) -> dict[str, str]:
    """What each name in the tables means."""
    if not page.evaluation:
        return {}
    named = {name: protocols.get(name).text for name in page.evaluation.protocols}
    metrics = {metric.label: metric.definition for metric in registry.METRICS}
    means = f"mean over the slices of a patient, then over patients; ± half the 95 % interval over patients; {REGION}"
    methods = {row.label: row.detail for row in page.rows}
    return named | metrics | {"values": means} | methods


def pictures(page: Page) -> list[dict[str, str]]:
    """Pictures in the runs' eval/ (spatial maps, features), as data URIs of a tenth of their files' size."""
    return [
        {"label": run.label, "name": path.stem.replace("_", " "), "uri": _uri(webp(path), "image/webp")}
        for run in page.runs
        for path in sorted((run.folder / "eval").glob("**/*.png"))
        if not path.stem.endswith(WHICH)  # the viewer has those
    ]


def webp(path: Path) -> bytes:
    """The picture at ``path`` as WebP."""
    content = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(content, "webp", quality=80)
    return content.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def cost(run: Run) -> dict[str, Any]:
    """What the run took."""
    status = run.status
    pace = [value for value in run.curve("patches_per_s")[1] if value > 0]
    return {
        "run": run,
        "parameters": f"{run.parameters:,}",
        "steps": f"{status.step} of {status.steps}",
        "hours": f"{status.train_s:.0f} s" if status.gpu_hours is None else f"{status.gpu_hours:.3g} GPU hours",
        "device": f"{status.world_size} x {status.device or 'unknown'}",
        "pace": f"{np.median(pace):.4g}" if pace else "-",
        "attempts": status.attempt,
    }


def downloads(page: Page) -> dict[str, str]:
    """The table as files, by name, as data URIs."""
    if not page.evaluation:
        return {}
    return {
        "table.csv": _uri(tables.as_csv(page.evaluation, page.rows).encode(), "text/csv"),
        "table.tex": _uri(tables.as_latex(page.evaluation, page.rows).encode(), "text/x-tex"),
    }
