"""A slice at a lower dose: the missing quantum noise, inserted in the projections and reconstructed alone.

Filtered back-projection is linear, so ``low = full + FBP(noise sinogram)``: the slice itself is never
reconstructed again, and its resolution and HU stay. Noise per ray after Yu et al., J Comput Assist Tomogr
2012;36:477, without the term for electronic noise, which calibration against real pairs put at zero.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

from shards.projection import Fan, back_project, project

VIEWS = 1152
"""Views over half a turn."""
PITCH = 0.7047
"""Width of a detector bin at the isocentre in mm. I0 counts the photons of one bin in one of VIEWS equal steps."""
BODY = 150.0
"""Distance from the isocentre in mm, of a body's side: where the bowtie is said."""


@dataclass(frozen=True)
class Kernel:
    """A reconstruction kernel."""

    name: str
    half: float
    """Frequency in 1/mm at which the Gaussian window of the ramp has fallen to one half."""

    def power(self, f: np.ndarray) -> np.ndarray:
        """The window squared at ``f`` in 1/mm."""
        return np.exp(-2 * math.log(2) * (f / self.half) ** 2)

    @property
    def variance(self) -> float:
        """Of the noise that it makes of the same rays, but for a factor."""
        f = np.linspace(0, 0.5 / PITCH, 1000)
        return float(np.mean(f**2 * self.power(f)))


SOFT = Kernel("soft", 0.34)
SHARP = Kernel("sharp", 0.95)
PHOTONS_PER_MAS = 1875.0
"""I0 for one effective mAs, for this geometry and 3 mm slices; from real pairs of both kernels (docs/data.md)."""
DEFAULT_I0 = 3e5
"""Photons per ray where the exposure is missing or absurd."""

WhiteNoise = tuple[float, Sequence[int]]
"""Weight of independent noise with an SD of 1 in every ray, and the seed of its generator."""


@dataclass(frozen=True)
class Scan:
    """How a slice was scanned, and how the pair that is made of it is to be."""

    own: Kernel
    """The slice's kernel: the texture of the noise that it has already."""
    kernel: Kernel
    """The pair's kernel: the texture of the noise that is inserted."""
    i0: float
    """Photons per ray at the slice's dose, before the patient, on average over the views."""
    bowtie: float = 1.0
    """The filter before the patient passes exp(-bowtie) of the middle's photons at BODY mm from the isocentre."""
    modulation: float = 0.5
    """Tube current by angle: photons go with exp(modulation * the view's largest line integral); 0 is a steady tube,
    1 gives every view the same darkest ray."""


def mu_water(kvp: float | None) -> float:
    """Linear attenuation of water in 1/mm at the effective energy of a tube voltage (120 kV where unknown)."""
    return float(np.interp(kvp or 120.0, [100.0, 120.0], [0.0206, 0.0192]))


