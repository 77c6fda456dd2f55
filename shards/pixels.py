"""The pixels of a CT slice in HU."""

import numpy as np
from pydicom.pixels import pixel_array

from shards.dicom import Coding, Damaged, Slice, Unreadable, Unusable, read_file

PADDING = -1024
"""HU given to pixels outside the field of view: what a 12-bit scanner with intercept -1024 stores there."""
NO_TISSUE = -1500
"""Below this no noise reaches; scanners that pad with -2000 or -3024 HU often do not say so in the header."""


def read_hu(piece: Slice) -> tuple[np.ndarray, int]:
    """The pixels of a slice in HU = pixel * RescaleSlope + RescaleIntercept.

    Returns
    -------
    hu : numpy.ndarray
        int16, shape (rows, columns). Padding (PixelPaddingValue to PixelPaddingRangeLimit) is -1024.
    clipped : int
        Number of pixels that int16 could not hold.

    Raises
    ------
    Unusable
        If the file vanished, is truncated, or no decoder knows its coding.
    """
    pixels = _decode(piece) if piece.coding.start is None else _read_plain(piece, piece.coding.start)
    if pixels.shape != piece.shape:
        raise Unusable(f"pixels have shape {pixels.shape}, the header said {piece.shape}")
    return _to_hu(pixels, piece.coding)


def _read_plain(piece: Slice, start: int) -> np.ndarray:
    """Uncompressed pixels; bits above BitsStored (old overlays) are removed and the sign is extended."""
    coding, count = piece.coding, piece.shape[0] * piece.shape[1]
    try:
        pixels = np.fromfile(piece.path, "<i2" if coding.signed else "<u2", count, offset=start)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None
    if len(pixels) != count:
        raise Damaged(f"truncated: {len(pixels)} pixels, expected {count}")
    if coding.stored < 16 and not _in_range(pixels, coding):
        pixels <<= 15 - coding.high  # to the top bit and down: arithmetic where signed
        pixels >>= 16 - coding.stored
    return pixels.reshape(piece.shape)


def _in_range(pixels: np.ndarray, coding: Coding) -> bool:
    """Whether the pixels are what BitsStored allows, so that nothing has to be removed above or below."""
    lowest, highest = (
        (-(1 << (coding.stored - 1)), 1 << (coding.stored - 1)) if coding.signed else (0, 1 << coding.stored)
    )
    return coding.high == coding.stored - 1 and lowest <= int(pixels.min()) and int(pixels.max()) < highest


def _decode(piece: Slice) -> np.ndarray:
    """Pixels in any other coding, by pydicom and its plugins."""
    try:
        if piece.frame is not None:
            return pixel_array(piece.path, index=piece.frame)
        return read_file(piece.path).pixel_array
    except Unusable:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged data
        lines = str(error).strip().splitlines() or [""]
        raise Unusable(f"pixels cannot be decoded: {type(error).__name__}: {lines[0]}") from None


def _to_hu(pixels: np.ndarray, coding: Coding) -> tuple[np.ndarray, int]:
    """Apply slope, intercept and padding; round and clip to int16."""
    slope, intercept = coding.slope, coding.intercept
    lowest, highest = sorted(float(value) * slope + intercept for value in (pixels.min(), pixels.max()))
    fits = lowest >= -32768 and highest <= 32767 and abs(intercept) <= 32767
    if fits and slope == 1 and intercept.is_integer():
        hu = pixels.astype(np.int16)
        hu += np.int16(intercept)  # may wrap on the way, the sum is right modulo 2^16
        clipped = 0
    else:
        exact = np.rint(pixels * slope + intercept)
        clipped = int(np.count_nonzero((exact > 32767) | (exact < -32768)))
        hu = np.clip(exact, -32768, 32767).astype(np.int16)
    if lowest < NO_TISSUE:
        hu[hu < NO_TISSUE] = PADDING
    if coding.padding is not None:
        hu[(pixels >= coding.padding[0]) & (pixels <= coding.padding[1])] = PADDING
    return hu, clipped
