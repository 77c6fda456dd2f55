"""A slice at a lower dose: the missing quantum noise, inserted in the projections and reconstructed alone.

Filtered back-projection is linear, so ``low = full + FBP(noise sinogram)``: the slice itself is never
reconstructed again, and its resolution and HU stay. Noise per ray after Yu et al., J Comput Assist Tomogr
2012;36:477, without the term for electronic noise, which calibration against real pairs put at zero.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft
from skimage.transform import radon, rescale

VIEWS = 1152
"""Views over half a turn."""
BINS = 736
"""Detector bins; with the pitch, 519 mm: the field of view of a body scanner."""
PITCH = 0.7047
"""Width of a bin at the isocentre in mm."""
COARSE = 2
"""The line integrals are smooth, so they are taken on a slice of half the size and at a quarter of the views."""
FINE = 8
"""Steps per bin to which filtered views are interpolated before back-projection looks up the nearest."""


@dataclass(frozen=True)
class Kernel:
    """A reconstruction kernel and how many photons a ray has with it."""

    name: str
    photons_per_mas: float
    """q: I0 = q * effective mAs, for this geometry and 3 mm slices."""
    half: float | None
    """Frequency in 1/mm at which the Gaussian window of the ramp has fallen to one half; None: the bare ramp."""


SOFT = Kernel("soft", 1235.0, 0.35)
SHARP = Kernel("sharp", 1390.0, None)
DEFAULT_I0 = 3e5
"""Photons per ray where the exposure is missing or absurd."""


def mu_water(kvp: float | None) -> float:
    """Linear attenuation of water in 1/mm at the effective energy of a tube voltage (120 kV where unknown)."""
    return float(np.interp(kvp or 120.0, [100.0, 120.0], [0.0206, 0.0192]))


def line_integrals(hu: np.ndarray, spacing: float, mu: float) -> np.ndarray:
    """Attenuation along each ray of the scan.

    Parameters
    ----------
    hu : numpy.ndarray
        One slice in HU, shape (H, W).
    spacing : float
        Pixel size in mm.
    mu : float
        Attenuation of water in 1/mm.

    Returns
    -------
    numpy.ndarray
        float32, shape (VIEWS, BINS), without unit.
    """
    attenuation = np.maximum(hu.astype(np.float32) / 1000 + 1, 0) * mu
    coarse = rescale(attenuation, 1 / COARSE, anti_aliasing=False, order=1)
    step = spacing * hu.shape[0] / coarse.shape[0]
    angles = np.arange(0, VIEWS, 4) * (180 / VIEWS)
    sums = radon(coarse, angles, circle=False).astype(np.float32).T * step  # (views / 4, bins of one step)
    sums = np.concatenate([sums, sums[:1, ::-1]])  # half a turn on, the first view again, mirrored
    at_views = np.arange(VIEWS) / 4
    below = at_views.astype(int)
    weight = (at_views - below)[:, None].astype(np.float32)
    have = (np.arange(sums.shape[1]) - sums.shape[1] // 2) * step
    rays = np.stack([np.interp(_positions(), have, view, left=0, right=0) for view in sums]).astype(np.float32)
    return rays[below] * (1 - weight) + rays[below + 1] * weight


def _positions() -> np.ndarray:
    """Distance of each bin's centre from the isocentre in mm, shape (BINS,)."""
    return (np.arange(BINS) - (BINS - 1) / 2) * PITCH


def ray_sd(integrals: np.ndarray, dose: float, i0: float) -> np.ndarray:
    """SD of the noise to add to a line integral p: ``sqrt((1-a)/a * e^p / I0)`` (Yu et al. 2012, eq. 9, Ne = 0).

    Parameters
    ----------
    integrals : numpy.ndarray
        p of each ray.
    dose : float
        a, the fraction of the dose that is to be left, in (0, 1].
    i0 : float
        Photons per ray at the full dose, before the patient.
    """
    return np.sqrt((1 - dose) / dose * np.exp(integrals) / i0)


