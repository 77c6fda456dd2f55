"""Whether a step fits into the machine's memory, asked before it is tried: a CPU's process is killed without a word."""

import copy
import os

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ldct.device import free_memory
from ldct.models.network import Network
from ldct.training.step import Training
from shards.common.command import InputError


def check_fits(training: Training) -> None:
    """Raise an InputError for a step on the CPU that cannot fit; a GPU says so itself.

    What is counted is certain: the batch, and what the network keeps of its patches for the backward pass. A step takes
    more than that.
    """
    config, side = training.config.train, training.patches.patch
    free = free_memory()
    if training.ranks.device.type != "cpu" or free is None:
        return
    share = config.global_batch // training.ranks.world_size
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    batch = share * 2 * side**2 * (torch.int16.itemsize + torch.float32.itemsize)
    kept = bytes_kept(training.model, side) // (2 if config.precision == "bf16" else 1)

    def needed(parts: int) -> int:
        return here * (batch + share // parts * kept)

    if needed(config.accumulate) <= free:
        return
    parts = next((n for n in range(config.accumulate, share + 1) if share % n == 0 and needed(n) <= free), None)
    smaller = f"train.accumulate={parts}, which trains the same" if parts else "a smaller train.global_batch"
    raise InputError(
        f"train.global_batch: {config.global_batch} patches a step need at least {needed(config.accumulate) / 1e9:.3g} "
        f"GB of memory on this machine, {free / 1e9:.3g} GB are free; try {smaller}"
    )


def bytes_kept(model: Network, side: int) -> int:
    """Bytes that ``model`` keeps of one patch of ``side`` pixels from the forward to the backward pass, in fp32.

    The difference between two patches and one: what does not grow with them, the weights, is not counted. Nothing is
    computed: torch's meta device knows sizes alone.
    """
    model = copy.deepcopy(model).to("meta").train()
    sizes = []
    for count in (1, 2):
        seen: dict[int, Tensor] = {}

        def keep(tensor: Tensor, seen: dict[int, Tensor] = seen) -> Tensor:
            seen[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(torch.zeros(count, 1, side, side, device="meta"))
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in seen.values()))
        del output
    return sizes[1] - sizes[0]
