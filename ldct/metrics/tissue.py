"""HU by tissue, and the body: which pixels are what is read off the full dose, smoothed, so that its noise does not
choose them. A class picked by noisy values would show a bias of its own making (regression to the mean)."""

import math

import numpy as np
from scipy import ndimage

from ldct.metrics import fidelity, protocols
from ldct.metrics.slice_pair import SlicePair, Target, difference

SMOOTHING = 2.0
"""SD in pixels of the Gaussian over the full dose."""
CLASSES = {
    "air": (-math.inf, -950.0),
    "lung": (-950.0, -600.0),
    "fat": (-140.0, -40.0),
    "soft": (0.0, 120.0),
    "bone": (250.0, math.inf),
}
"""HU of the smoothed full dose: from, to. Soft tissue has water and blood in it. Between them lies what mixes."""
BORDER = np.ones((5, 5), bool)
"""A pixel counts where this square around it is of its class: borders between tissues are of none."""
LEAST_PIXELS = 200
"""Fewer are no class."""
BODY_HU = -500.0
"""The body is what lies above, its largest piece, and what that encloses: lungs and gas belong to it."""


def smoothed(target: Target) -> np.ndarray:
    """The full dose after SMOOTHING, HU, shape (H, W)."""
    return ndimage.gaussian_filter(target.full, SMOOTHING)


def mask_of(target: Target, tissue: str) -> np.ndarray:
    """Pixels of a class, bool, shape (H, W)."""
    low, high = CLASSES[tissue]
    full = target.once(smoothed)
    return ndimage.binary_erosion((full > low) & (full < high), BORDER)


def difference_in(pair: SlicePair, tissue: str) -> np.ndarray:
    """Output minus full dose in the pixels of a class, HU, shape (n,); none where they are too few."""
    mask = pair.target.once(mask_of, tissue)
    return pair.once(difference)[mask] if np.count_nonzero(mask) >= LEAST_PIXELS else np.empty(0)


def bias(tissue: str, pair: SlicePair) -> float:
    """Mean of output minus full dose in a class, HU; nan where the slice has too little of it."""
    inside = pair.once(difference_in, tissue)
    return float(inside.mean()) if inside.size else math.nan


def sd(tissue: str, pair: SlicePair) -> float:
    """SD of output minus full dose in a class, HU; nan where the slice has too little of it."""
    inside = pair.once(difference_in, tissue)
    return float(inside.std()) if inside.size else math.nan


def body(target: Target) -> np.ndarray:
    """Mask of the body, bool, shape (H, W); empty where there is none."""
    pieces, count = ndimage.label(target.once(smoothed) > BODY_HU)
    if not count:
        return np.zeros(target.full.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return ndimage.binary_fill_holes(pieces == largest)


def body_rmse(pair: SlicePair) -> float:
    """Root of the mean squared difference inside the body, nothing clipped, HU; nan where there is no body."""
    return _rms_inside(pair.once(difference), pair.target)


BODY_PROTOCOL = protocols.get("abd400")
"""What PSNR and SSIM inside the body are taken under."""


def body_psnr(pair: SlicePair) -> float:
    """PSNR inside the body under BODY_PROTOCOL, dB; nan where there is no body."""
    seen = pair.under(BODY_PROTOCOL)
    error = _rms_inside((seen.output.hu - seen.full.hu)[0], pair.target)
    with np.errstate(divide="ignore"):
        return float(20 * np.log10(BODY_PROTOCOL.data_range / np.float64(error)))


def body_ssim(pair: SlicePair) -> float:
    """Mean SSIM over the windows whose middle lies in the body, under BODY_PROTOCOL; nan where there is no body."""
    edge = len(fidelity.GAUSSIAN) // 2
    mask = pair.target.once(body)[edge:-edge, edge:-edge]
    if np.count_nonzero(mask) < LEAST_PIXELS:
        return math.nan
    return float(fidelity.similarity(pair.under(BODY_PROTOCOL))[0][mask].mean())


def _rms_inside(values: np.ndarray, target: Target) -> float:
    mask = target.once(body)
    if np.count_nonzero(mask) < LEAST_PIXELS:
        return math.nan
    return float(np.sqrt(np.mean(values[mask] ** 2)))


def dose_equivalent(pair: SlicePair) -> float:
    """Fraction of the full dose at which the low dose itself would have the output's RMSE inside the body.

    Noise has a variance of v / dose, and a low dose r has that of the full dose and v (1/r - 1) more. nan where the
    dose is not known or full, or the slice has no body.
    """
    dose = pair.target.dose
    if pair.target.low is None or dose is None or not 0 < dose < 1:
        return math.nan
    of_low = pair.target.once(_rmse_of_low)
    if not of_low > 0:
        return math.nan
    return 1 / (1 + (1 / dose - 1) * (body_rmse(pair) / of_low) ** 2)


def _rmse_of_low(target: Target) -> float:
    """Inside the body, HU."""
    assert target.low is not None
    return _rms_inside(target.low - target.full, target)
