"""What attention does at each stage on whole slices: its statistics, and the PSNR lost with its mean in its place.

RUN/eval/SPLIT-attention.json    each of MEASURES by stage and patient, of which checkpoint, on which slices
"""

import json
from pathlib import Path

import numpy as np
import torch

from ldct.attention.ablation import constant_gate, gates, mean_weights
from ldct.attention.statistics import collect
from ldct.evaluation.datasets import Data
from ldct.evaluation.results import Evaluation
from ldct.inference.denoiser import Denoiser
from ldct.metrics import fidelity, intervals, names, protocols, registry
from ldct.metrics.intervals import Measured
from ldct.metrics.slice_pair import SlicePair
from shards.common.atomic import write_text
from shards.common.command import Progress
from shards.common.table import text_table

LOSS = "gate_loss"
"""PSNR in dB lost with a gate's mean over all slices in its place; below zero where the network is better so."""
STATISTICS = ("channel_sd", "spatial_edges", "spatial_texture")
"""Of ldct/attention/statistics.py."""
MEASURES = (LOSS, *STATISTICS)

ByStage = dict[str, dict[int, dict[str, float]]]
"""A number by measure, encoder stage (from 1) and patient; what a network's kind of attention has not is absent."""


def by_stage(run: Path, data: Data, protocol: str, checkpoint_sha256: str, device: torch.device) -> ByStage:
    """Measure the attention of the run in ``run`` on the slices of ``data``, stage by stage, and write it.

    Nothing is measured again for the same checkpoint, slices and protocol.

    Parameters
    ----------
    protocol : str
        Name of the protocol whose PSNR counts.
    checkpoint_sha256 : str
        Of the run's best checkpoint.

    Returns
    -------
    dict
        MEASURES, means over each patient's slices; empty for a network without attention.
    """
    about = {"data": data.digest, "protocol": protocol, "checkpoint_sha256": checkpoint_sha256}
    stored = _read(run, data.split)
    if stored is not None and {key: stored[key] for key in about} == about:
        return _by_stage(stored)
    denoiser = Denoiser(run, device)
    stages = list(gates(denoiser.model))
    if not stages:
        return {}
    with Progress(f"{run.name} attention", (len(stages) + 1) * len(data.cases), "slices") as progress:
        with mean_weights(denoiser.model) as seen:
            whole = _measure(denoiser, data, protocol, progress, stages)
        means = {module: float(np.mean(values)) for module, values in seen.items()}
        found: ByStage = {LOSS: {}}
        for stage in stages:
            with constant_gate(denoiser.model, stage, means):
                without = _measure(denoiser, data, protocol, progress, [])
            found[LOSS][stage] = {
                patient: values[registry.RANKING] - without[patient][registry.RANKING]
                for patient, values in whole.items()
            }
            for statistic in STATISTICS:
                name = names.attention(stage, statistic)
                if of_patients := {p: values[name] for p, values in whole.items() if not np.isnan(values[name])}:
                    found.setdefault(statistic, {})[stage] = of_patients
    write_text(_path(run, data.split), json.dumps({**about, "by_stage": found}, indent=1) + "\n")
    return found


def _measure(
    denoiser: Denoiser, data: Data, protocol: str, progress: Progress, stages: list[int]
) -> dict[str, dict[str, float]]:
    """PSNR, and STATISTICS of ``stages``, by patient: means over the slices on which they are defined."""
    every = [names.attention(stage, statistic) for stage in stages for statistic in STATISTICS]
    measured = []
    for number in range(len(data.cases)):
        record, (low, full) = data.cases[number]
        values = dict.fromkeys(every, np.nan)
        if stages:
            with collect(denoiser.model) as attention:
                denoised = denoiser(low)
            values |= attention.stats()
        else:
            denoised = denoiser(low)
        values[registry.RANKING] = fidelity.psnr(SlicePair(denoised, full).under(protocols.get(protocol)))
        measured.append(Measured(record.patient, record.key, values))
        progress.update()
    return intervals.by_patient(measured)


def as_text(of_runs: dict[str, ByStage]) -> str:
    """For a terminal: the losses, mean over patients, by network and stage; those without attention are passed over."""
    losses = {name: found[LOSS] for name, found in of_runs.items() if found}
    stages = sorted({stage for of_run in losses.values() for stage in of_run})
    if not stages:
        return "no network with attention to ablate"

    def cell(of_run: dict[int, dict[str, float]], stage: int) -> str:
        return f"{np.mean(list(of_run[stage].values())):+.3f}" if stage in of_run else "-"

    rows = [[name, *(cell(of_run, stage) for stage in stages)] for name, of_run in losses.items()]
    unit = registry.find(registry.RANKING).unit
    head = [f"{unit} lost without the choice of", *(f"stage {stage}" for stage in stages)]
    return text_table(head, rows)


def load(run: Path, evaluation: Evaluation | None) -> ByStage:
    """What ``by_stage`` wrote of the checkpoint and the slices of ``evaluation``, the run's; empty if it did not."""
    stored = _read(run, evaluation.split) if evaluation else None
    if not stored or not evaluation:
        return {}
    about = (stored["data"], stored["protocol"], stored["checkpoint_sha256"])
    expected = (evaluation.data, evaluation.protocols[0], evaluation.results[-1].mark)
    return _by_stage(stored) if about == expected else {}


def _path(run: Path, split: str) -> Path:
    return run / "eval" / f"{split}-attention.json"


def _read(run: Path, split: str) -> dict | None:
    try:
        return json.loads(_path(run, split).read_text())
    except (OSError, ValueError):
        return None


def _by_stage(stored: dict) -> ByStage:
    return {
        measure: {int(stage): of_patients for stage, of_patients in stages.items()}
        for measure, stages in stored["by_stage"].items()
    }
