"""Metric protocols: what is clipped, what the data range is, which SSIM. A number means nothing without its name.

The same pair of images gives a low-dose PSNR of 27.6 dB under ``abd400`` and of 45.8 dB under ``full4096``, so every
table names its protocol. To add one, add a line to ``_ALL``.
"""

import math
from dataclasses import dataclass
from typing import Literal

from shards.common.command import InputError

PATCH = 55
"""Side in pixels of the patches that ``document55`` averages over."""


@dataclass(frozen=True)
class Protocol:
    """How an output is compared with the full dose."""

    name: str
    """Name in tables and files."""
    text: str
    """The definition in one line, for people."""
    data_range: float
    """Peak of PSNR and range of SSIM, in HU."""
    low: float = -math.inf
    """Values below are clipped to it, in HU."""
    high: float = math.inf
    """Values above are clipped to it, in HU."""
    shift: float = 0.0
    """Added before SSIM, in HU: its first factor depends on where zero lies."""
    window: Literal["gaussian", "uniform"] = "gaussian"
    """SSIM window: Gaussian 11x11 of SD 1.5 pixels, or uniform 7x7 with the sample covariance."""
    zero_padded: bool = False
    """Whether SSIM also counts the border, with zeros outside; otherwise only windows inside the image count."""
    patch: int = 0
    """Side in pixels of the patches that metrics are means over; 0 = over the slice."""


def _window(name: str, what: str, centre: float, width: float) -> Protocol:
    """Protocol of ldct-benchmark: a display window mapped to [0, 1], scikit-image's SSIM with its defaults."""
    low, high = centre - width / 2, centre + width / 2
    text = f"{what} window C{centre:g} W{width:g} mapped to [0, 1], data range 1; SSIM uniform 7x7, sample covariance"
    return Protocol(name, text, width, low, high, shift=-low, window="uniform")


_GAUSSIAN = "SSIM Gaussian 11x11 SD 1.5"
_ALL = (
    Protocol("abd400", f"clip [-160, 240] HU, data range 400; {_GAUSSIAN} on 0..400", 400, -160, 240, shift=160),
    Protocol(
        "hu2000", f"clip [-1000, 1000] HU, data range 2000; {_GAUSSIAN} on 0..2000", 2000, -1000, 1000, shift=1000
    ),
    Protocol(
        "full4096", f"clip [-1024, 3072] HU, data range 4096; {_GAUSSIAN} on 0..4096", 4096, -1024, 3072, shift=1024
    ),
    _window("ldctbench", "abdomen", 50, 400),
    Protocol(
        "sinyu",
        f"clip [-160, 240] HU, data range 400; {_GAUSSIAN}, zero-padded, on HU with negative values",
        400,
        -160,
        240,
        zero_padded=True,
    ),
    Protocol(
        "document55",
        f"no clip, mean over {PATCH}x{PATCH} patches, (HU+500)/500, data range 1 (500 HU); SSIM uniform 7x7",
        500,
        shift=500,
        window="uniform",
        patch=PATCH,
    ),
    _window("ldctbench_chest", "chest", -600, 1500),
    _window("ldctbench_head", "head", 40, 80),
)
_BY_NAME = {protocol.name: protocol for protocol in _ALL}
DEFAULT = ("abd400", "hu2000", "full4096", "ldctbench", "sinyu", "document55")
"""What is measured unless others are asked for; the first is the one that ranks. Chest and head are for their scans."""


def names() -> list[str]:
    """Names of all protocols."""
    return list(_BY_NAME)


def get(name: str) -> Protocol:
    """The protocol called ``name``.

    Raises
    ------
    InputError
        If there is none; the message lists those there are.
    """
    if name not in _BY_NAME:
        raise InputError(f"unknown metric protocol {name!r}; there are: {', '.join(names())}")
    return _BY_NAME[name]
