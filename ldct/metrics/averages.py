"""Metrics over the slices of many patients, as torchmetrics: accumulated slice by slice, synchronised over ranks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from ldct.metrics import registry
from ldct.metrics.protocols import Protocol
from ldct.metrics.slice_pair import SlicePair
from shards.common.command import InputError


class PatientMean(Metric):
    """Mean over the slices of a patient, then over patients, of values given by name.

    The states have a cell for each slice of the set, and each slice is measured by one rank. So a sum over ranks adds
    zeros to each cell, and the means are the same to the last bit at any number of ranks.

    Parameters
    ----------
    names : sequence of str
        Names of the values.
    patients : sequence of str
        Patient of every slice of the set, by its number.
    kwargs
        Of torchmetrics.Metric, e.g. ``process_group``.
    """

    full_state_update = False
    sum: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str], patients: Sequence[str] = ("",), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names, self.patients = list(names), list(patients)
        cells = (len(self.names), len(self.patients))
        self.add_state("sum", torch.zeros(cells, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(cells, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, float | None], number: int = 0) -> None:
        """Add the values of slice ``number``; a value of None is one that the slice does not have."""
        for row, name in enumerate(self.names):
            if (value := values[name]) is not None:
                self.sum[row, number] += value
                self.count[row, number] += 1

    def compute(self) -> dict[str, Tensor]:
        """Means by name, float64; nan where no slice has a value."""
        sums, counts = self.sum.cpu().numpy(), self.count.cpu().numpy()
        return {
            name: torch.tensor(self._mean(sums[row], counts[row]), dtype=torch.float64)
            for row, name in enumerate(self.names)
        }

    def _mean(self, sums: np.ndarray, counts: np.ndarray) -> float:
        patients: dict[str, list[float]] = {}
        for patient, value, count in zip(self.patients, sums, counts, strict=True):
            if count:
                patients.setdefault(patient, []).append(value / count)
        return float(np.mean([np.mean(values) for values in patients.values()])) if patients else math.nan


class SliceMetrics(PatientMean):
    """The registry's metrics under one protocol, or without one those that no protocol changes.

    Parameters
    ----------
    protocol : Protocol or None
        What is clipped, and which SSIM.
    patients, kwargs
        As in PatientMean.

    Examples
    --------
    >>> metrics = SliceMetrics(protocols.get("abd400"))
    >>> metrics.update(SlicePair(output, full))
    >>> metrics.compute()["abd400/psnr"]
    """

    def __init__(self, protocol: Protocol | None, patients: Sequence[str] = ("",), **kwargs: Any) -> None:
        super().__init__(registry.names_under(protocol.name if protocol else None), patients, **kwargs)
        self.protocol = protocol

    def update(self, pair: SlicePair, number: int = 0) -> None:  # type: ignore[override]
        """Measure slice ``number``; an InputError where the protocol does not fit its size."""
        try:
            values = registry.measure(pair, self.protocol)
        except ValueError as error:
            name = self.protocol.name if self.protocol else "-"
            raise InputError(f"protocol {name} does not fit these slices: {error}") from None
        broken = not np.isfinite(pair.output).all()  # else nan says that this slice has no such value
        super().update({name: v if broken or not math.isnan(v) else None for name, v in values.items()}, number)


def collection(chosen: Sequence[Protocol | None], patients: Sequence[str] = ("",), **kwargs: Any) -> MetricCollection:
    """The metrics of several protocols, of slice pairs by number; what the protocols share is computed once.

    Called with a pair it returns that slice's values by name; ``compute`` returns the means over patients.
    """
    parts = {protocol.name if protocol else "slice": SliceMetrics(protocol, patients, **kwargs) for protocol in chosen}
    # torchmetrics would let metrics share their states whose first values are equal: those of an identity, for one
    return MetricCollection(parts, compute_groups=False)  # type: ignore[arg-type]
