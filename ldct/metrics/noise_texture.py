"""Noise texture: does an output look like CT, or has it been smoothed? PSNR alone lets a blur win.

Noise power spectra in flat soft tissue (Siewerdsen 2002, Med Phys 29:2655), in cycles per pixel.
"""

import math

import numpy as np
from scipy import ndimage

from ldct.metrics.slice_pair import SlicePair, Target
from shards.noise_level import soft_tissue

BLOCK = 32
"""Side in pixels of the squares whose spectra are averaged."""
FLAT_HU = 12.0
"""A block is flat where the smoothed (SD 3 pixels) full dose has at most this SD."""
BLOCKS = 32
"""At most so many blocks of a slice, the flattest."""
FREQUENCY = np.arange(BLOCK // 2 + 1) / BLOCK
"""Frequencies of ``spectrum``, in cycles per pixel."""
HIGH = 0.25
"""The high band: above this many cycles per pixel, half of what the pixels can show."""


def flat_blocks(full: np.ndarray) -> list[tuple[slice, slice]]:
    """The flattest blocks of soft tissue in a full-dose slice (HU, shape (H, W)), half overlapping; may be none."""
    tissue = soft_tissue(full)
    smooth = ndimage.gaussian_filter(full.astype(np.float32), 3)
    flat = []
    for row in range(0, full.shape[0] - BLOCK + 1, BLOCK // 2):
        for column in range(0, full.shape[1] - BLOCK + 1, BLOCK // 2):
            block = (slice(row, row + BLOCK), slice(column, column + BLOCK))
            if tissue[block].mean() > 0.95 and (sd := float(smooth[block].std())) <= FLAT_HU:
                flat.append((sd, block))
    return [block for _, block in sorted(flat, key=lambda entry: entry[0])[:BLOCKS]]


def windowed(image: np.ndarray, blocks: list[tuple[slice, slice]]) -> np.ndarray:
    """The blocks of ``image``, a plane subtracted from each, under a Hann window; shape (n, BLOCK, BLOCK).

    The window keeps a block's edges from leaking into the high band.
    """
    hann = np.outer(np.hanning(BLOCK), np.hanning(BLOCK))
    return without_plane(np.stack([image[block] for block in blocks])) * hann


def without_plane(squares: np.ndarray) -> np.ndarray:
    """Each of ``squares``, (n, BLOCK, BLOCK), less the plane that fits it best: nothing below 1 / BLOCK is left."""
    y, x = np.mgrid[:BLOCK, :BLOCK]
    plane = np.stack([np.ones(BLOCK**2), x.ravel(), y.ravel()], 1)
    values = squares.reshape(-1, BLOCK**2).T.astype(np.float64)
    values -= plane @ np.linalg.lstsq(plane, values, rcond=None)[0]
    return values.T.reshape(-1, BLOCK, BLOCK)


def rings(plane: np.ndarray) -> np.ndarray:
    """Means of a frequency plane (BLOCK, BLOCK) over rings; ring k lies at k / BLOCK cycles per pixel."""
    index = np.fft.fftfreq(BLOCK, 1 / BLOCK)
    ring = np.rint(np.hypot(index[:, None], index[None])).astype(int)
    count = BLOCK // 2 + 1
    inside = ring < count
    return np.bincount(ring[inside], plane[inside], count) / np.bincount(ring[inside], minlength=count)


def spectrum(image: np.ndarray, blocks: list[tuple[slice, slice]]) -> np.ndarray:
    """Mean noise power of the blocks by ``rings``; shape (BLOCK // 2 + 1,), HU^2 up to a constant factor."""
    return _power(np.fft.fft2(windowed(image, blocks)))


def _power(waves: np.ndarray) -> np.ndarray:
    return rings((np.abs(waves) ** 2).mean(0))


def blocks_of(target: Target) -> list[tuple[slice, slice]]:
    """The flat blocks of the full dose."""
    return flat_blocks(target.full)


def waves_of_full(target: Target) -> np.ndarray:
    """Fourier transform of the full dose in its flat blocks, which there must be; complex, (n, BLOCK, BLOCK)."""
    return np.fft.fft2(windowed(target.full, target.once(blocks_of)))


def _waves_of_output(pair: SlicePair) -> np.ndarray:
    return np.fft.fft2(windowed(pair.output, pair.target.once(blocks_of)))


def mean_frequency(pair: SlicePair) -> float:
    """Mean frequency, in cycles per pixel, of the spectrum of output minus full dose; nan without flat blocks."""
    if not pair.target.once(blocks_of):
        return math.nan
    power = _power(pair.once(_waves_of_output) - pair.target.once(waves_of_full))
    return float((FREQUENCY * power).sum() / power.sum()) if power.sum() > 0 else math.nan


def high_band(pair: SlicePair) -> float:
    """Noise power of the output above HIGH over the full dose's; nan without flat blocks."""
    if not pair.target.once(blocks_of):
        return math.nan
    waves = (pair.once(_waves_of_output), pair.target.once(waves_of_full))
    output, full = (float(_power(of)[FREQUENCY > HIGH].sum()) for of in waves)
    return output / full if full > 1e-9 else math.nan  # a constant leaves rounding


def output_spectrum(pair: SlicePair) -> np.ndarray | None:
    """Noise power of the output in flat soft tissue; None where the slice has none, or the output no noise."""
    power = _power(pair.once(_waves_of_output)) if pair.target.once(blocks_of) else np.zeros(1)
    return power if power.sum() > 1e-9 else None


def mean_per_mm(pair: SlicePair) -> float:
    """Mean frequency of the output's noise power spectrum, 1/mm; nan without flat blocks or the size of a pixel."""
    power = pair.once(output_spectrum)
    if power is None or pair.spacing is None:
        return math.nan
    return float((FREQUENCY * power * FREQUENCY).sum() / (power * FREQUENCY).sum()) / pair.spacing


def peak_per_mm(pair: SlicePair) -> float:
    """Frequency at which the output's noise power spectrum is highest, 1/mm; nan as ``mean_per_mm``."""
    power = pair.once(output_spectrum)
    if power is None or pair.spacing is None:
        return math.nan
    return float(FREQUENCY[1 + np.argmax(power[1:])]) / pair.spacing
