"""How fast it is here: the machine, steps, what they spend their time on, slices."""

import gc
import itertools
import platform
import statistics
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch

from ldct import config as configuration
from ldct.benchmarks import common, infer, train
from ldct.benchmarks.accept.correctness import HU_LIMIT, rmse
from ldct.benchmarks.accept.isolation import Figure, Setting, at_most, holds
from ldct.benchmarks.steps import baseline_repeats, configure, trainer_repeats
from ldct.config import Config
from ldct.data.slices import Slices
from ldct.device import device_name, give_back
from ldct.inference.denoiser import Denoiser
from ldct.training import trainer
from ldct.training.signals import Latch

BATCHES = (16, 128)
"""Patches a GPU and step: the recipe's 128 on eight GPUs, and on one."""

STORES = {"ours, device store": ["data.store=device"], "ours, mmap store": ["data.store=mmap"]}

VARIANTS = {"ours, fp32": "ours"}
"""Variants that are ours in another precision."""

LONGEST = 12
"""Rows of a profile that are kept."""


def machine(setting: Setting) -> Iterator[Figure]:
    """What every other figure belongs to; on a GPU also its first allocation."""
    for name, value in common.machine(device(setting)).items():
        yield Figure(name, str(value))
    yield Figure("platform", platform.platform())
    if not setting.gpu:
        return
    torch.zeros(1, device="cuda").add_(1).item()
    properties = torch.cuda.get_device_properties(0)
    yield Figure("memory", properties.total_memory / 2**30, "GiB")
    yield Figure("compute capability", f"{properties.major}.{properties.minor}")
    yield Figure("CUDA of torch", str(torch.version.cuda))
    yield Figure("cuDNN", str(torch.backends.cudnn.version()))
    for field in ("driver_version", "compute_mode", "power.limit", "clocks.max.sm", "clocks.max.memory"):
        yield Figure(field, (common.nvidia_smi(field) or ["not known"])[0])


def device(setting: Setting) -> torch.device:
    """Where this process computes."""
    return torch.device("cuda" if setting.gpu else "cpu")


def narrow(setting: Setting) -> list[str]:
    """What keeps a network small where it is to take a moment."""
    return ["model.channels=4"] if setting.small else []


def batches(setting: Setting) -> tuple[int, ...]:
    """Patches of a step."""
    return (4,) if setting.small else BATCHES


def steps_redcnn(setting: Setting) -> Iterator[Figure]:
    """RED-CNN: ours, the baseline, and what is tried on a GPU."""
    names = ["ours", train.BASELINE]
    tried = ["ours, attention both", train.BASELINE_TF32, "ours, fp32", "ours, 128 filters for 96"]
    yield from steps(setting, "redcnn", names + tried * setting.gpu)


def steps_unet(setting: Setting) -> Iterator[Figure]:
    """U-Net: the same."""
    setting.needs_gpu()
    yield from steps(setting, "unet", ["ours", "ours, attention both", train.BASELINE, train.BASELINE_TF32])


def steps_recorded(setting: Setting) -> Iterator[Figure]:
    """RED-CNN with train.cuda_graph."""
    setting.needs_gpu()
    yield from steps(setting, "redcnn", ["ours", train.GRAPH])


def steps_compiled(setting: Setting) -> Iterator[Figure]:
    """RED-CNN with train.compile."""
    setting.needs_gpu()
    yield from steps(setting, "redcnn", ["ours", train.COMPILED])


def stores(setting: Setting) -> Iterator[Figure]:
    """Patches from a copy on the device, and from the tars."""
    yield from steps(setting, "redcnn", list(STORES))


