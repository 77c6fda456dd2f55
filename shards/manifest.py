"""manifest.json: what a folder of shards holds, where each record lies, and what was left out."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.common.atomic import write_text
from shards.common.command import InputError

NAME = "manifest.json"
FORMAT = "ldct-shards"
VERSION = 1
SHARDER = "4"
"""Version of the sharder: raised when the same input may give other shards, or another split."""
SPLITS = ("train", "val", "test")
_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,9}}\.tar")
_KEY = re.compile("[A-Za-z0-9_-]{1,90}")


@dataclass
class Record:
    """One slice of one patient, as stored in a shard."""

    key: str
    """Name of the record; matches ``[A-Za-z0-9_-]+``, since webdataset splits a member's name at its first dot."""
    patient: str
    """Patient id, e.g. L067."""
    z: float
    """Table position of the slice, third component of ImagePositionPatient, in mm."""
    offset: int
    """Byte in the tar at which the array's data begin: behind the tar header and the .npy header."""
    shape: list[int]
    """Shape of the int16 array in HU: (n, 2, p, p) for train, (2, H, W) for val and test; (low dose, full dose)."""
    body: list[float] = field(default_factory=list)
    """Train only: for each patch the share of pixels above -500 HU in the full dose, rounded to 3 decimals."""


@dataclass
class Shard:
    """One tar file."""

    name: str
    """File name, e.g. train-00000.tar."""
    split: str
    """train, val or test."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Checksum of the file."""
    records: list[Record]
    """In the order in which they lie in the file."""


@dataclass
class Manifest:
    """Everything a reader needs to know about a folder of shards."""

    settings: dict[str, Any]
    """The sharder's settings: patch, stride, tiling, seed, split, shard size; equal settings give equal bytes."""
    shards: list[Shard]
    """All shards, train first, in order of their names."""
    split: dict[str, Any]
    """``by`` ("patient" or "slab"), ``note`` for people, and per split a map of patient to keys."""
    counts: dict[str, dict[str, int]]
    """Per split: patients, slices, pairs (patches; 0 for whole-slice splits)."""
    statistics: dict[str, Any]
    """Over the training split: mean and SD in HU of both doses, RMSE between them."""
    left_out: list[dict[str, str]]
    """What was not used: ``what`` (file, slice or patient) and ``why``."""
    sharder: dict[str, str]
    """Versions of the sharder and of the packages that decoded the pixels."""
    format: str = FORMAT
    version: int = VERSION

    @property
    def split_note(self) -> str:
        """How the split was made, e.g. "split by patient, named"."""
        by, note = f"by {self.split['by']}", self.split["note"]
        return f"split {note}" if note.startswith(by) else f"split {by}, {note}"

    def of_split(self, split: str) -> list[Shard]:
        """The shards of one split, in order.

        Raises
        ------
        InputError
            If the split has no shards; the message lists those there are.
        """
        shards = [shard for shard in self.shards if shard.split == split]
        if not shards:
            splits = sorted({shard.split for shard in self.shards})
            raise InputError(f"these shards have no split {split!r}; they have: {', '.join(splits)}")
        return shards


def save(manifest: Manifest, folder: Path) -> None:
    """Write ``folder/manifest.json`` atomically, with sorted keys: the same shards give the same bytes.

    One line for each field, not an indented tree, which takes Python's slow encoder: 0.2 s for 256 slices.
    """
    lines = (f"{json.dumps(name)}: {as_json(value)}" for name, value in sorted(vars(manifest).items()))
    write_text(folder / NAME, "{\n" + ",\n".join(lines) + "\n}\n")


def as_json(value: object) -> str:
    """JSON with sorted keys, of dataclasses too, without copying them first."""
    return json.dumps(value, default=vars, sort_keys=True)


def load(folder: Path) -> Manifest:
    """Read ``folder/manifest.json``.

    Raises
    ------
    InputError
        If there is none, it is no manifest, or it was written by another version of the format.
    """
    path = folder / NAME
    content = _read(path)
    try:
        fields = json.loads(content)
        identity = (fields["format"], fields["version"])
        if identity != (FORMAT, VERSION):
            raise InputError(
                f"{path} is of format {identity}, this code reads {(FORMAT, VERSION)}; build the shards again"
            )
        shards = [Shard(**{**s, "records": [Record(**r) for r in s["records"]]}) for s in fields["shards"]]
        manifest = Manifest(**{**fields, "shards": shards})
        wrong = next(_wrong(manifest), None)
        wrong = wrong or next((w for shard in shards for w in outside(shard.name, folder)), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path} is not a shard manifest; build the shards again with shards/build.py") from None
    if wrong:
        raise InputError(f"{path}: {wrong}; build the shards again with shards/build.py")
    return manifest


