"""A run as its folder tells it: what it is, how far it came, its curves and its attention by depth."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldct.config import Config
from ldct.metrics import names
from ldct.runs import folder as runs
from ldct.runs.folder import Status


@dataclass(kw_only=True)
class Run:
    """What a run folder holds, but for weights and pictures."""

    folder: Path
    config: Config
    status: Status
    metrics: list[dict[str, Any]]
    """Lines of metrics.jsonl."""
    provenance: list[dict[str, Any]]
    """Code, packages, host and data of every attempt; empty where none is written."""

    @property
    def state(self) -> str:
        """The state; lost where nothing was heard of the run, stopped early where it ended behind its siblings."""
        if self.status.state == "finished" and self.status.stopped_early:
            return runs.STOPPED_EARLY
        return "lost" if self.status.lost else self.status.state

    @property
    def flags(self) -> list[str]:
        """What a person should look at."""
        return self.status.flags + runs.changed_on_the_way(self.status, self.config.train.steps, self.provenance)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, by its name in ldct/metrics/names.py; what was not finite is left out."""
        points = [(line["step"], line[name]) for line in self.metrics if line.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    @property
    def training_seconds(self) -> float:
        """Time of the steps, without validation, from the rates that were logged; 0 without one."""
        seconds, before = 0.0, 0
        for step, rate in zip(*self.curve("patches_per_s"), strict=True):
            # a validation repeats the rate of the line before it; the first, and one that came too soon, have none
            if step > before and rate:
                seconds += (step - before) * self.config.train.global_batch / rate
                before = step
        return seconds

    def attention(self, statistic: str) -> dict[float, float]:
        """An attention statistic at the last validation, by relative depth (0 = first, 1 = deepest encoder stage).

        Empty where the network has no such attention or was not validated yet.
        """
        last: dict[tuple[int, str], float] = {}
        for line in self.metrics:
            for name, value in line.items():
                if names.is_validation(name) and value is not None and (stage := names.split_attention(name)):
                    last[stage] = value
        stages = sorted(number for number, what in last if what == statistic)
        return {last[stage, names.DEPTH]: last[stage, statistic] for stage in stages}


def read(folder: Path) -> Run:
    """The run in ``folder``.

    Raises
    ------
    InputError
        If it is not a run folder.
    """
    return Run(**contents(folder))


def evaluated(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Means over patients that launch/evaluate.py wrote to ``folder``, by split, method and metric.

    The run's own method has the folder's name. What is not finite or not readable is left out.
    """
    means: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted((folder / "eval").glob("*.json")):
        try:
            methods = json.loads(path.read_text())["methods"]
        except (OSError, ValueError, KeyError):
            continue
        means[path.stem] = {
            method["name"]: {
                name: value["mean"] for name, value in method["metrics"].items() if value["mean"] is not None
            }
            for method in methods
        }
    return means


def contents(folder: Path) -> dict[str, Any]:
    """The fields of the run in ``folder``, for Run and what is made of it."""
    return {
        "folder": folder,
        "config": runs.read_config(folder),
        "status": runs.read_status(folder),
        "metrics": runs.read_metrics(folder),
        "provenance": runs.read_provenance(folder),
    }
