"""What runs will cost, from the speed of earlier runs or from what launch/bench.py measured."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldct.config import Config
from ldct.config.networks import networks
from ldct.runs import folder as runs
from shards.common.command import InputError
from slurm.cluster import Cluster
from slurm.sweep import Run

Speeds = dict[tuple[str, str], float]
"""Network and precision -> patches per second of one device."""


def device_hours(
    planned: list[Run], cluster: Cluster, root: Path, bench: Path | None = None
) -> dict[str, float | None]:
    """Hours times devices that each run will take, from the speed of the newest earlier run of the same network.

    Earlier runs count if they trained on the same kind of device. Without one, the speeds in the file ``bench`` count;
    None where neither knows the network.

    Raises
    ------
    InputError
        If the file cannot be used, or was measured on another kind of device.
    """
    gpu = bool(cluster.gpus_per_node or cluster.gres)
    earlier, measured = earlier_speeds(root, gpu), read_bench(bench, gpu) if bench else {}
    hours: dict[str, float | None] = {}
    for run in planned:
        speed = earlier.get(speed_key(run.config)) or measured.get(bench_key(run.config))
        pairs = run.config.train.steps * run.config.train.global_batch
        hours[run.name] = pairs / speed / 3600 if speed else None
    return hours


def earlier_speeds(root: Path, gpu: bool) -> Speeds:
    """Speeds of the newest runs below ``root``; the key has the whole network."""
    speeds: Speeds = {}
    statuses = sorted(root.glob("*/*/status.json"), key=lambda path: path.stat().st_mtime)[-100:]
    for path in statuses:
        status = runs.read_status(path.parent)
        if status.patches_per_s > 0 and runs.on_gpu(status.device) == gpu:
            with contextlib.suppress(InputError):
                speeds[speed_key(runs.read_config(path.parent))] = status.patches_per_s / status.world_size
    return speeds


def speed_key(config: Config) -> tuple[str, str]:
    """What a run's speed depends on most."""
    return json.dumps(vars(config.model)), config.train.precision


def bench_key(config: Config) -> tuple[str, str]:
    """As ``speed_key``, of a network in its usual size, which is what is measured; attention may stand in it."""
    usual = networks()[config.model.name].sizes
    same = all(getattr(config.model, size) == value for size, value in usual.items())
    return config.model.name if same else "", config.train.precision


def read_bench(path: Path, gpu: bool) -> Speeds:
    """The speeds in a JSON file of launch/bench.py: the highest over batch sizes.

    Any object in it counts that has patches_per_s (a number above 0, or a median), and network and precision in itself
    or in an object around it; a variant other than ours does not.

    Raises
    ------
    InputError
        If there are none, or they are of another kind of device.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--bench {path}: expected JSON of launch/bench.py train --json: {error}") from None
    speeds: Speeds = {}
    for row in speeds_in(content, {}):
        if runs.on_gpu(str(row.get("device", "cpu"))) != gpu:
            raise InputError(
                f"--bench {path}: measured on {row.get('device', 'an unknown device')}, but the cluster's runs "
                f"{'have GPUs' if gpu else 'train on CPUs'}; measure there"
            )
        key = str(row["network"]), str(row["precision"])
        speeds[key] = max(speeds.get(key, 0.0), row["patches_per_s"])
    if not speeds:
        raise InputError(f"--bench {path}: no object in it has network, precision and patches_per_s")
    return speeds


def speeds_in(content: Any, around: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Objects with a speed at any depth of ``content``, with the fields of those ``around`` them."""
    if isinstance(content, list):
        for item in content:
            yield from speeds_in(item, around)
    if isinstance(content, dict):
        row = {**around, **{key: value for key, value in content.items() if isinstance(value, str | float | int)}}
        if isinstance(spread := content.get("patches_per_s"), dict) and "median" in spread:
            row["patches_per_s"] = spread["median"]
        speed = row.get("patches_per_s")
        own = isinstance(speed, float | int) and not isinstance(speed, bool) and 0 < speed < math.inf
        if own and row.get("variant", "ours") == "ours" and {"network", "precision"} <= row.keys():
            yield row
        for value in content.values():
            yield from speeds_in(value, {k: v for k, v in row.items() if k != "patches_per_s"})
