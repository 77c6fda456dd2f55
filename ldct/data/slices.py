"""Whole slices of a split."""

from pathlib import Path

import numpy as np

from ldct.data.patches import check_size
from shards import manifest
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
        shards = manifest.load(folder).of_split(split)
        for shard in shards:
            check_size(folder / shard.name, shard.bytes)
        every = [(folder / shard.name, record) for shard in shards for record in shard.records]
        chosen = (
            np.linspace(0, len(every) - 1, limit).round().astype(int) if 0 < limit < len(every) else range(len(every))
        )
        self.chosen = [every[i] for i in chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, number: int) -> tuple[Record, np.ndarray]:
        path, record = self.chosen[number]
        pixels = np.fromfile(path, dtype="<i2", count=int(np.prod(record.shape)), offset=record.offset)
        return record, pixels.reshape(record.shape)
