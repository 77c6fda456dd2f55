"""The runs of a comparison, gathered from their folders: what they are, how far they came, what they measured."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from ldct import models
from ldct.evaluation import results
from ldct.evaluation.baselines import BLUR, LOW, NAMES
from ldct.evaluation.results import Evaluation
from ldct.metrics import names
from ldct.reports import tables
from ldct.runs import folder as runs
from ldct.runs import reader
from shards.common.command import InputError


@dataclass(kw_only=True)
class Run(reader.Run):
    """A run beside others."""

    name: str
    """Of the folder; with its sweep's before it where two would be alike."""
    label: str
    """What sets it apart from the others."""
    evaluation: Evaluation | None

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return models.describe(self.config.model).parameters


def gather(roots: list[Path], split: str) -> list[Run]:
    """All runs at or below ``roots``, in order of their folders.

    Raises
    ------
    InputError
        If there is none.
    """
    folders = runs.find_runs(roots)
    plain = [folder.name for folder in folders]
    unique = [
        folder.name if plain.count(folder.name) == 1 else f"{folder.parent.name}/{folder.name}" for folder in folders
    ]
    contents = {name: reader.contents(folder) for name, folder in zip(unique, folders, strict=True)}
    labels = tables.labels({name: fields["config"] for name, fields in contents.items()})
    return [
        Run(name=name, label=labels[name], evaluation=results.load(fields["folder"], split), **fields)
        for name, fields in contents.items()
    ]


def joined(found: list[Run]) -> Evaluation | None:
    """The evaluations of all runs as one, the baselines first; None if no run has one.

    Raises
    ------
    InputError
        If they were measured under different conditions: such numbers do not belong in one table.
    """
    measured = [(one, one.evaluation) for one in found if one.evaluation]
    if not measured:
        return None
    first, base = measured[0]
    for one, other in measured[1:]:
        for what, mine in base.conditions().items():
            theirs = other.conditions()[what]
            if mine != theirs:
                mine, theirs = (", ".join(v) if isinstance(v, list) else str(v)[:12] for v in (mine, theirs))
                raise InputError(
                    f"{first.name} and {one.name} were evaluated on different {what} ({mine}; {theirs}); evaluate them "
                    f"together with launch/evaluate.py, or compare them apart"
                )
    rows = [result for result in base.results if result.name in NAMES]
    rows += [dataclasses.replace(e.results[-1], name=one.name) for one, e in measured]
    return dataclasses.replace(base, results=rows)


def shortfalls(runs: list[Run], found: Evaluation | None, gain: float, best_gain: float) -> list[str]:
    """What is missing for every run to beat the low dose by ``gain`` dB and every blur, and the best by ``best_gain``.

    PSNR under the first protocol, mean over patients. Empty if nothing is missing.
    """
    if found is None:
        return ["no run is evaluated"]
    protocol = found.protocols[0]
    psnr = {result.name: result.means[names.metric(protocol, "psnr")].mean for result in found.results}
    missing = []
    for one in runs:
        if one.name not in psnr:
            missing.append(f"{one.name} is not evaluated")
            continue
        value = psnr[one.name]
        if not value - psnr[LOW] >= gain:
            missing.append(f"{one.name} gains {value - psnr[LOW]:.2f} dB over the low dose, expected {gain:g} dB")
        if not value > psnr[BLUR]:
            missing.append(f"{one.name} has {value:.2f} dB, not more than the best Gaussian blur's {psnr[BLUR]:.2f} dB")
    best = max((psnr[one.name] for one in runs if not math.isnan(psnr.get(one.name, math.nan))), default=math.nan)
    if not best - psnr[LOW] >= best_gain:
        missing.append(f"the best run gains {best - psnr[LOW]:.2f} dB over the low dose, expected {best_gain:g} dB")
    return [f"{line} ({protocol})" for line in missing]
