"""How far an output is from the full dose under a protocol: RMSE, PSNR, SSIM, GMSD; float64.

torchmetrics has no metric that could stand here. Its PSNR takes logarithms in float32 (2e-6 dB off). Its SSIM averages
also over a border that it fills by reflection (1.9; 1.4, scikit-image and Wang 2004 leave the border out), has no
sample covariance (scikit-image's default) and no zero padding (the RED-CNN repository). It has no GMSD. It takes the
means over slices and ranks: ldct/metrics/averages.py.
"""

import numpy as np

from ldct.metrics.slice_pair import Clipped

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
    """Structural similarity (Wang 2004, IEEE TIP 13:600, eq. 13; K1 = 0.01, K2 = 0.03).

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
    return float((above / below).mean((1, 2)).mean())


def window_means(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means of (n, H, W) over all whole square windows, (n, H - s + 1, W - s + 1); ``weights``, (s,), are symmetric.

    Rows, then columns, by sums of shifted images, which is 100 times faster than torch's float64 convolution on a CPU.
    """
    weights = weights / weights.sum()
    middle = len(weights) // 2
    for axis in (1, 2):
        shifted = np.lib.stride_tricks.sliding_window_view(images, images.shape[axis] - 2 * middle, axis)
        parts = np.moveaxis(shifted, (axis, -1), (0, axis))  # parts[i]: the images, i pixels further on
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
