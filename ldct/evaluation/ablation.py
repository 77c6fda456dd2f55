"""What each stage's attention is worth on whole slices: PSNR lost when its gate is replaced by its mean.

RUN/eval/SPLIT-ablation.json    loss in dB by stage and patient, of which checkpoint, on which slices
"""

import json
from pathlib import Path

import numpy as np
import torch

from ldct.attention.ablation import constant_gate, gates, mean_weights
from ldct.evaluation.datasets import Data
from ldct.evaluation.results import Evaluation
from ldct.inference.denoiser import Denoiser
from ldct.metrics import fidelity, intervals, protocols, registry
from ldct.metrics.intervals import Measured
from ldct.metrics.slice_pair import SlicePair
from shards.common.atomic import write_text
from shards.common.command import Progress
from shards.common.table import text_table

Losses = dict[int, dict[str, float]]
"""dB by encoder stage (from 1) and patient; below zero where the network is better without the gate's choice."""


def ablate(run: Path, data: Data, protocol: str, checkpoint_sha256: str, device: torch.device) -> Losses:
    """Measure the run in ``run`` with each gate in turn replaced by its mean over all slices, and write the losses.

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
        Losses; empty for a network without attention.
    """
    about = {"data": data.digest, "protocol": protocol, "checkpoint_sha256": checkpoint_sha256}
    stored = _read(run, data.split)
    if stored is not None and {key: stored[key] for key in about} == about:
        return _losses(stored)
    denoiser = Denoiser(run, device)
    stages = list(gates(denoiser.model))
    if not stages:
        return {}
    with Progress(f"{run.name} ablation", (len(stages) + 1) * len(data.cases), "slices") as progress:
        with mean_weights(denoiser.model) as seen:
            whole = _psnr(denoiser, data, protocol, progress)
        means = {module: float(np.mean(values)) for module, values in seen.items()}
        losses: Losses = {}
        for stage in stages:
            with constant_gate(denoiser.model, stage, means):
                without = _psnr(denoiser, data, protocol, progress)
            losses[stage] = {patient: whole[patient] - without[patient] for patient in whole}
    write_text(_path(run, data.split), json.dumps({**about, "losses_db": losses}, indent=1) + "\n")
    return losses


def _psnr(denoiser: Denoiser, data: Data, protocol: str, progress: Progress) -> dict[str, float]:
    """PSNR by patient, mean over slices."""
    measured = []
    for number in range(len(data.cases)):
        record, (low, full) = data.cases[number]
        value = fidelity.psnr(SlicePair(denoiser(low), full).under(protocols.get(protocol)))
        measured.append(Measured(record.patient, record.key, {registry.RANKING: value}))
        progress.update()
    return {patient: means[registry.RANKING] for patient, means in intervals.by_patient(measured).items()}


def as_text(losses: dict[str, Losses]) -> str:
    """For a terminal: mean over patients by network and stage; networks without attention are passed over."""
    stages = sorted({stage for of_run in losses.values() for stage in of_run})
    if not stages:
        return "no network with attention to ablate"

    def cell(of_run: Losses, stage: int) -> str:
        return f"{np.mean(list(of_run[stage].values())):+.3f}" if stage in of_run else "-"

    rows = [[name, *(cell(of_run, stage) for stage in stages)] for name, of_run in losses.items() if of_run]
    unit = registry.find(registry.RANKING).unit
    head = [f"{unit} lost without the choice of", *(f"stage {stage}" for stage in stages)]
    return text_table(head, rows)


def load(run: Path, evaluation: Evaluation | None) -> Losses:
    """What ``ablate`` wrote of the checkpoint and the slices of ``evaluation``, the run's; empty if it did not."""
    stored = _read(run, evaluation.split) if evaluation else None
    if not stored or not evaluation:
        return {}
    about = (stored["data"], stored["protocol"], stored["checkpoint_sha256"])
    expected = (evaluation.data, evaluation.protocols[0], evaluation.results[-1].mark)
    return _losses(stored) if about == expected else {}


def _path(run: Path, split: str) -> Path:
    return run / "eval" / f"{split}-ablation.json"


def _read(run: Path, split: str) -> dict | None:
    try:
        return json.loads(_path(run, split).read_text())
    except (OSError, ValueError):
        return None


def _losses(stored: dict) -> Losses:
    return {int(stage): losses for stage, losses in stored["losses_db"].items()}
