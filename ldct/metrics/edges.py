"""Edges: are they as sharp as the full dose's, and does what was removed follow them?

The transfer function is relative to the full dose and task based (Richard 2012, Med Phys 39:4115): measured where the
contrast is high, since a network's answer depends on it.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from ldct.metrics.noise_texture import BLOCK, FREQUENCY, rings, windowed
from ldct.metrics.slice_pair import SlicePair, Target
from ldct.metrics.tissue import body

CONTRAST_HU = 300.0
"""A block has an edge of high contrast where its smoothed (SD 1 pixel) full dose spans so much."""
BLOCKS = 32
"""At most so many blocks of a slice, those with the steepest edges."""
BAND = (0.15, 0.25)
"""The band, in cycles per pixel, in which edges still stand out of a full dose's noise and blurs already show."""
IN_BAND = np.abs(FREQUENCY - np.mean(BAND)) <= np.ptp(BAND) / 2
SCALE = 2.0
"""SD in pixels of the Gaussian before gradients: noise has few left after it."""


def gradient(target: Target) -> np.ndarray:
    """Gradient magnitude of the full dose at SCALE, HU per pixel, shape (H, W)."""
    return ndimage.gaussian_gradient_magnitude(target.full, SCALE)


def edge_blocks(target: Target) -> list[tuple[slice, slice]]:
    """Blocks of the full dose with edges of high contrast, half overlapping, the steepest; may be none."""
    if min(target.full.shape) < BLOCK:
        return []
    step = BLOCK // 2
    smooth, steep = (
        sliding_window_view(image, (BLOCK, BLOCK))[::step, ::step]
        for image in (ndimage.gaussian_filter(target.full, 1), np.square(target.once(gradient)))
    )
    contrast, energy = smooth.max((2, 3)) - smooth.min((2, 3)), steep.sum((2, 3))
    rows, columns = np.nonzero(contrast >= CONTRAST_HU)
    steepest = np.argsort(-energy[rows, columns], kind="stable")[:BLOCKS]
    starts = zip(rows[steepest] * step, columns[steepest] * step, strict=True)
    return [(slice(row, row + BLOCK), slice(column, column + BLOCK)) for row, column in starts]


def transfer(pair: SlicePair) -> np.ndarray | None:
    """Transfer function from full dose to output, as ``transfer_to``."""
    return transfer_to(pair.output, pair.target)


def transfer_to(image: np.ndarray, target: Target) -> np.ndarray | None:
    """Transfer function from the full dose to ``image`` of its slice, in rings as ``noise_texture.spectrum``.

    The cross spectrum over the full dose's own, so that noise of the image that is not the full dose's drops out.
    1 = as in the full dose. Shape (BLOCK // 2 + 1,); None where the slice has no edge of high contrast.
    """
    blocks = target.once(edge_blocks)
    if not blocks:
        return None
    full, power = target.once(_waves_at_edges)
    return rings((np.fft.fft2(windowed(image, blocks)) * full.conj()).real.mean(0)) / power


def _waves_at_edges(target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Fourier transform of the full dose in its blocks with edges, and the power in it by rings."""
    waves = np.fft.fft2(windowed(target.full, target.once(edge_blocks)))
    return waves, rings((np.abs(waves) ** 2).mean(0))


def sharpness(pair: SlicePair) -> float:
    """Mean of the transfer function in BAND; nan where the slice has no edge of high contrast."""
    curve = pair.once(transfer)
    return math.nan if curve is None else float(curve[IN_BAND].mean())


def half_frequency(pair: SlicePair) -> float:
    """Where the transfer function falls below 1/2, 1/mm; Nyquist's frequency if it does not; nan as ``sharpness``."""
    curve = pair.once(transfer)
    if curve is None or pair.spacing is None:
        return math.nan
    below = np.flatnonzero(curve < 0.5)
    below = below[below > 0]
    if not below.size:
        return 0.5 / pair.spacing
    first = below[0]
    part = (curve[first - 1] - 0.5) / (curve[first - 1] - curve[first])
    return float(FREQUENCY[first - 1] + part / BLOCK) / pair.spacing


def residual_follows_edges(pair: SlicePair) -> float:
    """Correlation, inside the body, of how much was removed with how steep the full dose is; nan if nothing was."""
    if pair.target.low is None:
        return math.nan
    removed = np.abs(pair.target.low - pair.output)[pair.target.once(body)]
    if removed.size < 2 or removed.std() == 0:
        return math.nan
    return float(np.corrcoef(removed, pair.target.once(_gradient_inside))[0, 1])


def _gradient_inside(target: Target) -> np.ndarray:
    return target.once(gradient)[target.once(body)]
