"""What a slice shows at both doses: noise, level, air, and whether it is one anatomy."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from shards.dicom import Unusable
from shards.matching import Pair
from shards.noise_level import noise_sd, soft_tissue
from shards.pixels import PADDING, read_hu

SOFT, FAT = (0.0, 100.0), (-130.0, -70.0)
"""HU of the tissues in which the levels of both doses are compared."""


def anatomy_correlation(full: np.ndarray, low: np.ndarray) -> float:
    """Correlation of two slices, shape (H, W), in HU, as far as it is anatomy.

    Soft tissue range, means of 8 x 8 pixels against the noise, within the body of either. nan if there is no body
    or no structure.
    """
    a, b = (_blocks(np.clip(hu, -200, 300)) for hu in (full, low))
    inside = (a > -190) | (b > -190)
    if np.count_nonzero(inside) < 20 or a[inside].std() == 0 or b[inside].std() == 0:
        return math.nan
    return float(np.corrcoef(a[inside], b[inside])[0, 1])


def _blocks(hu: np.ndarray) -> np.ndarray:
    """Means of 8 x 8 pixels, float, shape (H // 8, W // 8): anatomy without most of the noise."""
    rows, columns = hu.shape[0] // 8, hu.shape[1] // 8
    return hu[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8).mean(axis=(1, 3))


def level_difference(full: np.ndarray, low: np.ndarray, tissue: tuple[float, float]) -> float:
    """Median of reduced minus full dose in HU, over 8 x 8 pixels whose mean at full dose lies within ``tissue``.

    nan where there are fewer than 20 of them.
    """
    a, b = _blocks(full), _blocks(low)
    inside = (a >= tissue[0]) & (a <= tissue[1])
    return float(np.median((b - a)[inside])) if np.count_nonzero(inside) >= 20 else math.nan


def air_level(hu: np.ndarray) -> float:
    """HU that one percent of the pixels fall below, padding aside; nan if all is padding."""
    inside = hu[hu > PADDING]
    return float(np.percentile(inside, 1)) if inside.size else math.nan


@dataclass(frozen=True)
class Comparison:
    """What a pair shows; nan where it cannot be measured."""

    noise_full: float
    noise_reduced: float
    correlation: float
    level_soft: float
    level_fat: float
    air_full: float
    air_reduced: float
    tissue: float
    """Share of the full dose's pixels from -200 to 300 HU."""
    identical: bool
    """Whether both doses have the same pixels."""
    digest: str
    """Names the full dose's pixels."""


def compare(pair: Pair) -> Comparison | None:
    """Measure a pair; None if it cannot be read."""
    try:
        full, low = read_hu(pair.full)[0], read_hu(pair.low)[0]
    except Unusable:
        return None
    mask = soft_tissue(full)
    return Comparison(
        noise_full=noise_sd(full, mask),
        noise_reduced=noise_sd(low, mask),
        correlation=anatomy_correlation(full, low),
        level_soft=level_difference(full, low, SOFT),
        level_fat=level_difference(full, low, FAT),
        air_full=air_level(full),
        air_reduced=air_level(low),
        tissue=float(((full >= -200) & (full <= 300)).mean()),
        identical=np.array_equal(full, low),
        digest=hashlib.blake2b(full.tobytes(), digest_size=16).hexdigest(),
    )
