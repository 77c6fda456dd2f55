"""How fast slices are denoised, beside the baseline and a matrix product; how far from fp32, in how much memory."""

import argparse
import math
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ldct import models
from ldct.benchmarks import baseline, common
from ldct.config import Config
from ldct.data.hu import denormalise, normalise
from ldct.data.slices import Slices
from ldct.device import full_precision, give_back, keep_freed, pick_device
from ldct.inference.denoiser import Denoiser
from ldct.inference.dicom import BATCH
from shards.common.command import InputError
from shards.common.table import text_table

Precision = Literal["fp32", "bf16"]

STEPS = 40
"""Training steps of the networks measured where no run is given: enough to differ from their start."""

PARTS = 6
"""Of a series, after which its memory is looked at."""

BASELINE, FP32 = "baseline", "ours, fp32"

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def short_run(shards: Path, network: str, folder: Path) -> list[str]:
    """Flags of a short run of the default recipe at full width."""
    flags = [f"--data.shards={shards}", f"--run_dir={folder}", f"--model.name={network}", f"--train.steps={STEPS}"]
    return [*flags, "--optim.warmup=10", "--train.global_batch=16", "--val.slices=1", "--track.wandb=disabled"]


def trained(shards: Path, network: str, folder: Path) -> Path:
    """The folder of a short run."""
    common.call("launch/train.py", *short_run(shards, network, folder))
    return folder


def measure_run(run: Path, low: np.ndarray, repeats: int, device: torch.device) -> dict[str, Any]:
    """Slices per second of a run's network, both precisions and the baseline alternating, each in a process of its own.

    Parameters
    ----------
    low : ndarray
        Slices, int16 HU, (n, H, W); a repeat takes all of them.

    Returns
    -------
    dict
        ``about`` the run, ``network``, ``matrix_product`` (the best among the repeats), ``base`` (what ratios are to)
        and the ``rows``.
    """
    common.share_device(device)
    denoiser = Denoiser(run, device)
    model = denoiser.config.model
    with ExitStack() as processes:
        asks: dict[str, Callable[[], Any]] = {}
        for precision in PRECISIONS:
            variant = common.apart(denoiser_repeats, run, low, precision, device)
            asks[f"ours, {precision}"] = processes.enter_context(variant)
        if model.attention == "none" and model.residual:
            asks[BASELINE] = processes.enter_context(common.apart(baseline_repeats, run, low, device))
        measured = common.alternate(asks | common.matrix_products(device), repeats, warmup=1)
    best: dict[str, float] = {name: max(measured.pop(name)) for name in PRECISIONS}
    base = BASELINE if BASELINE in measured else FP32
    about = {"about": denoiser.about, "network": model.name, "matrix_product": best, "base": base}
    return about | {"rows": rows(denoiser.config, low, measured, base, best)}


def denoiser_repeats(
    run: Path, low: np.ndarray, precision: Precision, device: torch.device
) -> Generator[tuple[float, np.ndarray]]:
    """What launch/denoise.py calls, repeated: slices per second, and the slices in HU."""
    keep_freed()
    denoiser = Denoiser(run, device)
    denoiser.precision = precision
    yield from timed(denoiser, low, device)


def baseline_repeats(run: Path, low: np.ndarray, device: torch.device) -> Generator[tuple[float, np.ndarray]]:
    """The baseline with the run's weights, repeated: slice by slice, float64 out, rounded to compare."""
    full_precision()
    denoiser = Denoiser(run, device)
    weights = {name: value.contiguous() for name, value in denoiser.model.state_dict().items()}
    network = baseline.create(denoiser.config.model, weights).to(device)
    normalization = denoiser.config.data.normalization

    def variant(low: np.ndarray) -> np.ndarray:
        return np.rint([baseline.denoise(network, slice_, normalization, device) for slice_ in low])

    yield from timed(variant, low, device)


def timed(
    variant: Callable[[np.ndarray], np.ndarray], low: np.ndarray, device: torch.device
) -> Generator[tuple[float, np.ndarray]]:
    """Slices per second of ``variant`` of ``low``, and what it gave, again and again."""
    outputs: list[np.ndarray] = []
    while True:
        took = common.seconds(lambda: outputs.append(variant(low)), device)
        yield len(low) / took, outputs.pop()


