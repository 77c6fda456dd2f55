"""The main table: one row per method, the metrics of every protocol; as text, CSV and LaTeX."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ldct.config import Config
from ldct.evaluation.baselines import LOW
from ldct.evaluation.results import BEST, REGION, Evaluation
from ldct.metrics import intervals, protocols, registry
from ldct.metrics.intervals import Estimate
from ldct.metrics.names import metric as name_under
from ldct.reports.labels import labels as labels_of
from shards.common.table import csv_text, text_table


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    """A baseline's name or a run folder's."""
    label: str
    """What sets the run apart; a baseline's name."""
    is_run: bool
    gain: Estimate
    """Over the low dose in the metric that ranks, paired on the patients."""
    values: dict[str, Estimate]
    slices_per_s: float
    detail: str
    """How the method was set."""

    @property
    def worse(self) -> bool:
        """Whether a run falls below its own input."""
        return self.is_run and not self.gain.mean >= 0

    @property
    def speed(self) -> str:
        """Slices per second for a table."""
        if not math.isfinite(self.slices_per_s):
            return "-"
        return f"{self.slices_per_s:,.0f}" if self.slices_per_s >= 100 else f"{self.slices_per_s:.3g}"

    @property
    def doubts(self) -> list[str]:
        """What must be known before its numbers are believed: ``unlike_ct``, and that it learned nothing."""
        start = ["untrained: its best checkpoint is of step 0, before it learned anything; it gives back its input"]
        return start * (self.is_run and self.detail.startswith(BEST.format(0))) + self.unlike_ct

    @property
    def unlike_ct(self) -> list[str]:
        """What of noise texture or edges lies outside its stated range; the low dose is as it is."""
        means = {name: estimate.mean for name, estimate in self.values.items()}
        return [] if self.name == LOW else registry.outside(means)


def rows(evaluation: Evaluation, configs: dict[str, Config]) -> list[Row]:
    """Runs and baselines together, the best in the metric that ranks first."""
    metric, low = registry.ranking(evaluation.protocols[0]), evaluation.get(LOW).slices
    labelled = labels_of(configs) if configs else {}
    table = [
        Row(
            result.name,
            labelled.get(result.name, result.name),
            result.name in labelled,
            Estimate(0.0, None) if result.name == LOW else intervals.paired(result.slices, low, metric).estimate,
            result.means,
            result.rate,
            result.detail,
        )
        for result in evaluation.results
    ]

    def rank(row: Row) -> float:
        value = row.values[metric].mean
        return math.inf if math.isnan(value) else -value

    return sorted(table, key=rank)


def cell(estimate: Estimate, name: str) -> str:
    """Mean, and half the interval where there is one, with the digits of the metric called ``name``."""
    metric = registry.find(name)
    half = "" if estimate.ci95_half_width is None else f" ± {metric.text(estimate.ci95_half_width)}"
    return metric.text(estimate.mean) + half


def signed(estimate: Estimate, name: str) -> str:
    """As ``cell``, with a sign, for a difference."""
    return ("" if math.isnan(estimate.mean) or estimate.mean < 0 else "+") + cell(estimate, name)


