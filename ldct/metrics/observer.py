"""Would an observer see a faint lesion in this noise? A non-prewhitening observer (Burgess 1994, JOSA A 11:1237).

The task is a disc in flat soft tissue, seen through the output's transfer function and its noise power spectrum, as
AAPM's report 233 does it (Samei 2019, Med Phys 46:e735). ``disc_detectability`` draws no disc into the image: what a
network makes of low contrast is taken to be what it makes of edges, which flatters one that removes faint things and
keeps edges. ``detectability_of`` takes the disc as it came out of the method (ldct/evaluation/lesion.py).
"""

import math

import numpy as np
from scipy import special

from ldct.metrics.edges import transfer, transfer_to
from ldct.metrics.noise_texture import (
    BLOCK,
    FREQUENCY,
    blocks_of,
    output_spectrum,
    rings,
    waves_of_full,
    windowed,
    without_plane,
)
from ldct.metrics.slice_pair import SlicePair, Target

DIAMETER_MM = 5.0
CONTRAST_HU = 10.0
DOSES = np.geomspace(0.01, 1, 41)
"""Fractions of the full dose at which ``by_dose`` looks."""
STEPS = 512
"""Frequencies of the integrals, up to Nyquist's."""


def disc_detectability(pair: SlicePair) -> float:
    """Detectability index d' of the disc; nan without flat soft tissue, edges of high contrast or a pixel's size."""
    power, curve = pair.once(output_spectrum), pair.once(transfer)
    if power is None or curve is None or pair.spacing is None:
        return math.nan
    return detectability(power, curve, pair.spacing)


def by_dose(target: Target) -> np.ndarray | None:
    """d' of the low dose at each of DOSES; None where ``disc_detectability`` is nan, or the dose is not known or full.

    A dose r is simulated from the pair: the full dose and a times what the low dose has more, a^2 = (1 / r - 1) /
    (1 / dose - 1). That is linear, so spectra and transfer function follow from those of the two.
    """
    blocks, spacing = target.once(blocks_of), target.spacing
    if target.low is None or target.dose is None or not 0 < target.dose < 1 or not blocks or spacing is None:
        return None
    curve = transfer_to(target.low, target)
    if curve is None:
        return None
    full, added = target.once(waves_of_full), np.fft.fft2(windowed(target.low - target.full, blocks))
    products = ((full, full), (full, added), (added, added))
    of_full, of_both, of_added = (rings((x * y.conj()).real.mean(0)) for x, y in products)
    if not of_added.sum() > 0:
        return None
    shares = np.sqrt((1 / DOSES - 1) / (1 / target.dose - 1))
    return np.array(
        [
            detectability(of_full + 2 * share * of_both + share**2 * of_added, 1 + share * (curve - 1), spacing)
            for share in shares
        ]
    )


def dose_equivalent(pair: SlicePair) -> float:
    """Fraction of the full dose at which the low dose itself would have the output's detectability, by ``by_dose``.

    Above 1 where the output has more than the full dose. nan as ``by_dose``.
    """
    reached, curve = disc_detectability(pair), pair.target.once(by_dose)
    if curve is None or math.isnan(reached):
        return math.nan
    return dose_reaching(reached, curve)


def dose_reaching(reached: float, curve: np.ndarray) -> float:
    """Where ``curve``, d' at DOSES, is ``reached``; beyond its end as if it went on with the root of the dose."""
    rising = np.maximum.accumulate(curve)
    if reached > rising[-1]:
        return float((reached / rising[-1]) ** 2)
    return float(np.exp(np.interp(np.log(reached), np.log(rising), np.log(DOSES))))


def detectability(power: np.ndarray, curve: np.ndarray, spacing: float) -> float:
    """d' of the disc.

    d'^2 = (int S^2 T^2)^2 / int S^2 T^2 N over the frequency plane: S the disc's spectrum, T the transfer function,
    N the noise power spectrum in HU^2 mm^2.

    Parameters
    ----------
    power : ndarray
        As ``noise_texture.spectrum``, (BLOCK // 2 + 1,).
    curve : ndarray
        T at the same frequencies.
    spacing : float
        Side of a pixel in mm.
    """
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


def disc(side: int, spacing: float) -> np.ndarray:
    """The disc in the middle of a square of ``side`` pixels: whole HU to be added, at its rim by the area covered."""
    fine = 9  # points along a pixel's side
    at = ((np.arange(side * fine) + 0.5) / fine - side / 2) * spacing
    inside = np.hypot(at[:, None], at[None]) <= DIAMETER_MM / 2
    return np.rint(CONTRAST_HU * inside.reshape(side, fine, side, fine).mean((1, 3)))


def detectability_of(signal: np.ndarray, power: np.ndarray) -> float:
    """d' of a signal that is known exactly, in noise whose spectrum is known; the template is the signal.

    d'^2 = (sum s^2)^2 / s^T K s, K the covariance of noise that repeats itself at the border. In white noise of SD
    sigma it is sqrt(sum s^2) / sigma. The spectrum is of blocks less a plane each, so s is ``signal`` less its plane:
    what lies below the spectrum would be seen without noise. nan where there is no signal or no noise.

    Parameters
    ----------
    signal : ndarray
        Difference of what the method makes with the lesion and without, HU, (BLOCK, BLOCK).
    power : ndarray
        As ``noise_texture.spectrum``, (BLOCK // 2 + 1,).
    """
    noise = power / np.square(np.hanning(BLOCK)).sum() ** 2
    signal = without_plane(signal[None])[0]
    index = np.fft.fftfreq(BLOCK)
    of_noise = np.interp(np.hypot(index[:, None], index[None]), FREQUENCY, noise)
    energy = np.square(signal).sum()
    below = (np.abs(np.fft.fft2(signal)) ** 2 * of_noise).sum() / BLOCK**2
    return float(energy / np.sqrt(below)) if energy > 0 and below > 0 else math.nan
