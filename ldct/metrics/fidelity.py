"""How far an output is from the full dose under a protocol: RMSE, PSNR, SSIM, GMSD, VIF; float64.

torchmetrics has no metric that could stand here. Its PSNR takes logarithms in float32 (2e-6 dB off). Its SSIM averages
also over a border that it fills by reflection (1.9; 1.4, scikit-image and Wang 2004 leave the border out), has no
sample covariance (scikit-image's default) and no zero padding (the RED-CNN repository). It has no GMSD. Its VIF
agrees to 1e-9 and stands in the test; in float64 it takes 40 times as long. What is torchmetrics' are the means over
slices and ranks: ldct/metrics/averages.py.
"""

import math
from dataclasses import dataclass

import numpy as np

from ldct.metrics import protocols
from ldct.metrics.protocols import Protocol
from ldct.metrics.slice_pair import Clipped, Image, SlicePair

GAUSSIAN = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
"""Weights of SSIM's Gaussian window along a side, SD 1.5 pixels, before they are made to add up to 1."""
UNIFORM = np.ones(7)
"""Weights of SSIM's uniform window."""


def rmse(seen: Clipped) -> float:
    """Root of the mean squared difference, in HU."""
    return float(seen.output.once(_rmse, seen.full).mean())


def psnr(seen: Clipped) -> float:
    """Peak signal-to-noise ratio, in dB; infinite where the two are equal."""
    with np.errstate(divide="ignore"):
        return float((20 * np.log10(seen.protocol.data_range / seen.output.once(_rmse, seen.full))).mean())


def _rmse(output: Image, full: Image) -> np.ndarray:
    """Root of the mean squared difference of each image, HU, shape (n,)."""
    difference = output.hu - full.hu
    return np.sqrt(np.einsum("nij,nij->n", difference, difference) / difference[0].size)


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
    return seen.output.once(_similarity, seen.full, seen.protocol)


def _similarity(output: Image, full: Image, protocol: Protocol) -> np.ndarray:
    weights = GAUSSIAN if protocol.window == "gaussian" else UNIFORM
    shape, edge = full.hu.shape[1:], len(weights) // 2
    if min(shape) < len(weights):
        raise ValueError(f"expected slices of at least {len(weights)} x {len(weights)} pixels, found {shape}")
    inside = slice(None) if protocol.zero_padded else slice(edge, -edge)
    mean_x, var_x, mean_y, var_y, covariance = (
        values[:, inside, inside]
        for values in (
            *output.once(_mean_and_variance, protocol.window),
            *full.once(_mean_and_variance, protocol.window),
            output.once(_covariance, full, protocol.window),
        )
    )
    sample = 1.0 if protocol.window == "gaussian" else 49 / 48  # sample covariance of 7 x 7 values
    c1, c2 = (0.01 * protocol.data_range) ** 2, (0.03 * protocol.data_range) ** 2
    mean_x, mean_y = mean_x + protocol.shift, mean_y + protocol.shift
    above = (2 * mean_x * mean_y + c1) * (2 * sample * covariance + c2)
    return above / ((mean_x * mean_x + mean_y * mean_y + c1) * (sample * (var_x + var_y) + c2))


def _mean_and_variance(image: Image, window: str) -> tuple[np.ndarray, np.ndarray]:
    """Of every window around a pixel, zeros outside; shape (n, H, W)."""
    mean = _padded_means(image.hu, window)
    return mean, _padded_means(image.hu * image.hu, window) - mean * mean


def _covariance(output: Image, full: Image, window: str) -> np.ndarray:
    """As ``_mean_and_variance``."""
    (mean_x, _), (mean_y, _) = (image.once(_mean_and_variance, window) for image in (output, full))
    return _padded_means(output.hu * full.hu, window) - mean_x * mean_y


def _padded_means(images: np.ndarray, window: str) -> np.ndarray:
    weights = GAUSSIAN if window == "gaussian" else UNIFORM
    edge = len(weights) // 2
    return window_means(np.pad(images, ((0, 0), (edge, edge), (edge, edge))), weights)


