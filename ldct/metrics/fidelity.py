"""How far an output is from the full dose under a protocol: RMSE, PSNR, SSIM, GMSD, VIF; float64.

torchmetrics has no metric that could stand here. Its PSNR takes logarithms in float32 (2e-6 dB off). Its SSIM averages
also over a border that it fills by reflection (1.9; 1.4, scikit-image and Wang 2004 leave the border out), has no
sample covariance (scikit-image's default) and no zero padding (the RED-CNN repository). It has no GMSD. Its VIF
agrees to 1e-9 and stands in the test; in float64 it takes 40 times as long. What is torchmetrics' are the means over
slices and ranks: ldct/metrics/averages.py.
"""

import math

import numpy as np

from ldct.metrics import protocols
from ldct.metrics.slice_pair import Clipped, SlicePair

GAUSSIAN = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
"""Weights of SSIM's Gaussian window along a side, SD 1.5 pixels, before they are made to add up to 1."""
UNIFORM = np.ones(7)
"""Weights of SSIM's uniform window."""


def rmse(seen: Clipped) -> float:
    """Root of the mean squared difference, in HU."""
    return float(seen.rmse.mean())


def psnr(seen: Clipped) -> float:
    """Peak signal-to-noise ratio, in dB; infinite where the two are equal."""
    with np.errstate(divide="ignore"):
        return float((20 * np.log10(seen.protocol.data_range / seen.rmse)).mean())


def ssim(seen: Clipped) -> float:
    """Mean of ``similarity``, which also says what it raises."""
    return float(similarity(seen).mean((1, 2)).mean())


def similarity(seen: Clipped) -> np.ndarray:
    """Structural similarity (Wang 2004, IEEE TIP 13:600, eq. 13; K1 = 0.01, K2 = 0.03) of every window.

    Shape (n, H - s + 1, W - s + 1) for windows of side s; (n, H, W) where the protocol pads.

    Raises
    ------
    ValueError
        If a side is shorter than the window.
    """
    protocol = seen.protocol
    weights = GAUSSIAN if protocol.window == "gaussian" else UNIFORM
    covariance = 1.0 if protocol.window == "gaussian" else 49 / 48  # sample covariance of 7 x 7 values
    if min(seen.full.shape[1:]) < len(weights):
        raise ValueError(
            f"expected slices of at least {len(weights)} x {len(weights)} pixels, found {seen.full.shape[1:]}"
        )
    x, y = seen.output + protocol.shift, seen.full + protocol.shift
    if protocol.zero_padded:
        edge = len(weights) // 2
        x, y = (np.pad(image, ((0, 0), (edge, edge), (edge, edge))) for image in (x, y))
    mean_x, mean_y, squares, products = (window_means(image, weights) for image in (x, y, x * x + y * y, x * y))
    c1, c2 = (0.01 * protocol.data_range) ** 2, (0.03 * protocol.data_range) ** 2
    mean_squares, mean_products = mean_x * mean_x + mean_y * mean_y, mean_x * mean_y
    above = (2 * mean_products + c1) * (2 * covariance * (products - mean_products) + c2)
    below = (mean_squares + c1) * (covariance * (squares - mean_squares) + c2)
    return above / below


