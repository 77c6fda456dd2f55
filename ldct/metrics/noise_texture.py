"""Noise texture: does an output look like CT, or has it been smoothed? PSNR alone lets a blur win.

Noise power spectra in flat soft tissue (Siewerdsen 2002, Med Phys 29:2655), in cycles per pixel.
"""

import numpy as np
from scipy import ndimage

from shards.noise_level import soft_tissue

BLOCK = 32
"""Side in pixels of the squares whose spectra are averaged."""
FLAT_HU = 12.0
"""A block is flat where the smoothed (SD 3 pixels) full dose has at most this SD."""
BLOCKS = 32
"""At most so many blocks of a slice, the flattest."""
HIGH = 0.25
"""The high band: above this many cycles per pixel, half of what the pixels can show."""


def flat_blocks(full: np.ndarray) -> list[tuple[slice, slice]]:
    """The flattest blocks of soft tissue in a full-dose slice (HU, shape (H, W)), half overlapping; may be none."""
    tissue = soft_tissue(full)
    smooth = ndimage.gaussian_filter(full.astype(np.float32), 3)
    found = []
    for row in range(0, full.shape[0] - BLOCK + 1, BLOCK // 2):
        for column in range(0, full.shape[1] - BLOCK + 1, BLOCK // 2):
            block = (slice(row, row + BLOCK), slice(column, column + BLOCK))
            if tissue[block].mean() > 0.95 and (sd := float(smooth[block].std())) <= FLAT_HU:
                found.append((sd, block))
    return [block for _, block in sorted(found, key=lambda pair: pair[0])[:BLOCKS]]


def spectrum(image: np.ndarray, blocks: list[tuple[slice, slice]]) -> np.ndarray:
    """Mean noise power of the blocks in rings of the frequency plane; ring k lies at k / BLOCK cycles per pixel.

    A plane is subtracted from each block and a Hann window keeps its edges from leaking into the high band.
    Shape (BLOCK // 2 + 1,); the unit is HU^2 up to a constant factor.
    """
    y, x = np.mgrid[:BLOCK, :BLOCK]
    plane = np.stack([np.ones(BLOCK**2), x.ravel(), y.ravel()], 1)
    hann = np.outer(np.hanning(BLOCK), np.hanning(BLOCK))
    values = np.stack([image[block].astype(np.float64).ravel() for block in blocks], 1)
    values -= plane @ np.linalg.lstsq(plane, values, rcond=None)[0]
    power = (np.abs(np.fft.fft2(values.T.reshape(-1, BLOCK, BLOCK) * hann)) ** 2).mean(0)
    index = np.fft.fftfreq(BLOCK, 1 / BLOCK)
    ring = np.rint(np.hypot(index[:, None], index[None])).astype(int)
    count = BLOCK // 2 + 1
    inside = ring < count
    return np.bincount(ring[inside], power[inside], count) / np.bincount(ring[inside], minlength=count)


def texture(output: np.ndarray, full: np.ndarray) -> dict[str, float]:
    """How the noise of ``output`` looks beside the full dose's; both HU, shape (H, W).

    Returns
    -------
    dict
        ``texture/frequency``: mean frequency, in cycles per pixel, of the spectrum of output minus full dose.
        ``texture/high_band``: power of the output above HIGH over the full dose's: 1 = as in the full dose, below =
        smoother, above = noisier. Both nan where the slice has no flat block (or, the first, no difference).
    """
    blocks = flat_blocks(full)
    if not blocks:
        return {"texture/frequency": float("nan"), "texture/high_band": float("nan")}
    frequency = np.arange(BLOCK // 2 + 1) / BLOCK
    error = spectrum(output.astype(np.float64) - full, blocks)
    high = frequency > HIGH
    mean = float((frequency * error).sum() / error.sum()) if error.sum() > 0 else float("nan")
    return {
        "texture/frequency": mean,
        "texture/high_band": float(spectrum(output, blocks)[high].sum() / spectrum(full, blocks)[high].sum()),
    }
