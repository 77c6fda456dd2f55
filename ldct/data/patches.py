"""The training patches of a folder of shards, and where their bytes are read from."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldct.config import DataConfig
from shards import manifest
from shards.common.command import InputError


class Patches:
    """The training patches of a folder of shards that hold enough body, and where each of them lies.

    Attributes
    ----------
    shard, offset, record : ndarray
        Shape (n,): for each patch its shard's index, the byte of its data in it, and its record's index.
    patch : int
        Side of a patch in pixels.
    keys : list of str
        Names of the records.
    """

    def __init__(self, folder: Path, config: DataConfig) -> None:
        shards = manifest.load(folder).of_split("train")
        self.paths = [folder / shard.name for shard in shards]
        for path, shard in zip(self.paths, shards, strict=True):
            check_size(path, shard.bytes)
        records = [(number, record) for number, shard in enumerate(shards) for record in shard.records]
        self.keys = [record.key for _, record in records]
        self.patch = records[0][1].shape[-1]
        nbytes = 2 * 2 * self.patch**2  # two doses of int16
        kept = [np.flatnonzero(np.asarray(record.body) >= config.min_body) for _, record in records]
        counts = [len(numbers) for numbers in kept]
        self.shard = np.repeat([number for number, _ in records], counts)
        self.record = np.repeat(np.arange(len(records)), counts)
        start = np.repeat([record.offset for _, record in records], counts)
        self.number = np.concatenate(kept)
        self.offset = start + self.number * nbytes
        if not len(self):
            raise InputError(f"no training patch of {folder} has data.min_body = {config.min_body}; lower it")

    def __len__(self) -> int:
        return len(self.number)

    def name(self, index: int) -> str:
        """Key of its record and number in it of a patch, for messages."""
        return f"{self.keys[self.record[index]]}[{self.number[index]}]"


def check_size(path: Path, expected: int) -> None:
    """Raise an InputError unless the shard at ``path`` has the size the manifest says."""
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        raise InputError(f"{path}: expected {expected} bytes, found {size}; run shards/verify.py, then build again")


class MappedStore:
    """Patches read from the mapped tars by their offsets; the page cache is the only buffer."""

    def __init__(self, patches: Patches, device: torch.device) -> None:
        self.patch, self.pin = patches.patch, device.type == "cuda"
        # views of bytes: slicing one is 2.5 times as fast as slicing an array of numpy's
        self.bytes = [np.memmap(path, dtype=np.uint8, mode="r").data for path in patches.paths]
        self.shard, self.start = patches.shard.tolist(), patches.offset.tolist()

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Patches as int16 HU, shape (n, 2, p, p), in pinned memory where they go to a GPU."""
        shape = (len(indices), 2, self.patch, self.patch)
        batch = torch.empty(shape, dtype=torch.int16, pin_memory=self.pin)
        rows, size, end = batch.numpy().data.cast("B"), 2 * 2 * self.patch**2, 0
        for index in indices.tolist():
            first, begin, end = self.start[index], end, end + size
            rows[begin:end] = self.bytes[self.shard[index]][first : first + size]
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
