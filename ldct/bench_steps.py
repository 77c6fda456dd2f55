"""Steps of the trainer without a run around them, and those of the reference on the same batches."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldct import config as configuration
from ldct import data, models, reference
from ldct.config import Config, ModelConfig
from ldct.distributed import Ranks
from ldct.journal import Journal
from ldct.preempt import Latch
from ldct.train import Training, set_numerics

LR = 1e-4
"""Learning rate of all ways."""


class Unwritten(Journal):
    """A journal for steps without a run folder."""

    def __init__(self) -> None:
        self.restored = None

    def stepped(self, step: int) -> None:
        """Nothing is written."""


def configure(shards: Path, network: str, batch: int, change: dict[str, Any]) -> Config:
    """The default recipe, but what must be equal for equal losses: no augmentation, Adam at a constant rate."""
    fields: dict[str, dict[str, Any]] = {
        "data": {"shards": str(shards), "augment": False},
        "model": {"name": network},
        "optim": {"name": "adam", "lr": LR, "schedule": "constant", "warmup": 0, "clip_norm": 0},
        "train": {"global_batch": batch, "log_every": 1_000_000},
    }
    for section, values in change.items():
        if section in fields:
            fields[section] |= values
    return configuration.from_dict(fields)


def start(config: Config, compiled: str = "") -> Training:
    """The trainer before its first step."""
    set_numerics(config)
    training = Training(config, Ranks(config.train.timeout_s), cast(Latch, None), Unwritten())  # the loop's alone
    if compiled:
        training.parallel = cast(torch.nn.Module, torch.compile(training.parallel, mode=compiled))
    return training


def ours(training: Training, steps: int) -> Iterator[Tensor]:
    """Make ``steps`` steps as the loop does, without what stands between them; gives their losses."""
    store = data.open_store(training.tiles, training.config.data.store, training.ranks.device)
    loader = data.Loader(store, training.order, 0, 1, 0, steps)
    try:
        for pairs in loader:
            before = training.loss_sum.clone()
            training._update(pairs)
            yield training.loss_sum - before
    finally:
        loader.close()


def theirs(training: Training, steps: int, folder: Path) -> Iterator[Tensor]:
    """The reference from the same weights on the same batches, from files written into ``folder``."""
    name, scheme = training.config.model.name, training.config.data.scheme
    sizes = {"channels": training.config.model.channels}
    batches = [training.order[step].tolist() for step in range(steps)]
    needed = sorted({number for batch in batches for number in batch})
    store = data.MappedStore(training.tiles, torch.device("cpu"))
    for part in range(0, len(needed), 1024):
        numbers = needed[part : part + 1024]
        reference.write_patches(store.fetch(torch.tensor(numbers).numpy()), numbers, folder, scheme)
    network = reference.create(name, training.model.state_dict(), **sizes)
    return reference.training(network, folder, batches, LR, training.ranks.device, min(4, os.cpu_count() or 1))


def flops(model: ModelConfig, patch: int) -> int:
    """FLOP of the network's forward and backward on one patch as torch counts them: convolutions and matrix products,
    two for each multiplication and addition."""
    with torch.device("meta"):
        network = models.create(dataclasses.replace(model, init="default"))
        image = torch.zeros(1, 1, patch, patch)
    with FlopCounterMode(display=False) as counter:
        network(image).sum().backward()
    return counter.get_total_flops()
