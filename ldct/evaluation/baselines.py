"""What a network has to beat: the low dose itself, the best blur, and a classical denoiser. int16 HU in and out."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy import ndimage, optimize
from skimage.restoration import denoise_nl_means

from ldct.data.hu import to_hu
from ldct.evaluation.datasets import Cases
from ldct.metrics import fidelity
from ldct.metrics.protocols import Protocol
from ldct.metrics.slice_pair import SlicePair
from shards.common.pool import Workers

Method = Callable[[np.ndarray], np.ndarray]
"""From a low-dose slice to a denoised one: int16 HU, shape (H, W)."""

LOW, BLUR, MEANS = "low dose", "Gaussian blur", "non-local means"
NAMES = (LOW, BLUR, MEANS)

SIGMAS = (0.25, 0.5, 1.0, 2.0)
"""Where the search for the blur's SD begins, in pixels."""
STRENGTHS = (4.0, 8.0, 16.0, 32.0, 64.0)
"""Where the search for the filter strength h of non-local means begins, in HU."""
FARTHEST = 64.0
"""The search goes at most so many times below its first value and above its last."""
TUNING_SLICES = 3
"""Slices, evenly spaced over those given, on which the two are chosen."""


def blur(low: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of SD ``sigma`` pixels."""
    return to_hu(_blur(low, sigma))


def non_local_means(low: np.ndarray, strength: float) -> np.ndarray:
    """Non-local means (Buades 2005), scikit-image's fast form with 5x5 patches within 6 pixels; ``strength`` in HU."""
    return to_hu(_non_local_means(low, strength))


def choose(
    method: Callable[[np.ndarray, float], np.ndarray],
    values: Sequence[float],
    cases: Cases,
    protocol: Protocol,
    workers: Workers,
) -> tuple[float, str]:
    """The value with the highest PSNR under ``protocol`` on TUNING_SLICES of ``cases``, and what must be said of it.

    All of ``values`` are tried, since weak filters change nothing and tie; then their neighbours beyond, until the best
    lies inside; then those between its neighbours (Brent's method, on a logarithmic scale, to 2 %).

    Parameters
    ----------
    method : callable
        A filter of a slice and its strength.
    values : sequence of float
        Ascending, each about twice the one before.
    """
    count = min(TUNING_SLICES, len(cases))
    slices = [cases[round(i)][1] for i in np.linspace(0, len(cases) - 1, count)]
    tried: dict[float, float] = {}

    def psnr(value: float) -> float:
        """Mean over the slices; ``value`` is rounded to what people are told."""
        value = float(f"{value:.3g}")
        if value not in tried:
            tried[value] = float(np.mean(list(workers.each(partial(_tuning_psnr, method, value, protocol), slices))))
        return tried[value]

    grid = [float(value) for value in values]
    for value in grid:
        psnr(value)
    while (best := max(grid, key=psnr)) in (grid[0], grid[-1]):
        beyond = best / 2 if best == grid[0] else best * 2
        if not values[0] / FARTHEST <= beyond <= values[-1] * FARTHEST:
            return best, ", the limit of the search"
        grid = sorted([*grid, beyond])
    middle = grid.index(best)
    bounds = (math.log(grid[middle - 1]), math.log(grid[middle + 1]))
    optimize.minimize_scalar(lambda x: -psnr(math.exp(x)), bounds=bounds, method="bounded", options={"xatol": 0.02})
    return max(sorted(tried), key=tried.__getitem__), ""


def _tuning_psnr(
    method: Callable[[np.ndarray, float], np.ndarray], value: float, protocol: Protocol, pixels: np.ndarray
) -> float:
    low, full = pixels
    return fidelity.psnr(SlicePair(method(low, value), full).under(protocol))


def create(name: str, cases: Cases, protocol: Protocol, where: str, workers: Workers) -> tuple[Method, str]:
    """The baseline called ``name``, tuned on ``cases``, and one line on how.

    Parameters
    ----------
    where : str
        Name of ``cases`` for that line, e.g. "val".
    """
    if name == LOW:
        return unchanged, "the input as it is"
    method, values, sign, unit = (
        (blur, SIGMAS, "SD", "pixels") if name == BLUR else (non_local_means, STRENGTHS, "h", "HU")
    )
    value, note = choose(method, values, cases, protocol, workers)
    return partial(_apply, method, value), f"{sign} {value:g} {unit}, the best {protocol.name} PSNR on {where}{note}"


def again(name: str, detail: str) -> Method:
    """The baseline called ``name``, as set in the line that ``create`` gave on how; what it gives is not rounded."""
    if name == LOW:
        return unchanged
    return partial(_apply, _blur if name == BLUR else _non_local_means, float(detail.split()[1]))


def unchanged(low: np.ndarray) -> np.ndarray:
    """The low dose itself."""
    return low


def _blur(low: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(low.astype(np.float32), sigma)


def _non_local_means(low: np.ndarray, strength: float) -> np.ndarray:
    return denoise_nl_means(low.astype(np.float32), 5, 6, h=strength, fast_mode=True, preserve_range=True)


def _apply(function: Callable[[np.ndarray, float], np.ndarray], value: float, low: np.ndarray) -> np.ndarray:
    return function(low, value)
