"""Square patches of a slice, and back."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from shards.common.command import InputError

TILINGS = ("document", "cover")
BODY_HU = -500
"""Above this a pixel of the full dose counts as body, not air."""


def origins(shape: tuple[int, int], patch: int, stride: int, tiling: str) -> list[list[int]]:
    """Upper left corners (row, column) of the patches, row by row.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of the slice.
    patch : int
        Side of a patch in pixels.
    stride : int
        Step between patches in pixels.
    tiling : str
        "document": whole steps only; 512 x 512 gives 9 x 9 patches of 55, the last 17 rows and columns stay out.
        "cover": one more row and column flush with the border, so that every pixel lies in a patch (10 x 10).

    Raises
    ------
    InputError
        If the slice is smaller than a patch.
    """
    if min(shape) < patch:
        raise InputError(f"a slice of {shape[0]} x {shape[1]} pixels is smaller than a patch of {patch}; give --patch")
    steps = [list(range(0, side - patch + 1, stride)) for side in shape]
    if tiling == "cover":
        for starts, side in zip(steps, shape, strict=True):
            if starts[-1] != side - patch:
                starts.append(side - patch)
    return [[row, column] for row in steps[0] for column in steps[1]]


def cut(images: Sequence[np.ndarray], corners: list[list[int]], patch: int) -> np.ndarray:
    """The patches of k images of one shape (H, W) at ``corners``: a new array of shape (n, k, patch, patch)."""
    rows, columns = np.array(corners).T
    patches = np.empty((len(corners), len(images), patch, patch), images[0].dtype)
    for k, image in enumerate(images):
        patches[:, k] = sliding_window_view(image, (patch, patch))[rows, columns]
    return patches


def join(patches: np.ndarray, corners: list[list[int]], shape: tuple[int, int]) -> np.ndarray:
    """Patches, shape (n, p, p), back in a slice: float32 of ``shape``, their mean where they overlap, else nan."""
    total, count = np.zeros(shape, np.float64), np.zeros(shape, np.int32)
    side = patches.shape[-1]
    for pixels, (row, column) in zip(patches, corners, strict=True):
        total[row : row + side, column : column + side] += pixels
        count[row : row + side, column : column + side] += 1
    return np.where(count, total / np.maximum(count, 1), np.nan).astype(np.float32)


def body_fractions(full: np.ndarray) -> list[float]:
    """Share of the pixels above -500 HU in each patch, shape (n, p, p), of the full dose, to 3 decimals."""
    body = full.reshape(len(full), -1) > BODY_HU
    counts = body.view(np.uint8).sum(axis=1, dtype=np.uint32)  # three times as fast as count_nonzero along an axis
    return [round(count / body.shape[1], 3) for count in counts.tolist()]
