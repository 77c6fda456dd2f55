"""Which differences between methods are more than chance: every run against every baseline and the best run."""

import math
from dataclasses import dataclass

from ldct.evaluation import baselines
from ldct.evaluation.results import Evaluation
from ldct.metrics import intervals, registry
from ldct.metrics.intervals import Difference
from ldct.reports.tables import Row
from shards.common.table import text_table

BEST = "best run"


@dataclass(frozen=True)
class Test:
    """One run against another method, in the metric that ranks."""

    row: Row
    against: str
    """Label of the other method."""
    difference: Difference
    """Run minus the other."""
    p: float
    """Two-sided, corrected for the number of tests; nan where it cannot be tested."""

    @property
    def significant(self) -> bool:
        """Whether it is more than chance."""
        return self.p < intervals.ALPHA

    @property
    def text(self) -> str:
        """The difference, half its interval, and p where there is one."""
        metric = registry.find(registry.RANKING)
        half, mean = self.difference.estimate.ci95_half_width, self.difference.estimate.mean
        shown = f"{mean:+.{metric.digits}f}" + ("" if half is None else f" ± {metric.text(half)}")
        return shown if math.isnan(self.p) else f"{shown}, {p_text(self.p)}"


def p_text(p: float) -> str:
    """``p`` for people."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def tests(evaluation: Evaluation, rows: list[Row]) -> list[Test]:
    """Every run of ``rows`` against the baselines, and against the best run but for that itself.

    Paired over patients in the metric that ranks; p is corrected after Holm for the number of tests made.
    """
    metric = registry.ranking(evaluation.protocols[0])
    runs = [row for row in rows if row.is_run]
    labels = {row.name: row.label for row in rows}
    pairs = [(row, other) for row in runs for other in baselines.NAMES]
    pairs += [(row, runs[0].name) for row in runs[1:]]
    differences = [
        intervals.paired(evaluation.get(row.name).slices, evaluation.get(other).slices, metric) for row, other in pairs
    ]
    corrected = intervals.holm([difference.p for difference in differences])
    return [
        Test(row, labels[other], difference, p)
        for (row, other), difference, p in zip(pairs, differences, corrected, strict=True)
    ]


def matrix(evaluation: Evaluation, rows: list[Row]) -> tuple[list[str], list[tuple[Row, list[Test | None]]]]:
    """The tests as a table: its columns, and for each run a test or nothing in each."""
    runs = [row for row in rows if row.is_run]
    columns = [*baselines.NAMES] + [runs[0].label] * (len(runs) > 1)
    by_pair = {(test.row.name, test.against): test for test in tests(evaluation, rows)}
    return columns, [(row, [by_pair.get((row.name, column)) for column in columns]) for row in runs]


def note(evaluation: Evaluation, rows: list[Row]) -> str:
    """What was tested and how, or why nothing could be."""
    metric = registry.find(registry.RANKING)
    what = f"{metric.label} difference in {metric.unit}, {evaluation.protocols[0]}, mean over patients"
    ps = [test.p for test in tests(evaluation, rows)]
    patients = len(evaluation.patients)
    if patients < intervals.LEAST_PATIENTS:
        plural = "s" if patients > 1 else ""
        return (
            f"{what}; not tested: {patients} patient{plural}, a test needs {intervals.LEAST_PATIENTS} "
            "(slices of one patient resemble each other and do not count as so many)"
        )
    count = sum(not math.isnan(p) for p in ps)
    return (
        f"{what}, ± half its 95 % interval; paired t test over {patients} patients, two-sided, p corrected for "
        f"{count} test{'s' if count != 1 else ''} (Holm)"
        + ("; no p where the difference is not finite or the same in all" if count < len(ps) else "")
    )


def as_text(evaluation: Evaluation, rows: list[Row]) -> str:
    """The tests for a terminal; empty without a run."""
    if not any(row.is_run for row in rows):
        return ""
    columns, lines = matrix(evaluation, rows)
    cells = [[row.label, *("" if test is None else test.text for test in tests)] for row, tests in lines]
    return "\n".join([note(evaluation, rows), text_table(["", *(f"minus {column}" for column in columns)], cells)])
