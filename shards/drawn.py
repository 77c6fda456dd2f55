"""What a DerivationDescription of this project says: what a simulation drew for a slice, as its record holds it."""

import re

DENOISED = "denoised by "
"""How the DerivationDescription of launch/denoise.py begins."""

PHRASES = {
    "dose": ("dose fraction {:.4f}", "dose of the low dose as a fraction of the target's"),
    "full_dose": ("target at {:.4f} of its dose", "dose of the target as a fraction of the slice's"),
    "i0": ("I0 {:.4g}", "photons per ray"),
    "kernel_half": ("window half {:.3f}/mm", "where the window of the noise falls to one half, in 1/mm"),
    "bowtie": ("bowtie {:.3f}", "attenuation by the filter 150 mm from the middle"),
    "modulation": ("modulation {:.3f}", "exponent of the tube current"),
    "shrink": ("body shrunk to {:.3f}", "size of the body, of its own"),
    "pixels": ("pixels {:.4f} mm", "pixel size in mm"),
    "seed": ("seed {:d}", "of the simulation"),
}
"""Name of a value: how it is said, and what it is."""

_NUMBER = r"(\d[0-9.]*(?:e[+-]?\d+)?)"
_PATTERNS = {name: re.compile(re.sub(r"\{.*\}", lambda _: _NUMBER, said)) for name, (said, _) in PHRASES.items()}


def text(values: dict[str, float]) -> str:
    """The values as people read them."""
    return ", ".join(PHRASES[name][0].format(value) for name, value in values.items())


def parse(description: str) -> dict[str, float]:
    """The values that a text names, as far as it has digits; {} where no simulation wrote it."""
    found = {name: pattern.search(description) for name, pattern in _PATTERNS.items()}
    return {name: float(match[1]) for name, match in found.items() if match} if found["dose"] else {}
