"""One tar shard: written record by record, with the place and the checksum of everything in it."""

import dataclasses
import hashlib
import io
import json
import math
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from shards import patching
from shards.common.atomic import atomic
from shards.dicom import Slice, Unusable
from shards.dose_comparison import digest, wrong_pair
from shards.files import printable
from shards.manifest import Record, Shard
from shards.matching import Pair
from shards.pixels import read_hu


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
    anonymous: bool
    """Nothing that names the input: neither source files nor SeriesInstanceUIDs."""
    allowed: frozenset[str]
    """Patients whose pairs are taken as they are."""


@dataclass
class Sums:
    """Exact sums over the patches of a shard, in HU, from which mean, SD and RMSE follow in any order of adding."""

    pixels: int = 0
    low: int = 0
    low_squares: int = 0
    full: int = 0
    full_squares: int = 0
    error_squares: int = 0
    clipped: int = 0
    """Pixels outside int16."""

    def add(self, pairs: np.ndarray) -> None:
        """Add patches, shape (n, 2, p, p)."""
        both = pairs.reshape(len(pairs), 2, -1).astype(np.float64)  # whole numbers below 2^53: exact
        low, full = both.sum(axis=(0, 2))
        low_squares, full_squares = np.vecdot(both, both).sum(axis=0)  # one by one: BLAS starts no threads for so few
        products = np.vecdot(both[:, 0], both[:, 1]).sum()
        self.pixels += pairs.size // 2
        self.low += int(low)
        self.full += int(full)
        self.low_squares += int(low_squares)
        self.full_squares += int(full_squares)
        self.error_squares += int(low_squares - 2 * products + full_squares)

    def __iadd__(self, other: "Sums") -> "Sums":
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self

    def statistics(self) -> dict[str, Any]:
        """Mean and SD of both doses and the RMSE between them, in HU, to 4 decimals."""
        n = max(self.pixels, 1)
        mean_low, mean_full = self.low / n, self.full / n
        return {
            "pixels": self.pixels,
            "mean_low": round(mean_low, 4),
            "sd_low": round(math.sqrt(max(self.low_squares / n - mean_low**2, 0)), 4),
            "mean_full": round(mean_full, 4),
            "sd_full": round(math.sqrt(max(self.full_squares / n - mean_full**2, 0)), 4),
            "rmse": round(math.sqrt(self.error_squares / n), 4),
            "clipped": self.clipped,
        }


@dataclass
class Finished:
    """What writing a shard gave."""

    shard: Shard
    sums: Sums
    left_out: list[dict[str, str]]
    digests: dict[str, str]
    """Names of the full dose's pixels where they show body, by the keys of the records."""


class _Tar:
    """A tar written to a file, hashed on the way. Only what shards need of the format (POSIX ustar), and no copies."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0

    def _write(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.sha256.update(data)
        self.size += len(data)

    def add(self, name: str, *parts: bytes | memoryview) -> None:
        """Add a member that consists of ``parts``, whose header depends on nothing but its name and length."""
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0 and the names empty
        info.size, info.mode = sum(len(part) for part in parts), 0o644
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        for part in parts:
            self._write(part)
        self._write(bytes(-info.size % tarfile.BLOCKSIZE))

    def close(self) -> None:
        """Write the two empty blocks that end a tar, and fill up its last record."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))


def write_shard(plan: ShardPlan) -> Finished:
    """Decode, cut and write one shard, atomically.

    A slice that cannot be decoded, or whose doses cannot be one slice, is left out and listed. The file is fsynced and
    its size checked before it gets its name.

    Raises
    ------
    OSError
        If the disk is full or the folder cannot be written; nothing is left behind.
    """
    sums, left_out, records, digests = Sums(), [], [], {}
    with atomic(plan.folder / plan.name) as file:
        tar = _Tar(file)
        for pair in plan.pairs:
            try:
                (low, low_clipped), (full, full_clipped) = read_hu(pair.low), read_hu(pair.full)
                if pair.patient not in plan.allowed and (problem := wrong_pair(full, low)):
                    raise Unusable(problem)
            except Unusable as reason:
                sources = "" if plan.anonymous else f" ({_inside(pair.full, plan)}, {_inside(pair.low, plan)})"
                left_out.append({"what": f"{pair.key}{sources}", "why": str(reason)})
                continue
            sums.clipped += low_clipped + full_clipped
            records.append(_add_record(tar, plan, pair, (low, full), sums))
            if full.max() > -500:
                digests[pair.key] = digest(full)
        tar.close()
        file.flush()
        size = Path(file.name).stat().st_size
        if size != tar.size:
            raise OSError(f"{file.name} has {size} bytes, expected {tar.size}")
    return Finished(Shard(plan.name, plan.split, tar.size, tar.sha256.hexdigest(), records), sums, left_out, digests)


def _inside(piece: Slice, plan: ShardPlan) -> str:
    return printable(piece.path.relative_to(plan.source))


def _add_record(tar: _Tar, plan: ShardPlan, pair: Pair, slices: tuple[np.ndarray, np.ndarray], sums: Sums) -> Record:
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
    if pair.low.simulated:
        about["simulated"] = pair.low.simulated
    if plan.anonymous:
        about["series"] = about["sources"] = {"full": "", "low": ""}
    body: list[float] = []
    if plan.split == "train":
        corners = patching.origins(pair.full.shape, plan.patch, plan.stride, plan.tiling)
        array, member = patching.cut(slices, corners, plan.patch), "pairs.npy"
        body = patching.body_fractions(array[:, 1])
        about |= {"origins": corners, "body": body}
        sums.add(array)
    else:
        array, member = np.stack(slices), "slice.npy"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    offset = tar.size + tarfile.BLOCKSIZE + len(header.getvalue())
    tar.add(f"{pair.key}.{member}", header.getvalue(), array.data.cast("B"))
    tar.add(f"{pair.key}.json", json.dumps(about, sort_keys=True).encode())
    return Record(pair.key, pair.patient, pair.full.z, offset, list(array.shape), body)
