"""What a slice shows at both doses: noise, level, air, and whether it is one anatomy."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from shards.dicom import Slice, Unusable
from shards.matching import Pair
from shards.noise_level import noise_sd, soft_tissue
from shards.pixels import PADDING, read_hu

OTHER_BLOCK = 200.0
"""HU by which means of 8 x 8 pixels differ where something is damaged. Measured on 22 real pairs: at most 76."""
OTHER_SHARE = 0.01
"""Share of such pixels of the body from which a slice is left out."""
LESS_NOISE = 0.9
"""The reduced dose's SD within such pixels over the full one's, below which the two are swapped. Real pairs: 1.62 and
more, half the dose 1.19 and more."""
CLOSER = 0.97
"""RMS difference to another place of the full dose over that to the mate, below which the mate is the wrong one.
Measured on 22 real pairs and 20 simulated ones: 1.13 and more."""
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
    return _cut(hu).mean(axis=(1, 3))


def wrong_pair(full: np.ndarray, low: np.ndarray) -> str | None:
    """Why two slices, int16 HU of shape (H, W), cannot be one at two doses, or None: quick, for every pair is asked."""
    if np.array_equal(full, low):
        return "full and reduced dose have the same pixels"
    a, b = (_quick_blocks(hu) for hu in (full, low))
    body = (a > -500) | (b > -500)
    if not body.any():
        return None
    other = np.mean(np.abs(a - b)[body] > OTHER_BLOCK)
    if other > OTHER_SHARE:
        return f"{other:.0%} of the body lies more than {OTHER_BLOCK:g} HU apart at the two doses: damaged?"
    tissue = (a > SOFT[0]) & (a < SOFT[1])
    rows = np.arange(len(tissue)) % 2 == 0  # every second row of blocks is enough
    tissue &= rows[:, None]
    if np.count_nonzero(tissue) < 20:
        return None
    noise_full, noise_low = (_sd_within(hu, tissue) for hu in (full, low))
    if noise_low < LESS_NOISE * noise_full:
        return f"its reduced dose is less noisy than its full one ({noise_low:.1f} and {noise_full:.1f} HU): swapped?"
    return None


def _sd_within(hu: np.ndarray, chosen: np.ndarray) -> float:
    """Median SD within the ``chosen`` blocks."""
    return float(np.median(_cut(hu).transpose(0, 2, 1, 3)[chosen].astype(np.float32).std(axis=(1, 2))))


def _cut(hu: np.ndarray) -> np.ndarray:
    """Blocks of 8 x 8 pixels, shape (H // 8, 8, W // 8, 8)."""
    rows, columns = hu.shape[0] // 8, hu.shape[1] // 8
    return hu[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8)


def _quick_blocks(hu: np.ndarray) -> np.ndarray:
    """As ``_blocks``, of int16."""
    rows = np.add.reduce(_cut(hu), axis=1, dtype=np.int32)
    return np.add.reduce(rows, axis=2) / 64


def misplaced(full: np.ndarray, low: np.ndarray, others: list[tuple[str, np.ndarray]]) -> str:
    """Which of ``others``, named slices of the full dose, or of ``full`` moved by a pixel, ``low`` is closest to.

    "" where it is ``full`` itself, by the RMS difference in soft tissue: both doses share the noise of one scan, so
    the slice above is farther away even where the anatomy is the same.
    """
    inside = (full > -200) & (full < 300)
    inside[:2] = inside[-2:] = inside[:, :2] = inside[:, -2:] = False
    if np.count_nonzero(inside) < 200:
        return ""
    moves = [("the full dose moved by a row", 0), ("the full dose moved by a column", 1)]
    places = others + [(name, np.roll(full, by, axis)) for name, axis in moves for by in (1, -1)]
    wanted = np.clip(low[inside], -200, 300).astype(np.float32)

    def distance(hu: np.ndarray) -> float:
        return float(np.sqrt(np.mean((np.clip(hu[inside], -200, 300) - wanted) ** 2)))

    here = distance(full)
    name, least = min(((name, distance(hu)) for name, hu in places), key=lambda place: place[1])
    return name if least < CLOSER * here else ""


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
    misplaced: str
    """Which place of the full dose the reduced one is closer to than to its mate; "" for none."""


def digest(hu: np.ndarray) -> str:
    """Names the pixels of a slice."""
    return hashlib.blake2b(hu.tobytes(), digest_size=16).hexdigest()


def compare(item: tuple[Pair, dict[str, Slice]]) -> Comparison | None:
    """Measure a pair, beside full-dose slices near it, by name; None if it cannot be read."""
    pair, near = item
    try:
        full, low = read_hu(pair.full)[0], read_hu(pair.low)[0]
        others = [(name, read_hu(piece)[0]) for name, piece in near.items()]
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
        digest=digest(full),
        misplaced=misplaced(full, low, others),
    )
