"""Validation on whole slices while training: the protocol's numbers of the network and of the low dose beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldct.attention.statistics import Collector, collect
from ldct.config import Config
from ldct.data.hu import denormalise, normalise
from ldct.data.slices import Slices
from ldct.metrics import names, protocols
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
        self.protocol = protocols.get(config.val.protocol)
        self.low_dose: dict[int, dict[str, float]] = {}

    def run(self, model: Network, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Metrics of ``model`` by name, e.g. ``val/abd400/psnr``; None if ``stop`` said so, asked after each slice.

        Every rank asks the same number of times, since the answer is agreed on together.
        """
        mine: list[tuple[int, dict[str, float]]] = []
        with collect(model) as attention:
            for turn in range(-(-len(self.slices) // self.ranks.world_size)):
                number = turn * self.ranks.world_size + self.ranks.rank
                if number < len(self.slices):
                    mine.append((number, self._slice(model, number)))
                if stop():
                    return None
        found = dict(pair for part in self.ranks.gather(mine) for pair in part)
        seen = attention_lines(attention, self.ranks)
        return self._average([found[number] for number in sorted(found)]) | {
            names.validation(k): v for k, v in seen.items()
        }

    @torch.no_grad()
    def _slice(self, model: Network, number: int) -> dict[str, float]:
        _, pixels = self.slices[number]
        low, full = torch.from_numpy(pixels.astype(np.float32)).to(self.ranks.device)
        output = self._output(model, low)
        if number not in self.low_dose:
            self.low_dose[number] = self.protocol.measure(low, full)

        def named(make: Callable[[str], str], values: dict[str, float]) -> dict[str, float]:
            return {make(names.metric(self.protocol.name, key)): value for key, value in values.items()}

        values = named(names.validation, self.protocol.measure(output, full))
        values |= named(names.low_dose_validation, self.low_dose[number])
        return values | {names.OUTPUT_SD: output.std().item()}

    def _output(self, model: Network, low: Tensor) -> Tensor:
        normalization = self.config.data.normalization
        # unlike in evaluation, what the normalization clipped is not added again: it would hide a constant output
        with torch.autocast(low.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
            output = denoise(model, normalise(low, normalization)[None, None], self.patch)
            return denormalise(output, normalization)[0, 0]

    def _average(self, values: list[dict[str, float]]) -> dict[str, float]:
        patients = [record.patient for _, record in self.slices.chosen]
        means = [
            {
                key: float(np.mean([v[key] for v, p in zip(values, patients, strict=True) if p == patient]))
                for key in values[0]
            }
            for patient in dict.fromkeys(patients)
        ]
        return {key: float(np.mean([mean[key] for mean in means])) for key in means[0]}

    def middle(self) -> Tensor:
        """The low dose of the split's middle slice, normalised, (1, 1, H, W), for pictures."""
        pixels = self.slices[len(self.slices) // 2][1][0]
        return normalise(torch.from_numpy(pixels).to(self.ranks.device), self.config.data.normalization)[None, None]

    def flags(self, metrics: dict[str, Any]) -> list[str]:
        """What a person should look at in these metrics: an output that is constant, or worse than its input."""
        psnr = names.metric(self.config.val.protocol, "psnr")
        found = []
        if not metrics[names.OUTPUT_SD] >= CONSTANT_HU:
            found.append("output is constant")
        # a network that starts as the identity equals its input but for rounding
        if not metrics[names.validation(psnr)] >= metrics[names.low_dose_validation(psnr)] - 0.01:
            found.append("worse than the low dose")
        return found


def attention_lines(attention: Collector, ranks: Ranks) -> dict[str, Any]:
    """Attention statistics over the images that all ranks have seen; nothing for a network without attention."""
    if not attention.places:
        return {}
    attention.sums = torch.stack(ranks.gather(attention.sums)).sum(0)
    return attention.stats() | attention.histograms()