def _response(kernel: Kernel, length: int) -> np.ndarray:
    """Frequency response of the reconstruction filter in 1/mm at the frequencies of ``rfft(length)``.

    The ramp is the transform of its band-limited impulse response (Kak and Slaney, eq. 61), so its mean is right.
    """
    n = np.minimum(np.arange(length), length - np.arange(length))
    impulse = np.zeros(length)
    impulse[0] = 0.25
    impulse[n % 2 == 1] = -1 / (np.pi * n[n % 2 == 1]) ** 2
    response = fft.rfft(impulse).real / PITCH
    if kernel.half is not None:
        response *= np.exp(-np.log(2) * (fft.rfftfreq(length, PITCH) / kernel.half) ** 2)
    return response


def back_project(sinogram: np.ndarray, shape: tuple[int, int], spacing: float, kernel: Kernel) -> np.ndarray:
    """Filtered back-projection of line integrals.

    Parameters
    ----------
    sinogram : numpy.ndarray
        Shape (VIEWS, BINS).
    shape : tuple of int
        Rows and columns of the slice, its middle at the isocentre.
    spacing : float
        Pixel size in mm.
    kernel : Kernel
        Filter.

    Returns
    -------
    numpy.ndarray
        float32 attenuation in 1/mm, shape ``shape``.
    """
    length = 2048  # at least twice the bins: no wrap-around
    filtered = fft.irfft(fft.rfft(sinogram, length) * _response(kernel, length), length)[:, :BINS]
    ends = np.arange((BINS - 1) * FINE + 1) / FINE
    below = np.minimum(ends.astype(int), BINS - 2)
    weight = (ends - below).astype(np.float32)
    fine = np.zeros((VIEWS, len(ends) + 2), np.float32)  # a zero at both ends, for what lies outside the detector
    fine[:, 1:-1] = filtered[:, below] * (1 - weight) + filtered[:, below + 1] * weight
    rows, columns = shape
    y = (np.arange(rows, dtype=np.float32) - (rows - 1) / 2) * (spacing / PITCH * FINE)
    x = (np.arange(columns, dtype=np.float32) - (columns - 1) / 2) * (spacing / PITCH * FINE)
    middle = (fine.shape[1] - 1) / 2 + 0.5
    image = np.zeros(shape, np.float32)
    for view, angle in zip(fine, np.arange(VIEWS) * (np.pi / VIEWS), strict=True):
        # skimage's radon turns the slice the other way: y counts downwards
        index = ((x * np.cos(angle) + middle)[None, :] - (y * np.sin(angle))[:, None]).astype(np.int32)
        image += view.take(index, mode="clip")
    return image * (np.pi / VIEWS)


def noise(
    hu: np.ndarray, spacing: float, kvp: float | None, kernel: Kernel, dose: float, i0: float, seed: list[int]
) -> np.ndarray:
    """The quantum noise that a slice lacks against the same slice at a fraction of its dose.

    Parameters
    ----------
    hu : numpy.ndarray
        The slice at full dose in HU, shape (H, W).
    spacing : float
        Pixel size in mm.
    kvp : float or None
        Tube voltage.
    kernel : Kernel
        The kernel the slice was reconstructed with.
    dose : float
        Fraction of the dose, in (0, 1].
    i0 : float
        Photons per ray at the full dose.
    seed : list of int
        Seeds the generator; the same seed gives the same noise.

    Returns
    -------
    numpy.ndarray
        float32 HU, shape (H, W).
    """
    mu = mu_water(kvp)
    sd = ray_sd(line_integrals(hu, spacing, mu), dose, i0)
    rays = np.random.default_rng(seed).standard_normal(sd.shape, np.float32) * sd
    return back_project(rays, (hu.shape[0], hu.shape[1]), spacing, kernel) * (1000 / mu)