def head(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Columns of the main table behind the method's: what a person calls them, and their definition."""
    ranking, shown = registry.find(registry.RANKING), registry.main_names(evaluation.protocols[0], evaluation.metrics)
    metrics = [registry.find(name) for name in shown]
    return [
        (f"gain ({ranking.unit})", f"{ranking.label} over the low dose"),
        *((metric.title, metric.definition) for metric in metrics),
        ("slices/s", "speed of the method alone"),
    ]


def cells(row: Row, evaluation: Evaluation) -> list[tuple[str, float]]:
    """Text and value of each cell behind the method's name, in the order of ``head``."""
    shown = registry.main_names(evaluation.protocols[0], evaluation.metrics)
    return [
        (signed(row.gain, registry.RANKING), row.gain.mean),
        *((cell(row.values[name], name), row.values[name].mean) for name in shown),
        (row.speed, row.slices_per_s),
    ]


def as_text(evaluation: Evaluation, table: list[Row]) -> str:
    """For a terminal: the ranking protocol with intervals and noise texture, then every protocol side by side."""
    first = evaluation.protocols[0]
    main = [[row.label, *(text for text, _ in cells(row, evaluation))] for row in table]
    brief = [registry.find(key) for key in registry.BRIEF]
    every = [
        [
            row.label,
            *(" / ".join(m.text(row.values[name_under(p, m.key)].mean) for m in brief) for p in evaluation.protocols),
        ]
        for row in table
    ]
    parts = [
        f"{first}: {protocols.get(first).text}",
        text_table(["", *(title for title, _ in head(evaluation))], main),
        "",
        text_table([" / ".join(metric.title for metric in brief), *evaluation.protocols], every),
    ]
    return "\n".join(parts)


def warnings(table: list[Row]) -> list[str]:
    """One line for each method that has learned nothing, or does not look like CT."""
    return [f"warning: {row.label}: {doubt}" for row in table for doubt in row.doubts]


def about(evaluation: Evaluation) -> str:
    """How many slices of how many patients, how they were chosen, and where some were left out; one line."""
    parts = [evaluation.extent, REGION]
    if len(evaluation.patients) < intervals.LEAST_PATIENTS:
        parts.append(f"no interval with fewer than {intervals.LEAST_PATIENTS} patients")
    main = registry.main_names(evaluation.protocols[0], evaluation.metrics)
    return "; ".join([*parts, *left_out(evaluation, main)])


def left_out(evaluation: Evaluation, metrics: Iterable[str]) -> list[str]:
    """What slices lack, and how many do, so that ``metrics`` have no value on them for any method: flat tissue, say."""
    undefined = [intervals.undefined(result.slices) for result in evaluation.results]
    counts: dict[tuple[str, int], list[str]] = {}
    for metric, name in ((registry.find(name), name) for name in metrics):
        if count := min(of_method.get(name, 0) for of_method in undefined):
            counts.setdefault((metric.needs, count), []).append(metric.label)
    total = len(evaluation.results[0].slices)
    return [
        f"{' and '.join(labels)} left out on {count} of {total} slices, which have no {needs or 'value'}"
        for (needs, count), labels in counts.items()
    ]


def as_csv(evaluation: Evaluation, table: list[Row]) -> str:
    """Every mean and half interval, one line per method, in full precision."""
    metrics = evaluation.metrics
    head = ["label", "name", "detail", "gain_db", "slices_per_s", *(c for n in metrics for c in (n, f"{n}_half"))]
    lines: list[list[Any]] = [head]
    for row in table:
        values = [v for n in metrics for v in (row.values[n].mean, row.values[n].ci95_half_width)]
        lines.append([row.label, row.name, row.detail, row.gain.mean, row.slices_per_s, *values])
    return csv_text(lines)


def best(table: list[Row], name: str) -> Row | None:
    """The run that is best in the metric called ``name``; None where neither way is better, or no run has a number."""
    runs = [row for row in table if row.is_run and not math.isnan(row.values[name].mean)]
    first = runs[0] if runs and registry.find(name).higher_is_better is not None else None
    for row in runs if first else []:
        assert first
        if registry.better(name, row.values[name].mean, first.values[name].mean):
            first = row
    return first


def as_latex(evaluation: Evaluation, table: list[Row]) -> str:
    """A booktabs table of the brief metrics under every protocol, with the best run in bold."""
    brief = [registry.find(key) for key in registry.BRIEF]
    columns = [name_under(protocol, metric.key) for protocol in evaluation.protocols for metric in brief]
    winners = {name: best(table, name) for name in columns}

    def shown(row: Row, name: str) -> str:
        text = cell(row.values[name], name).replace("±", r"$\pm$")
        return rf"\textbf{{{text}}}" if row is winners[name] else text

    span = len(brief)
    title = " & ".join(rf"\multicolumn{{{span}}}{{c}}{{{_tex(p)}}}" for p in evaluation.protocols)
    names = " & ".join(_tex(metric.label) for metric in brief)
    lines = [
        r"% \usepackage{booktabs}",
        *(f"% {p}: {protocols.get(p).text}" for p in evaluation.protocols),
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        rf" & {title} \\",
        " & ".join(["", *[names] * len(evaluation.protocols)]).strip() + r" \\",
        r"\midrule",
        *(" & ".join([_tex(row.label), *(shown(row, name) for name in columns)]) + r" \\" for row in table),
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str) -> str:
    """``text`` with TeX's special characters escaped."""
    return "".join("\\" + c if c in "_%&#${}" else c for c in text)
