"""Measure methods on whole slices: every method on every slice, under every protocol."""

import dataclasses
import hashlib
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ldct.device import device_name, give_back
from ldct.evaluation import baselines, results
from ldct.evaluation.baselines import LOW, Method
from ldct.evaluation.datasets import Cases, Data
from ldct.evaluation.results import Evaluation, Result
from ldct.inference.denoiser import Denoiser
from ldct.metrics import names, protocols
from ldct.metrics.intervals import Measured
from ldct.metrics.noise_texture import texture
from ldct.runs import checkpoint
from ldct.runs import folder as runs
from shards.common.command import InputError, Progress

PICTURES = 3
"""Slices kept for people to look at, evenly spaced over the split."""


def measure(name: str, method: Method, detail: str, device: str, cases: Cases, chosen: list[str]) -> Result:
    """Run ``method`` over all slices, under the protocols ``chosen``.

    It is run once before the clock starts: a first call chooses kernels and fills caches.
    """
    result, seconds = Result(name, detail, [], math.inf, device), 0.0
    method(cases[0][1][0])
    with Progress(name, len(cases), "slices") as progress:
        for number in range(len(cases)):
            record, (low, full) = cases[number]
            began = time.perf_counter()
            output = method(low)
            seconds += time.perf_counter() - began
            result.slices.append(Measured(record.patient, record.key, compare(output, full, chosen)))
            if number in shown(len(cases)):
                result.pictures[record.key] = output
            progress.update()
    if name != LOW:  # doing nothing has no speed
        result.rate = len(cases) / seconds
    return result


def compare(output: np.ndarray, full: np.ndarray, chosen: list[str]) -> dict[str, float]:
    """Metrics of one slice (int16 HU, shape (H, W)) by ``protocol/metric``, and its noise texture."""
    values: dict[str, float] = {}
    for name in chosen:
        try:
            found = protocols.get(name).measure(torch.from_numpy(output), torch.from_numpy(full))
        except ValueError as error:
            raise InputError(f"protocol {name} does not fit these slices: {error}") from None
        values |= {names.metric(name, key): value for key, value in found.items()}
    return values | texture(output, full)


def shown(count: int) -> list[int]:
    """Numbers of the slices kept as pictures; the ends of a scan show the least."""
    inner = np.linspace(0, count - 1, min(PICTURES, count) + 2)[1:-1]
    return sorted({round(i) for i in inner})


def usable(roots: list[Path]) -> list[Path]:
    """Runs at or below ``roots`` that have a checkpoint to use; the others are named and left out.

    Raises
    ------
    InputError
        If there is none, or if a run given by itself has none.
    """
    found = runs.find_runs(roots)
    without = [run for run in found if not (run / "checkpoints" / checkpoint.BEST).is_file()]
    for run in without:
        if run in roots or len(without) == len(found):
            expected = run / "checkpoints" / checkpoint.BEST
            raise InputError(f"{run} has no checkpoint to use: expected {expected}; train it with launch/train.py")
        print(f"left out {run}: no checkpoint yet (state: {runs.read_status(run).state})", file=sys.stderr)
    every = [run.name for run in found]
    if twice := {name for name in every if every.count(name) > 1}:
        raise InputError(f"several runs are called {', '.join(sorted(twice))}; evaluate their sweeps one by one")
    return [run for run in found if run not in without]


def evaluate(folders: list[Path], data: Data, chosen: list[str], device: torch.device) -> Evaluation:
    """Measure the baselines and the runs in ``folders``, and write each run's eval/.

    A run whose eval/ holds the same checkpoint under the same conditions is not measured again.

    Parameters
    ----------
    chosen : list of str
        Protocols; the first ranks, and the baselines are tuned for it.

    Returns
    -------
    Evaluation
        All of them together, baselines first.
    """
    about = Evaluation(data.split, data.digest, data.note, chosen)
    stored = {run: results.load(run, data.split) for run in folders}
    known = {run: old for run, old in stored.items() if old and old.conditions() == about.conditions()}
    marks = {run: hashlib.sha256((run / "checkpoints" / checkpoint.BEST).read_bytes()).hexdigest() for run in folders}
    measured = [run for run, old in known.items() if old.results[-1].mark == marks[run]]
    for run in folders:
        if run not in measured:
            results.check_writable(run)  # before the minutes that it takes
    if known:
        before = next(iter(known.values()))
        about.results, about.full = before.results[:-1], before.full
    else:
        about.results = [_baseline(name, data, chosen) for name in baselines.NAMES]
        about.full = {record.key: pair[1] for record, pair in map(data.cases.__getitem__, shown(len(data.cases)))}
    of_runs = []
    for run in folders:
        if run in measured:
            of_runs.append(known[run].results[-1])
        else:
            of_runs.append(_run(run, marks[run], data.cases, chosen, device))
            results.save(run, dataclasses.replace(about, results=[*about.results, of_runs[-1]]))
    return dataclasses.replace(about, results=about.results + of_runs)


def _baseline(name: str, data: Data, chosen: list[str]) -> Result:
    method, detail = baselines.create(name, data.tuning, protocols.get(chosen[0]), data.tuned)
    return measure(name, method, detail, "CPU", data.cases, chosen)


def _run(run: Path, mark: str, cases: Cases, chosen: list[str], device: torch.device) -> Result:
    denoiser = Denoiser(run, device)
    detail = f"best checkpoint (step {denoiser.step}), {denoiser.mode}"
    result = measure(run.name, denoiser, detail, device_name(device), cases, chosen)
    result.mark = mark
    give_back()
    return result
