"""How fast the trainer's steps are, beside the baseline and beside a matrix product of the same precision."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ldct import models
from ldct.benchmarks import baseline, common, recommend, runs
from ldct.benchmarks.steps import LR, baseline_repeats, configure, start, trainer_losses, trainer_repeats
from ldct.config import Config
from ldct.device import keep_freed, pick_device
from ldct.training.trainer import set_numerics
from shards.common.command import InputError
from shards.common.table import text_table

OURS, BOTH, BASELINE, BASELINE_TF32 = "ours", "ours, attention both", "baseline", "baseline, TF32"
COMPILED, GRAPH = "ours, torch.compile", "ours, CUDA graph"

SETTINGS = {
    OURS: [],
    BOTH: ["model.attention=both"],
    "ours, fp32": ["train.precision=fp32"],
    "ours, NCHW": ["train.channels_last=false"],
    COMPILED: ["train.compile=step"],
    GRAPH: ["train.cuda_graph=true"],
    "ours, 128 filters for 96": ["model.channels=128"],
    BASELINE: [],
    BASELINE_TF32: [],
}
"""The variants, by the fields they change."""

ON_GPU_ONLY = (COMPILED, GRAPH, "ours, 128 filters for 96", BASELINE_TF32)

PATCH = 55
"""Side in pixels of the patches that FLOP are counted for."""

SLICES = 16
"""Of the water phantom, two patients together."""

LONGEST = 20
"""Rows of a profile that are printed; the JSON has all."""


def variants(network: str, every: bool) -> list[str]:
    """Names of the variants to train ``network``: ours without and with attention, and the baseline; with ``every``
    also what else was tried."""
    cuda = torch.cuda.is_available()
    names = [name for name in SETTINGS if every or name in (OURS, BOTH, BASELINE, BASELINE_TF32)]
    names = [name for name in names if cuda or name not in ON_GPU_ONLY]
    names = [name for name in names if network in baseline.BASELINES or name not in (BASELINE, BASELINE_TF32)]
    return [name for name in names if network == "redcnn" or "filters" not in name]


def sweep(
    shards: Path, networks: Sequence[str], batches: Sequence[int], steps: int, repeats: int, settings: Sequence[str]
) -> dict[str, Any]:
    """All rows of the table. Within a network and a batch size all variants alternate, ``steps`` steps each behind one
    that does not count.

    Returns
    -------
    dict
        The machine; ``matrix_product``, the highest FLOP per second by precision; ``rows``: network, variant, batch,
        patches_per_s (median, lowest, highest), ratio to the baseline, flop_per_s, share of the matrix product's, loss
        (mean of the last round), loss_ratio to the baseline.
    """
    device = pick_device("auto")
    rows, limits = [], {name: 0.0 for name, _ in common.DTYPES}
    for network in networks:
        for batch in batches:
            configs = {
                name: configure(shards, network, batch, [*settings, *SETTINGS[name]])
                for name in variants(network, every=batch == batches[-1])
            }
            measured, best = group(configs, steps, repeats, device)
            rows += compare(configs, measured)
            limits = {name: max(limit, best[name]) for name, limit in limits.items()}
    for row in rows:
        row["share"] = row["flop_per_s"] / limits[row["precision"]]
    about = {"steps": steps, "repeats": repeats, "patch": PATCH, "lr": LR, "settings": list(settings)}
    return common.machine(device) | about | {"matrix_product": limits, "rows": rows}


def group(
    configs: dict[str, Config], steps: int, repeats: int, device: torch.device
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    """Patches per second and loss of each repeat of each variant, all alternating, each in a process of its own; and
    the best matrix products among their repeats."""
    common.share_device(device)
    rounds = 1 + repeats
    asks: dict[str, Callable[[], Any]] = {}
    with ExitStack() as processes:
        for name, config in configs.items():
            if name in (BASELINE, BASELINE_TF32):
                variant = common.apart(baseline_repeats, config, steps, rounds, name == BASELINE_TF32)
            else:
                variant = common.apart(trainer_repeats, config, steps, rounds)
            asks[name] = processes.enter_context(variant)
        measured = common.alternate(asks | common.matrix_products(device), repeats, warmup=1)
    return measured, {name: max(measured.pop(name)) for name, _ in common.DTYPES}


def compare(configs: dict[str, Config], measured: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """The rows of one network at one batch size, but for the share."""
    rates = {name: [rate for rate, _ in repeats] for name, repeats in measured.items()}
    losses = {name: repeats[-1][1] for name, repeats in measured.items()}
    base = BASELINE if BASELINE in measured else OURS
    return [
        {
            "network": config.model.name,
            "variant": name,
            "batch": config.train.global_batch,
            "precision": "fp32" if name in (BASELINE, BASELINE_TF32) else config.train.precision,
            "patches_per_s": common.spread(rates[name]),
            "ratio": common.ratio(rates[name], rates[base]),
            "flop_per_s": common.spread(rates[name])["median"]
            * common.flops(config.model, (PATCH, PATCH), backward=True),
            "loss": losses[name],
            "loss_ratio": losses[name] / losses[base],
        }
        for name, config in configs.items()
    ]


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    limits = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in result["matrix_product"].items())
    rows = []
    for row in result["rows"]:
        rate = row["patches_per_s"]
        rows.append(
            [
                f"{row['network']}, {row['variant']}",
                f"{row['batch']}",
                f"{rate['median']:,.1f}",
                f"{rate['low']:,.1f} to {rate['high']:,.1f}",
                f"{row['ratio']:.2f}",
                f"{row['flop_per_s'] / 1e9:,.0f}",
                f"{100 * row['share']:.0f} %",
                f"{row['loss_ratio']:.4f}",
            ]
        )
    head = ["variant", "batch", "patches/s", "spread", "/ baseline", "GFLOP/s", "of the product", "loss / baseline"]
    return f"{common.heading(result)}\nlarge matrix product: {limits}\n{text_table(head, rows)}"


LAUNCHES = ("LaunchKernel", "MemcpyAsync", "MemsetAsync", "GraphLaunch")
"""What names of CUDA's calls hold that start work on a GPU (cudaLaunchKernel, cuLaunchKernelEx, ...)."""