def steps(setting: Setting, network: str, names: list[str]) -> Iterator[Figure]:
    """Patches per second of the variants ``names``, one after the other in this process, beside the baseline where it
    is among them and beside a matrix product. One that fails is a figure too, and the others go on."""
    products = common.matrix_products(device(setting), 256 if setting.small else None)
    limits = {name: max(product() for _ in range(3)) for name, product in products.items()}
    yield from (Figure(f"large matrix product, {name}", rate / 1e12, "TFLOP/s") for name, rate in limits.items())
    for batch in batches(setting):
        rates: dict[str, float] = {}
        for name in names:
            settings = [*narrow(setting), *(train.SETTINGS | STORES)[name]]
            config = configure(setting.shards, network, batch, settings)
            try:
                rates[name], peak = measured(setting, name, config)
            except Exception as error:  # of one variant
                said = " ".join(str(error).split())[:200]
                yield Figure(f"{name}, {batch}", f"{type(error).__name__}: {said}", "", "a measurement", False)
                continue
            precision = "fp32" if name.startswith(train.BASELINE) else config.train.precision
            share = (
                rates[name] * common.flops(config.model, (train.PATCH, train.PATCH), backward=True) / limits[precision]
            )
            about: dict[str, str | float] = {
                "network": network,
                "variant": VARIANTS.get(name, name),
                "precision": precision,
            }
            about |= {"device": device_name(device(setting)), "patches_per_s": rates[name]}
            yield Figure(f"{name}, {batch}", rates[name], "patches/s", speed={} if setting.small else about)
            yield Figure(f"{name}, {batch}: of the {precision} product", 100 * share, "%")
            if peak:
                yield Figure(f"{name}, {batch}: peak memory", peak, "MB")
        for base in (train.BASELINE, train.BASELINE_TF32):
            if base in rates and "ours" in rates:
                yield Figure(f"ours over the {base}, {batch}", rates["ours"] / rates[base], "times")


def measured(setting: Setting, name: str, config: Config) -> tuple[float, float]:
    """Median patches per second of a variant, and on a GPU its peak memory in MB."""
    count, turns = (1, 2) if setting.small else (30, 4)
    if setting.gpu:
        gc.collect()  # the variant before, whose graph refers to itself
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    values: Generator[tuple[float, float]]
    if name.startswith(train.BASELINE):
        values = baseline_repeats(config, count, turns, name == train.BASELINE_TF32)
    else:
        values = trainer_repeats(config, count, turns)
    rates = [rate for rate, _ in values][1:]
    return statistics.median(rates), torch.cuda.max_memory_allocated() / 2**20 if setting.gpu else 0.0


def busy(setting: Setting) -> Iterator[Figure]:
    """Launches of a step, how long its kernels take, the share of a step in which the GPU computes, and where its time
    goes. What the profiler slows down, the time between kernels, is taken without it."""
    for network in ("redcnn",) if setting.small else ("redcnn", "unet"):
        for batch in batches(setting):
            config = configure(setting.shards, network, batch, narrow(setting))
            rate, _ = measured(setting, "ours", config)
            profile: dict[str, Any] = train.layers(config)
            label = f"{network}, {batch}"
            if setting.gpu:
                yield Figure(f"{label}: launches a step", profile["launches"])
                yield Figure(f"{label}: kernels of a step", profile["kernels_ms"], "ms")
                yield Figure(f"{label}: GPU busy", 100 * profile["kernels_ms"] / (1000 * batch / rate), "%")
            yield Figure(f"{label}: a step", 1000 * batch / rate, "ms")
        for row in profile["layers"][: 2 if setting.small else LONGEST]:
            yield Figure(f"{label}: {row['operation']} {row['shape']}", row["ms"], "ms")


def slices(setting: Setting) -> Iterator[Figure]:
    """Whole slices through what launch/denoise.py calls, in both precisions and beside the baseline."""
    count = 1 if setting.small else 8
    split = Slices(setting.shards, "val", count)
    low = np.stack([split[number][1][0] for number in range(len(split))])
    for network in ("redcnn",) if setting.small else ("redcnn", "unet"):
        run = setting.scratch / network
        flags = [*infer.short_run(setting.shards, network, run), *(f"--{one}" for one in narrow(setting))]
        trainer.train(configuration.parse(flags), Latch())
        outputs = {}
        for precision in infer.PRECISIONS:
            values = infer.denoiser_repeats(run, low, precision, device(setting))
            rates, found = zip(*itertools.islice(values, 1, 4), strict=True)
            outputs[precision] = found[-1]
            yield Figure(f"{network}, {precision}", statistics.median(rates), "slices/s")
        yield holds(f"{network} changes the slice", bool((outputs["fp32"] != low).any()))
        yield at_most(f"{network}, bf16 from fp32", rmse(outputs["bf16"], outputs["fp32"]), HU_LIMIT["bf16"], "HU RMSE")
        give_back()
        values = infer.baseline_repeats(run, low, device(setting))
        yield Figure(
            f"{network}, baseline", statistics.median(rate for rate, _ in itertools.islice(values, 1, 3)), "slices/s"
        )
        if setting.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            Denoiser(run, device(setting))(low)
            yield Figure(f"{network}: peak memory", torch.cuda.max_memory_allocated() / 2**20, "MB")
