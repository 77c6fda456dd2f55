"""The charts of the findings: one curve or mark per arm, with its spread over seeds."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from typing import TYPE_CHECKING

import numpy as np

from ldct.evaluation.attention import LOSS
from ldct.metrics import names, registry
from ldct.reports import arms as arms_of
from ldct.reports import charts, page_charts
from ldct.reports.arms import Arm
from ldct.reports.charts import Curve
from ldct.reports.labels import ATTENTION, network
from ldct.reports.page_charts import DEPTH

if TYPE_CHECKING:
    from ldct.reports.findings import Findings

BY_DEPTH = {
    LOSS: "loss without the gate's choice (dB)",
    "channel_sd": "SD of the channel weights",
    "spatial_edges": "correlation of map and edges",
    "spatial_texture": "correlation of map and texture",
}
"""What is shown by depth: the measure, and what it is called."""
CAPTIONS = {
    "gain": "gain over the low dose by network and attention",
    LOSS: "loss with its mean in place of a stage's gate, by depth",
    "channel_sd": "SD of the channel weights by depth",
    "spatial_edges": "correlation of the spatial map with edges by depth",
}
ON_PAGE = ("gain", LOSS, "channel_sd", "spatial_edges")
"""Charts of the page, the first two of those there are; the others stand in the appendix."""


def of(findings: Findings) -> dict[str, str]:
    """Charts by name; those without data are left out."""
    drawn = {"gain": gain(findings)}
    for measure, text in BY_DEPTH.items():
        drawn[measure] = curves(findings, measure, DEPTH, text, methodcaller("by_depth", measure))
    size = page_charts.group_size(findings.runs)
    for name, (key, text) in followed(findings).items():

        def points(arm: Arm, key: str = key) -> dict[float, list[float]]:
            return {(n + 1) * size: values for n, values in over_groups(arm, key, size).items()}

        drawn[name] = curves(findings, name, "iterations", text, points, log=name == "loss")
    return {name: svg for name, svg in drawn.items() if svg}


def gain(findings: Findings) -> str:
    """The main arms' gain over the low dose by kind of attention, one series per network."""
    kinds = list(ATTENTION)
    series: dict[str, list[tuple[float, float | None]]] = {}
    for arm in arms_of.main_arms(findings.arms):
        model = arm.config.model
        name = network(type(model)(name=model.name))
        interval = findings.gain(arm)
        series.setdefault(name, [(np.nan, None)] * len(kinds))
        series[name][kinds.index(model.attention)] = (interval.mean, interval.ci95_half_width)
    groups = [ATTENTION[kind].removeprefix(" + ") or "no attention" for kind in kinds]
    return charts.points("gain", groups, series, f"gain over the low dose ({registry.find(findings.metric).unit})")


def curves(
    findings: Findings, name: str, x: str, y: str, points: Callable[[Arm], dict[float, list[float]]], log: bool = False
) -> str:
    """One curve per arm through the means over seeds, with their SD; empty where no arm has points."""
    drawn = []
    for number, arm in enumerate(findings.arms):
        by_x = points(arm)
        means, sd = ([float(f(values)) for values in by_x.values()] for f in (np.mean, np.std))
        drawn.append(Curve(arm.label, charts.look(number), list(by_x), means, sd))
    drawn = [curve for curve in drawn if curve.x]
    return charts.curves(name, drawn, x, y, log=log) if drawn else ""


def followed(findings: Findings) -> dict[str, tuple[str, str]]:
    """What is followed through training: name of the chart -> (name of the metric, text)."""
    protocol = findings.arms[0].config.val.protocol
    validation = {
        metric.key: (names.validation(names.metric(protocol, metric.key)), f"validation {metric.title}, {protocol}")
        for metric in registry.per_protocol()
    }
    return {"loss": (names.TRAIN_LOSS, "training loss"), **validation}


def over_groups(arm: Arm, name: str, size: int) -> dict[int, list[float]]:
    """Mean of a metric over groups of ``size`` steps, of every seed, by the number of the group."""
    means: dict[int, list[float]] = {}
    for run in arm.runs.values():
        for number, values in page_charts.in_groups(run, name, size).items():
            means.setdefault(number, []).append(float(np.mean(values)))
    return dict(sorted(means.items()))
