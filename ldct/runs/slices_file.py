"""Slices in a file: int16 HU by name, without loss, in three quarters of the space that zlib makes of the pixels.

A .npz holds for each name the steps along the rows, as two planes of bytes; see ``steps``. The report's page packs its
slices so, too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np


def steps(hu: np.ndarray) -> np.ndarray:
    """The steps along the rows of int16 (H, W), 0 -1 1 -2 2 ... as 0 1 2 3 4 ...: their low bytes, then the high ones.

    Neighbours resemble each other, so nearly all high bytes are 0. uint8, shape (2, H, W).
    """
    along: np.ndarray = np.diff(hu.astype(np.int16), axis=1, prepend=np.int16(0))
    unsigned = ((along >> 15) ^ (along << 1)).astype("<u2")
    return np.moveaxis(unsigned.view(np.uint8).reshape(*hu.shape, 2), -1, 0)


def pixels(stored: np.ndarray) -> np.ndarray:
    """The int16 (H, W) that ``steps`` were made of."""
    unsigned = stored[0] | stored[1].astype(np.uint16) << 8
    along = (unsigned >> 1).astype(np.int16) ^ -(unsigned & 1).astype(np.int16)
    return np.cumsum(along, axis=1, dtype=np.int16)  # wraps around as the steps did


def write(file: IO[bytes], slices: Mapping[str, np.ndarray]) -> None:
    """Write ``slices``, int16 (H, W) by name, to an open file."""
    np.savez_compressed(file, allow_pickle=False, **{name: steps(hu) for name, hu in slices.items()})


class SlicesFile(Mapping[str, np.ndarray]):
    """What ``write`` wrote to ``path``; a slice is read when it is asked for. Version 0.1 stored the pixels themselves.

    Raises
    ------
    OSError, ValueError, zipfile.BadZipFile
        If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._file = np.load(path)

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self._file[name]
        return pixels(stored) if stored.dtype == np.uint8 else stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)

    def __enter__(self) -> "SlicesFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
