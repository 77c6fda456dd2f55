"""How fast slices are denoised, beside the reference and a matrix product; how far from fp32, in how much memory."""

import argparse
import dataclasses
import resource
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldct import bench, models, reference
from ldct.config import ModelConfig
from ldct.data import Slices, denormalise, normalise
from ldct.denoise import BATCH
from ldct.deploy import Denoiser, pick_device
from shards.command import InputError

Precision = Literal["fp32", "bf16"]

STEPS = 40
"""Training steps of the networks measured where no run is given: enough to differ from their start."""

REFERENCE = "reference"

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def trained(shards: Path, network: str, folder: Path) -> Path:
    """The folder of a short run of the default recipe at full width."""
    flags = [f"--data.shards={shards}", f"--run_dir={folder}", f"--model.name={network}", f"--train.steps={STEPS}"]
    flags += ["--optim.warmup=10", "--train.global_batch=16", "--val.slices=1", "--track.wandb=disabled"]
    bench.call("launch/train.py", *flags)
    return folder


def measure(run: Path, low: np.ndarray, repeats: int, device: torch.device) -> dict[str, Any]:
    """Slices per second of a run's network, both precisions and the reference in turns.

    Parameters
    ----------
    low : ndarray
        Slices, int16 HU, (n, H, W); a turn takes all of them.

    Returns
    -------
    dict
        By way: slices_per_s (median, lowest, highest), ratio to the reference, flop_per_s, share of the best matrix
        product's among the turns, and rmse_hu, the distance of its output in whole HU from ours in fp32, over pixels
        that the scheme does not clip: what it clips, the reference does not put back.
    """
    first, outputs = Denoiser(run, device), dict[str, np.ndarray]()

    def ours(precision: Precision, slices: np.ndarray) -> np.ndarray:
        first.precision = precision
        return first(slices)

    def turn(name: str, way: Callable[[np.ndarray], np.ndarray]) -> float:
        def work() -> None:
            outputs[name] = way(low)

        return len(low) / bench.seconds(work, device)

    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {f"ours, {name}": partial(ours, name) for name in PRECISIONS}
    if first.config.model.attention == "none" and first.config.model.residual:
        ways[REFERENCE] = plain(first, device)
    turns = {name: partial(turn, name, way) for name, way in ways.items()}
    rates = bench.take_turns(turns | bench.matrix_products(device), repeats)
    best = {name: max(rates.pop(name)) for name in PRECISIONS}
    base = REFERENCE if REFERENCE in ways else "ours, fp32"
    work = forward_flops(first.config.model, low.shape[1:])
    tensor, scheme = torch.from_numpy(low), first.config.data.scheme
    inside = (denormalise(normalise(tensor, scheme), scheme).round() == tensor).numpy()
    rows = []
    for name, values in rates.items():
        rate = bench.spread(values)
        error = float(np.sqrt(np.mean((outputs[name].astype(float) - outputs["ours, fp32"])[inside] ** 2)))
        precision: Precision = "bf16" if name == "ours, bf16" else "fp32"
        speed = work * rate["median"]
        row = {"way": name, "precision": precision, "slices_per_s": rate, "flop_per_s": speed}
        ratio = bench.ratio(values, rates[base])
        rows.append(row | {"share": speed / best[precision], "ratio": ratio, "rmse_hu": error})
    about = {"about": first.about, "network": first.config.model.name, "matrix_product": best}
    return about | {"base": base, "rows": rows}


def plain(denoiser: Denoiser, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """The reference with the denoiser's weights: slice by slice, float64 out, rounded to compare."""
    model = denoiser.config.model
    weights = {name: value.contiguous() for name, value in denoiser.model.state_dict().items()}
    sizes = {"channels": model.channels} | ({"depth": model.depth} if model.name == "unet" else {})
    network = reference.create(model.name, weights, **sizes).to(device)
    scheme = denoiser.config.data.scheme

    def way(low: np.ndarray) -> np.ndarray:
        return np.rint([reference.denoise(network, slice_, scheme, device) for slice_ in low])

    return way


def forward_flops(model: ModelConfig, shape: tuple[int, int]) -> int:
    """FLOP of one slice through the network, convolutions and matrix products as torch counts them."""
    with torch.device("meta"):
        network = models.create(dataclasses.replace(model, init="default"))
        image = torch.zeros(1, 1, *shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def peak_mb(device: torch.device) -> float:
    """The most memory held so far in MB: on the GPU, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(denoiser: Callable[[np.ndarray], np.ndarray], low: np.ndarray, device: torch.device) -> list[float]:
    """Peak memory in MB after the first, second and third part of a series, each of BATCH slices: what
    launch/denoise.py puts through the network at once, however long the series is."""
    part = np.resize(low, (BATCH, *low.shape[1:]))
    peaks = []
    for _ in range(3):
        denoiser(part)
        peaks.append(peak_mb(device))
    return peaks


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    parts = [bench.heading(result)]
    for found in result["networks"]:
        limits = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in found["matrix_product"].items())
        parts.append(f"slices of {' x '.join(map(str, result['shape']))}; large matrix product: {limits}")
        rows = [
            [
                f"{found['network']}, {row['way']}",
                f"{row['slices_per_s']['median']:.2f}",
                f"{row['slices_per_s']['low']:.2f} to {row['slices_per_s']['high']:.2f}",
                f"{row['ratio']:.2f}",
                f"{100 * row['share']:.0f} %",
                f"{row['rmse_hu']:.3f}",
            ]
            for row in found["rows"]
        ]
        head = ["way", "slices/s", "spread", f"/ {found['base']}", "of the product", "HU from fp32"]
        peaks = ", ".join(f"{peak:,.0f}" for peak in found["peak_mb"])
        parts += [bench.table(head, rows), f"peak memory after {BATCH}, {2 * BATCH}, {3 * BATCH} slices: {peaks} MB"]
    return "\n".join(parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``launch/bench.py infer``."""
    parser.add_argument("--shards", type=Path, help="shards whose val slices to take (default: of a water phantom)")
    parser.add_argument("--run", type=Path, help="run folder (default: both networks, trained for a few steps first)")
    parser.add_argument("--slices", type=int, default=1, help="slices of a turn (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count, after one to warm up (%(default)s)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print."""
    if min(options.slices, options.repeats) < 1:
        raise InputError("--slices, --repeats: expected numbers of at least 1")
    device = pick_device("auto")
    result = bench.machine(device) | {"repeats": options.repeats, "networks": []}
    with tempfile.TemporaryDirectory() as scratch:
        shards = options.shards or bench.generate(Path(scratch), 16)
        slices = Slices(shards, "val", options.slices)
        low = np.stack([slices[number][1][0] for number in range(len(slices))])
        result["shape"] = list(low.shape[1:])
        folders = [options.run] if options.run else [trained(shards, n, Path(scratch) / n) for n in models.names()]
        for folder in folders:
            found = measure(folder, low, options.repeats, device)
            found["peak_mb"] = memory(Denoiser(folder, device), low, device)
            result["networks"].append(found)
    print(text(result))
    return result
