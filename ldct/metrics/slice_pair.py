"""An output beside the full dose of its slice, and what several metrics need of the two, computed once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ldct.metrics.protocols import Protocol

Result = TypeVar("Result")


@dataclass(frozen=True)
class Clipped:
    """What a protocol sees of a slice: clipped HU, shape (n, H, W); n is 1 unless the protocol cuts patches."""

    output: np.ndarray
    full: np.ndarray
    protocol: Protocol

    @cached_property
    def rmse(self) -> np.ndarray:
        """Root of the mean squared difference of each image, HU, shape (n,)."""
        difference = self.output - self.full
        return np.sqrt(np.einsum("nij,nij->n", difference, difference) / difference[0].size)


class SlicePair:
    """One slice of a method beside the full dose.

    Parameters
    ----------
    output, full : array_like
        HU, any dtype, shape (H, W); metrics compute in float64.
    spacing : float, optional
        Side of a pixel in mm; without it what is measured in mm is nan.
    low : array_like, optional
        The low dose that the output was made from; without it what needs it is nan.
    dose : float, optional
        What fraction of the full dose that is.

    Raises
    ------
    ValueError
        If the shapes differ or are not (H, W).
    """

    def __init__(
        self,
        output: ArrayLike,
        full: ArrayLike,
        spacing: float | None = None,
        low: ArrayLike | None = None,
        dose: float | None = None,
    ) -> None:
        self.output, self.full = np.asarray(output, np.float64), np.asarray(full, np.float64)
        self.spacing, self.dose = spacing, dose
        self.low = None if low is None else np.asarray(low, np.float64)
        if self.output.shape != self.full.shape or self.full.ndim != 2:
            raise ValueError(f"expected two equal shapes (H, W), found {self.output.shape} and {self.full.shape}")
        self._views: dict[str, Clipped] = {}
        self._results: dict[Callable[[SlicePair], Any], Any] = {}

    def once(self, function: Callable[["SlicePair"], Result]) -> Result:
        """``function`` of this pair, computed when first asked for."""
        if function not in self._results:
            self._results[function] = function(self)
        return self._results[function]

    def under(self, protocol: Protocol) -> Clipped:
        """What ``protocol`` sees of the two.

        Raises
        ------
        ValueError
            If a side is shorter than the protocol's patch.
        """
        if protocol.name not in self._views:
            output, full = (np.clip(image, protocol.low, protocol.high)[None] for image in (self.output, self.full))
            if protocol.patch:
                output, full = _patches(output[0], full[0], protocol.patch)
            self._views[protocol.name] = Clipped(output, full, protocol)
        return self._views[protocol.name]


def _patches(output: np.ndarray, full: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole patches of a slice, (n, side, side), from the top left corner; the rest is not covered.

    Patches whose full dose is one single value lie outside the field of view: where the low dose is padded too their
    PSNR is infinite, and so would be the mean. They are left out, by the full dose alone, so that all outputs are
    averaged over the same patches.
    """
    rows, columns = (length // side for length in full.shape)
    if not rows or not columns:
        raise ValueError(f"expected slices of at least {side} x {side} pixels, found {full.shape}")
    output, full = (
        image[: rows * side, : columns * side].reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
        for image in (output, full)
    )
    seen = full.max((1, 2)) > full.min((1, 2))
    return (output[seen], full[seen]) if seen.any() else (output, full)
