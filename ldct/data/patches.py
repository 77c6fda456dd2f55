"""The training patches of a folder of shards, and where their bytes are read from."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldct.config import DataConfig
from shards.common.command import InputError
from shards.index import THOUSANDTHS
from shards.index import load as load_index

HEADERS = 512 + 128
"""Bytes in front of a record's pixels: its tar header, which begins with its name, and its array's."""


class Patches:
    """The training patches of a folder of shards that hold enough body, and where each of them lies.

    Attributes
    ----------
    shard, record, number : ndarray
        Shape (n,): for each patch its shard's index, its record's index, and its number in the record.
    patch : int
        Side of a patch in pixels.
    """

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.index = load_index(folder)
        numbers = self.index.of_split("train")
        self.records = self.index.records[numbers]
        self.paths = [folder / shard.name for shard in self.index.shards]
        for number in np.unique(self.records["shard"]):
            check_size(self.paths[number], self.index.shards[number].bytes)
            check_records(self.paths[number], self.records[self.records["shard"] == number])
        counts, sides = self.records["shape"][:, 0], self.records["shape"][:, 3]
        if (sides != sides[0]).any():
            raise InputError(f"{folder} has training patches of several sizes; run shards/verify.py, then build again")
        self.patch = int(sides[0])
        of_record = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        number = np.arange(len(of_record)) - np.repeat(np.cumsum(counts) - counts, counts)
        body = self.index.body[np.repeat(self.records["body"], counts) + number]
        kept = np.flatnonzero(body >= least_body(config.min_body))
        self.record, self.number = of_record[kept], number[kept].astype(np.int32)
        self.shard = self.records["shard"][self.record]
        if not len(self):
            raise InputError(f"no training patch of {folder} has data.min_body = {config.min_body}; lower it")

    def __len__(self) -> int:
        return len(self.number)

    def offset(self, indices: np.ndarray) -> np.ndarray:
        """Bytes of the shards at which patches begin, int64, shape of ``indices``."""
        return self.records["offset"][self.record[indices]] + self.number[indices] * np.int64(2 * 2 * self.patch**2)

    def name(self, index: int) -> str:
        """Key and number of one patch, for messages."""
        return f"{self.records['key'][self.record[index]].decode()}[{self.number[index]}]"


def least_body(min_body: float) -> int:
    """The least number of thousandths that is ``min_body`` or more."""
    return int(np.searchsorted(np.arange(THOUSANDTHS + 1) / THOUSANDTHS, min_body))


def check_size(path: Path, expected: int) -> None:
    """Raise an InputError unless the shard at ``path`` has the size the manifest says."""
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        raise InputError(f"{path}: expected {expected} bytes, found {size}; run shards/verify.py, then build again")


def check_records(path: Path, records: np.ndarray) -> None:
    """Raise an InputError unless the first and the last of ``records`` lie in the shard at ``path`` where they should.

    The shard of another data set has the same name and often the same size. What else is in it shards/verify.py checks.

    Parameters
    ----------
    records : ndarray
        Those of the shard, of the index.
    """
    with open(path, "rb") as file:
        for record in records[[0, -1]]:
            offset, key = int(record["offset"]), record["key"]
            file.seek(max(0, offset - HEADERS))
            if b"\0" + key + b"." not in b"\0" + file.read(min(offset, HEADERS)):
                raise InputError(
                    f"{path}: expected the record {key.decode()}, found another: the shard of other data? run "
                    "shards/verify.py, then copy it again or build again"
                )


class MappedStore:
    """Patches read from the tars by their offsets; the page cache is the only buffer.

    Read with preadv and not through a map: a page that is not in memory is then waited for by one thread alone.
    In a map it faults with Python's lock held, and a slow file system would stop the loop that feeds the GPU.
    """

    def __init__(self, patches: Patches, device: torch.device) -> None:
        self.patch, self.pin = patches.patch, device.type == "cuda"
        self.files = {
            number: open(patches.paths[number], "rb", buffering=0)  # noqa: SIM115 (closed with the store)
            for number in np.unique(patches.shard).tolist()
        }
        self.numbers = {number: file.fileno() for number, file in self.files.items()}
        self.patches = patches

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Patches as int16 HU, shape (n, 2, p, p), in pinned memory where they go to a GPU."""
        shape = (len(indices), 2, self.patch, self.patch)
        batch = torch.empty(shape, dtype=torch.int16, pin_memory=self.pin)
        rows, size, end = batch.numpy().data.cast("B"), 2 * 2 * self.patch**2, 0
        places = zip(self.patches.shard[indices].tolist(), self.patches.offset(indices).tolist(), strict=True)
        for shard, first in places:
            begin, end = end, end + size
            if os.preadv(self.numbers[shard], [rows[begin:end]], first) != size:
                raise InputError(f"{self.files[shard].name} is cut off; run shards/verify.py, then build again")
        return batch


class DeviceStore:
    """All patches as one int16 tensor on the device: no copy and no thread per batch (AAPM at 1 mm: 5.8 GB)."""

    def __init__(self, patches: Patches, device: torch.device) -> None:
        mapped = MappedStore(patches, torch.device("cpu"))
        self.pairs = torch.empty((len(patches), 2, patches.patch, patches.patch), dtype=torch.int16, device=device)
        for some in np.array_split(np.arange(len(patches)), max(1, len(patches) // 4096)):
            self.pairs[some[0] : some[-1] + 1] = mapped.fetch(some).to(device)

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Patches as int16 HU on the device, shape (n, 2, p, p)."""
        return self.pairs[torch.from_numpy(indices).to(self.pairs.device, non_blocking=True)]


def open_store(patches: Patches, choice: str, device: torch.device) -> MappedStore | DeviceStore:
    """The store that ``data.store`` names; auto = on a GPU where the patches take at most half of its free memory."""
    if choice == "auto":
        fits = device.type == "cuda" and len(patches) * 4 * patches.patch**2 <= torch.cuda.mem_get_info(device)[0] / 2
        choice = "device" if fits else "mmap"
    return DeviceStore(patches, device) if choice == "device" else MappedStore(patches, device)