def layers(config: Config, steps: int = 3) -> dict[str, Any]:
    """Milliseconds of a step by operation and shape of its first input, the longest first: where the time goes.

    On a GPU also ``launches``, calls of a step that start work there, and ``kernels_ms``, how long that work took.
    """
    keep_freed()
    set_numerics(config)
    training = start(config)
    cuda = training.ranks.device.type == "cuda"
    losses = trainer_losses(training, steps + 1)
    next(losses)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=kinds, record_shapes=True) as profiled:
        list(losses)
        common.wait_for(training.ranks.device)
    events = profiled.key_averages(group_by_input_shape=True)
    took = {layer: ms / steps for layer, ms in spent(events, cuda).items()}
    longest = sorted(took.items(), key=lambda item: -item[1])
    rows = [
        {"operation": key, "shape": shape, "ms": ms, "share": ms / sum(took.values())} for (key, shape), ms in longest
    ]
    on_gpu = {name: value / steps for name, value in on_device(events).items()} if cuda else {}
    return (
        common.machine(training.ranks.device)
        | on_gpu
        | {
            "network": config.model.name,
            "attention": config.model.attention,
            "batch": config.train.global_batch,
            "layers": rows,
        }
    )


def spent(events: Sequence[Any], cuda: bool) -> dict[tuple[str, str], float]:
    """Milliseconds of a profile's averaged ``events`` by operation and shape of its first input; on a GPU those of the
    kernels that the operation started. The kernels stand among the events too, and would be counted twice."""
    took: dict[tuple[str, str], float] = {}
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        shape = event.input_shapes[0] if event.input_shapes else []
        layer = event.key, " x ".join(map(str, shape)) if shape and isinstance(shape[0], int) else ""
        took[layer] = took.get(layer, 0) + (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1000
    return took


def on_device(events: Sequence[Any]) -> dict[str, float]:
    """``launches`` and ``kernels_ms`` of a profile's averaged ``events``.

    Raises
    ------
    InputError
        If the profiler saw no kernel, as where the driver lets no user read the GPU's counters.
    """
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    if not kernels:
        raise InputError("torch's profiler saw nothing on the GPU: the driver or the container does not let it (CUPTI)")
    launches = sum(event.count for event in events if any(name in event.key for name in LAUNCHES))
    return {"launches": launches, "kernels_ms": sum(event.self_device_time_total for event in kernels) / 1000}


def layers_text(result: dict[str, Any]) -> str:
    """The result of ``layers`` for people."""
    rows = [
        [row["operation"], row["shape"], f"{row['ms']:.1f}", f"{100 * row['share']:.1f} %"]
        for row in result["layers"][:LONGEST]
    ]
    what = f"{result['network']}, attention {result['attention']}, batch {result['batch']}"
    return f"{common.heading(result)}\n{what}\n{text_table(['operation', 'first input', 'ms a step', 'share'], rows)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``launch/bench.py train``."""
    cuda = torch.cuda.is_available()
    parser.add_argument("--shards", type=Path, help="shards to train on (default: of a water phantom)")
    parser.add_argument("--networks", nargs="+", default=list(models.names()), choices=models.names())
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[64, 128, 256, 512, 1024] if cuda else [8, 16, 32], metavar="N"
    )
    parser.add_argument(
        "--steps", type=int, default=20 if cuda else 2, help="steps of a repeat that count (%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count, after one to warm up (%(default)s)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--profile", action="store_true", help="time by layer instead, at the last batch size")
    mode.add_argument("--epoch", action="store_true", help="an epoch's wall clock beside the time of its steps instead")
    mode.add_argument("--ranks", type=int, metavar="N", help="N ranks beside one instead, one thread each on a CPU")
    mode.add_argument("--quality", type=float, metavar="DB", help="seconds to this val PSNR instead; needs --shards")
    mode.add_argument("--recommend", action="store_true", help="what to use here instead, as YAML for --config")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="FIELD=VALUE",
        help="fields of what is trained, e.g. model.channels=24",
    )


