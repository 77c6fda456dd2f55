"""Runs made up, with effects whose size is known: evaluated, but never trained."""

import numpy as np

from ldct import config as configuration
from ldct.evaluation.attention import LOSS
from ldct.evaluation.baselines import NAMES
from ldct.evaluation.results import Evaluation, Result
from ldct.metrics import registry
from ldct.metrics.intervals import Measured
from ldct.reports.comparison import Run
from ldct.runs.folder import Status

PSNR = "abd400/psnr"
PATIENTS = ("L067", "L096", "L109", "L143")


def measured(gain, seed, patients=PATIENTS, noise=0.01):
    """Two slices of each patient: patients differ by decibels, seeds by hundredths, as in life."""
    rng = np.random.default_rng([seed, round(1000 * abs(gain))])
    slices = []
    for number, patient in enumerate(patients):
        for index in range(2):
            psnr = 30 + 2 * number + index + gain + 0.02 * (seed - 1) + rng.normal(0, noise)
            values = dict.fromkeys(registry.names(["abd400"]), 1.0)
            values |= {PSNR: psnr, "abd400/ssim": psnr / 40, "abd400/rmse": 400 / 10 ** (psnr / 20)}
            slices.append(Measured(patient, f"{patient}_{index}", values))
    return slices


def by_stage(patients=PATIENTS, weights=None, edges=None, texture=None):
    """What attention does, the same on every patient: statistics by stage from the first, and no loss without it."""
    given = {"channel_sd": weights, "spatial_edges": edges, "spatial_texture": texture}
    stages = max(len(values) for values in given.values() if values is not None)
    return {LOSS: {stage: dict.fromkeys(patients, 0.0) for stage in range(1, stages + 1)}} | {
        statistic: {stage: dict.fromkeys(patients, float(value)) for stage, value in enumerate(values, start=1)}
        for statistic, values in given.items()
        if values is not None
    }


def make(seed=0, gain=1.0, patients=PATIENTS, noise=0.01, data="d", by_stage=None, **fields):
    """A finished run that gains ``gain`` dB; ``fields`` of the configuration as section__field."""
    nested = {"train": {"seed": seed, "steps": 20}}
    for name, value in fields.items():
        section, field = name.split("__")
        nested.setdefault(section, {})[field] = value
    config = configuration.from_dict(nested)
    name = f"{configuration.hash8(config)}-{seed}"
    evaluation = Evaluation("test", "d", "split by patient: made up", ["abd400"])
    evaluation.results = [Result(baseline, "made", measured(-0.1, 0, patients), 1.0, "CPU") for baseline in NAMES]
    evaluation.results[0].slices = measured(0.0, 1, patients, noise=0.0)
    evaluation.results.append(Result(name, "made", measured(gain, seed, patients, noise), 1.0, "CPU", "mark"))
    status = Status(state="finished", step=20, steps=20, device="cpu")
    provenance = [{"manifest_sha256": data}]
    return Run(
        folder=None,
        name=name,
        label=name,
        config=config,
        status=status,
        metrics=[],
        provenance=provenance,
        evaluation=evaluation,
        by_stage=by_stage or {},
    )
