"""Methods on every slice: their outputs, their speed, and every metric of each slice."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from torchmetrics import MetricCollection

from ldct.evaluation.baselines import LOW, Method
from ldct.evaluation.datasets import Acquisition, Cases
from ldct.evaluation.results import Result
from ldct.inference.denoiser import NotFinite
from ldct.metrics import averages, protocols, registry
from ldct.metrics.intervals import Measured
from ldct.metrics.slice_pair import SlicePair, Target
from shards.common.command import InputError, Progress
from shards.common.pool import Workers
from shards.manifest import Record

PICTURES = 24
"""Slices kept for people to look at: all, or so many evenly spaced. One takes 0.24 MB for each method."""


class Given(NamedTuple):
    """What a method gave for a slice."""

    output: np.ndarray
    """int16 HU, shape (H, W)."""
    seconds: float
    """What it took."""


@dataclass(frozen=True)
class Task:
    """A slice on its way through methods and their metrics; int16 HU, shape (H, W)."""

    record: Record
    low: np.ndarray
    full: np.ndarray
    acquisition: Acquisition
    keep: bool
    """Whether outputs are for people to look at."""
    given: dict[str, Given] = field(default_factory=dict)
    """Of the methods that have been at it, by name."""

    @property
    def target(self) -> Target:
        """What the outputs are compared with."""
        return Target(self.full, self.acquisition.spacing, self.low, self.acquisition.dose)


@dataclass(frozen=True)
class Outcome:
    """What is left of a slice, for one method."""

    measured: Measured
    seconds: float
    output: np.ndarray | None
    """Of slices to be kept."""


Methods = dict[str, Method]
"""By name."""


def apply(methods: Methods, task: Task) -> Task:
    """``task`` with what ``methods`` give for it beside what it has.

    Raises
    ------
    InputError
        If an output is not finite; the message names run, checkpoint and slice.
    """
    given = dict(task.given)
    for name, method in methods.items():
        began = time.perf_counter()
        try:
            output = method(task.low)
        except NotFinite as error:
            raise InputError(
                f"{error.about}: its output for slice {task.record.key} is not finite (NaN or infinite); nothing of "
                "this run is written; train it again, or leave it out"
            ) from None
        given[name] = Given(output, time.perf_counter() - began)
    return replace(task, given=given)


@lru_cache(maxsize=1)
def _metrics(chosen: tuple[str, ...]) -> MetricCollection:
    """Metrics under the protocols ``chosen``, and those that no protocol changes; one collection a process."""
    return averages.collection([*map(protocols.get, chosen), None])


def values_of(output: np.ndarray, target: Target, chosen: list[str]) -> dict[str, float]:
    """Metrics of one output by name, under the protocols ``chosen``.

    Raises
    ------
    InputError
        If a protocol does not fit its size.
    """
    metrics = _metrics(tuple(chosen))
    values = metrics(SlicePair(output, target))  # in the order of the protocols' names
    metrics.reset()
    return {name: values[name].item() for name in registry.names(chosen)}


def _outcomes(task: Task, chosen: list[str], methods: Methods) -> dict[str, Outcome]:
    """The metrics of what ``task`` holds, by method; put through ``methods`` first."""
    task, target = apply(methods, task), task.target
    return {
        name: Outcome(
            Measured(task.record.patient, task.record.key, values_of(given.output, target, chosen)),
            given.seconds,
            given.output if task.keep else None,
        )
        for name, given in task.given.items()
    }


@dataclass(frozen=True)
class Planned:
    """A method to be measured."""

    name: str
    """A baseline's, or a run folder's."""
    device: str
    """What it computes on, for people."""
    create: Callable[[], tuple[Method, str]]
    """Makes the method, and one line on how it is set: networks are loaded when their turn comes."""
    in_workers: bool = False
    """Whether workers run it, and not only take its metrics."""


class Pace:
    """One progress over all methods, in percent of the time they are expected to take: so what is left is true.

    Parameters
    ----------
    seconds : dict
        By method: expected seconds a slice.
    slices : int
        Slices that each of them is to be measured on.
    """

    def __init__(self, seconds: dict[str, float], slices: int) -> None:
        self.seconds, self.total, self.done = seconds, sum(seconds.values()) * slices, 0.0
        self.progress = Progress(f"{len(seconds)} methods on {slices} slices", 100, "%")

    def count(self, name: str) -> None:
        """One more slice of the method called ``name``."""
        self.done += self.seconds[name]
        self.progress.update(math.floor(100 * self.done / self.total + 1e-6) - self.progress.done, note=name)


def expected_seconds(
    methods: list[Planned], cases: Cases, chosen: list[str], workers: Workers, calls: int
) -> dict[str, float]:
    """Seconds a slice that each method and its metrics take, by the last of ``calls`` calls with the first slice.

    Raises
    ------
    InputError
        If an output is not finite, or a protocol does not fit the slice.
    """
    task, seconds = next(_tasks(cases, {})), {}
    target = task.target
    for planned in methods:
        method, _ = planned.create()
        for _ in range(calls):  # the first chooses kernels and fills caches
            given = apply({planned.name: method}, task).given[planned.name]
        began = time.perf_counter()
        values_of(given.output, target, chosen)
        metrics = time.perf_counter() - began
        if planned.in_workers:
            seconds[planned.name] = (given.seconds + metrics) / workers.count
        elif workers.count > 1:
            seconds[planned.name] = max(given.seconds, metrics / workers.count)
        else:
            seconds[planned.name] = given.seconds + metrics
    return seconds


def run_methods(planned: list[Planned], cases: Cases, chosen: list[str], workers: Workers, pace: Pace) -> list[Result]:
    """Run methods over all slices, and take the metrics of each under the protocols ``chosen``.

    Slice by slice: what metrics need of the full dose alone is then computed once for all of the methods.

    Parameters
    ----------
    workers : Workers
        Take the metrics while this process runs the methods; or both.

    Raises
    ------
    InputError
        If an output is not finite.
    """
    here, there = Methods(), Methods()
    results = {}
    for of in planned:
        method, detail = of.create()
        (there if of.in_workers else here)[of.name] = method
        results[of.name] = Result(of.name, detail, [], math.inf, of.device)
    seconds = dict.fromkeys(results, 0.0)
    for outcomes in workers.each(partial(_outcomes, chosen=chosen, methods=there), _tasks(cases, here)):
        for name, outcome in outcomes.items():
            results[name].slices.append(outcome.measured)
            if outcome.output is not None:
                results[name].pictures[outcome.measured.key] = outcome.output
            seconds[name] += outcome.seconds
            pace.count(name)
    for name, result in results.items():
        if name != LOW:  # doing nothing has no speed
            result.rate = len(cases) / seconds[name]
    return list(results.values())


def _tasks(cases: Cases, methods: Methods) -> Iterator[Task]:
    """Every slice, put through ``methods``."""
    kept = shown(len(cases))
    for number in range(len(cases)):
        record, (low, full) = cases[number]
        yield apply(methods, Task(record, low, full, cases.acquisition(number), number in kept))


def shown(count: int) -> list[int]:
    """Numbers of the slices kept as pictures; where not all are, not the ends of a scan, which show the least."""
    if count <= PICTURES:
        return list(range(count))
    return [round(i) for i in np.linspace(0, count - 1, PICTURES + 2)[1:-1]]