def noise(
    hu: np.ndarray, spacing: float, kvp: float | None, scan: Scan, full: float, dose: float, rays: Sequence[WhiteNoise]
) -> np.ndarray:
    """What a slice lacks to be a pair: the noise of the target, and that of the low dose.

    The noise of a ray at the slice's dose has the variance e^p / I0 (Yu et al. 2012, eq. 9, Ne = 0) and the spectrum
    of the slice's kernel. The target shall have the spectrum of the pair's kernel and, in the image, 1 / ``full`` times
    the slice's variance; at frequencies where the slice has more already, more stays. The low dose holds the target's
    noise, as when photons are taken away, and has 1 / ``dose`` times its variance at every frequency: their covariance
    is the target's variance.

    Parameters
    ----------
    hu : numpy.ndarray
        The slice in HU, shape (H, W), its middle at the isocentre.
    spacing : float
        Pixel size in mm.
    kvp : float or None
        Tube voltage.
    scan : Scan
        Kernels, photons and filters.
    full : float
        The target's dose as a fraction of the one that gives the slice's noise with the pair's kernel.
    dose : float
        The low dose as a fraction of the target's, in (0, 1].
    rays : sequence of WhiteNoise
        The noise of the rays is their weighted sum; the squares of the weights add up to 1. What two slices have in
        common here makes their noise correlate.

    Returns
    -------
    numpy.ndarray
        float32 HU, shape (2, H, W): to be added to the slice for the target, and for the low dose.
    """
    mu = mu_water(kvp)
    halves = _ray_variance(np.maximum(hu.astype(np.float32) / 1000 + 1, 0) * mu, spacing, scan)
    generators = [(weight, np.random.default_rng(list(seed))) for weight, seed in rays]

    def inserted(power: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        across, along = (_reconstruct(fan, variance, power, generators) for fan, variance in halves)
        return (across + along.T) * (1000 / mu)

    scale = scan.own.variance / scan.kernel.variance / full

    def target(f: np.ndarray) -> np.ndarray:
        return np.maximum(scale * scan.kernel.power(f), scan.own.power(f))

    # drawn first: the same rays for slices whose target lacks noise and for those whose does not
    missing = inserted(lambda f: target(f) * (1 / dose - 1))
    lacking = full < 1 or scan.kernel != scan.own
    first = inserted(lambda f: target(f) - scan.own.power(f)) if lacking else np.zeros(hu.shape, np.float32)
    return np.stack([first, first + missing])


def _ray_variance(attenuation: np.ndarray, spacing: float, scan: Scan) -> list[tuple[Fan, np.ndarray]]:
    """Both halves of the views, with the variance of a line integral at each ray, float32 (views, samples)."""
    fans = [Fan(shape, spacing, VIEWS // 2) for shape in (attenuation.shape, attenuation.shape[::-1])]
    sums = [project(image, fan) for image, fan in zip((attenuation, attenuation.T), fans, strict=True)]
    darkest = np.concatenate(sums).max(axis=1).mean()
    return [(fan, _variance(half, fan, scan, darkest)) for fan, half in zip(fans, sums, strict=True)]


def _variance(sums: np.ndarray, fan: Fan, scan: Scan, darkest: float) -> np.ndarray:
    """e^p / I0 of each ray of half of the views; ``darkest`` is the largest p of a view, on average over all views."""
    exponent = sums
    if scan.bowtie:
        exponent = exponent + scan.bowtie * (fan.positions / BODY) ** 2
    if scan.modulation:
        exponent = exponent - scan.modulation * (sums.max(axis=1, keepdims=True) - darkest)
    return np.exp(exponent, dtype=np.float32) / np.float32(scan.i0)


def _reconstruct(
    fan: Fan,
    variance: np.ndarray,
    power: Callable[[np.ndarray], np.ndarray],
    generators: list[tuple[float, np.random.Generator]],
) -> np.ndarray:
    """The image in 1/mm of white noise of that variance in half of the views, filtered by a ramp and a window.

    A sample here has another width and stands for another angle than a bin and a view of I0; its photons go with both.
    ``power`` is the window squared.
    """
    fine = math.ceil(fan.spacing / PITCH)  # a coarse slice shows what lies beyond its own frequencies, folded
    photons = np.sqrt(PITCH * np.pi / VIEWS / (fan.spacing / fine * fan.cosines * fan.steps))[:, None]
    sd = np.repeat(np.sqrt(variance), fine, axis=1) * photons.astype(np.float32)
    white = [weight * generator.standard_normal(sd.shape, np.float32) for weight, generator in generators]
    rays = np.sum(white, axis=0, dtype=np.float32) * sd
    along_row = fan.frequencies(fine)
    across = (along_row[along_row <= 0.5 / PITCH] / fan.cosines[:, None]).astype(np.float32)
    ramp = np.where(across <= 0.5 / PITCH, across, 0)  # the detector samples no more
    weights = ramp * np.sqrt(power(across)) * fan.steps[:, None].astype(np.float32)
    return back_project(fft.rfft(rays, axis=1)[:, : weights.shape[1]] * weights, fan, fine)