def chosen(options: argparse.Namespace, shards: Path) -> tuple[dict[str, Any], str]:
    """What was asked for, measured, and as text."""
    network, batch, repeats = options.networks[0], options.batches[-1], options.repeats
    result: dict[str, Any]
    if options.profile:
        profiles = [
            layers(configure(shards, name, batch, [*options.set, f"model.attention={kind}"]))
            for name in options.networks
            for kind in ("none", "both")
        ]
        return {"profiles": profiles}, "\n\n".join(map(layers_text, profiles))
    if options.epoch:
        result = runs.epoch(shards, batch, options.set)
        return result, runs.epoch_text(result)
    if options.ranks:
        result = runs.scaling(shards, options.ranks, batch, options.steps, repeats, options.set)
        return result, runs.scaling_text(result)
    if options.quality:
        result = runs.quality(shards, options.quality, options.set)
        return result, runs.quality_text(result)
    if options.recommend:
        result = recommend.recommend(shards, network, options.batches, options.steps, options.set)
        return result, recommend.text(result)
    result = sweep(shards, options.networks, options.batches, options.steps, repeats, options.set)
    return result, text(result)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print."""
    if min(*options.batches, options.steps, options.repeats) < 1:
        raise InputError("--batches, --steps, --repeats: expected numbers of at least 1")
    if options.quality and not options.shards:
        raise InputError("--quality needs --shards: a water phantom says nothing of quality")
    with tempfile.TemporaryDirectory() as scratch:
        shards = options.shards or common.generate(Path(scratch), SLICES)
        result, shown = chosen(options, shards)
    print(shown)
    return result
