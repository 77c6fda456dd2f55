"""What a network has to beat: the low dose itself, the best blur, and a classical denoiser. int16 HU in and out."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from skimage.restoration import denoise_nl_means

from ldct.data.hu import to_hu
from ldct.evaluation.datasets import Cases
from ldct.metrics.protocols import Protocol

Method = Callable[[np.ndarray], np.ndarray]
"""From a low-dose slice to a denoised one: int16 HU, shape (H, W)."""

LOW, BLUR, MEANS = "low dose", "Gaussian blur", "non-local means"
NAMES = (LOW, BLUR, MEANS)

SIGMAS = tuple(round(0.3 + 0.1 * i, 1) for i in range(18))
"""SD of the blur to choose from, in pixels: 0.3 to 2.0."""
STRENGTHS = (5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 65.0)
"""Filter strength h of non-local means to choose from, in HU."""
TUNING_SLICES = 3
"""Slices, evenly spaced over those given, on which the two are chosen."""


def blur(low: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of SD ``sigma`` pixels."""
    return to_hu(ndimage.gaussian_filter(low.astype(np.float32), sigma))


def non_local_means(low: np.ndarray, strength: float) -> np.ndarray:
    """Non-local means (Buades 2005), scikit-image's fast form with 5x5 patches within 6 pixels; ``strength`` in HU."""
    return to_hu(denoise_nl_means(low.astype(np.float32), 5, 6, h=strength, fast_mode=True, preserve_range=True))


def choose(
    method: Callable[[np.ndarray, float], np.ndarray], values: Sequence[float], cases: Cases, protocol: Protocol
) -> float:
    """The value with the highest PSNR under ``protocol`` on TUNING_SLICES of ``cases``.

    ``values`` ascend and PSNR has one peak over them, so the search ends where it falls.
    """
    count = min(TUNING_SLICES, len(cases))
    chosen = [cases[round(i)][1] for i in np.linspace(0, len(cases) - 1, count)]
    best, highest = values[0], -np.inf
    for value in values:
        outputs = torch.from_numpy(np.stack([method(low, value) for low, _ in chosen]))
        psnr = protocol.measure(outputs, torch.from_numpy(np.stack([full for _, full in chosen])))["psnr"]
        if psnr <= highest:
            break
        best, highest = value, psnr
    return best


def create(name: str, cases: Cases, protocol: Protocol, where: str) -> tuple[Method, str]:
    """The baseline called ``name``, tuned on ``cases``, and one line on how.

    Parameters
    ----------
    where : str
        Name of ``cases`` for that line, e.g. "val".
    """
    if name == LOW:
        return lambda low: low, "the input as it is"
    function, values, sign, unit = (
        (blur, SIGMAS, "SD", "pixels") if name == BLUR else (non_local_means, STRENGTHS, "h", "HU")
    )
    value = choose(function, values, cases, protocol)
    return partial(_apply, function, value), f"{sign} {value:g} {unit}, the best {protocol.name} PSNR on {where}"


def _apply(function: Callable[[np.ndarray, float], np.ndarray], value: float, low: np.ndarray) -> np.ndarray:
    return function(low, value)
