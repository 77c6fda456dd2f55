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
from ldct.metrics.slice_pair import SlicePair, Target
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
    for name, work in groups(chosen).items():
        table[f"metrics: {name}"] = partial(_of_metrics, data, work, False)
    table["all metrics of one method"] = partial(_of_metrics, data, partial(measure_all, chosen), False)
    table["all metrics of a method after the first"] = partial(_of_metrics, data, partial(measure_all, chosen), True)
    first = protocols.get(chosen[0])
    table["SSIM alone, ours"] = own(lambda pair: fidelity.ssim(SlicePair(*pair).under(first)))
    table["SSIM alone, scikit-image"] = own(lambda pair: _skimage_ssim(pair, first.low, first.high))
    return table


def _cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of ``work`` in this process, all threads: what other jobs of the machine do hardly changes it."""
    began = time.process_time()
    work()
    return time.process_time() - began


def groups(chosen: list[str]) -> dict[str, Callable[[SlicePair], object]]:
    """What is measured of a pair, in parts: every protocol, and every group of metrics that no protocol changes."""
    parts: dict[str, Callable[[SlicePair], object]] = {
        name: partial(registry.measure, protocol=protocols.get(name)) for name in chosen
    }
    others = [metric for metric in registry.METRICS if not metric.per_protocol]
    for group in dict.fromkeys(metric.key.partition("/")[0] for metric in others):
        metrics = [metric for metric in others if metric.key.partition("/")[0] == group]
        parts[group] = lambda pair, metrics=metrics: [metric.function(pair) for metric in metrics]  # type: ignore[misc]
    return parts


def measure_all(chosen: list[str], pair: SlicePair) -> None:
    """All metrics of ``pair``."""
    for protocol in (*map(protocols.get, chosen), None):
        registry.measure(pair, protocol)


def _of_metrics(data: Data, work: Callable[[SlicePair], object], further: bool, number: int) -> float:
    """Seconds that ``work`` takes of a blur of a slice; ``further``: after that of another blur."""
    (low, full), acquisition = data.cases[number][1], data.cases.acquisition(number)
    target = Target(full, acquisition.spacing, low, acquisition.dose)
    if further:
        work(SlicePair(baselines.blur(low, 2 * SIGMA), target))
    pair = SlicePair(baselines.blur(low, SIGMA), target)
    return _cpu_seconds(lambda: work(pair))


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
    searches = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["search_s"].items())
    return "\n".join(
        [
            common.heading(result),
            f"slices of {' x '.join(map(str, result['shape']))}; CPU time; of a network on a GPU, wall clock",
            text_table(["part", "ms a slice", "spread"], rows),
            "groups of metrics are measured apart, and compute anew what they share; all together compute it once",
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
