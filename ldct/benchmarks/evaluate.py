"""What evaluating a slice costs, part by part: reading, networks, baselines and their search, each group of metrics."""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity

from ldct.benchmarks import common
from ldct.benchmarks.infer import PRECISIONS, Precision
from ldct.device import keep_freed, pick_device
from ldct.evaluation import baselines, datasets
from ldct.evaluation.datasets import Data
from ldct.inference import pretrained
from ldct.inference.denoiser import Denoiser
from ldct.metrics import fidelity, protocols, registry
from ldct.metrics.protocols import Protocol
from ldct.metrics.slice_pair import SlicePair
from shards.common.command import InputError
from shards.common.pool import Workers
from shards.common.table import text_table

SIGMA, STRENGTH = 0.8, 16.0
"""SD of the blur in pixels, and strength of non-local means in HU, where one call is measured."""


def parts(
    data: Data, runs: list[Path], chosen: list[str], device: torch.device, precisions: list[Precision]
) -> dict[str, Callable[[int], float]]:
    """Each part of an evaluation by name: seconds that it took for slice ``number``.

    Networks compute in all of ``precisions``; where there is none, each in its own.
    """

    def own(work: Callable[[np.ndarray], object]) -> Callable[[int], float]:
        return lambda number: _cpu_seconds(partial(work, data.cases[number][1]))

    def of_network(denoiser: Denoiser, number: int) -> float:
        denoise = partial(denoiser, data.cases[number][1][0])
        return common.seconds(denoise, device) if device.type == "cuda" else _cpu_seconds(denoise)

    table: dict[str, Callable[[int], float]] = {"reading": lambda number: _cpu_seconds(lambda: data.cases[number])}
    for run in runs:
        for precision in precisions or [Denoiser(run, device).precision]:
            denoiser = Denoiser(run, device)
            denoiser.precision = precision
            table[f"network: {denoiser.about}, {denoiser.precision}"] = partial(of_network, denoiser)
    table["baseline: Gaussian blur"] = own(lambda pair: baselines.blur(pair[0], SIGMA))
    table["baseline: non-local means"] = own(lambda pair: baselines.non_local_means(pair[0], STRENGTH))
    for name in chosen:
        table[f"metrics: {name}"] = own(partial(_under, protocols.get(name)))
    for group in dict.fromkeys(_group(metric) for metric in registry.METRICS if not metric.per_protocol):
        metrics = [metric for metric in registry.METRICS if not metric.per_protocol and _group(metric) == group]
        table[f"metrics: {group}"] = partial(_of_group, data, metrics)
    first = protocols.get(chosen[0])
    table["SSIM alone, ours"] = own(lambda pair: fidelity.ssim(SlicePair(*pair).under(first)))
    table["SSIM alone, scikit-image"] = own(lambda pair: _skimage_ssim(pair, first.low, first.high))
    return table


def _cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of ``work`` in this process, all threads: what other jobs of the machine do hardly changes it."""
    began = time.process_time()
    work()
    return time.process_time() - began


def _group(metric: registry.Metric) -> str:
    return metric.key.partition("/")[0]


def _under(protocol: Protocol, pair: np.ndarray) -> dict[str, float]:
    return registry.measure(SlicePair(*pair), protocol)


def _of_group(data: Data, metrics: list[registry.Metric], number: int) -> float:
    """Seconds of a group's metrics on a pair that nothing has been computed of."""
    (low, full), acquisition = data.cases[number][1], data.cases.acquisition(number)
    output = baselines.blur(low, SIGMA)
    pair = SlicePair(output, full, acquisition.spacing, low, acquisition.dose)
    return _cpu_seconds(lambda: [metric.function(pair) for metric in metrics])


def _skimage_ssim(pair: np.ndarray, low: float, high: float) -> float:
    """The same window, constants and pixels as ours."""
    output, full = (np.clip(image.astype(np.float64), low, high) - low for image in pair)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(output, full, data_range=high - low, **gaussian))


def search(data: Data, chosen: list[str]) -> dict[str, float]:
    """CPU seconds of the search for each baseline's strength, once an evaluation."""
    protocol = protocols.get(chosen[0])
    return {
        name: _cpu_seconds(partial(baselines.create, name, data.tuning, protocol, data.tuned, Workers(1)))
        for name in (baselines.BLUR, baselines.MEANS)
    }


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    rows = [
        [name, f"{1e3 * took['median']:.1f}", f"{1e3 * took['low']:.1f} to {1e3 * took['high']:.1f}"]
        for name, took in result["parts"].items()
    ]
    metrics = sum(took["median"] for name, took in result["parts"].items() if name.startswith("metrics: "))
    searches = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["search_s"].items())
    return "\n".join(
        [
            common.heading(result),
            f"slices of {' x '.join(map(str, result['shape']))}; CPU time; of a network on a GPU, wall clock",
            text_table(["part", "ms a slice", "spread"], rows),
            f"metrics of a slice: {metrics:.3f} s at most; groups measured apart compute anew what they share",
            f"search, once an evaluation: {searches}",
        ]
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``launch/bench.py evaluate``."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--pairs", type=Path, help="folder of DICOM pairs (default: val slices of a water phantom)")
    source.add_argument("--shards", type=Path, help="shards whose val slices to take")
    parser.add_argument("--run", type=Path, nargs="+", default=[], help="run folders (default: the network that ships)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=[], help="of the networks (their own)")
    parser.add_argument("--slices", type=int, default=3, help="slices measured, evenly spaced (%(default)s)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print."""
    if options.slices < 1:
        raise InputError("--slices: expected a number of at least 1")
    keep_freed()
    device, chosen = pick_device("auto"), list(protocols.DEFAULT)
    with tempfile.TemporaryDirectory() as scratch:
        if options.pairs:
            data = datasets.open_pairs(options.pairs)
        else:
            data = datasets.open_shards(options.shards or common.generate(Path(scratch), 16), "val")
        numbers = np.linspace(0, len(data.cases) - 1, min(options.slices, len(data.cases))).round().astype(int).tolist()
        runs = options.run or [pretrained.find(pretrained.names()[0])]
        table = parts(data, runs, chosen, device, options.precision)
        for part in table.values():
            part(numbers[0])  # what is compiled, loaded and cached at the first call
        result = common.machine(device) | {
            "shape": list(data.cases[0][1].shape[1:]),
            "parts": {name: common.spread([part(number) for number in numbers]) for name, part in table.items()},
            "search_s": search(data, chosen),
        }
    print(text(result))
    return result