def rows(
    config: Config,
    low: np.ndarray,
    measured: dict[str, list[tuple[float, np.ndarray]]],
    base: str,
    best: dict[str, float],
) -> list[dict[str, Any]]:
    """A row for each variant.

    Returns
    -------
    list of dict
        variant, precision, slices_per_s (median, lowest, highest), ratio to ``base``, flop_per_s, share of the matrix
        product's, and rmse_hu, the distance of its output in whole HU from ours in fp32, over pixels that are
        not clipped: what normalization clips, the baseline does not put back.
    """
    work = common.flops(config.model, low.shape[1:])
    tensor, normalization = torch.from_numpy(low), config.data.normalization
    inside = (denormalise(normalise(tensor, normalization), normalization).round() == tensor).numpy()
    rates = {name: [speed for speed, _ in repeats] for name, repeats in measured.items()}
    outputs = {name: repeats[-1][1].astype(float) for name, repeats in measured.items()}
    table = []
    for name, values in rates.items():
        precision: Precision = "bf16" if name == "ours, bf16" else "fp32"
        speed = work * common.spread(values)["median"]
        table.append(
            {
                "variant": name,
                "precision": precision,
                "slices_per_s": common.spread(values),
                "flop_per_s": speed,
                "share": speed / best[precision],
                "ratio": common.ratio(values, rates[base]),
                "rmse_hu": float(np.sqrt(np.mean((outputs[name] - outputs[FP32])[inside] ** 2))),
            }
        )
    return table


def peak_mb(device: torch.device) -> float:
    """The most memory held so far in MB: on the GPU, or by this process; nan where there is no /proc.

    Not ru_maxrss: a process starts with its parent's.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), math.nan)


def peaks(run: Path, low: np.ndarray, device: torch.device) -> Generator[float]:
    """Peak memory in MB after each part of a series, of BATCH slices: what launch/denoise.py puts through the network
    at once, however long the series is."""
    keep_freed()
    denoiser, part = Denoiser(run, device), np.resize(low, (BATCH, *low.shape[1:]))
    while True:
        denoiser(part)
        give_back()
        yield peak_mb(device)


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    parts = [common.heading(result)]
    for network in result["networks"]:
        limits = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in network["matrix_product"].items())
        parts.append(f"slices of {' x '.join(map(str, result['shape']))}; large matrix product: {limits}")
        rows = [
            [
                f"{network['network']}, {row['variant']}",
                f"{row['slices_per_s']['median']:.2f}",
                f"{row['slices_per_s']['low']:.2f} to {row['slices_per_s']['high']:.2f}",
                f"{row['ratio']:.2f}",
                f"{100 * row['share']:.0f} %",
                f"{row['rmse_hu']:.3f}",
            ]
            for row in network["rows"]
        ]
        head = ["variant", "slices/s", "spread", f"/ {network['base']}", "of the product", "HU from fp32"]
        peaks = ", ".join(f"{peak:,.0f}" for peak in network["peak_mb"])
        parts += [text_table(head, rows), f"peak memory after each {BATCH} slices of a series: {peaks} MB"]
    return "\n".join(parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``launch/bench.py infer``."""
    parser.add_argument("--shards", type=Path, help="shards whose val slices to take (default: of a water phantom)")
    parser.add_argument("--run", type=Path, help="run folder (default: both networks, trained for a few steps first)")
    parser.add_argument("--slices", type=int, default=1, help="slices of a repeat (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count, after one to warm up (%(default)s)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print."""
    if min(options.slices, options.repeats) < 1:
        raise InputError("--slices, --repeats: expected numbers of at least 1")
    device = pick_device("auto")
    result = common.machine(device) | {"repeats": options.repeats, "networks": []}
    with tempfile.TemporaryDirectory() as scratch:
        shards = options.shards or common.generate(Path(scratch), 16)
        slices = Slices(shards, "val", options.slices)
        low = np.stack([slices[number][1][0] for number in range(len(slices))])
        result["shape"] = list(low.shape[1:])
        folders = [options.run] if options.run else [trained(shards, n, Path(scratch) / n) for n in models.names()]
        for folder in folders:
            network = measure_run(folder, low, options.repeats, device)
            with common.apart(peaks, folder, low, device) as peak:
                network["peak_mb"] = [peak() for _ in range(PARTS)]
            result["networks"].append(network)
    print(text(result))
    return result
