"""The training patches as a webdataset pipeline, from local tars or URLs, for other people's trainings.

The project's own training reads the mapped tars by offset (ldct/data/loader.py): only so a run resumes at its step, and
only so every rank makes the same number of steps. A stream needs no manifest, no whole copy and no other code of ours.
"""

import functools
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor
from webdataset.filters import detshuffle

from ldct.config import DataConfig
from ldct.data.hu import NORMALIZATIONS, normalise
from shards.common.command import InputError


def stream(
    urls: str | Path | Sequence[str | Path],
    normalization: str = DataConfig.normalization,
    min_body: float = DataConfig.min_body,
    shuffle: int = 4096,
    seed: int = 0,
) -> webdataset.WebDataset:
    """An iterable data set of normalised patch pairs, each of them once an epoch over all nodes and workers.

    Parameters
    ----------
    urls : str, Path or sequence of them
        Training shards: files, URLs (read by ``curl``), or either with braces, ``https://.../train-{00000..00007}.tar``.
    normalization : str
        A key of ldct.data.hu.NORMALIZATIONS.
    min_body : float
        Least share of a patch that is body (full dose above -500 HU), from 0 to 1.
    shuffle : int
        Patches that a worker holds back and draws from, having shuffled its shards. 0: the order on disk.
    seed : int
        Of both shuffles. The order changes from epoch to epoch only while the workers live:
        ``DataLoader(..., persistent_workers=True)``.

    Returns
    -------
    webdataset.WebDataset
        Gives (low, full): two float32 tensors of shape (1, p, p), for ``torch.utils.data.DataLoader``. More methods of
        webdataset can follow, e.g. ``.map_tuple(...)``. Whole shards go to ranks (RANK and WORLD_SIZE, or
        torch.distributed) and workers, so ranks may differ in length, which hangs DDP: cut or repeat them to one number
        of batches there.

    Raises
    ------
    InputError
        For an unknown normalization; while iterating, for a record that holds no patches.
    ValueError
        By webdataset, while iterating: a worker without a shard, or a shard that cannot be read.
    """
    if normalization not in NORMALIZATIONS:
        raise InputError(f"no normalization {normalization!r}; there are: {', '.join(NORMALIZATIONS)}")
    dataset = webdataset.WebDataset(
        str(urls) if isinstance(urls, str | Path) else [str(url) for url in urls],
        nodesplitter=webdataset.split_by_node,
        shardshuffle=100 if shuffle else False,
        detshuffle=True,
        seed=seed,
    )
    patches = dataset.compose(functools.partial(_patches, normalization=normalization, min_body=min_body))
    return patches.compose(detshuffle(shuffle, shuffle, seed)) if shuffle else patches


def _patches(records: Iterable[dict[str, Any]], normalization: str, min_body: float) -> Iterator[tuple[Tensor, Tensor]]:
    """The patches of each record; decoded here, because webdataset's decoder would unpickle what a stranger packed."""
    for record in records:
        if "pairs.npy" not in record:
            where = f"{record['__url__']}: {record['__key__']}"
            raise InputError(f"{where} holds no patches; val and test shards hold whole slices: stream train-*.tar")
        pairs = np.load(io.BytesIO(record["pairs.npy"]), allow_pickle=False)
        kept = np.asarray(json.loads(record["json"])["body"]) >= min_body
        low, full = normalise(torch.from_numpy(pairs[kept]), normalization).unsqueeze(2).unbind(1)
        yield from zip(low, full, strict=True)
