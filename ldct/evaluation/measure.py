"""One method on every slice: its outputs, its speed, and every metric of each slice."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from torchmetrics import MetricCollection

from ldct.evaluation.baselines import LOW, Method
from ldct.evaluation.datasets import Acquisition, Cases
from ldct.evaluation.results import Result
from ldct.inference.denoiser import NotFinite
from ldct.metrics import averages, protocols, registry
from ldct.metrics.intervals import Measured
from ldct.metrics.slice_pair import SlicePair
from shards.common.command import InputError, Progress
from shards.common.pool import Workers
from shards.manifest import Record

PICTURES = 24
"""Slices kept for people to look at: all, or so many evenly spaced. One takes 0.24 MB for each method."""


@dataclass(frozen=True)
class Task:
    """A slice on its way through a method and its metrics; int16 HU, shape (H, W)."""

    record: Record
    low: np.ndarray
    full: np.ndarray
    acquisition: Acquisition
    keep: bool
    """Whether its output is for people to look at."""
    output: np.ndarray | None = None
    """None until the method has been at it."""
    seconds: float = 0.0
    """What the method took."""


@dataclass(frozen=True)
class Outcome:
    """What is left of a slice."""

    measured: Measured
    seconds: float
    output: np.ndarray | None
    """Of slices to be kept."""


def apply(method: Method, task: Task) -> Task:
    """``task`` with the method's output.

    Raises
    ------
    InputError
        If the output is not finite; the message names run, checkpoint and slice.
    """
    began = time.perf_counter()
    try:
        output = method(task.low)
    except NotFinite as error:
        raise InputError(
            f"{error.about}: its output for slice {task.record.key} is not finite (NaN or infinite); nothing of this "
            "run is written; train it again, or leave it out"
        ) from None
    return replace(task, output=output, seconds=time.perf_counter() - began)


@lru_cache(maxsize=1)
def _metrics(chosen: tuple[str, ...]) -> MetricCollection:
    """Metrics under the protocols ``chosen``, and those that no protocol changes; one collection a process."""
    return averages.collection([*map(protocols.get, chosen), None])


def values_of(task: Task, chosen: list[str]) -> dict[str, float]:
    """Metrics of one slice by name, under the protocols ``chosen``.

    Raises
    ------
    InputError
        If a protocol does not fit its size.
    """
    metrics = _metrics(tuple(chosen))
    assert task.output is not None
    acquisition = task.acquisition
    pair = SlicePair(task.output, task.full, acquisition.spacing, task.low, acquisition.dose)
    values = metrics(pair)  # in the order of the protocols' names
    metrics.reset()
    return {name: values[name].item() for name in registry.names(chosen)}


def _outcome(task: Task, chosen: list[str], method: Method | None) -> Outcome:
    """The metrics of a slice; put through ``method`` first where one is given."""
    task = apply(method, task) if method else task
    measured = Measured(task.record.patient, task.record.key, values_of(task, chosen))
    return Outcome(measured, task.seconds, task.output if task.keep else None)


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


def expected_seconds(planned: Planned, cases: Cases, chosen: list[str], workers: Workers, calls: int) -> float:
    """Seconds a slice that a method and its metrics take, by the last of ``calls`` calls with the first slice.

    Raises
    ------
    InputError
        If its output is not finite, or a protocol does not fit the slice.
    """
    method, _ = planned.create()
    task = next(_tasks(cases, None))
    for _ in range(calls):  # the first chooses kernels and fills caches
        task = apply(method, task)
    began = time.perf_counter()
    values_of(task, chosen)
    metrics = time.perf_counter() - began
    if planned.in_workers:
        return (task.seconds + metrics) / workers.count
    return max(task.seconds, metrics / workers.count) if workers.count > 1 else task.seconds + metrics


def run_method(planned: Planned, cases: Cases, chosen: list[str], workers: Workers, pace: Pace) -> Result:
    """Run a method over all slices, and take the metrics of each under the protocols ``chosen``.

    Parameters
    ----------
    workers : Workers
        Take the metrics while this process runs the method; or both.

    Raises
    ------
    InputError
        If an output is not finite.
    """
    method, detail = planned.create()
    result, seconds = Result(planned.name, detail, [], math.inf, planned.device), 0.0
    here, there = (None, method) if planned.in_workers else (method, None)
    for outcome in workers.each(partial(_outcome, chosen=chosen, method=there), _tasks(cases, here)):
        result.slices.append(outcome.measured)
        if outcome.output is not None:
            result.pictures[outcome.measured.key] = outcome.output
        seconds += outcome.seconds
        pace.count(planned.name)
    if planned.name != LOW:  # doing nothing has no speed
        result.rate = len(cases) / seconds
    return result


def _tasks(cases: Cases, method: Method | None) -> Iterator[Task]:
    """Every slice, put through ``method`` where one is given."""
    kept = shown(len(cases))
    for number in range(len(cases)):
        record, (low, full) = cases[number]
        task = Task(record, low, full, cases.acquisition(number), number in kept)
        yield apply(method, task) if method else task


def shown(count: int) -> list[int]:
    """Numbers of the slices kept as pictures; where not all are, not the ends of a scan, which show the least."""
    if count <= PICTURES:
        return list(range(count))
    return [round(i) for i in np.linspace(0, count - 1, PICTURES + 2)[1:-1]]
