"""Metric protocols: what is clipped, what the data range is, which SSIM. A number means nothing without its name.

The same pair of images gives a low-dose PSNR of 27.6 dB under ``abd400`` and of 45.8 dB under ``full4096``, so every
table names its protocol. To add one, add a line to ``_ALL``.

The definitions are torchmetrics' only nearly, so PSNR and SSIM are computed here, in float64, and checked against
scikit-image to 1e-6. torchmetrics' PSNR takes its logarithms in float32 (2e-6 dB). Its SSIM averages also over a border
that it fills by reflection (1.9; 1.4 and scikit-image and Wang 2004 leave the border out), it has no sample covariance
(scikit-image's default) and no zero padding (the RED-CNN repository); it filters in two dimensions at once, seven times
slower in float64.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from shards.common.command import InputError

TILE = 55
"""Side in pixels of the tiles that ``document55`` averages over."""


@dataclass(frozen=True)
class Protocol:
    """How an output is compared with the full dose. Everything is computed in float64."""

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
    tiles: bool = False
    """Whether metrics are means over TILE x TILE tiles instead of over the slice."""

    def measure(self, output: Tensor, full: Tensor) -> dict[str, float]:
        """RMSE in HU, PSNR in dB and SSIM of ``output`` against ``full``.

        Parameters
        ----------
        output, full : Tensor
            HU, any dtype, shape (H, W), or (B, H, W) for the mean over B slices.

        Returns
        -------
        dict
            ``rmse``, ``psnr`` (infinite where the two are equal) and ``ssim``.

        Raises
        ------
        ValueError
            If the shapes differ or a side is shorter than the SSIM window (the tile, with ``tiles``).
        """
        if output.shape != full.shape or full.ndim not in (2, 3):
            raise ValueError(f"expected two equal shapes (H, W) or (B, H, W), found {output.shape} and {full.shape}")
        shape = (-1, *full.shape[-2:])
        x, y = (image.double().reshape(shape).clamp(self.low, self.high) + self.shift for image in (output, full))
        if self.tiles:
            x, y = _tiles(x, y)
        rmse = (x - y).square().mean((1, 2)).sqrt()
        psnr = 20 * torch.log10(self.data_range / rmse)
        ssim = _ssim(x, y, self)
        return {"rmse": rmse.mean().item(), "psnr": psnr.mean().item(), "ssim": ssim.mean().item()}


def _tiles(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The whole tiles of every slice, (n, TILE, TILE), from the top left corner; the rest is not covered.

    Tiles whose full dose ``y`` is one single value lie outside the field of view: where the low dose is padded too its
    PSNR is infinite, and so would be the mean. They are left out, by the full dose alone, so that all outputs are
    averaged over the same tiles.
    """
    if min(y.shape[1:]) < TILE:
        raise ValueError(f"expected slices of at least {TILE} x {TILE} pixels, found {tuple(y.shape[1:])}")
    x, y = (image.unfold(1, TILE, TILE).unfold(2, TILE, TILE).reshape(-1, TILE, TILE) for image in (x, y))
    seen = y.amax((1, 2)) > y.amin((1, 2))
    return (x[seen], y[seen]) if seen.any() else (x, y)


def _ssim(x: Tensor, y: Tensor, protocol: Protocol) -> Tensor:
    """SSIM of each pair of slices (Wang 2004, IEEE TIP 13:600, eq. 13; K1 = 0.01, K2 = 0.03); shape (B,)."""
    if protocol.window == "gaussian":
        window = torch.exp(-torch.arange(-5.0, 6.0, dtype=x.dtype, device=x.device).square() / (2 * 1.5**2))
        covariance = 1.0
    else:
        window = x.new_ones(7)
        covariance = 49 / 48  # sample covariance of 7 x 7 values
    window /= window.sum()
    side = len(window)
    if min(y.shape[1:]) < side:
        raise ValueError(f"expected slices of at least {side} x {side} pixels, found {tuple(y.shape[1:])}")
    maps = torch.stack((x, y, x * x, y * y, x * y)).flatten(0, 1)[:, None]
    pad = side // 2 if protocol.zero_padded else 0
    maps = functional.conv2d(maps, window.view(1, 1, side, 1), padding=(pad, 0))
    maps = functional.conv2d(maps, window.view(1, 1, 1, side), padding=(0, pad))
    mx, my, mxx, myy, mxy = maps[:, 0].unflatten(0, (5, -1))
    vx, vy, vxy = (covariance * v for v in (mxx - mx * mx, myy - my * my, mxy - mx * my))
    c1, c2 = (0.01 * protocol.data_range) ** 2, (0.03 * protocol.data_range) ** 2
    values = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return values.mean((1, 2))


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
        f"no clip, mean over {TILE}x{TILE} tiles, (HU+500)/500, data range 1 (500 HU); SSIM uniform 7x7",
        500,
        shift=500,
        window="uniform",
        tiles=True,
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
