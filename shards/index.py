"""The manifest's records as arrays that a process maps and does not parse: where each lies, and its patches' body.

For a hundred thousand slices the manifest is 50 MB of JSON, which takes seconds to read and more memory than the rest
of a rank. The index says nothing that the manifest does not; it is made from it, and used only while it belongs to it.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards import manifest
from shards.common.atomic import atomic, write_text
from shards.common.command import InputError
from shards.manifest import Manifest, Record

NAME = "index.json"
"""Shards, and the sha256 of the manifest and of both arrays."""
ARRAYS = ("index-records.npy", "index-body.npy")
VERSION = 1
THOUSANDTHS = 1000
"""Body fractions have 3 decimals and are stored as whole thousandths."""


@dataclass(frozen=True)
class ShardFile:
    """A shard, without its records."""

    name: str
    split: str
    bytes: int


@dataclass(frozen=True)
class Index:
    """What a reader of shards needs to know of them."""

    shards: list[ShardFile]
    records: np.ndarray
    """Shape (records,), in the order of the manifest, with the fields shard (number of the shard), key, patient, z,
    offset, shape (4 sides; 3 and a 0 for whole slices) and body (where its patches begin in ``body``)."""
    body: np.ndarray
    """uint16, shape (patches,): body fraction of each training patch in thousandths."""

    def of_split(self, split: str) -> np.ndarray:
        """Numbers of the records of one split, in order.

        Raises
        ------
        InputError
            If the split has no shards; the message lists those there are.
        """
        numbers = [number for number, shard in enumerate(self.shards) if shard.split == split]
        if not numbers:
            splits = sorted({shard.split for shard in self.shards})
            raise InputError(f"these shards have no split {split!r}; they have: {', '.join(splits)}")
        return np.flatnonzero(np.isin(self.records["shard"], numbers))

    def record(self, number: int) -> Record:
        """A record as the manifest has it."""
        row = self.records[number]
        shape = [int(side) for side in row["shape"] if side]
        start, patches = int(row["body"]), shape[0] if len(shape) == 4 else 0
        body = [value / THOUSANDTHS for value in self.body[start : start + patches].tolist()]
        return Record(row["key"].decode(), row["patient"].decode(), float(row["z"]), int(row["offset"]), shape, body)


def load(folder: Path) -> Index:
    """The index of the shards in ``folder``; made from the manifest, and kept where that is possible, if there is none.

    Raises
    ------
    InputError
        If there is no manifest, or it cannot be right.
    """
    digest = manifest.digest(folder)
    index = _read(folder, digest)
    if index is None:
        content = manifest.load(folder)
        index = of_manifest(content)
        with contextlib.suppress(OSError):  # a folder of somebody else's
            save(index, folder, digest)
    return index


def of_manifest(content: Manifest) -> Index:
    """The arrays of a manifest."""
    rows = [(number, record) for number, shard in enumerate(content.shards) for record in shard.records]
    patients = [record.patient.encode() for _, record in rows]
    fields = [("shard", "<i4"), ("key", "S90"), ("patient", f"S{max(map(len, patients), default=1) or 1}"),
              ("z", "<f8"), ("offset", "<i8"), ("shape", "<i4", 4), ("body", "<i8")]  # fmt: skip
    records = np.zeros(len(rows), np.dtype(fields))
    counts = [len(record.body) for _, record in rows]
    records["shard"] = [number for number, _ in rows]
    records["key"] = [record.key.encode() for _, record in rows]
    records["patient"] = patients
    records["z"] = [record.z for _, record in rows]
    records["offset"] = [record.offset for _, record in rows]
    records["shape"] = [record.shape + [0] * (4 - len(record.shape)) for _, record in rows]
    records["body"] = np.cumsum([0, *counts])[:-1]
    fractions = np.fromiter((share for _, record in rows for share in record.body), np.float64, sum(counts))
    shards = [ShardFile(shard.name, shard.split, shard.bytes) for shard in content.shards]
    return Index(shards, records, np.rint(fractions * THOUSANDTHS).astype("<u2"))


def save(index: Index, folder: Path, digest: str) -> None:
    """Write the index of the manifest with this sha256, atomically; the file that vouches for the others comes last."""
    hashes = []
    for name, array in zip(ARRAYS, (index.records, index.body), strict=True):
        content = io.BytesIO()
        np.save(content, array)
        hashes.append(hashlib.sha256(content.getbuffer()).hexdigest())
        with atomic(folder / name) as file:
            file.write(content.getbuffer())
    shards = [[shard.name, shard.split, shard.bytes] for shard in index.shards]
    fields = {"version": VERSION, "manifest": digest, "sha256": hashes, "shards": shards}
    write_text(folder / NAME, json.dumps(fields, sort_keys=True) + "\n")


def _read(folder: Path, digest: str) -> Index | None:
    """The index, if it is there, whole, and of the manifest with this sha256.

    Raises
    ------
    InputError
        If this code cannot have written it: it may be anybody's.
    """
    try:
        fields = json.loads((folder / NAME).read_bytes())
        if (fields["version"], fields["manifest"]) != (VERSION, digest):
            return None
        paths = [folder / name for name in ARRAYS]
        if [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] != fields["sha256"]:
            return None
        records, body = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
        index = Index([ShardFile(*shard) for shard in fields["shards"]], records, body)
        problem = next(_wrong(index, folder), None)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    if problem:
        raise InputError(f"{folder / NAME}: {problem}; delete it, it is made again")
    return index


def _wrong(index: Index, folder: Path) -> Iterator[str]:
    """What in an index this code cannot have written, if anything."""
    for shard in index.shards:
        yield from manifest.wrong_shard(shard.name, shard.split, shard.bytes)
        yield from manifest.outside(shard.name, folder)
    records, sizes = index.records, np.array([shard.bytes for shard in index.shards])
    if len(records):
        if records["shard"].min() < 0 or records["shard"].max() >= len(sizes):
            yield "a record lies in no shard"
        pixels = np.where(records["shape"] == 0, 1, records["shape"]).astype(np.int64).prod(axis=1)
        if records["offset"].min() < 0 or (records["offset"] + 2 * pixels > sizes[records["shard"]]).any():
            yield "the pixels of a record would lie outside of its shard"
        patches = np.where(records["shape"][:, 3] == 0, 0, records["shape"][:, 0])
        if (records["body"] < 0).any() or (records["body"] + patches > len(index.body)).any():
            yield "the body fractions of a record would lie outside of their array"
