"""One method on every slice: its outputs, its speed, and every metric of each slice."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from torchmetrics import MetricCollection

from ldct.evaluation.baselines import LOW, Method
from ldct.evaluation.datasets import Cases
from ldct.evaluation.results import Result
from ldct.metrics import averages, protocols
from ldct.metrics.intervals import Measured
from ldct.metrics.slice_pair import SlicePair
from shards.common.command import Progress
from shards.common.pool import Workers

PICTURES = 3
"""Slices kept for people to look at, evenly spaced over the split."""


@dataclass(frozen=True)
class Slice:
    """A slice on its way through a method; int16 HU, shape (H, W)."""

    low: np.ndarray
    full: np.ndarray
    output: np.ndarray | None = None
    """None until the method has been at it."""
    seconds: float = 0.0
    """What the method took."""


def denoised(method: Method, entry: Slice) -> Slice:
    """``entry`` with the method's output."""
    began = time.perf_counter()
    output = method(entry.low)
    return Slice(entry.low, entry.full, output, time.perf_counter() - began)


@lru_cache(maxsize=1)
def _metrics(chosen: tuple[str, ...]) -> MetricCollection:
    """Metrics under the protocols ``chosen``, and those that no protocol changes; one collection a process."""
    return averages.collection([*map(protocols.get, chosen), None])


def values_of(output: np.ndarray, full: np.ndarray, chosen: list[str]) -> dict[str, float]:
    """Metrics of one slice (int16 HU, shape (H, W)) by name.

    Raises
    ------
    InputError
        If a protocol does not fit its size.
    """
    metrics = _metrics(tuple(chosen))
    values = {name: value.item() for name, value in metrics(SlicePair(output, full)).items()}
    metrics.reset()
    return values


def _with_values(entry: Slice, chosen: list[str], method: Method | None) -> tuple[Slice, dict[str, float]]:
    """In a worker: a slice with its metrics; put through ``method`` first, where that is for the workers."""
    entry = denoised(method, entry) if method else entry
    assert entry.output is not None
    return entry, values_of(entry.output, entry.full, chosen)


def run_method(
    name: str,
    method: Method,
    detail: str,
    device: str,
    cases: Cases,
    chosen: list[str],
    workers: Workers,
    in_workers: bool = False,
) -> Result:
    """Run ``method`` over all slices, and take the metrics of each under the protocols ``chosen``.

    It is run once before the clock starts: a first call chooses kernels and fills caches.

    Parameters
    ----------
    workers : Workers
        Take the metrics, while this process runs the method.
    in_workers : bool
        Whether they run the method as well.
    """
    method(cases[0][1][0])
    result, seconds = Result(name, detail, [], math.inf, device), 0.0
    here, there = (None, method) if in_workers else (method, None)
    function = partial(_with_values, chosen=chosen, method=there)
    with Progress(name, len(cases), "slices") as progress:
        for number, (entry, values) in enumerate(workers.each(function, _entries(cases, here))):
            record = cases[number][0]
            result.slices.append(Measured(record.patient, record.key, values))
            if number in shown(len(cases)) and entry.output is not None:
                result.pictures[record.key] = entry.output
            seconds += entry.seconds
            progress.update()
    if name != LOW:  # doing nothing has no speed
        result.rate = len(cases) / seconds
    return result


def _entries(cases: Cases, method: Method | None) -> Iterator[Slice]:
    """Every slice, put through ``method`` where one is given."""
    for number in range(len(cases)):
        entry = Slice(*cases[number][1])
        yield denoised(method, entry) if method else entry


def shown(count: int) -> list[int]:
    """Numbers of the slices kept as pictures; the ends of a scan show the least."""
    inner = np.linspace(0, count - 1, min(PICTURES, count) + 2)[1:-1]
    return sorted({round(i) for i in inner})
