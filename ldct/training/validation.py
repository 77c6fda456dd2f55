"""Validation on whole slices while training: the protocol's numbers of the network and of the low dose beside it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from ldct.attention.statistics import Collector, collect
from ldct.config import Config
from ldct.data.hu import denormalise, normalise
from ldct.data.slices import Slices
from ldct.metrics import averages, names, protocols
from ldct.metrics.averages import PatientMean
from ldct.metrics.slice_pair import SlicePair
from ldct.models.network import Network
from ldct.models.whole_slice import denoise
from ldct.training.ranks import Ranks

CONSTANT_HU = 1.0
"""An output whose SD over a slice is below this shows nothing, whatever its metrics."""


class Validation:
    """The validation slices of a run, dealt out to the ranks; every rank gets the same numbers.

    Metrics are averaged over the slices of a patient, then over patients.
    """

    def __init__(self, config: Config, ranks: Ranks, patch: int) -> None:
        self.config, self.ranks, self.patch = config, ranks, patch
        self.slices = Slices(Path(config.data.shards), "val", config.val.slices)
        protocol = protocols.get(config.val.protocol)
        patients = [record.patient for _, record in self.slices.chosen]
        over_ranks = {"process_group": ranks.group} if ranks.world_size > 1 else {}
        self.network = averages.collection([protocol], patients, **over_ranks)
        self.low_dose = averages.collection([protocol], patients, **over_ranks)
        self.low_dose_measured: set[int] = set()
        """Slices of this rank whose low dose is in those averages: it stays the same."""
        self.output_sd = PatientMean([names.OUTPUT_SD], patients, **over_ranks)

    def run(self, model: Network, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Metrics of ``model`` by name, e.g. ``val/abd400/psnr``; None if ``stop`` said so, asked after each slice.

        Every rank asks the same number of times, since the answer is agreed on together.
        """
        self.network.reset()
        self.output_sd.reset()
        with collect(model) as attention:
            for turn in range(-(-len(self.slices) // self.ranks.world_size)):
                number = turn * self.ranks.world_size + self.ranks.rank
                if number < len(self.slices):
                    self._measure(model, number)
                if stop():
                    return None
        means = {names.validation(name): value for name, value in _means(self.network).items()}
        means |= {names.low_dose_validation(name): value for name, value in _means(self.low_dose).items()}
        means |= _means(self.output_sd)
        statistics = attention_lines(attention, self.ranks)
        return means | {names.validation(name): value for name, value in statistics.items()}

    @torch.no_grad()
    def _measure(self, model: Network, number: int) -> None:
        """Add slice ``number`` to the averages."""
        _, pixels = self.slices[number]
        low, full = pixels.astype(np.float32)
        output = self._output(model, torch.from_numpy(low).to(self.ranks.device))
        self.output_sd.update({names.OUTPUT_SD: output.std().item()}, number)
        self.network.update(SlicePair(output.float().cpu().numpy(), full), number)
        if number not in self.low_dose_measured:
            self.low_dose.update(SlicePair(low, full), number)
            self.low_dose_measured.add(number)

    def _output(self, model: Network, low: Tensor) -> Tensor:
        normalization = self.config.data.normalization
        # unlike in evaluation, what the normalization clipped is not added again: it would hide a constant output
        with torch.autocast(low.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
            output = denoise(model, normalise(low, normalization)[None, None], self.patch)
            return denormalise(output, normalization)[0, 0]

    def middle(self) -> Tensor:
        """The low dose of the split's middle slice, normalised, (1, 1, H, W), for pictures."""
        pixels = self.slices[len(self.slices) // 2][1][0]
        return normalise(torch.from_numpy(pixels).to(self.ranks.device), self.config.data.normalization)[None, None]

    def flags(self, metrics: dict[str, Any]) -> list[str]:
        """What a person should look at in these metrics: an output that is constant, or worse than its input."""
        psnr = names.metric(self.config.val.protocol, "psnr")
        flags = []
        if not metrics[names.OUTPUT_SD] >= CONSTANT_HU:
            flags.append("output is constant")
        # a network that starts as the identity equals its input but for rounding
        if not metrics[names.validation(psnr)] >= metrics[names.low_dose_validation(psnr)] - 0.01:
            flags.append("worse than the low dose")
        return flags


def _means(metrics: Metric | MetricCollection) -> dict[str, float]:
    """Means over the slices of all ranks, by name."""
    with warnings.catch_warnings():  # with more ranks than slices, one computes without having seen any
        warnings.filterwarnings("ignore", "The ``compute`` method of metric", UserWarning)
        return {name: value.item() for name, value in metrics.compute().items()}


def attention_lines(attention: Collector, ranks: Ranks) -> dict[str, Any]:
    """Attention statistics over the images that all ranks have seen; nothing for a network without attention."""
    if not attention.stages:
        return {}
    attention.sums = torch.stack(ranks.gather(attention.sums.cpu())).sum(0)
    return attention.stats() | attention.histograms()
