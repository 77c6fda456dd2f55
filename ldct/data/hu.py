"""HU to the values a network sees, and back."""

import numpy as np
from torch import Tensor

from shards.pixels import PADDING

NORMALIZATIONS = {
    "hu1000": (0.0, 1000.0, (-1000.0, 2000.0)),
    "hu500": (-500.0, 500.0, None),
    "redcnn": (-1024.0, 4096.0, None),
}
"""By name: HU that becomes 0, HU that make 1, and the range clipped to beforehand, in HU."""


def normalise(hu: Tensor, normalization: str) -> Tensor:
    """HU, any dtype, to the values a network sees, float32; a key of NORMALIZATIONS names how."""
    zero, scale, clip = NORMALIZATIONS[normalization]
    values = hu.float()
    return ((values.clamp(*clip) if clip else values) - zero) / scale


def denormalise(values: Tensor, normalization: str) -> Tensor:
    """Network values to HU, float32; the inverse of normalise within its clipped range."""
    zero, scale, _ = NORMALIZATIONS[normalization]
    return values.float() * scale + zero


def to_hu(values: np.ndarray) -> np.ndarray:
    """Rounded to int16, and nothing below -1024 HU, as a scanner stores it: what is measured is what is written."""
    return np.clip(np.rint(values), PADDING, 32767).astype(np.int16)
