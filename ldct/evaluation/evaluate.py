"""Measure methods on whole slices: every method on every slice, under every protocol."""

import dataclasses
import hashlib
import sys
from pathlib import Path

import torch

from ldct.device import device_name, give_back
from ldct.evaluation import baselines, extremes, results
from ldct.evaluation.datasets import Cases, Data
from ldct.evaluation.measure import run_method, shown
from ldct.evaluation.results import Evaluation, Result
from ldct.inference.denoiser import Denoiser
from ldct.metrics import protocols
from ldct.runs import checkpoint
from ldct.runs import folder as runs
from shards.common.command import InputError
from shards.common.pool import Workers


def usable(roots: list[Path]) -> list[Path]:
    """Runs at or below ``roots`` that have a checkpoint to use; the others are named and left out.

    Raises
    ------
    InputError
        If there is none, or if a run given by itself has none.
    """
    found = runs.find_runs(roots)
    without = [run for run in found if not checkpoint.best_path(run).is_file()]
    for run in without:
        if run in roots or len(without) == len(found):
            expected = checkpoint.best_path(run)
            raise InputError(f"{run} has no checkpoint to use: expected {expected}; train it with launch/train.py")
        print(f"left out {run}: no checkpoint yet (state: {runs.read_status(run).state})", file=sys.stderr)
    every = [run.name for run in found]
    if twice := {name for name in every if every.count(name) > 1}:
        raise InputError(f"several runs are called {', '.join(sorted(twice))}; evaluate their sweeps one by one")
    return [run for run in found if run not in without]


def evaluate(
    folders: list[Path], data: Data, chosen: list[str], device: torch.device, workers: Workers | None = None
) -> Evaluation:
    """Measure the baselines and the runs in ``folders``, and write each run's eval/.

    A run whose eval/ holds the same checkpoint under the same conditions is not measured again.

    Parameters
    ----------
    chosen : list of str
        Protocols; the first ranks, and the baselines are tuned for it.
    workers : Workers, optional
        Take the metrics, and run the baselines, while this process runs the networks; without, this process does it.

    Raises
    ------
    InputError
        If the output of a network is not finite, or a protocol does not fit the slices.

    Returns
    -------
    Evaluation
        All of them together, baselines first.
    """
    workers = workers or Workers(1)
    about = Evaluation(data.split, data.digest, data.note, chosen)
    stored = {run: results.load(run, data.split) for run in folders}
    known = {run: old for run, old in stored.items() if old and old.conditions() == about.conditions()}
    marks = {run: hashlib.sha256(checkpoint.best_path(run).read_bytes()).hexdigest() for run in folders}
    measured = [run for run, old in known.items() if old.results[-1].mark == marks[run]]
    for run in folders:
        if run not in measured:
            results.check_writable(run)  # before the minutes that it takes
    if known:
        before = next(iter(known.values()))
        about.results, about.full = before.results[:-1], before.full
    else:
        about.results = [_baseline(name, data, chosen, workers) for name in baselines.NAMES]
        about.full = {record.key: pair[1] for record, pair in map(data.cases.__getitem__, shown(len(data.cases)))}
    of_runs = []
    for run in folders:
        if run in measured:
            of_runs.append(known[run].results[-1])
        else:
            of_runs.append(_run(run, marks[run], data.cases, chosen, device, workers))
            whole = dataclasses.replace(about, results=[*about.results, of_runs[-1]])
            extremes.save(run, whole)
            results.save(run, whole)
    return dataclasses.replace(about, results=about.results + of_runs)


def _baseline(name: str, data: Data, chosen: list[str], workers: Workers) -> Result:
    method, detail = baselines.create(name, data.tuning, protocols.get(chosen[0]), data.tuned, workers)
    return run_method(name, method, detail, "CPU, 1 thread", data.cases, chosen, workers, in_workers=True)


def _run(run: Path, mark: str, cases: Cases, chosen: list[str], device: torch.device, workers: Workers) -> Result:
    denoiser = Denoiser(run, device)
    detail = f"best checkpoint (step {denoiser.step}), {denoiser.mode}"
    result = run_method(run.name, denoiser, detail, device_name(device), cases, chosen, workers)
    result.mark = mark
    give_back()
    return result
