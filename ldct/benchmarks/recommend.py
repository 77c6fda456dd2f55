"""What to train with on this machine: precision, memory format and batch size, tried on the full-width network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from ldct.benchmarks import common
from ldct.benchmarks.steps import configure, trainer_repeats
from ldct.config import Config, TrainConfig
from ldct.device import out_of_memory, pick_device
from shards.common.table import text_table

ENOUGH = 0.95
"""The smallest batch with this share of the best rate is taken: beyond it, memory buys little."""


def rate(config: Config, steps: int) -> float:
    """Patches per second, after a repeat to warm up; 0 where the device's memory does not suffice."""
    try:
        repeats = trainer_repeats(config, steps, 2)
        next(repeats)
        return next(repeats)[0]
    except RuntimeError as error:
        if out_of_memory(error):
            return 0.0
        raise


def recommend(
    shards: Path, network: str, batches: list[int], steps: int, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Try precision and memory format at the middle batch size, then all batch sizes with the fastest.

    Returns
    -------
    dict
        The machine, what was ``tried`` with its patches per second, and ``config``, the fields to use.
    """

    def measured(batch: int, form: dict[str, Any]) -> float:
        fields = [f"train.{name}={value}" for name, value in form.items()]
        return rate(configure(shards, network, batch, [*settings, *fields]), steps)

    forms = [{"precision": p, "channels_last": c} for p in ("bf16", "fp32") for c in (True, False)]
    middle = batches[len(batches) // 2]
    tried = [form | {"batch": middle, "patches_per_s": measured(middle, form)} for form in forms]
    form = max(zip(tried, forms, strict=True), key=lambda pair: pair[0]["patches_per_s"])[1]
    rates = {batch: measured(batch, form) for batch in batches}
    tried += [form | {"batch": batch, "patches_per_s": value} for batch, value in rates.items()]
    ranks = max(1, torch.cuda.device_count())
    config = {"train": {**split(smallest(rates) * ranks), **form}, "data": {"store": "auto"}}
    return common.machine(pick_device("auto")) | {"network": network, "ranks": ranks, "tried": tried, "config": config}


def smallest(rates: dict[int, float]) -> int:
    """The smallest batch size whose rate is ENOUGH of the best."""
    return min(batch for batch, value in rates.items() if value >= ENOUGH * max(rates.values()))


def split(at_once: int) -> dict[str, int]:
    """The global batch and its parts, where ``at_once`` pairs are best for all ranks together: no fewer than the
    recipe's, since fewer would be another recipe."""
    parts = -(-TrainConfig().global_batch // at_once)
    return {"global_batch": parts * at_once, "accumulate": parts}


def text(result: dict[str, Any]) -> str:
    """YAML to paste or to give to ``launch/train.py --config``; how it was found stands in comments."""
    rows = [
        [
            row["precision"],
            "NHWC" if row["channels_last"] else "NCHW",
            str(row["batch"]),
            f"{row['patches_per_s']:,.1f}",
        ]
        for row in result["tried"]
    ]
    shown = text_table(["precision", "format", "batch", "patches/s"], rows)
    about = (
        f"{common.heading(result)}\n{result['network']}; train.global_batch is for {result['ranks']} rank(s)\n{shown}"
    )
    notes = "\n".join(f"# {line}" for line in about.splitlines())
    workers = f"# workers: training needs none (one thread reads ahead); shards/build.py --workers {result['cores']}"
    return f"{notes}\n{workers}\n{yaml.safe_dump(result['config'], sort_keys=False)}".rstrip()
