"""One tar shard: written record by record, with the place and the checksum of everything in it."""

import dataclasses
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from shards import tiling
from shards.atomic import atomic
from shards.dicom import Slice, Unusable, read_hu
from shards.manifest import Record, Shard
from shards.pairing import Pair


@dataclass(frozen=True)
class ShardPlan:
    """What one shard shall hold: a unit of work that depends on nothing else."""

    name: str
    split: str
    pairs: list[Pair]
    folder: Path
    """Where the shard goes."""
    source: Path
    """Input folder; the names of source files are relative to it."""
    patch: int
    stride: int
    tiling: str


@dataclass
class Sums:
    """Exact sums over the tiles of a shard, in HU, from which mean, SD and RMSE follow in any order of adding."""

    pixels: int = 0
    low: int = 0
    low_squares: int = 0
    full: int = 0
    full_squares: int = 0
    error_squares: int = 0
    clipped: int = 0
    """Pixels outside int16."""

    def add(self, pairs: np.ndarray) -> None:
        """Add tiles, shape (n, 2, p, p)."""
        low, full = (pairs[:, i].ravel().astype(np.float64) for i in (0, 1))  # whole numbers below 2^53: exact
        self.pixels += low.size
        self.low += int(low.sum())
        self.full += int(full.sum())
        self.low_squares += int(low @ low)
        self.full_squares += int(full @ full)
        low -= full
        self.error_squares += int(low @ low)

    def __iadd__(self, other: "Sums") -> "Sums":
        for one in dataclasses.fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        return self


@dataclass
class Finished:
    """What writing a shard gave."""

    shard: Shard
    sums: Sums
    left_out: list[dict[str, str]]


class _Hashed(io.RawIOBase):
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256, self.position = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.position += self.file.write(data)
        return len(data)

    def tell(self) -> int:
        return self.position


def write_shard(plan: ShardPlan) -> Finished:
    """Decode, tile and write one shard, atomically.

    A slice that cannot be decoded is left out and listed. The file is fsynced and its size checked before it gets
    its name.

    Raises
    ------
    OSError
        If the disk is full or the folder cannot be written; nothing is left behind.
    """
    sums, left_out, records = Sums(), [], []
    with atomic(plan.folder / plan.name) as file:
        hashed = _Hashed(file)
        with tarfile.open(fileobj=cast(IO[bytes], hashed), mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for pair in plan.pairs:
                try:
                    low, low_clipped = read_hu(pair.low)
                    full, full_clipped = read_hu(pair.full)
                except Unusable as reason:
                    left_out.append({"what": f"{pair.key} ({_inside(pair.full, plan)}, {_inside(pair.low, plan)})",
                                     "why": str(reason)})  # fmt: skip
                    continue
                sums.clipped += low_clipped + full_clipped
                records.append(_add_record(tar, hashed, plan, pair, np.stack([low, full]), sums))
        file.flush()
        size = Path(file.name).stat().st_size
        if size != hashed.position:
            raise OSError(f"{file.name} has {size} bytes, expected {hashed.position}")
    shard = Shard(plan.name, plan.split, hashed.position, hashed.sha256.hexdigest(), records)
    return Finished(shard, sums, left_out)


def _inside(piece: Slice, plan: ShardPlan) -> str:
    return piece.path.relative_to(plan.source).as_posix()


def _add_record(
    tar: tarfile.TarFile, file: _Hashed, plan: ShardPlan, pair: Pair, slices: np.ndarray, sums: Sums
) -> Record:
    """Add the array and the JSON of one slice; return where they lie."""
    about: dict[str, Any] = {
        "patient": pair.patient,
        "series": {"full": pair.full.series_uid, "low": pair.low.series_uid},
        "z": pair.full.z,
        "kernel": pair.full.kernel,
        "thickness": pair.full.thickness,
        "spacing": pair.full.spacing,
        "kvp": pair.full.kvp,
        "dose": pair.dose,
        "sources": {"full": _inside(pair.full, plan), "low": _inside(pair.low, plan)},
    }
    body: list[float] = []
    if plan.split == "train":
        corners = tiling.origins(pair.full.shape, plan.patch, plan.stride, plan.tiling)
        array, member = tiling.cut(slices, corners, plan.patch), "pairs.npy"
        body = tiling.body_fractions(array[:, 1])
        about |= {"origins": corners, "body": body}
        sums.add(array)
    else:
        array, member = slices, "slice.npy"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    offset = file.tell() + tarfile.BLOCKSIZE + len(header.getvalue())
    _add(tar, f"{pair.key}.{member}", header.getvalue() + array.tobytes())
    _add(tar, f"{pair.key}.json", json.dumps(about, sort_keys=True).encode())
    return Record(pair.key, pair.patient, pair.full.z, offset, list(array.shape), body)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member whose header depends on nothing but its name and content."""
    info = tarfile.TarInfo(name)  # mtime, uid and gid are 0 and the names empty
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
