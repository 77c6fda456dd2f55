"""Whole slices of a split."""

from pathlib import Path

import numpy as np

from ldct.data.patches import check_records, check_size
from shards.common.command import InputError
from shards.index import load as load_index
from shards.manifest import Record


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
        index = load_index(folder)
        numbers = index.of_split(split)
        for shard in np.unique(index.records["shard"][numbers]):
            check_size(folder / index.shards[shard].name, index.shards[shard].bytes)
            own = index.records[numbers]
            check_records(folder / index.shards[shard].name, own[own["shard"] == shard])
        if 0 < limit < len(numbers):
            numbers = numbers[np.linspace(0, len(numbers) - 1, limit).round().astype(int)]
        paths = [folder / index.shards[shard].name for shard in index.records["shard"][numbers]]
        self.chosen = list(zip(paths, map(index.record, numbers.tolist()), strict=True))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, number: int) -> tuple[Record, np.ndarray]:
        path, record = self.chosen[number]
        pixels = np.fromfile(path, dtype="<i2", count=int(np.prod(record.shape)), offset=record.offset)
        if pixels.size != np.prod(record.shape):
            raise InputError(f"{path} is cut off; run shards/verify.py, then build again")
        return record, pixels.reshape(record.shape)
