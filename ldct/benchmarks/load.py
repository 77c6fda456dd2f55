"""How fast pairs reach the device, beside webdataset's own way and beside a copy in memory; and what saving costs."""

import argparse
import io
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor, nn

from ldct import config as configuration
from ldct import models
from ldct.benchmarks import common
from ldct.data.loader import Loader
from ldct.data.patches import MappedStore, Patches, open_store
from ldct.data.sampler import Sampler
from ldct.device import pick_device
from ldct.metrics import names
from ldct.runs import checkpoint
from ldct.runs import folder as runs
from ldct.training import optim
from ldct.training.ranks import Ranks
from ldct.training.recorder import Recorder
from ldct.training.signals import Latch
from ldct.training.step import Training
from ldct.training.trainer import Trainer
from shards.common.command import InputError

BATCH = 512

LOOP_STEPS = 2000
"""Steps of a run whose own time is measured."""


def ours(folder: Path) -> Iterator[int]:
    """Pairs per batch of the training loader, over two epochs, air included."""
    patches = Patches(folder, configuration.DataConfig(min_body=0))
    sampler = Sampler(patches.shard, 0, configuration.DataConfig().window_shards, BATCH)
    device = pick_device("auto")
    with Loader(open_store(patches, "mmap", device), sampler, 0, 1, 0, 2 * len(patches) // BATCH) as batches:
        for batch in batches:
            yield len(batch.to(device, non_blocking=True))


def one_pair_per_member(source: Path, folder: Path) -> int:
    """Rewrite the training pairs as webdataset is commonly fed: one member per pair; returns their number."""
    store = MappedStore(patches := Patches(source, configuration.DataConfig(min_body=0)), torch.device("cpu"))
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(patches)), 4)):
        with tarfile.open(folder / f"pairs-{number}.tar", "w") as tar:
            for index, pair in zip(part, store.fetch(part).numpy(), strict=True):
                buffer = io.BytesIO()
                np.save(buffer, pair)
                info = tarfile.TarInfo(f"{index:08d}.pair.npy")
                info.size = len(buffer.getvalue())
                buffer.seek(0)
                tar.addfile(info, buffer)
    return len(patches)


def plain_webdataset(folder: Path) -> Iterator[int]:
    """Pairs per batch of a plain webdataset pipeline with one pair per member."""
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).decode().to_tuple("pair.npy")
    for (batch,) in dataset.batched(BATCH):
        yield len(torch.as_tensor(np.asarray(batch)))


def memory_copy() -> Iterator[int]:
    """The limit: the bytes of a batch copied from one place in memory to another."""
    source = torch.zeros(64, BATCH, 2, 55, 55, dtype=torch.int16)
    for number in range(256):
        yield len(source[number % 64].clone())


def rate(variant: Callable[[], Iterator[int]]) -> float:
    """Pairs per second, from the first batch asked for to the last one there."""
    began = time.perf_counter()
    pairs = sum(variant())
    return pairs / (time.perf_counter() - began)


def checkpoint_seconds(repeats: int) -> list[float]:
    """Seconds to write a checkpoint of the published RED-CNN with Adam's state and the average, fsync included."""
    model, average = (models.create(configuration.ModelConfig()) for _ in range(2))
    optimizer = optim.create(list(model.parameters()), configuration.OptimConfig())
    sum(weight.sum() for weight in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    content = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats + 1):
            began = time.perf_counter()
            checkpoint.save(Path(folder), checkpoint.step_name(number), content)
            seconds.append(time.perf_counter() - began)
    return seconds[1:]


def training(shards: Path, folder: Path, steps: int, *more: str) -> subprocess.Popen[bytes]:
    """Start the training command on ``shards`` with a narrow RED-CNN."""
    script = common.ROOT / "launch" / "train.py"
    flags = [f"--data.shards={shards}", f"--run_dir={folder}", "--model.channels=24", "--train.global_batch=16"]
    flags += [f"--train.steps={steps}", "--train.log_every=1", "--val.slices=1", "--track.wandb=disabled", *more]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, str(script), *flags], **quiet)  # type: ignore[call-overload]


def wait_for_step(folder: Path, after: int, process: subprocess.Popen[bytes]) -> float:
    """When the first training line behind step ``after`` was there."""
    while process.poll() is None:
        if any(line["step"] > after and names.TRAIN_LOSS in line for line in runs.read_metrics(folder)):
            return time.perf_counter()
        time.sleep(0.02)
    raise InputError(f"the training in {folder} ended before its first step; run launch/train.py on these shards")


