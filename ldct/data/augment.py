"""Flips and quarter turns of training patches, drawn from (seed, step)."""

import numpy as np
import torch
from torch import Tensor


def augment(pairs: Tensor, codes: Tensor) -> Tensor:
    """Flip and turn square patches.

    Parameters
    ----------
    pairs : Tensor
        Shape (n, 2, p, p); both doses of a pair are turned alike.
    codes : Tensor
        Shape (n,), 0 to 7: bit 0 transposes, bit 1 flips rows, bit 2 flips columns: the eight symmetries of a square.
    """
    bits = codes.view(-1, 1, 1, 1)
    pairs = torch.where(bits & 1 > 0, pairs.transpose(-1, -2), pairs)
    pairs = torch.where(bits & 2 > 0, pairs.flip(-2), pairs)
    # contiguous: torch.where keeps the order of a transposed input, and everything behind would copy it once more
    return torch.where(bits & 4 > 0, pairs.flip(-1), pairs).contiguous()


def augmentation_codes(seed: int, step: int, global_batch: int) -> Tensor:
    """Codes for ``augment`` of the whole global batch at ``step``, shape (global_batch,), int64."""
    draw = np.random.default_rng((seed, 1, step))  # 1 keeps this stream apart from the order's
    return torch.from_numpy(draw.integers(0, 8, global_batch))
