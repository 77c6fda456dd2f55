"""Which patches make up which global batch: a function of (seed, epoch) alone.

The state of the data is the global step: batch ``s`` is the same patches in the same order on any number of ranks,
after any number of restarts. There is nothing else to save and nothing to skip through.
"""

from functools import lru_cache

import numpy as np


class Sampler:
    """Which patches make up which global batch.

    An epoch is a permutation of all patches: the shards are permuted and dealt into windows of at most ``window``
    shards, equal but for one, and the patches of each window are permuted. The epochs follow each other without a gap
    and batches are cut from that endless sequence. So every patch comes once per epoch; a batch at an epoch's end is
    filled from the next epoch's start, and none is short or dropped.
    """

    def __init__(self, shard_of_patch: np.ndarray, seed: int, window: int, global_batch: int) -> None:
        self.seed, self.batch = seed, global_batch
        self.count = len(shard_of_patch)
        groups = np.argsort(shard_of_patch, kind="stable").astype(np.int32)  # half the memory, for two epochs as well
        borders = np.flatnonzero(np.diff(shard_of_patch[groups])) + 1
        self.of_shard = np.split(groups, borders)
        self.window = window or len(self.of_shard)
        self.epoch = lru_cache(maxsize=2)(self._epoch)  # a batch mostly touches one epoch or two neighbours

    def _epoch(self, epoch: int) -> np.ndarray:
        draw = np.random.default_rng((self.seed, 0, epoch))
        shards = draw.permutation(len(self.of_shard))
        windows = np.array_split(shards, -(-len(shards) // self.window))
        return np.concatenate([draw.permutation(np.concatenate([self.of_shard[s] for s in w])) for w in windows])

    def __getitem__(self, step: int) -> np.ndarray:
        """Patch indices of the global batch at ``step`` (from 0), shape (global_batch,)."""
        position, parts = step * self.batch, []
        end = position + self.batch
        while position < end:
            epoch, start = divmod(position, self.count)
            part = self.epoch(epoch)[start : start + end - position]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts, dtype=np.int64)