def window_means(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means of (n, H, W) over all whole square windows, (n, H - s + 1, W - s + 1); ``weights``, (s,), are symmetric.

    Rows, then columns, by sums of shifted images, which is 100 times faster than torch's float64 convolution on a CPU.
    """
    weights = weights / weights.sum()
    middle = len(weights) // 2
    for axis in (1, 2):
        shifted = np.lib.stride_tricks.sliding_window_view(images, images.shape[axis] - 2 * middle, axis)
        parts = np.moveaxis(shifted, (axis, -1), (0, axis + 1))  # parts[i]: the images, i pixels further on
        total = weights[middle] * parts[middle]
        both = np.empty_like(total)
        for i in range(middle):
            np.add(parts[i], parts[-1 - i], out=both)
            both *= weights[i]
            total += both
        images = total
    return images


def gmsd(seen: Clipped) -> float:
    """Gradient magnitude similarity deviation (Xue 2014, IEEE TIP 23:684); 0 = no difference, less is better.

    Means over 2 x 2 pixels first, gradients by Prewitt's operator, the constant 170 of 8-bit images scaled to the
    protocol's data range; SD over the pixels that have a whole neighbourhood.
    """
    constant = 170 * (seen.protocol.data_range / 255) ** 2
    x, y = (_gradient_magnitude(_halved(image)) for image in (seen.output, seen.full))
    similarity = (2 * x * y + constant) / (x * x + y * y + constant)
    return float(similarity.std((1, 2)).mean())


def _halved(images: np.ndarray) -> np.ndarray:
    """Means over 2 x 2 pixels, half the rows and columns; a last odd row or column is left out."""
    rows, columns = (length // 2 * 2 for length in images.shape[1:])
    images = images[:, :rows, :columns]
    return (images[:, ::2, ::2] + images[:, 1::2, ::2] + images[:, ::2, 1::2] + images[:, 1::2, 1::2]) / 4


def _gradient_magnitude(images: np.ndarray) -> np.ndarray:
    """Prewitt's gradient (weights 1/3) of (n, H, W), shape (n, H - 2, W - 2)."""
    across = images[:, :, 2:] - images[:, :, :-2]
    down = images[:, 2:] - images[:, :-2]
    across = across[:, :-2] + across[:, 1:-1] + across[:, 2:]
    down = down[:, :, :-2] + down[:, :, 1:-1] + down[:, :, 2:]
    return np.hypot(across, down) / 3


VIF_WINDOW = "abd400"
"""Protocol whose clip VIF is taken under: it needs one range of values to place its noise in."""
VIF_NOISE = 2.0
"""Variance of the eye's noise in VIF, on the scale of 8-bit images."""
VIF_SCALES = (17, 9, 5, 3)
"""Sides of VIF's windows, from the finest scale to the coarsest; a Gaussian of SD side / 5."""


def vif(pair: SlicePair) -> float:
    """Visual information fidelity, pixel domain (Sheikh 2006, IEEE TIP 15:430); 1 = no difference, above = enhanced.

    nan where the slice is too small for four scales, or its full dose has one value only.
    """
    seen = pair.under(protocols.get(VIF_WINDOW))
    scale = 255 / seen.protocol.data_range
    x, y = ((image - seen.protocol.low) * scale for image in (seen.full, seen.output))
    kept = whole = 0.0
    for number, side in enumerate(VIF_SCALES):
        weights = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * (side / 5) ** 2))
        if number:
            if min(x.shape[1:]) < side:
                return math.nan
            x, y = (window_means(image, weights)[:, ::2, ::2] for image in (x, y))
        if min(x.shape[1:]) < side:
            return math.nan
        of_scale, of_full = _information(x, y, weights)
        kept, whole = kept + of_scale, whole + of_full
    return kept / whole if whole > 0 else math.nan


def _information(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """What an eye learns, at one scale, of the full dose ``x`` from the output ``y``, and from ``x`` itself."""
    tiny = 1e-10
    mean_x, mean_y, xx, yy, xy = (window_means(image, weights) for image in (x, y, x * x, y * y, x * y))
    var_x, var_y = np.maximum(xx - mean_x * mean_x, 0), np.maximum(yy - mean_y * mean_y, 0)
    covariance = xy - mean_x * mean_y
    gain = covariance / (var_x + tiny)
    rest = var_y - gain * covariance
    no_x, no_y, against = var_x < tiny, var_y < tiny, gain < 0
    gain[no_x | no_y] = 0
    rest[no_x], rest[no_y] = var_y[no_x], 0
    var_x[no_x] = 0
    rest[against], gain[against] = var_y[against], 0
    rest = np.maximum(rest, tiny)
    kept = np.log10(1 + gain * gain * var_x / (rest + VIF_NOISE)).sum()
    return float(kept), float(np.log10(1 + var_x / VIF_NOISE).sum())
