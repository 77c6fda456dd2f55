"""The charts of a comparison: curves of the trainings, every patient, attention by depth."""

from collections.abc import Sequence

import numpy as np

from ldct.evaluation.results import Evaluation
from ldct.metrics import intervals, names, registry
from ldct.reports import charts, physics_charts
from ldct.reports.charts import Curve, Look
from ldct.reports.comparison import Run
from ldct.reports.tables import Row

CASES = 6
"""Most patients with a panel of their own, the first ones."""
GROUP = 1000
"""Steps averaged into one point of the grouped curves; a tenth of the longest run where that is shorter."""
DEPTH = "relative depth (0 = first, 1 = deepest encoder stage)"
ATTENTION = {
    "channel_sd": "SD of channel weights",
    "spatial_edges": "spatial map against edges (r)",
    "spatial_texture": "spatial map against texture (r)",
}
"""Statistics drawn over depth. A large SD: the network selects channels there."""


def of(runs: list[Run], evaluation: Evaluation | None, rows: list[Row]) -> dict[str, str]:
    """Charts by name; those without data are left out."""
    looks = charts.looks([run.label for run in runs])
    drawn = {"validation": validation(runs, looks), "loss": loss(runs, looks)}
    if evaluation:
        drawn["patients"] = patients(evaluation, rows, looks)
        drawn["slices"] = along_cases(evaluation, rows, looks)
        drawn |= physics_charts.of(evaluation, rows, looks)
    for statistic, text in ATTENTION.items():
        profiles = [(run.label, run.attention(statistic)) for run in runs]
        curves = [Curve(label, looks[label], list(p), list(p.values())) for label, p in profiles if p]
        drawn[statistic] = charts.curves(statistic, curves, DEPTH, text) if curves else ""
    return {name: svg for name, svg in drawn.items() if svg}


def validation(runs: list[Run], looks: dict[str, Look]) -> str:
    """The metric that ranks, over the steps, with the low dose's; of the protocol that most runs were validated by."""
    every = [run.config.val.protocol for run in runs]
    protocol = max(every, key=every.count)
    name = registry.ranking(protocol)
    curves = [Curve(run.label, looks[run.label], *run.curve(names.validation(name))) for run in runs]
    if not any(curve.x for curve in curves):
        return ""
    low = [value for run in runs for value in run.curve(names.low_dose_validation(name))[1][-1:]]
    metric = registry.find(name)
    title = f"validation {metric.label}, {protocol}" + (f" ({metric.unit})" if metric.unit else "")
    return charts.curves("validation", curves, "step", title, low=low[0] if low else None)


def loss(runs: list[Run], looks: dict[str, Look]) -> str:
    """Training loss, averaged over groups of steps."""
    size = group_size(runs)
    curves = [grouped(run, looks[run.label], size) for run in runs]
    if not any(curve.x for curve in curves):
        return ""
    return charts.curves("loss", curves, "step", f"training loss, mean of {size} steps", log=True)


def group_size(runs: Sequence[Run]) -> int:
    """Steps of a group: GROUP, or a tenth of the longest run if that is less."""
    longest = max((run.metrics[-1]["step"] for run in runs if run.metrics), default=GROUP)
    return max(1, min(GROUP, longest // 10))


def in_groups(run: Run, name: str, size: int) -> dict[int, list[float]]:
    """Values of a metric in groups of ``size`` steps, by the number of the group from 0; step 0 is before the first."""
    groups: dict[int, list[float]] = {}
    for step, value in zip(*run.curve(name), strict=True):
        if step > 0:
            groups.setdefault((step - 1) // size, []).append(value)
    return groups


def grouped(run: Run, look: Look, size: int) -> Curve:
    """Mean and SD of the training loss in groups of ``size`` steps."""
    groups = in_groups(run, names.TRAIN_LOSS, size)
    x = [(number + 0.5) * size for number in groups]
    means, spread = ([float(f(values)) for values in groups.values()] for f in (np.mean, np.std))
    return Curve(run.label, look, x, means, spread)


def patients(evaluation: Evaluation, rows: list[Row], looks: dict[str, Look]) -> str:
    """The metric that ranks, of every method, per patient; of a single patient, per slice."""
    protocol = evaluation.protocols[0]
    metric, labels = registry.ranking(protocol), {row.name: row.label for row in rows}
    groups: dict[str, dict[str, float]] = {}
    alone = len(evaluation.patients) == 1
    for result in evaluation.results:
        values = (
            {slice.key: slice.values[metric] for slice in result.slices}
            if alone
            else {patient: means[metric] for patient, means in intervals.by_patient(result.slices).items()}
        )
        for group, value in values.items():
            groups.setdefault(group, {})[labels[result.name]] = value
    return charts.dots("patients", groups, looks, f"{registry.find(metric).title}, {protocol}")


def along_cases(evaluation: Evaluation, rows: list[Row], looks: dict[str, Look]) -> str:
    """The metric by which slices are judged, of every method on every slice in their order, one panel per patient."""
    protocol = evaluation.protocols[0]
    name, others = names.metric(protocol, registry.JUDGED), [row.label for row in rows if not row.is_run]
    groups: dict[str, list[Curve]] = {patient: [] for patient in evaluation.patients[:CASES]}
    for row in rows:
        slices = evaluation.get(row.name).slices
        for patient, curves in groups.items():
            values = [measured.values[name] for measured in slices if measured.patient == patient]
            look = charts.look_of(row.label, looks, others)
            curves.append(Curve(row.label, look, range(1, len(values) + 1), values))
    if max(len(curve.x) for curves in groups.values() for curve in curves) < 2:
        return ""
    return charts.panels("slices", groups, "slice, along z", f"{registry.find(name).title}, {protocol}")
