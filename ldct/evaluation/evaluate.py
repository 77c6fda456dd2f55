"""Measure methods on whole slices: every method on every slice, under every protocol."""

import collections
import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from ldct.device import device_name, give_back
from ldct.evaluation import baselines, curves, extremes, results
from ldct.evaluation.datasets import Cases, Data
from ldct.evaluation.measure import Pace, Planned, expected_seconds, run_methods, shown
from ldct.evaluation.results import Evaluation, Result
from ldct.inference.denoiser import Denoiser
from ldct.metrics import protocols
from ldct.runs import checkpoint
from ldct.runs import folder as runs
from shards.common.command import InputError
from shards.common.part import ALL, Part
from shards.common.pool import Workers

TOGETHER = 4
"""Networks that take a slice in turn, so that what metrics need of its full dose is computed once. An evaluation that
was broken off has to measure at most so many again."""


def usable(roots: list[Path], part: Part = ALL) -> list[Path]:
    """Runs at or below ``roots`` that have a checkpoint to use; the others are named and left out.

    Of these the share of ``part``, by name, whether they have a checkpoint or not: so each part has always the same.

    Raises
    ------
    InputError
        If there is none, or if a run given by itself has none.
    """
    every = runs.find_runs(roots)
    without = [run for run in every if not checkpoint.best_path(run).is_file()]
    for run in without:
        if run in roots or len(without) == len(every):
            expected = checkpoint.best_path(run)
            raise InputError(f"{run} has no checkpoint to use: expected {expected}; train it with launch/train.py")
        print(f"left out {run}: no checkpoint yet (state: {runs.read_status(run).state})", file=sys.stderr)
    named = [run.name for run in every]
    if twice := {name for name in named if named.count(name) > 1}:
        raise InputError(f"several runs are called {', '.join(sorted(twice))}; evaluate their sweeps one by one")
    ready = [run for run in part.of(every) if run not in without]
    for run in ready:
        status = runs.read_status(run)
        if status.state != "finished":
            where = f"{status.state} at step {status.step} of {status.steps}"
            print(f"note: {run} is {where}; measured is its best checkpoint so far", file=sys.stderr)
    return ready


def evaluate(
    folders: list[Path], data: Data, chosen: list[str], device: torch.device, workers: Workers | None = None
) -> Evaluation:
    """Measure the baselines and the runs in ``folders``, and write each run's eval/.

    A run whose eval/ holds the same checkpoint under the same conditions is not measured again, nor are the baselines
    where a run beside these holds them.

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
    _tell_replaced([old for run, old in stored.items() if old and run not in known], about)
    marks = {run: hashlib.sha256(checkpoint.best_path(run).read_bytes()).hexdigest() for run in folders}
    measured = [run for run, old in known.items() if old.results[-1].mark == marks[run]]
    for run in folders:
        if run not in measured:
            results.check_writable(run)  # before the minutes that it takes
    methods = [_of_run(run, device) for run in folders if run not in measured]
    before = next(iter(known.values()), None) or _of_neighbours(folders, about)
    if before:
        about.results, about.full, about.taken = before.results[:-1], before.full, before.taken
    else:
        methods = [*_baselines(data, chosen, workers), *methods]
    if not about.taken:  # nothing is stored, or it is of 0.1.0
        for number in shown(len(data.cases)):
            record, pair = data.cases[number]
            about.full[record.key], about.taken[record.key] = pair[1], data.cases.acquisition(number)
    results_of_runs, targets = {run.name: known[run].results[-1] for run in measured}, None
    for result in _measured(methods, data.cases, chosen, workers, 2 if device.type == "cuda" else 1):
        if result.name in baselines.NAMES:
            about.results.append(result)
            continue
        run = next(run for run in folders if run.name == result.name)
        result.mark = marks[run]
        results_of_runs[result.name] = result
        of_run = dataclasses.replace(about, results=[*about.results, result])
        extremes.save(run, of_run)
        targets = targets or curves.targets_of(of_run)
        curves.save(run, of_run, targets)
        results.save(run, of_run)
    return dataclasses.replace(about, results=about.results + [results_of_runs[run.name] for run in folders])


def _of_neighbours(folders: list[Path], about: Evaluation) -> Evaluation | None:
    """What another run of the same sweep holds of these slices under these conditions: its baselines are the same."""
    parents = dict.fromkeys(folder.resolve().parent for folder in folders)  # what lies deeper is not looked for
    for run in sorted(path.parent for parent in parents for path in parent.glob("*/config.yaml")):
        if results.is_of(run, about.split, about.data):  # reading all of it takes a while
            old = results.load(run, about.split)
            if old and old.conditions() == about.conditions():
                return old
    return None


def _tell_replaced(stored: list[Evaluation], new: Evaluation) -> None:
    """Say which results on other slices, or under other protocols, the new ones replace; before they do."""
    lines = collections.Counter(
        old.extent if old.data != new.data else f"{old.extent} under {', '.join(old.protocols)}"
        for old in stored
        if (old.data, old.protocols) != (new.data, new.protocols)
    )
    for what, count in lines.items():
        runs_of = f"of {count} runs" if count > 1 else "of a run"
        print(
            f"note: replaces what eval/{new.split}.json {runs_of} holds: {what}; --name NAME keeps both",
            file=sys.stderr,
        )


def _measured(
    methods: list[Planned], cases: Cases, chosen: list[str], workers: Workers, calls: int
) -> Iterator[Result]:
    """Results of ``methods``, with one progress; each is tried on one slice before all.

    So many networks at a time as TOGETHER, the baselines with the first.
    """
    if not methods:
        return
    pace = Pace(expected_seconds(methods, cases, chosen, workers, calls), len(cases))
    first = sum(method.in_workers for method in methods) + TOGETHER
    with pace.progress:
        for start in (0, *range(first, len(methods), TOGETHER)):
            group = methods[start : start + TOGETHER] if start else methods[:first]
            yield from run_methods(group, cases, chosen, workers, pace)
            give_back()


def _baselines(data: Data, chosen: list[str], workers: Workers) -> list[Planned]:
    """The baselines, tuned."""
    protocol = protocols.get(chosen[0])
    tuned = {name: baselines.create(name, data.tuning, protocol, data.tuned, workers) for name in baselines.NAMES}
    return [
        Planned(name, "CPU, 1 thread", partial(tuned.__getitem__, name), in_workers=True) for name in baselines.NAMES
    ]


def _of_run(run: Path, device: torch.device) -> Planned:
    """The network of ``run``."""

    def create() -> tuple[Denoiser, str]:
        denoiser = Denoiser(run, device)
        return denoiser, f"{results.BEST.format(denoiser.step)}, {denoiser.mode}"

    return Planned(run.name, device_name(device), create)