def window_means(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means of (n, H, W) over all whole square windows, (n, H - s + 1, W - s + 1); ``weights``, (s,), are symmetric.

    Columns by sums of shifted images, then rows as one long row, of which windows that go on in the next are left out:
    50 times as fast as torch's float64 convolution on a CPU.
    """
    weights = weights / weights.sum()
    middle = len(weights) // 2
    rows = images.shape[1] - 2 * middle
    means = weights[middle] * images[:, middle : middle + rows]
    both = np.empty_like(means)
    for i in range(middle):
        np.add(images[:, i : i + rows], images[:, 2 * middle - i : 2 * middle - i + rows], out=both)
        both *= weights[i]
        means += both
    return np.correlate(means.ravel(), weights, "same").reshape(means.shape)[:, :, middle : means.shape[2] - middle]


def gmsd(seen: Clipped) -> float:
    """Gradient magnitude similarity deviation (Xue 2014, IEEE TIP 23:684); 0 = no difference, less is better.

    Means over 2 x 2 pixels first, gradients by Prewitt's operator, the constant 170 of 8-bit images scaled to the
    protocol's data range; SD over the pixels that have a whole neighbourhood.
    """
    return seen.output.once(_gmsd, seen.full, seen.protocol.data_range)


def _gmsd(output: Image, full: Image, data_range: float) -> float:
    constant = 170 * (data_range / 255) ** 2
    x, y = (image.once(_gradient_magnitude) for image in (output, full))
    return float(((2 * x * y + constant) / (x * x + y * y + constant)).std((1, 2)).mean())


def _gradient_magnitude(image: Image) -> np.ndarray:
    """Prewitt's gradient (weights 1/3) of means over 2 x 2 pixels; a last odd row or column is left out."""
    rows, columns = (length // 2 * 2 for length in image.hu.shape[1:])
    images = image.hu[:, :rows, :columns]
    images = (images[:, ::2, ::2] + images[:, 1::2, ::2] + images[:, ::2, 1::2] + images[:, 1::2, 1::2]) / 4
    across = images[:, :, 2:] - images[:, :, :-2]
    down = images[:, 2:] - images[:, :-2]
    across = across[:, :-2] + across[:, 1:-1] + across[:, 2:]
    down = down[:, :, :-2] + down[:, :, 1:-1] + down[:, :, 2:]
    return np.sqrt(across * across + down * down) / 3


VIF_WINDOW = "abd400"
"""Protocol whose clip VIF is taken under: it needs one range of values to place its noise in."""
VIF_NOISE = 2.0
"""Variance of the eye's noise in VIF, on the scale of 8-bit images."""
VIF_SCALES = (17, 9, 5, 3)
"""Sides of VIF's windows, from the finest scale to the coarsest; a Gaussian of SD side / 5."""
TINY = 1e-10
"""A window of VIF of less variance has none."""


@dataclass(frozen=True)
class _Scale:
    """An image at a scale of VIF; shape (1, H, W), mean and variance those of its windows."""

    image: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def vif(pair: SlicePair) -> float:
    """Visual information fidelity, pixel domain (Sheikh 2006, IEEE TIP 15:430); 1 = no difference, above = enhanced.

    nan where the slice is too small for four scales, or its full dose has one value only.
    """
    seen = pair.under(protocols.get(VIF_WINDOW))
    full, output = (image.once(_scales) for image in (seen.full, seen.output))
    if len(full) < len(VIF_SCALES):
        return math.nan
    whole = seen.full.once(_whole_information)
    return sum(map(_kept_information, full, output, VIF_SCALES)) / whole if whole > 0 else math.nan


def _weights(side: int) -> np.ndarray:
    return np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * (side / 5) ** 2))


def _scales(image: Image) -> list[_Scale]:
    """The image at those of VIF_SCALES that it is large enough for, the finest first."""
    protocol, scales = protocols.get(VIF_WINDOW), list[_Scale]()
    values = (image.hu - protocol.low) * (255 / protocol.data_range)
    for side in VIF_SCALES:
        if min(values.shape[1:]) < side:
            break
        weights = _weights(side)
        if scales:
            values = window_means(values, weights)[:, ::2, ::2]
            if min(values.shape[1:]) < side:
                break
        mean = window_means(values, weights)
        variance = np.maximum(window_means(values * values, weights) - mean * mean, 0)
        scales.append(_Scale(values, mean, variance))
    return scales


def _whole_information(full: Image) -> float:
    """What an eye learns of the full dose from itself."""
    return sum(
        float(np.log10(1 + np.where(scale.variance < TINY, 0, scale.variance) / VIF_NOISE).sum())
        for scale in full.once(_scales)
    )


def _kept_information(full: _Scale, output: _Scale, side: int) -> float:
    """What an eye learns of the full dose from the output, at one scale."""
    covariance = window_means(full.image * output.image, _weights(side)) - full.mean * output.mean
    gain = covariance / (full.variance + TINY)
    rest = output.variance - gain * covariance
    no_full, no_output, against = full.variance < TINY, output.variance < TINY, gain < 0
    gain[no_full | no_output] = 0
    rest[no_full], rest[no_output] = output.variance[no_full], 0
    rest[against], gain[against] = output.variance[against], 0
    return float(np.log10(1 + gain * gain * full.variance / (np.maximum(rest, TINY) + VIF_NOISE)).sum())
