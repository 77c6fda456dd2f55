"""An output beside the full dose of its slice, and what metrics need of the two.

What they need of the full dose alone is computed once a slice, for the outputs of all methods; what several metrics
need of an output, once a pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ldct.metrics.protocols import Protocol

Result = TypeVar("Result")


class Keeps:
    """Keeps what was computed of it, as long as it is there itself."""

    def __init__(self) -> None:
        self._results: dict[tuple[Any, ...], Any] = {}

    def once(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """``function`` of this and ``arguments``, computed when first asked for."""
        key = (function, *arguments)
        if key not in self._results:
            self._results[key] = function(self, *arguments)
        return self._results[key]


class Image(Keeps):
    """What a protocol sees of an image: ``hu``, clipped, float64, shape (n, H, W); n is 1 unless it cuts patches."""

    def __init__(self, hu: np.ndarray) -> None:
        super().__init__()
        self.hu = hu


@dataclass(frozen=True)
class Clipped:
    """What a protocol sees of a slice; protocols that clip alike see the same two images."""

    output: Image
    full: Image
    protocol: Protocol


class Target(Keeps):
    """The full dose of a slice, which the outputs of all methods are compared with.

    Parameters
    ----------
    full : array_like
        HU, any dtype, shape (H, W); metrics compute in float64.
    spacing : float, optional
        Side of a pixel in mm; without it what is measured in mm is nan.
    low : array_like, optional
        The low dose that outputs are made from; without it what needs it is nan.
    dose : float, optional
        What fraction of the full dose that is.
    """

    def __init__(
        self, full: ArrayLike, spacing: float | None = None, low: ArrayLike | None = None, dose: float | None = None
    ) -> None:
        super().__init__()
        self.full = np.asarray(full, np.float64)
        self.low = None if low is None else np.asarray(low, np.float64)
        self.spacing, self.dose = spacing, dose


class SlicePair(Keeps):
    """One slice of a method beside the full dose.

    Parameters
    ----------
    output : array_like
        HU, any dtype, shape (H, W); metrics compute in float64.
    target : Target or array_like
        One Target for the outputs of all methods. Of an array, a full dose, nothing else is known.

    Raises
    ------
    ValueError
        If the shapes differ or are not (H, W).
    """

    def __init__(self, output: ArrayLike, target: Target | ArrayLike) -> None:
        super().__init__()
        self.output = np.asarray(output, np.float64)
        self.target = target if isinstance(target, Target) else Target(target)
        self.full, self.spacing = self.target.full, self.target.spacing
        if self.output.shape != self.full.shape or self.full.ndim != 2:
            raise ValueError(f"expected two equal shapes (H, W), found {self.output.shape} and {self.full.shape}")

    def under(self, protocol: Protocol) -> Clipped:
        """What ``protocol`` sees of the two.

        Raises
        ------
        ValueError
            If a side is shorter than the protocol's patch.
        """
        clip = (protocol.low, protocol.high, protocol.patch)
        return Clipped(self.once(_view_of_output, *clip), self.target.once(_view_of_full, *clip), protocol)


def difference(pair: SlicePair) -> np.ndarray:
    """Output minus full dose, HU, shape (H, W)."""
    return pair.output - pair.full


def _view_of_full(target: Target, *clip: Any) -> Image:
    return _view(target, target.full, *clip)


def _view_of_output(pair: SlicePair, *clip: Any) -> Image:
    return _view(pair.target, pair.output, *clip)


def _view(target: Target, image: np.ndarray, low: float, high: float, patch: int) -> Image:
    clipped = np.clip(image, low, high)
    return Image(_patches(clipped, patch)[target.once(_not_empty, patch)] if patch else clipped[None])


def _patches(image: np.ndarray, side: int) -> np.ndarray:
    """The whole patches of a slice, (n, side, side), from the top left corner; the rest is not covered."""
    rows, columns = (length // side for length in image.shape)
    if not rows or not columns:
        raise ValueError(f"expected slices of at least {side} x {side} pixels, found {image.shape}")
    covered = image[: rows * side, : columns * side]
    return covered.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)


def _not_empty(target: Target, side: int) -> np.ndarray:
    """Which patches count, bool, (n,); all, if it would be none.

    Patches whose full dose is one single value lie outside the field of view: where the low dose is padded too their
    PSNR is infinite, and so would be the mean. They are left out, by the full dose alone, so that all outputs are
    averaged over the same patches.
    """
    full = _patches(target.full, side)
    seen = full.max((1, 2)) > full.min((1, 2))
    return seen if seen.any() else ~seen
