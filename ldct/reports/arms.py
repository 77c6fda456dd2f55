"""Arms: runs that differ in their seed alone, and which arms differ in one thing only."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ldct import config as configuration
from ldct.config import Config
from ldct.metrics import intervals
from ldct.metrics.intervals import Interval, crossed
from ldct.reports.comparison import Run
from ldct.reports.labels import labels, tells

NETWORK = ("model.name", "model.channels", "model.depth", "model.kernel", "model.residual")
"""What two networks may differ in: each has its own sizes."""


@dataclass
class Arm:
    """Runs that differ in their seed alone."""

    label: str
    config: Config
    """With the seed of its first run."""
    data: str
    """sha256 of the manifest of the shards it was trained on."""
    runs: dict[int, Run] = field(default_factory=dict)
    """By seed."""

    def table(self, metric: str) -> dict[int, dict[str, float]]:
        """``metric`` by seed and patient, of the evaluation; only runs that have one."""
        return {
            seed: {patient: values[metric] for patient, values in intervals.by_patient(e.results[-1].slices).items()}
            for seed, run in self.runs.items()
            if (e := run.evaluation)
        }

    def interval(self, metric: str, against: dict[int, dict[str, float]] | None = None) -> Interval:
        """``metric``, or its difference to ``against``, on the seeds and patients that both have."""
        return difference(self.table(metric), against)

    def by_depth(self, measure: str) -> dict[float, list[float]]:
        """A measure of attention, mean over patients, of every seed, by relative depth."""
        seeds: dict[float, list[float]] = {}
        for run in self.runs.values():
            for depth, of_patients in run.by_depth(measure).items():
                seeds.setdefault(depth, []).append(float(np.mean(list(of_patients.values()))))
        return dict(sorted(seeds.items()))


def difference(table: dict[int, dict[str, float]], against: dict[int, dict[str, float]] | None = None) -> Interval:
    """Mean of a table by seed and patient, less ``against`` where it is given, on the seeds and patients of both."""
    other = against if against is not None else {seed: dict.fromkeys(row, 0.0) for seed, row in table.items()}
    seeds = [seed for seed in table if seed in other]
    first = table[seeds[0]] if seeds else {}
    patients = [
        p
        for p in first
        if not any(math.isnan(rows[seed].get(p, math.nan)) for rows in (table, other) for seed in seeds)
    ]
    cells = [[table[seed][p] - other[seed][p] for p in patients] for seed in seeds]
    return crossed(np.array(cells).reshape(len(seeds), len(patients)))


def group(runs: list[Run]) -> list[Arm]:
    """The arms that ``runs`` make up; of runs alike in all, also in their seed, the first counts."""
    by_identity: dict[str, Arm] = {}
    for run in runs:
        data = run.provenance[-1]["manifest_sha256"] if run.provenance else ""
        arm = by_identity.setdefault(
            json.dumps([identity(run.config), data], sort_keys=True), Arm("", run.config, data)
        )
        arm.runs.setdefault(run.config.train.seed, run)
    arms = list(by_identity.values())
    seedless = {str(i): replace(arm.config, train=replace(arm.config.train, seed=0)) for i, arm in enumerate(arms)}
    labelled = labels(seedless)
    several = len({arm.data for arm in arms}) > 1
    for number, arm in enumerate(arms):
        arm.label = labelled[str(number)] + (f", trained on shards {arm.data[:8]}" if several else "")
    return arms


def identity(config: Config, without: Iterable[str] = ()) -> dict[str, Any]:
    """The fields that make an arm: those that decide what is trained, but for the seed and those in ``without``."""
    left_out = {"train.seed", *without}
    return {key: value for key, value in configuration.flat(config).items() if tells(key) and key not in left_out}


def having(arms: list[Arm], **fields: Any) -> list[Arm]:
    """Arms with these values; ``section__field``."""
    wanted = {name.replace("__", "."): value for name, value in fields.items()}
    return [arm for arm in arms if wanted.items() <= configuration.flat(arm.config).items()]


def counterparts(arms: list[Arm], arm: Arm, **change: Any) -> list[Arm]:
    """Arms that differ from ``arm`` in ``change`` and in nothing else."""
    free = NETWORK if "model__name" in change else [name.replace("__", ".") for name in change]
    own = identity(arm.config, free)
    return [b for b in having(arms, **change) if identity(b.config, free) == own and b.data == arm.data]


def main_arms(arms: list[Arm]) -> list[Arm]:
    """The arms of the recipe under which most networks and kinds of attention were trained, one of each."""
    recipes: dict[str, list[Arm]] = {}
    for arm in arms:
        recipe = [identity(arm.config, [*NETWORK, "model.attention", "model.attention_stages"]), arm.data]
        recipes.setdefault(json.dumps(recipe, sort_keys=True), []).append(arm)
    largest = max(recipes.values(), key=len, default=[])
    kinds = {(arm.config.model.name, arm.config.model.attention): arm for arm in reversed(largest)}
    return [arm for arm in largest if kinds[arm.config.model.name, arm.config.model.attention] is arm]
