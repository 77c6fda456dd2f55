"""Parallel projections of a slice and their back-projection, both by FFT.

The linogram method (Edholm and Herman, IEEE TMI 1987;6:301): views stand at equal steps of the tangent of their angle
and are sampled where their rays cross the middle row of the slice. A row of the slice is then a shifted copy of the
view, and all shifts of one frequency together are one chirp transform. Nothing is interpolated, so nothing is smoothed.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft


@dataclass(frozen=True)
class Fan:
    """Half of the views: those whose rays are within 45 degrees of the columns of a slice.

    The other half are those of the transposed slice.
    """

    shape: tuple[int, int]
    """Rows and columns of the slice."""
    spacing: float
    """Pixel size in mm."""
    views: int
    """Views in this half."""

    @property
    def samples(self) -> int:
        """Samples of a view, one for each column and for the margin that the most slanted ray needs."""
        return fft.next_fast_len(sum(self.shape), real=True)

    @property
    def tangents(self) -> np.ndarray:
        """Of each view's angle to the columns, shape (views,)."""
        return (np.arange(self.views) - (self.views - 1) / 2) * (2 / self.views)

    @property
    def cosines(self) -> np.ndarray:
        """Of the same angles: what is one wide along the middle row is this wide across the ray."""
        return 1 / np.sqrt(1 + self.tangents**2)

    @property
    def steps(self) -> np.ndarray:
        """Angle in radians that each view stands for; over both halves they add up to half a turn."""
        return np.diff(np.arctan((np.arange(self.views + 1) - self.views / 2) * (2 / self.views)))

    @property
    def positions(self) -> np.ndarray:
        """Distance in mm of each ray from the middle of the slice, shape (views, samples)."""
        at = np.arange(self.samples) - (self.shape[1] - 1) / 2
        at[at > self.samples / 2] -= self.samples
        return np.multiply.outer(self.cosines, at * self.spacing)

    def frequencies(self, fine: int = 1) -> np.ndarray:
        """Of ``rfft`` of a view with ``fine`` samples a column, in cycles per mm of the middle row."""
        return fft.rfftfreq(self.samples * fine, self.spacing / fine)


def project(image: np.ndarray, fan: Fan) -> np.ndarray:
    """Integrals along the rays of one half of the views.

    Parameters
    ----------
    image : numpy.ndarray
        Attenuation in 1/mm, shape ``fan.shape``; zero outside.
    fan : Fan
        Geometry.

    Returns
    -------
    numpy.ndarray
        float32 without unit, shape (views, samples): at ``fan.positions``.
    """
    rows = fft.rfft(image.astype(np.float32), fan.samples, axis=1)
    sums = _chirp(rows, fan.views, _turns(fan))
    return fft.irfft(sums, fan.samples, axis=1) * (fan.spacing / fan.cosines[:, None]).astype(np.float32)


def back_project(spectra: np.ndarray, fan: Fan, fine: int = 1) -> np.ndarray:
    """Sum over one half of the views of the value that each has at the ray through a pixel.

    Parameters
    ----------
    spectra : numpy.ndarray
        ``rfft`` of the views, filtered and weighted, complex64, shape (views, up to samples / 2 + 1). Frequencies that
        are not there are zero.
    fan : Fan
        Geometry.
    fine : int
        Samples of a view per column of the slice.

    Returns
    -------
    numpy.ndarray
        float32, shape ``fan.shape``.
    """
    rows, columns = fan.shape
    turns = -_turns(fan, fine)[: spectra.shape[1]]
    samples = fan.samples * fine
    return fft.irfft(_chirp(spectra, rows, turns), samples, axis=1)[:, : columns * fine : fine]


def _turns(fan: Fan, fine: int = 1) -> np.ndarray:
    """Turns of phase at each frequency for one row and one view away from the middle."""
    return fan.frequencies(fine) * (fan.spacing * 2 / fan.views)


def _chirp(values: np.ndarray, count: int, turns: np.ndarray) -> np.ndarray:
    """``sum over i of values[i, k] * exp(2j pi turns[k] i' j')`` for ``count`` j; i' and j' count from the middle.

    By Bluestein's i'j' = (i'^2 + j'^2 - (j' - i')^2) / 2 it is a convolution.
    """
    rows = len(values)
    length = fft.next_fast_len(rows + count - 1)
    i, j = np.arange(rows) - (rows - 1) / 2, np.arange(count) - (count - 1) / 2
    lags = np.arange(1 - rows, count) + (rows - count) / 2
    before, after, kernel = _phases(turns, i), _phases(turns, j), _phases(-turns, lags)
    product = fft.fft(values.T * before, length, overwrite_x=True) * fft.fft(kernel, length, overwrite_x=True)
    return (fft.ifft(product, overwrite_x=True)[:, rows - 1 : rows - 1 + count] * after).T


def _phases(turns: np.ndarray, at: np.ndarray) -> np.ndarray:
    """``exp(1j pi turns at^2)``, complex64, shape (len(turns), len(at)); the phase is reduced in double precision."""
    half = np.multiply.outer(turns, at**2 / 2)
    angle = ((half - np.rint(half)) * (2 * np.pi)).astype(np.float32)
    phases = np.empty(angle.shape, np.complex64)
    phases.real, phases.imag = np.cos(angle), np.sin(angle)
    return phases
