"""The slices that methods are measured on: of a split of the shards, or of a folder of DICOM pairs."""

import dataclasses
import hashlib
import json
import math
import tarfile
import typing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldct.data.slices import Slices
from shards import manifest
from shards.common.command import InputError
from shards.common.pool import Workers
from shards.dicom import Slice, Unusable, read_file
from shards.manifest import Record
from shards.pairing import find_pairs
from shards.pixels import read_hu


@dataclass(frozen=True)
class Acquisition:
    """How a slice was taken; None: not known."""

    spacing: float | None
    """Side of a pixel in mm."""
    dose: float | None
    """The low dose as a fraction of the full dose."""


class Cases(typing.Protocol):
    """Slices by number: the record, and int16 HU of shape (2, H, W): low dose, full dose."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> tuple[Record, np.ndarray]: ...

    def acquisition(self, number: int, /) -> Acquisition:
        """How the slice was taken."""


@dataclass
class Data:
    """Slices and what must be said of them."""

    split: str
    """test or val, pairs for a folder of DICOM pairs, or the user's name for the slices."""
    cases: Cases
    tuning: Cases
    """Slices to tune the baselines on."""
    tuned: str
    """Name of those, for people."""
    digest: str
    """sha256 that names the slices."""
    note: str
    """How the split was made."""


class ShardSlices(Slices):
    """Whole slices of a split, and how they were taken."""

    def acquisition(self, number: int) -> Acquisition:
        """From the record's KEY.json, which lies behind its pixels."""
        path, record = self.chosen[number]
        end = record.offset + 2 * math.prod(record.shape)
        with open(path, "rb") as file:
            file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            try:
                with tarfile.open(fileobj=file) as rest:
                    member = rest.next()
                    content = rest.extractfile(member) if member and member.name == f"{record.key}.json" else None
                    fields = json.load(content) if content else {}
                    return Acquisition(fields["spacing"][0], fields["dose"])
            except (tarfile.TarError, KeyError, ValueError, IndexError):
                return Acquisition(None, None)


def open_shards(folder: Path, split: str) -> Data:
    """A split of the shards in ``folder``; baselines are tuned on val, or where there is none on the slices measured.

    Raises
    ------
    InputError
        If these are no shards of this version, have no such split, or are not as they were built: results are known
        by the manifest's checksums.
    """
    content = manifest.load(folder)
    note = content.split_note
    cases, digest = ShardSlices(folder, split), manifest.digest(folder)
    manifest.check_sums(folder, [shard for shard in content.shards if shard.split in (split, "val")])
    if not any(shard.split == "val" for shard in content.shards):  # an external test set
        return Data(split, cases, cases, "the slices measured", digest, note)
    return Data(split, cases, ShardSlices(folder, "val"), "val", digest, note)


class DicomPairs:
    """The pairs that shards/pairing.py finds in a folder, read when asked for.

    Raises
    ------
    InputError
        If nothing pairs, or a file of a pair cannot be decoded.
    """

    def __init__(self, folder: Path, series: str | None) -> None:
        pairing = find_pairs(folder, Workers(1), variant=series)
        self.pairs = [pair for patient in pairing.patients for pair in patient.pairs]
        self.left_out = pairing.left_out
        if pairing.problems:
            raise InputError("; ".join(pairing.problems.values()) + "; put it right, or take it out of the folder")

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

    def acquisition(self, number: int) -> Acquisition:
        """From the headers of the pair; the distance of two rows counts as the side of a pixel."""
        return Acquisition(self.pairs[number].full.spacing[0], self.pairs[number].dose)

    def digest(self) -> str:
        """sha256 of what decides the numbers: pixels, their coding and rescale, geometry, which patient they belong to.

        Raises
        ------
        InputError
            If a file cannot be read.
        """
        total = hashlib.sha256()
        for pair in self.pairs:
            for piece in (pair.low, pair.full):
                coding = dataclasses.replace(piece.coding, start=None)  # where in the file decides nothing
                about = (pair.key, pair.patient, piece.frame, piece.position, piece.orientation, piece.shape)
                total.update(repr((about, piece.spacing, coding)).encode())
                try:
                    total.update(hashlib.sha256(_pixel_bytes(piece)).digest())
                except (Unusable, OSError, AttributeError) as reason:
                    raise InputError(f"{piece.path}: {reason}; take this pair out of the folder") from None
        return total.hexdigest()


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
    left_out = f", left out {len(cases.left_out)} of its files and slices" if cases.left_out else ""
    note = f"all pairs of {folder.resolve().name}{left_out}"
    return Data("pairs", cases, cases, "the slices measured", cases.digest(), note)


def _pixel_bytes(piece: Slice) -> bytes:
    """The pixels of a slice as its file holds them: compressed ones are not decoded, which takes long."""
    if piece.coding.start is None:
        return bytes(read_file(piece.path).PixelData)  # all frames of a file with several
    with open(piece.path, "rb") as file:
        file.seek(piece.coding.start)
        return file.read(2 * piece.shape[0] * piece.shape[1])
