"""From manifest and tars to batches, in an order that is a function of (seed, epoch) alone.

The state of the data is the global step: batch ``s`` is the same pairs in the same order on any number of ranks, after
any number of restarts. There is nothing else to save and nothing to skip through.
"""

import queue
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldct.config import DataConfig
from shards import manifest
from shards.command import InputError
from shards.manifest import Record

SCHEMES = {"hu1000": (0.0, 1000.0, (-1000.0, 2000.0)), "seed": (-500.0, 500.0, None), "redcnn": (-1024.0, 4096.0, None)}
"""By name: HU that becomes 0, HU that make 1, and the range clipped to beforehand, in HU."""


def normalise(hu: Tensor, scheme: str) -> Tensor:
    """HU, any dtype, to the values a network sees, float32; a key of SCHEMES names how."""
    zero, scale, clip = SCHEMES[scheme]
    values = hu.float()
    return ((values.clamp(*clip) if clip else values) - zero) / scale


def denormalise(values: Tensor, scheme: str) -> Tensor:
    """Network values to HU, float32; the inverse of normalise within its clipped range."""
    zero, scale, _ = SCHEMES[scheme]
    return values.float() * scale + zero


def augment(pairs: Tensor, codes: Tensor) -> Tensor:
    """Flip and turn square tiles.

    Parameters
    ----------
    pairs : Tensor
        Shape (n, 2, p, p); both doses of a pair are turned alike.
    codes : Tensor
        Shape (n,), 0 to 7: bit 0 transposes, bit 1 flips rows, bit 2 flips columns: the eight symmetries of a square.
    """
    bits = codes.view(-1, 1, 1, 1)
    pairs = torch.where(bits & 1 > 0, pairs.transpose(-1, -2), pairs)
    pairs = torch.where(bits & 2 > 0, pairs.flip(-2), pairs)
    return torch.where(bits & 4 > 0, pairs.flip(-1), pairs)


def augmentation_codes(seed: int, step: int, global_batch: int) -> Tensor:
    """Codes for ``augment`` of the whole global batch at ``step``, shape (global_batch,), int64."""
    draw = np.random.default_rng((seed, 1, step))  # 1 keeps this stream apart from the order's
    return torch.from_numpy(draw.integers(0, 8, global_batch))


class Tiles:
    """The training tiles of a folder of shards that hold enough body, and where each of them lies.

    Attributes
    ----------
    shard, offset, record : ndarray
        Shape (n,): for each tile its shard's index, the byte of its data in it, and its record's index.
    patch : int
        Side of a tile in pixels.
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
        counts = [len(tiles) for tiles in kept]
        self.shard = np.repeat([number for number, _ in records], counts)
        self.record = np.repeat(np.arange(len(records)), counts)
        start = np.repeat([record.offset for _, record in records], counts)
        self.tile = np.concatenate(kept)
        self.offset = start + self.tile * nbytes
        if not len(self):
            raise InputError(f"no training tile of {folder} has data.min_body = {config.min_body}; lower it")

    def __len__(self) -> int:
        return len(self.tile)

    def name(self, index: int) -> str:
        """Key and tile number of one tile, for messages."""
        return f"{self.keys[self.record[index]]}[{self.tile[index]}]"


def check_size(path: Path, expected: int) -> None:
    """Raise an InputError unless the shard at ``path`` has the size the manifest says."""
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        raise InputError(f"{path}: expected {expected} bytes, found {found}; run shards/verify.py, then build again")


class Order:
    """Which tiles make up which global batch.

    An epoch is a permutation of all tiles: the shards are permuted and dealt into windows of at most ``window`` shards,
    equal but for one, and the tiles of each window are permuted. The epochs follow each other without a gap and
    batches are cut from that endless sequence. So every tile comes once per epoch; a batch at an epoch's end is filled
    from the next epoch's start, and none is short or dropped.
    """

    def __init__(self, shard_of_tile: np.ndarray, seed: int, window: int, global_batch: int) -> None:
        self.seed, self.batch = seed, global_batch
        self.count = len(shard_of_tile)
        groups = np.argsort(shard_of_tile, kind="stable")
        borders = np.flatnonzero(np.diff(shard_of_tile[groups])) + 1
        self.of_shard = np.split(groups, borders)
        self.window = window or len(self.of_shard)
        self.epoch = lru_cache(maxsize=2)(self._epoch)  # a batch mostly touches one epoch or two neighbours

    def _epoch(self, epoch: int) -> np.ndarray:
        draw = np.random.default_rng((self.seed, 0, epoch))
        shards = draw.permutation(len(self.of_shard))
        windows = np.array_split(shards, -(-len(shards) // self.window))
        return np.concatenate([draw.permutation(np.concatenate([self.of_shard[s] for s in w])) for w in windows])

    def __getitem__(self, step: int) -> np.ndarray:
        """Tile indices of the global batch at ``step`` (from 0), shape (global_batch,)."""
        position, parts = step * self.batch, []
        end = position + self.batch
        while position < end:
            epoch, start = divmod(position, self.count)
            part = self.epoch(epoch)[start : start + end - position]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts)


class MappedStore:
    """Tiles read from the mapped tars by their offsets; the page cache is the only buffer."""

    def __init__(self, tiles: Tiles, device: torch.device) -> None:
        self.patch, self.pin = tiles.patch, device.type == "cuda"
        # views of bytes: slicing one is 2.5 times as fast as slicing an array of numpy's
        self.bytes = [np.memmap(path, dtype=np.uint8, mode="r").data for path in tiles.paths]
        self.shard, self.start = tiles.shard.tolist(), tiles.offset.tolist()

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Tiles as int16 HU, shape (n, 2, p, p), in pinned memory where they go to a GPU."""
        shape = (len(indices), 2, self.patch, self.patch)
        batch = torch.empty(shape, dtype=torch.int16, pin_memory=self.pin)
        rows, size, end = batch.numpy().data.cast("B"), 2 * 2 * self.patch**2, 0
        for index in indices.tolist():
            first, begin, end = self.start[index], end, end + size
            rows[begin:end] = self.bytes[self.shard[index]][first : first + size]
        return batch


