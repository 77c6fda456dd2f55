"""The slices that methods are measured on: of a split of the shards, or of a folder of DICOM pairs."""

import hashlib
import typing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldct.data.slices import Slices
from shards import manifest
from shards.common.command import InputError
from shards.common.pool import Workers
from shards.dicom import Unusable
from shards.manifest import Record
from shards.pairing import find_pairs
from shards.pixels import read_hu


class Cases(typing.Protocol):
    """Slices by number: the record, and int16 HU of shape (2, H, W): low dose, full dose."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> tuple[Record, np.ndarray]: ...


@dataclass
class Data:
    """Slices and what must be said of them."""

    split: str
    """test or val, or pairs for a folder of DICOM pairs."""
    cases: Cases
    tuning: Cases
    """Slices to tune the baselines on."""
    tuned: str
    """Name of those, for people."""
    digest: str
    """sha256 that names the slices."""
    note: str
    """How the split was made."""


def open_shards(folder: Path, split: str) -> Data:
    """A split of the shards in ``folder``; baselines are tuned on val.

    Raises
    ------
    InputError
        If these are no shards of this version, or have no such split.
    """
    about = manifest.load(folder).split
    note = f"split by {about['by']}, {about['note']}"
    return Data(split, Slices(folder, split), Slices(folder, "val"), "val", manifest.digest(folder), note)


class DicomPairs:
    """The pairs that shards/pairing.py finds in a folder, read when asked for.

    Raises
    ------
    InputError
        If nothing pairs, or a file of a pair cannot be decoded.
    """

    def __init__(self, folder: Path, series: str | None) -> None:
        found = find_pairs(folder, Workers(1), variant=series)
        self.pairs = [pair for patient in found.patients for pair in patient.pairs]
        self.left_out = found.left_out

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[Record, np.ndarray]:
        pair = self.pairs[number]
        images = []
        for piece in (pair.low, pair.full):
            try:
                images.append(read_hu(piece)[0])
            except Unusable as reason:
                raise InputError(f"{piece.path}: {reason}; take this pair out of the folder") from None
        pixels = np.stack(images)
        return Record(pair.key, pair.patient, pair.full.z, 0, list(pixels.shape)), pixels


def open_pairs(folder: Path, series: str | None = None) -> Data:
    """The DICOM pairs below ``folder``, without shards. There is no val, so baselines are tuned on the slices measured,
    to their advantage.

    Parameters
    ----------
    series : str, optional
        Which thickness and kernel to take where there are several, e.g. "1mm_sharp".

    Raises
    ------
    InputError
        If there is no pair.
    """
    cases = DicomPairs(folder, series)
    sizes = [(p.key, p.low.path.name, p.low.path.stat().st_size, p.full.path.stat().st_size) for p in cases.pairs]
    digest = hashlib.sha256(repr(sizes).encode()).hexdigest()
    left_out = f", left out {len(cases.left_out)} of its files and slices" if cases.left_out else ""
    note = f"all pairs of {folder.resolve().name}{left_out}"
    return Data("pairs", cases, cases, "the slices measured", digest, note)
