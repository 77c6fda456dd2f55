"""Steps of the trainer without a run around them, and those of the baseline on the same batches."""

import os
import tempfile
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ldct import config as configuration
from ldct.benchmarks import baseline, common
from ldct.config import Config
from ldct.data.loader import Loader
from ldct.data.patches import MappedStore, open_store
from ldct.device import full_precision, keep_freed
from ldct.training.ranks import Ranks
from ldct.training.step import Training
from ldct.training.trainer import set_numerics
from shards.common.command import InputError

LR = 1e-4
"""Learning rate of all variants."""


def configure(shards: Path, network: str, batch: int, settings: Sequence[str] = ()) -> Config:
    """The default recipe with ``settings`` (section.field=value), but for what the baseline does: MSE, Adam at a
    constant rate, no augmentation.

    Raises
    ------
    InputError
        If a setting is one of these, or cannot be.
    """
    fixed = [f"data.shards={shards}", "data.augment=false", f"model.name={network}"]
    fixed += ["optim.name=adam", f"optim.lr={LR}", "optim.schedule=constant", "optim.warmup=0", "optim.clip_norm=0"]
    fixed += [f"train.global_batch={batch}", "train.log_every=1000000", "loss.name=mse"]
    names = {setting.split("=")[0] for setting in fixed}
    if clash := [setting for setting in settings if setting.split("=")[0] in names]:
        raise InputError(f"--set {clash[0]}: all steps of this bench have one value of that field; leave it out")
    return configuration.parse([f"--{setting}" for setting in [*fixed, *settings]])


def start(config: Config) -> Training:
    """A training before its first step."""
    return Training(config, Ranks(config.train.timeout_s))


def trainer_repeats(config: Config, steps: int, repeats: int) -> Generator[tuple[float, float]]:
    """Repeats of the trainer: patches per second and mean loss of each. Sets this process up as launch/train.py does.

    Raises
    ------
    InputError
        At the end, if train.cuda_graph or train.compile was asked for and given up: it is not what was measured.
    """
    keep_freed()
    set_numerics(config)
    training = start(config)
    yield from timed(
        trainer_losses(training, (1 + steps) * repeats), config.train.global_batch, steps, training.ranks.device
    )
    if config.train.cuda_graph and not (training.recorded and training.recorded.graph):
        raise InputError("train.cuda_graph was not followed; its note says why")
    if config.train.compile != "none" and training.faster is training.parallel:
        raise InputError("train.compile was not followed; its note says why")


def baseline_repeats(config: Config, steps: int, repeats: int, tf32: bool = False) -> Generator[tuple[float, float]]:
    """The baseline, as ``trainer_repeats``. Its process computes fp32 in fp32, with the fastest kernels that cuDNN
    finds; threads and allocator are as torch leaves them."""
    full_precision()
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        training = start(config)
        losses = baseline_losses(training, (1 + steps) * repeats, Path(folder))
        yield from timed(losses, config.train.global_batch, steps, training.ranks.device)


def timed(losses: Iterator[Tensor], batch: int, steps: int, device: torch.device) -> Generator[tuple[float, float]]:
    """Patches per second and mean loss of every ``steps`` steps, after one that does not count: between repeats a GPU's
    memory is left to the other processes, and has to be allocated again."""
    for _ in losses:
        repeat: list[Tensor] = []
        took = common.seconds(lambda: repeat.extend(islice(losses, steps)), device)  # noqa: B023 (called at once)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield len(repeat) * batch / took, torch.stack(repeat).mean().item()


def trainer_losses(training: Training, steps: int) -> Iterator[Tensor]:
    """Make ``steps`` steps as the loop does, without what stands between them; gives their losses."""
    store = open_store(training.patches, training.config.data.store, training.ranks.device)
    with Loader(store, training.sampler, 0, 1, 0, steps) as batches:
        for batch in batches:
            yield training.train_step(batch).loss


def baseline_losses(training: Training, steps: int, folder: Path) -> Iterator[Tensor]:
    """The baseline from the same weights on the same batches, from files written into ``folder``."""
    normalization = training.config.data.normalization
    batches = [training.sampler[step].tolist() for step in range(steps)]
    needed = sorted({number for batch in batches for number in batch})
    store = MappedStore(training.patches, torch.device("cpu"))
    for part in range(0, len(needed), 1024):
        numbers = needed[part : part + 1024]
        baseline.write_patches(store.fetch(torch.tensor(numbers).numpy()), numbers, folder, normalization)
    network = baseline.create(training.config.model, training.model.state_dict())
    return baseline.training(network, folder, batches, LR, training.ranks.device, min(4, os.cpu_count() or 1))