def _wrong(manifest: Manifest) -> Iterator[str]:
    """What this sharder cannot have written: a manifest may be anybody's, and decides which files are read."""
    if not manifest.shards:
        yield "it names no shards"
    for name, value in manifest.settings.items():
        if name in ("patch", "stride", "shard_slices") and (type(value) is not int or value < 1):
            yield f"its setting {name} is {value!r}, expected 1 or more"
    for name in ("settings", "split", "counts", "statistics", "sharder"):
        if not isinstance(getattr(manifest, name), dict):
            yield f"its {name} are no table"
    for split in SPLITS:
        members = manifest.split.get(split, {})
        if not isinstance(members, dict) or not all(isinstance(keys, list) for keys in members.values()):
            yield f"its split {split} is no table of patients and keys"
    if not isinstance(manifest.left_out, list) or not all(isinstance(out, dict) for out in manifest.left_out):
        yield "its left_out is no list of tables"
    for shard in manifest.shards:
        yield from wrong_shard(shard.name, shard.split, shard.bytes)
        if not isinstance(shard.sha256, str):
            yield f"{shard.name}: its sha256 has another type"
        reasons = (_wrong_record(record, shard) for record in shard.records)
        yield from (f"{shard.name}: {reason}" for reason in reasons if reason)


def wrong_shard(name: object, split: object, size: object) -> Iterator[str]:
    """What in a shard's name or length this sharder cannot have written, if anything."""
    if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
        yield f"a shard is called {name!r}, expected e.g. train-00000.tar"
    elif split != name.split("-")[0]:
        yield f"{name} belongs to the split {split!r}"
    elif type(size) is not int or size < 0:
        yield f"{name}: its size has another type"


def _wrong_record(record: Record, shard: Shard) -> str | None:
    """What in a record this sharder cannot have written, if anything."""
    if not isinstance(record.key, str) or not _KEY.fullmatch(record.key):
        return f"a record is called {record.key!r}, expected letters, digits, - and _"
    if not isinstance(record.patient, str) or type(record.z) not in (int, float) or not math.isfinite(record.z):
        return f"{record.key}: patient or z has another type"
    whole = type(record.offset) is int and all(type(side) is int and side > 0 for side in record.shape)
    if not whole or len(record.shape) != (4 if shard.split == "train" else 3):
        return f"{record.key}: offset or shape cannot be right"
    if record.offset < 0 or record.offset + 2 * math.prod(record.shape) > shard.bytes:
        return f"{record.key}: its pixels would lie outside of the shard"
    patches = record.shape[0] if shard.split == "train" else 0
    if len(record.body) != patches or any(type(share) not in (int, float) for share in record.body):
        return f"{record.key}: expected {patches} body fractions, found {len(record.body)}"
    return None


def outside(name: str, folder: Path) -> Iterator[str]:
    """Whether a shard is a link to a file elsewhere."""
    path = folder / name
    if path.is_symlink() and path.resolve().parent != folder.resolve():
        yield f"{name} is a link out of the folder; move the file into it"


def check_sums(folder: Path, shards: list[Shard]) -> None:
    """Raise an InputError unless the files of ``shards`` hold the bytes whose checksums the manifest has."""

    def sha256(shard: Shard) -> str:
        with open(folder / shard.name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # hashing lets go of Python's lock
        for shard, found in zip(shards, pool.map(sha256, shards), strict=True):
            if found != shard.sha256:
                raise InputError(
                    f"{folder / shard.name} has other bytes than when it was built: expected sha256 "
                    f"{shard.sha256[:12]}, found {found[:12]}; copy it again, or build the shards again"
                )


def digest(folder: Path) -> str:
    """sha256 of the manifest file: names the data of a run, since the manifest holds every shard's checksum.

    Raises
    ------
    InputError
        If there is none.
    """
    return hashlib.sha256(_read(folder / NAME)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        why = f"{error.strerror}; build the shards first"
        raise InputError(f"expected {path}, written by shards/build.py: {why}") from None
