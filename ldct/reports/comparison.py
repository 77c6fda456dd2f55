"""The runs of a comparison, gathered from their folders: what they are, how far they came, what they measured."""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from ldct import models
from ldct.evaluation import attention, results
from ldct.evaluation.attention import ByStage
from ldct.evaluation.baselines import BLUR, LOW, NAMES
from ldct.evaluation.results import Evaluation
from ldct.metrics import registry
from ldct.reports.labels import labels
from ldct.runs import folder as runs
from ldct.runs import reader
from shards.common.command import InputError


@dataclass(kw_only=True)
class Run(reader.Run):
    """A run beside others."""

    name: str
    """Of the folder; with its sweep's before it where two would be alike, and what that lies in, if need be."""
    label: str
    """What sets it apart from the others."""
    evaluation: Evaluation | None
    by_stage: ByStage = field(default_factory=dict)
    """What attention does on the slices of ``evaluation``; evaluate.py --ablate."""

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return models.describe(self.config.model).parameters

    def by_depth(self, measure: str) -> dict[float, dict[str, float]]:
        """One of ldct/evaluation/attention.py's MEASURES by relative depth (0 = first, 1 = deepest encoder stage) and
        patient; empty where the network has no such attention."""
        deepest = max(1, models.describe(self.config.model).stages - 1)
        stages = self.by_stage.get(measure, {})
        return {(stage - 1) / deepest: stages[stage] for stage in sorted(stages)}


def choose_split(roots: list[Path], asked: str | None) -> tuple[str, list[str]]:
    """Which evaluation of the runs at or below ``roots`` to show: ``asked``, else that of test, else of most runs.

    Returns
    -------
    tuple
        The split, and others that runs were evaluated on.

    Raises
    ------
    InputError
        If there is no run, or ``asked`` was evaluated for none but another split was.
    """
    every = [split for folder in runs.find_runs(roots) for split in reader.evaluated(folder)]
    splits = sorted(set(every), key=lambda split: (split != "test", -every.count(split)))
    if asked and every and asked not in every:
        counts = {split: every.count(split) for split in splits}
        has = ", ".join(f"--split {split} ({n} run{'s' * (n > 1)})" for split, n in counts.items())
        raise InputError(f"no run was evaluated on {asked}; there is {has}")
    chosen = asked or (splits[0] if splits else "test")
    return chosen, [split for split in splits if split != chosen]


def gather(roots: list[Path], split: str) -> list[Run]:
    """All runs at or below ``roots``, in order of their folders, with their evaluation of ``split``.

    Raises
    ------
    InputError
        If there is none.
    """
    folders = runs.find_runs(roots)
    contents = {name: reader.contents(folder) for folder, name in runs.names(folders).items()}
    labelled = labels({name: fields["config"] for name, fields in contents.items()})
    gathered = []
    for name, fields in contents.items():
        evaluation = results.load(fields["folder"], split)
        by_stage = attention.load(fields["folder"], evaluation)
        gathered.append(Run(name=name, label=labelled[name], evaluation=evaluation, by_stage=by_stage, **fields))
    return gathered


def joined(runs: list[Run]) -> Evaluation | None:
    """The evaluations of all runs as one, the baselines first; None if no run has one.

    Raises
    ------
    InputError
        If they were measured under different conditions: such numbers do not belong in one table.
    """
    measured = [(run, run.evaluation) for run in runs if run.evaluation]
    if not measured:
        return None
    first, shared = measured[0]
    for run, evaluation in measured[1:]:
        for condition, expected in shared.conditions().items():
            value = evaluation.conditions()[condition]
            if value != expected:
                both = set(expected) & set(value) if condition == "metrics" else ()  # dozens; what differs is enough
                shown = (_listed(v, both) if isinstance(v, list) else str(v) for v in (expected, value))
                if condition == "data":
                    shown = (f"{each.extent}, {each.data[:12]}" for each in (shared, evaluation))
                raise InputError(
                    f"{first.name} and {run.name} were evaluated on different {condition} ({'; '.join(shown)}); "
                    "evaluate them together with launch/evaluate.py, or compare them apart"
                )
    rows = [result for result in shared.results if result.name in NAMES]
    rows += [dataclasses.replace(evaluation.results[-1], name=run.name) for run, evaluation in measured]
    return dataclasses.replace(shared, results=rows)


def _listed(names: list[str], both: Collection[str]) -> str:
    """``names`` without those of ``both``, the first three of them."""
    own = [name for name in names if name not in both]
    rest = f" and {len(own) - 3} more" if len(own) > 3 else ""
    return (", ".join(own[:3]) + rest) or "none of its own"


def shortfalls(runs: list[Run], evaluation: Evaluation | None, gain: float, best_gain: float) -> list[str]:
    """What is missing for every run to beat the low dose by ``gain`` dB and every blur, and the best by ``best_gain``.

    PSNR under the first protocol, mean over patients. Empty if nothing is missing.
    """
    if evaluation is None:
        return ["no run is evaluated"]
    protocol = evaluation.protocols[0]
    psnr = {result.name: result.means[registry.ranking(protocol)].mean for result in evaluation.results}
    missing = []
    for run in runs:
        if run.name not in psnr:
            missing.append(f"{run.name} is not evaluated")
            continue
        value = psnr[run.name]
        if not value - psnr[LOW] >= gain:
            missing.append(f"{run.name} gains {value - psnr[LOW]:.2f} dB over the low dose, expected {gain:g} dB")
        if not value > psnr[BLUR]:
            missing.append(f"{run.name} has {value:.2f} dB, not more than the best Gaussian blur's {psnr[BLUR]:.2f} dB")
    best = max((psnr[run.name] for run in runs if not math.isnan(psnr.get(run.name, math.nan))), default=math.nan)
    if not best - psnr[LOW] >= best_gain:
        missing.append(f"the best run gains {best - psnr[LOW]:.2f} dB over the low dose, expected {best_gain:g} dB")
    return [f"{line} ({protocol})" for line in missing]
