"""What a simulation draws at random: the ranges of a recipe, and what one series and one slice got of them."""

import dataclasses
import re
import zlib
from dataclasses import dataclass

import numpy as np

from shards.common.command import InputError
from shards.noise_model import Kernel, Scan

Range = tuple[float, float]
"""Lowest and highest value; equal where nothing is drawn."""

LIMITS: dict[str, tuple[float, float, str]] = {
    "dose": (1e-4, 0.9999, "fraction of the target's dose that the low dose has, for each slice"),
    "full_dose": (
        0.01,
        10.0,
        "dose of the target as a fraction of the slice's: 1 keeps its noise, less adds noise; drawn for each slice",
    ),
    "shrink": (0.4, 1.0, "size of the body in the copy, as a fraction of its own"),
    "spacing": (0.2, 3.0, "pixel size in mm to which slices are resampled before the noise, for each copy"),
    "kernel_half": (0.2, 2.0, "1/mm where the kernel's window is one half (soft 0.34, sharp 0.95), for each copy"),
    "bowtie": (0.0, 3.0, "attenuation by the bowtie filter 150 mm from the middle, for each copy"),
    "modulation": (0.0, 1.0, "how far the tube current follows the body's width, for each copy"),
}
"""Of each range: lowest and highest possible value, and what it is. Each is one number, or LOW-HIGH to draw from."""


@dataclass(frozen=True)
class Ranges:
    """What scanners vary. None: left as the slice is."""

    dose: Range = (0.25, 0.25)
    full_dose: Range | None = None
    shrink: Range | None = None
    spacing: Range | None = None
    kernel_half: Range | None = None
    bowtie: Range = (1.0, 1.0)
    modulation: Range = (0.5, 0.5)


RECIPES = {
    "plain": Ranges(),
    "varied": Ranges(
        full_dose=(0.06, 1.5),
        shrink=(0.7, 1.0),
        spacing=(0.6, 1.0),
        kernel_half=(0.28, 1.0),
        bowtie=(0.0, 2.0),
        modulation=(0.0, 1.0),
    ),
}
"""Named ranges. varied is what a network learns from that is to serve scanners it never saw (docs/recipe.md)."""


def flag(name: str) -> str:
    """The command line's spelling of a range's name."""
    return "--" + name.replace("_", "-")


def parse(name: str, text: str) -> Range:
    """``0.25``, ``1e-3`` or ``0.1-0.5`` as (lowest, highest).

    Raises
    ------
    InputError
        If it is no number or range, or leaves the limits.
    """
    number = r"(\d*\.?\d+(?:[eE][-+]?\d+)?)"
    match = re.fullmatch(f"{number}(?:-{number})?", text)
    low, high = (float(match[1]), float(match[2] or match[1])) if match else (np.nan, np.nan)
    least, most, _ = LIMITS[name]
    if not least <= low <= high <= most:
        raise InputError(
            f"{flag(name)} {text}: expected a number from {least:g} to {most:g}, or a range LOW-HIGH of such numbers"
        )
    return low, high


@dataclass(frozen=True)
class Copy:
    """What one copy of a series got."""

    shrink: float
    """Size of the body, of its own."""
    spacing: float | None
    """Pixel size in mm; None: the slices' own, shrunk with the body."""
    scan: Scan
    """With the photons of a slice yet to be put in."""


def _number(generator: np.random.Generator, bounds: Range | None) -> float | None:
    """A number from a range: log-uniform where the range is above 0, else uniform.

    Each call draws, even where the range is off, so that no range moves what another one gives.
    """
    share = float(generator.uniform())
    if bounds is None:
        return None
    low, high = bounds
    return low * (high / low) ** share if low > 0 else low + (high - low) * share


def draw_copy(ranges: Ranges, kernel: Kernel, patient: str, seed: int) -> Copy:
    """What a copy of a series gets, by seed and name alone."""
    generator = np.random.default_rng([seed, zlib.crc32(patient.encode())])
    names = ("spacing", "kernel_half", "bowtie", "modulation", "shrink")
    drawn = {name: _number(generator, getattr(ranges, name)) for name in names}
    half = drawn["kernel_half"]
    scan = Scan(
        own=kernel,
        kernel=kernel if half is None else dataclasses.replace(kernel, half=half),
        i0=0.0,
        bowtie=drawn["bowtie"] or 0.0,
        modulation=drawn["modulation"] or 0.0,
    )
    return Copy(drawn["shrink"] or 1.0, drawn["spacing"], scan)


def draw_doses(ranges: Ranges, patient: str, z: float, seed: int) -> tuple[float, float]:
    """Of a slice, by seed, name and z alone.

    Returns
    -------
    full : float
        The target's dose as a fraction of the slice's.
    dose : float
        The low dose as a fraction of the target's.
    """
    generator = np.random.default_rng([*_key(patient, z, seed), 0])
    dose, full = _number(generator, ranges.dose), _number(generator, ranges.full_dose)
    assert dose is not None
    return full or 1.0, dose


def noise_seed(patient: str, z: float, seed: int) -> list[int]:
    """Of the white noise that belongs to a table position."""
    return [*_key(patient, z, seed), 1]


def _key(patient: str, z: float, seed: int) -> list[int]:
    return [seed, zlib.crc32(patient.encode()), round(z * 1000) % 2**32]