def resumed(shards: Path) -> dict[str, float]:
    """Seconds from process start to the first step of a resumed run, and the share of time it waited for data."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        process = training(shards, folder, 10_000)
        wait_for_step(folder, 5, process)
        process.send_signal(signal.SIGTERM)
        process.wait()
        step = runs.read_status(folder).step
        began = time.perf_counter()
        process = training(shards, folder, step + 60)
        first = wait_for_step(folder, step, process) - began
        process.wait()
        waits = [line["data_wait"] for line in runs.read_metrics(folder) if line["step"] > step + 1]
        return {"first_step_s": first, "data_wait_share": statistics.mean(waits)}


class WithoutPasses(Training):
    """Steps that take the first one's gradients: their time is the loop's own, beside forward and backward."""

    def __init__(self, config: configuration.Config, ranks: Ranks) -> None:
        super().__init__(config, ranks)
        self.passes: tuple[Tensor, list[Tensor | None]] | None = None
        """Loss and gradients of the first step."""
        self.begun: list[float] = []
        """CPU seconds of this thread, at every step."""

    def _passes(self, pairs: Tensor, *codes: Tensor, network: nn.Module | None = None) -> Tensor:
        self.begun.append(time.thread_time())
        if not self.passes:
            loss = super()._passes(pairs, *codes, network=network)
            self.passes = loss, [parameter.grad for parameter in self.parameters]
        loss, gradients = self.passes
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss


def loop_ms(shards: Path, steps: int) -> Generator[float]:
    """CPU milliseconds that a step of a run takes in the loop's thread, beside forward and backward; the median.

    The network is so narrow that what is left of optimizer and average is the calls, not the numbers.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--data.shards={shards}", f"--run_dir={folder}", "--model.channels=4", "--train.global_batch=4"]
        flags += [f"--train.steps={steps}", f"--train.log_every={steps}", f"--val.every={steps}", "--val.slices=1"]
        config = configuration.parse([*flags, "--track.wandb=disabled"])
        ranks = Ranks(config.train.timeout_s)
        with Recorder(config, ranks) as recorder:
            run = WithoutPasses(config, ranks)
            Trainer(run, recorder, Latch()).run()
    yield 1000 * float(np.median(np.diff(run.begun)[steps // 10 :]))


def measure(pairs: int, repeats: int, shards: Path | None) -> dict[str, Any]:
    """All figures; the loaders alternate, ``repeats`` times after one round that is not counted."""
    with tempfile.TemporaryDirectory() as scratch:
        source = shards or common.generate(Path(scratch), pairs)
        count = one_pair_per_member(source, members := Path(scratch) / "members")
        variants = {
            "ours": lambda: ours(source),
            "webdataset, one pair per member": lambda: plain_webdataset(members),
            "limit: memory copy": memory_copy,
        }
        rates = common.alternate({name: partial(rate, variant) for name, variant in variants.items()}, repeats)
        seconds = checkpoint_seconds(repeats)
        with common.apart(loop_ms, source, LOOP_STEPS) as ask:
            loop = ask()
        return {
            **common.machine(pick_device("auto")),
            "webdataset": webdataset.__version__,
            "pairs": count,
            "batch": BATCH,
            "repeats": repeats,
            "pairs_per_second": {name: common.spread(values) for name, values in rates.items()},
            "ours / webdataset": common.ratio(*islice(rates.values(), 2)),
            "checkpoint_seconds": common.spread(seconds),
            "checkpoint_share": statistics.median(seconds) / configuration.TrainConfig().save_every_s,
            "loop_ms": loop,
            **resumed(source),
        }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{result['pairs']} pairs, batches of {result['batch']}, {result['repeats']} rounds"]
    for name, value in result["pairs_per_second"].items():
        lines.append(f"{name:32} {value['median']:9,.0f} pairs/s ({value['low']:,.0f} to {value['high']:,.0f})")
    lines.append(f"{'ours / webdataset':32} {result['ours / webdataset']:9.1f}")
    share = 100 * result["checkpoint_share"]
    lines.append(f"{'checkpoint':32} {result['checkpoint_seconds']['median']:9.3f} s, {share:.2f} % of the time")
    lines.append(f"{'a step, forward and backward apart':32} {result['loop_ms']:9.2f} ms of the CPU")
    lines.append(f"{'start to first resumed step':32} {result['first_step_s']:9.1f} s")
    lines.append(f"{'share of a step waiting for data':32} {100 * result['data_wait_share']:9.2f} %")
    return "\n".join([common.heading(result), *lines])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``launch/bench.py load``."""
    parser.add_argument("--shards", type=Path, help="shards to read and resume on (default: of a water phantom)")
    parser.add_argument("--pairs", type=int, default=256, help="slices to generate without --shards (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count, after one to warm up (%(default)s)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print."""
    if options.pairs < 16 or options.repeats < 1:
        raise InputError(f"--pairs {options.pairs} --repeats {options.repeats}: expected at least 16 and 1")
    result = measure(options.pairs, options.repeats, options.shards)
    print(table(result))
    return result
