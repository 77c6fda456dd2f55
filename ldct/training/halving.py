"""Runs of a sweep that end early, since their siblings are better: asynchronous successive halving, without a server.

A rule stands beside the runs of a sweep (``early_terminate.json``, written by launch/sweep.py from the sweep file). It
names brackets, counted in validations after the first step. A run that has made as many as a bracket says reads the
metrics.jsonl of its siblings and compares its own value with theirs at the same step, of those that validated there: it
waits for nobody, as the runs of an array start when the queue lets them. The first to come have nobody to be compared
with, and go on.

What a run decides depends on when it decides. So it is written down once, in ``halving/`` of its folder, and read from
there when the run goes on after an interruption: it ends at the same step as it would have without one.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldct.runs import folder as runs
from shards.common.atomic import write_once

NAME = "early_terminate.json"
FOLDER = "halving"


@dataclass(frozen=True)
class Rule:
    """When the runs of a sweep end early."""

    metric: str
    """Of a validation, as in metrics.jsonl, e.g. val/abd400/psnr."""
    maximize: bool
    """Whether a larger value is better."""
    brackets: list[int]
    """Numbers of validations after which a run looks at its siblings."""
    eta: float
    """About one in ``eta`` goes on from a bracket."""
    strict: bool = False
    """Whether no more than one in ``eta`` goes on, but for the best; else one more."""
    runs: list[str] = dataclasses.field(default_factory=list)
    """Names of the runs that compete."""

    def as_measured(self, value: float) -> float | None:
        """What ``values`` took ``value`` from; None, null in JSON, for what was not finite."""
        return None if value == -math.inf else value if self.maximize else -value


def brackets(fields: dict[str, Any], last: int) -> list[int]:
    """Numbers of validations, smaller than ``last``, after which W&B's ``early_terminate`` looks.

    ``min_iter``: min_iter, min_iter * eta, min_iter * eta^2, ...; ``max_iter``: max_iter / eta, ..., max_iter / eta^s.
    """
    eta = fields.get("eta", 3)
    if "min_iter" in fields:
        count = max(0, math.ceil(math.log(max(last / fields["min_iter"], 1), eta)) + 1)
        numbers = [fields["min_iter"] * eta**power for power in range(count)]
    else:
        numbers = [fields["max_iter"] / eta**power for power in range(1, fields["s"] + 1)]
    return sorted({int(number) for number in numbers if 1 <= number < last})


def goes_on(own: float, others: list[float], eta: float, strict: bool) -> bool:
    """Whether a value is good enough among those of its siblings at the same bracket; larger is better.

    Of n runs the first int(n / eta) + 1 go on, as in W&B; the first int(n / eta) and at least one if ``strict``.
    """
    better = sum(other > own for other in others)
    share = int((len(others) + 1) / eta)
    return better < max(1, share if strict else share + 1)


class Halving:
    """The brackets of the run in ``folder``; never ends it where there is no rule."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rule = folder, None
        path = folder.parent / NAME
        if path.is_file():
            rule = Rule(**json.loads(path.read_text()))
            self.rule = rule if folder.name in rule.runs else None  # a run put there by hand competes with none

    def ends(self) -> bool:
        """Whether the run ends here, after the validations that its metrics.jsonl has. To be asked after each."""
        if self.rule is None:
            return False
        made = len(values(self.folder, self.rule))
        return any(self._decision(self.rule, bracket)["end"] for bracket in self.rule.brackets if bracket <= made)

    def _decision(self, rule: Rule, bracket: int) -> dict[str, Any]:
        """What was decided at ``bracket``, or is now."""
        path = self.folder / FOLDER / f"{bracket:05d}.json"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            write_once(path, json.dumps(self._decide(rule, bracket), indent=1, allow_nan=False) + "\n")
        return json.loads(path.read_text())

    def _decide(self, rule: Rule, bracket: int) -> dict[str, Any]:
        step, own = list(values(self.folder, rule).items())[bracket - 1]
        there = {name: values(self.folder.parent / name, rule) for name in rule.runs if name != self.folder.name}
        others = {name: found[step] for name, found in there.items() if step in found}
        end = not goes_on(own, list(others.values()), rule.eta, rule.strict)
        seen = {name: rule.as_measured(value) for name, value in others.items()}
        return {
            "bracket": bracket,
            "step": step,
            "metric": rule.metric,
            "own": rule.as_measured(own),
            "others": seen,
            "end": end,
        }


def values(folder: Path, rule: Rule) -> dict[int, float]:
    """Step -> the rule's metric at each validation but that before the first step of the run in ``folder``, in their
    order; larger is better, what was not finite is worst."""
    found = {line["step"]: line[rule.metric] for line in runs.read_metrics(folder) if rule.metric in line}
    signed = {step: value if rule.maximize or value is None else -value for step, value in found.items() if step}
    return {step: -math.inf if value is None else value for step, value in signed.items()}
