"""Would an observer see a faint lesion in this noise? A non-prewhitening observer (Burgess 1994, JOSA A 11:1237).

The task is a disc in flat soft tissue, seen through the output's transfer function and its noise power spectrum, as
AAPM's report 233 does it (Samei 2019, Med Phys 46:e735). No disc is drawn into the image: what a network makes of low
contrast is taken to be what it makes of edges, which flatters one that removes faint things and keeps edges.
"""

import math

import numpy as np
from scipy import special

from ldct.metrics.edges import transfer
from ldct.metrics.noise_texture import BLOCK, FREQUENCY, output_spectrum
from ldct.metrics.slice_pair import SlicePair

DIAMETER_MM = 5.0
CONTRAST_HU = 10.0
STEPS = 512
"""Frequencies of the integrals, up to Nyquist's."""


def disc_detectability(pair: SlicePair) -> float:
    """Detectability index d' of the disc; nan without flat soft tissue, edges of high contrast, or the size of a pixel.

    d'^2 = (int S^2 T^2)^2 / int S^2 T^2 N over the frequency plane: S the disc's spectrum, T the transfer function,
    N the noise power spectrum in HU^2 mm^2.
    """
    power, curve, spacing = pair.once(output_spectrum), pair.once(transfer), pair.spacing
    if power is None or curve is None or spacing is None:
        return math.nan
    hann = np.outer(np.hanning(BLOCK), np.hanning(BLOCK))
    noise = power * spacing**2 / np.square(hann).sum()
    noise[0] = noise[1]  # a plane was subtracted from each block
    frequency = (np.arange(STEPS) + 0.5) / STEPS * FREQUENCY[-1] / spacing
    radius = DIAMETER_MM / 2
    disc = CONTRAST_HU * radius * special.j1(2 * np.pi * radius * frequency) / frequency
    seen = (disc * np.interp(frequency, FREQUENCY / spacing, curve)) ** 2 * 2 * np.pi * frequency
    step = frequency[1] - frequency[0]
    signal = seen.sum() * step
    return float(signal / np.sqrt((seen * np.interp(frequency, FREQUENCY / spacing, noise)).sum() * step))
