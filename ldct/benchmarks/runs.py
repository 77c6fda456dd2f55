"""Whole runs, measured: an epoch beside its steps, ranks beside one, seconds to a quality."""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ldct import config as configuration
from ldct.benchmarks import common
from ldct.config import Config
from ldct.data.patches import Patches, open_store
from ldct.device import keep_freed, pick_device
from ldct.metrics import names, protocols
from ldct.runs import folder as runs
from ldct.training.ranks import Ranks
from ldct.training.step import Training
from ldct.training.trainer import set_numerics
from shards.common.command import InputError
from shards.common.table import text_table

RANKS_S = 10.0
"""Seconds that a rate of ranks on GPUs is taken over."""

PATIENCE = 5
"""How many times as long as ours the study's recipe may take: at most a fifth is what is claimed."""


def epoch(shards: Path, batch: int, settings: Sequence[str]) -> dict[str, Any]:
    """One epoch of a real run, loader, line of metrics, heartbeat and all, beside the same steps on batches that are
    there already. Nothing waits for the device within either, so what overlaps in training overlaps here.

    The run trains two epochs; the second counts, and its own metrics say how fast it was. Validation is apart.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = configure(shards, folder, [f"train.global_batch={batch}", "val.every=1000000000", *settings])
        patches = len(Patches(shards, config.data))
        steps = -(-patches // config.train.global_batch)
        config.train.steps, config.train.log_every = 2 * steps, steps
        epoch_s = steps * config.train.global_batch / last_rate(config)
        with common.apart(steps_alone, config, steps) as ask:
            steps_s, about = ask()
    return about | {
        "patches": patches,
        "batch": config.train.global_batch,
        "steps": steps,
        "epoch_s": epoch_s,
        "steps_s": steps_s,
        "share": steps_s / epoch_s,
    }


def last_rate(config: Config, before: Sequence[str] = (), **environment: str) -> float:
    """Train ``config`` with launch/train.py, ``before`` between Python and it; patches per second of its last line."""
    file = Path(config.run_dir) / "asked.yaml"
    file.write_text(configuration.to_yaml(config))
    common.call("launch/train.py", f"--config={file}", before=before, **environment)
    return [line for line in runs.read_metrics(Path(config.run_dir)) if names.TRAIN_LOSS in line][-1]["patches_per_s"]


def steps_alone(config: Config, count: int) -> Generator[tuple[float, dict[str, Any]]]:
    """Seconds of ``count`` steps on one batch after one that does not count, and the machine."""
    keep_freed()
    set_numerics(config)
    training = Training(config, Ranks(config.train.timeout_s))
    device = training.ranks.device
    batch = open_store(training.patches, config.data.store, device).fetch(training.sampler[0])
    training.train_step(batch)

    def steps() -> None:
        for _ in range(count):
            training.train_step(batch)

    yield common.seconds(steps, device), common.machine(device)


def configure(shards: Path, folder: str, settings: Sequence[str]) -> Config:
    """The default recipe with ``settings`` (section.field=value), on one validation slice and without W&B."""
    fixed = [f"data.shards={shards}", f"run_dir={folder}", "val.slices=1", "track.wandb=disabled"]
    return configuration.parse([f"--{setting}" for setting in [*fixed, *settings]])


def epoch_text(result: dict[str, Any]) -> str:
    """The result of ``epoch`` for people."""
    return (
        f"{common.heading(result)}\n{result['patches']:,} patches in {result['steps']} steps of {result['batch']}: "
        f"{result['epoch_s']:.2f} s, steps alone {result['steps_s']:.2f} s, {100 * result['share']:.2f} %"
    )


def scaling(shards: Path, ranks: int, batch: int, steps: int, repeats: int, settings: Sequence[str]) -> dict[str, Any]:
    """Patches per second of ``ranks`` ranks and of one, at the same batch for each rank; on a CPU with one thread each.

    Real runs under torchrun; their own metrics say how fast they were, from the second line on. On GPUs, where a few
    steps are over at once, a run of one rank says before how many take RANKS_S.
    """

    def rate(count: int, steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            config = configure(
                shards,
                folder,
                [
                    f"train.global_batch={count * batch}",
                    f"train.steps={2 * steps}",
                    f"train.log_every={steps}",
                    *settings,
                ],
            )
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
            return last_rate(config, torchrun, OMP_NUM_THREADS="1")

    device = pick_device("auto")
    steps = longer(steps, batch, rate(1, steps), RANKS_S) if device.type == "cuda" else steps
    values = common.alternate({str(count): partial(rate, count, steps) for count in (1, ranks)}, repeats, warmup=0)
    return common.machine(device) | {
        "ranks": ranks,
        "threads": 1,
        "batch": batch,
        "steps": steps,
        "repeats": repeats,
        "patches_per_s": {name: common.spread(rates) for name, rates in values.items()},
        "ratio": common.ratio(values[str(ranks)], values["1"]),
    }


def longer(steps: int, batch: int, patches_per_s: float, seconds: float) -> int:
    """Steps of ``batch`` patches that take at least ``seconds`` at this rate, and no fewer than ``steps``."""
    return max(steps, math.ceil(seconds * patches_per_s / batch))


def scaling_text(result: dict[str, Any]) -> str:
    """The result of ``scaling`` for people."""
    rows = [
        [f"{name} ranks", f"{rate['median']:,.1f}", f"{rate['low']:,.1f} to {rate['high']:,.1f}"]
        for name, rate in result["patches_per_s"].items()
    ]
    shown = text_table([f"batch {result['batch']} a rank", "patches/s", "spread"], rows)
    return f"{common.heading(result)}\n{shown}\n{result['ranks']} ranks / 1: {result['ratio']:.2f}"


def quality(shards: Path, psnr: float, settings: Sequence[str]) -> dict[str, Any]:
    """Seconds of training until a validation reaches ``psnr`` (dB, by val.protocol): the default recipe and the
    study's, each a run of its own; ``settings`` hold for both. The study's is given PATIENCE times as long."""
    recipes = common.ROOT / "configs" / "train"
    fixed = [f"data.shards={shards}", "track.wandb=disabled", *settings]
    ours_s, best = until(psnr, [f"config={recipes / 'default.yaml'}", *fixed], float("inf"))
    if ours_s is None:
        raise InputError(f"the default recipe ended at {best:.2f} dB, below {psnr}; ask for less")
    study_s, study_best = until(psnr, [f"config={recipes / 'document.yaml'}", *fixed], PATIENCE * ours_s)
    return common.machine(pick_device("auto")) | {
        "psnr": psnr,
        "settings": list(settings),
        "ours_s": ours_s,
        "study_s": study_s,
        "study_best": study_best,
        "share": ours_s / study_s if study_s else None,
    }


def until(psnr: float, settings: Sequence[str], limit_s: float) -> tuple[float | None, float]:
    """Seconds of a run of launch/train.py until it reached ``psnr``, None if it did not within ``limit_s`` or its last
    step; and the best it reached."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--{setting}" for setting in [*settings, f"run_dir={folder}"]]
        with open(Path(folder) / "log", "w+") as log:
            script = common.ROOT / "launch" / "train.py"
            process = subprocess.Popen([sys.executable, str(script), *flags], stdout=log, stderr=log)
            try:
                while True:
                    ended = process.poll() is not None
                    curve = validations(Path(folder))
                    reached = [seconds for seconds, value in curve if value >= psnr and seconds <= limit_s]
                    over = bool(curve) and curve[-1][0] > limit_s
                    if reached or ended or over:
                        break
                    time.sleep(0.2)
            finally:
                process.terminate()
                process.wait()
            if not curve:
                log.seek(0)
                raise InputError(f"the training failed: {(log.read().strip().splitlines() or ['no message'])[-1]}")
    within = [value for seconds, value in curve if seconds <= limit_s]
    return (reached[0] if reached else None), max(within, default=curve[0][1])


def validations(folder: Path) -> list[tuple[float, float]]:
    """Seconds since the run began and PSNR, of every validation of the run in ``folder``."""
    psnr = {names.validation(names.metric(protocol, "psnr")) for protocol in protocols.names()}
    lines = runs.read_metrics(folder)
    return [(line["elapsed_s"], value) for line in lines for name, value in line.items() if name in psnr]


def quality_text(result: dict[str, Any]) -> str:
    """The result of ``quality`` for people."""
    ours_s, study_s = result["ours_s"], result["study_s"]
    if study_s:
        other = f"the study's {study_s:.1f} s: a share of {result['share']:.3f}"
    else:
        limit = PATIENCE * ours_s
        other = f"the study's not in {limit:.0f} s ({result['study_best']:.2f} dB): less than 1/{PATIENCE}"
    what = " ".join(result["settings"])
    return f"{common.heading(result)}\nto {result['psnr']} dB, {what}: default recipe {ours_s:.1f} s, {other}"