class DeviceStore:
    """All tiles as one int16 tensor on the device: no copy and no thread per batch (AAPM at 1 mm: 5.8 GB)."""

    def __init__(self, tiles: Tiles, device: torch.device) -> None:
        mapped = MappedStore(tiles, torch.device("cpu"))
        self.pairs = torch.empty((len(tiles), 2, tiles.patch, tiles.patch), dtype=torch.int16, device=device)
        for some in np.array_split(np.arange(len(tiles)), max(1, len(tiles) // 4096)):
            self.pairs[some[0] : some[-1] + 1] = mapped.fetch(some).to(device)

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Tiles as int16 HU on the device, shape (n, 2, p, p)."""
        return self.pairs[torch.from_numpy(indices).to(self.pairs.device, non_blocking=True)]


def open_store(tiles: Tiles, choice: str, device: torch.device) -> MappedStore | DeviceStore:
    """The store that ``data.store`` names; auto = on a GPU where the tiles take at most half of its free memory."""
    if choice == "auto":
        fits = device.type == "cuda" and len(tiles) * 4 * tiles.patch**2 <= torch.cuda.mem_get_info(device)[0] / 2
        choice = "device" if fits else "mmap"
    return DeviceStore(tiles, device) if choice == "device" else MappedStore(tiles, device)


class Loader:
    """This rank's share of the batches from one step to another, fetched ahead by a single thread.

    A thread and not worker processes: twice as fast here (118 k against 56-61 k pairs/s on 2 cores), nothing to fork
    and no child to catch SLURM's signals.

    Iterating gives int16 HU, shape (global_batch / world_size, 2, p, p), on the host or the device.
    """

    AHEAD = 4

    def __init__(
        self, store: MappedStore | DeviceStore, order: Order, rank: int, world_size: int, start: int, stop: int
    ) -> None:
        self.store, self.order, self.steps = store, order, range(start, stop)
        share = order.batch // world_size
        self.share = slice(rank * share, (rank + 1) * share)
        self.ready: queue.Queue[Tensor | BaseException | None] = queue.Queue(self.AHEAD)
        self.waited_s = 0.0
        """Seconds that the loop has waited for batches."""
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._fetch, name="loader", daemon=True)
        self.thread.start()

    def _fetch(self) -> None:
        item: Tensor | BaseException | None
        try:
            for step in self.steps:
                if not self._put(self.store.fetch(self.order[step][self.share])):
                    return
            item = None
        except BaseException as error:  # shown by the loop, which is the one that waits
            item = error
        self._put(item)

    def _put(self, item: Tensor | BaseException | None) -> bool:
        while not self.closed.is_set():
            try:
                self.ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Tensor]:
        while (item := self._get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _get(self) -> Tensor | BaseException | None:
        began = time.perf_counter()
        item = self.ready.get()
        self.waited_s += time.perf_counter() - began
        return item

    def close(self) -> None:
        """Stop the thread; batches fetched ahead are forgotten."""
        self.closed.set()
        self.thread.join()


class Slices:
    """Whole slices of a split, by number: ``slices[i]`` is (record, int16 HU of shape (2, H, W): low dose, full dose).

    Parameters
    ----------
    folder : Path
        Folder of the shards.
    split : str
        val or test.
    limit : int
        At most so many, evenly spaced over the split; 0 = all.
    """

    def __init__(self, folder: Path, split: str, limit: int = 0) -> None:
        shards = manifest.load(folder).of_split(split)
        for shard in shards:
            check_size(folder / shard.name, shard.bytes)
        every = [(folder / shard.name, record) for shard in shards for record in shard.records]
        chosen = (
            np.linspace(0, len(every) - 1, limit).round().astype(int) if 0 < limit < len(every) else range(len(every))
        )
        self.found = [every[i] for i in chosen]

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, number: int) -> tuple[Record, np.ndarray]:
        path, record = self.found[number]
        pixels = np.fromfile(path, dtype="<i2", count=int(np.prod(record.shape)), offset=record.offset)
        return record, pixels.reshape(record.shape)
