"""Streamed patches are those of the loader, each once, however many workers and nodes share them."""

import collections
import functools
import http.server
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ldct.config import DataConfig
from ldct.data.hu import normalise
from ldct.data.patches import MappedStore, Patches
from ldct.data.stream import stream
from shards.common.command import InputError


def count(pairs):
    """How often each pair comes, by its bytes."""
    return collections.Counter(np.stack([low.numpy(), full.numpy()]).tobytes() for low, full in pairs)


@pytest.fixture(scope="module")
def expected(tiny_shards):
    """Every training patch once, as the project's own training sees it."""
    patches = Patches(tiny_shards, DataConfig())
    pairs = MappedStore(patches, torch.device("cpu")).fetch(np.arange(len(patches)))
    return count(normalise(pairs, "hu1000").unsqueeze(2))


@pytest.fixture(scope="module")
def address(tiny_shards):
    """The shards behind a web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=tiny_shards)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_two_workers_over_http_give_every_patch_once(address, expected):
    assert set(expected.values()) == {1}
    dataset = stream(f"{address}/train-{{00000..00003}}.tar")
    batches = list(DataLoader(dataset, batch_size=8, num_workers=2))
    assert batches[0][0].shape == (8, 1, 55, 55) and batches[0][0].dtype == torch.float32
    assert count(pair for low, full in batches for pair in zip(low, full, strict=True)) == expected


def test_nodes_share_the_shards(tiny_shards, expected, monkeypatch):
    urls = sorted(tiny_shards.glob("train-*.tar"))
    halves = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        halves.append(count(stream(urls)))
    assert halves[0] + halves[1] == expected and not halves[0] & halves[1]


def order(pairs):
    return [low.numpy().tobytes() for low, _ in pairs]


def test_the_order_is_of_the_seed_and_changes_from_epoch_to_epoch(tiny_shards):
    url = tiny_shards / "train-{00000..00003}.tar"
    dataset = stream(url)
    first, second = order(dataset), order(dataset)
    assert first != second and sorted(first) == sorted(second)
    assert order(stream(url)) == first and order(stream(url, seed=1)) != first
    on_disk = order(stream(url, shuffle=0))
    assert on_disk == order(stream(url, shuffle=0, seed=1)) != first


def test_body_and_normalization(tiny_shards):
    url = tiny_shards / "train-{00000..00003}.tar"
    everything = list(stream(url, "redcnn", min_body=0))
    patches = Patches(tiny_shards, DataConfig(min_body=0))
    pairs = MappedStore(patches, torch.device("cpu")).fetch(np.arange(len(patches)))
    assert len(everything) == 128 and count(everything) == count(((pairs.float() + 1024) / 4096).unsqueeze(2))


def test_what_cannot_be_streamed_says_why(tiny_shards):
    with pytest.raises(InputError, match=r"no normalization 'hu'; there are: hu1000, hu500, redcnn"):
        stream(tiny_shards / "train-00000.tar", "hu")
    with pytest.raises(InputError, match=r"val-00000.tar: L096_0000 holds no patches; .*: stream train-\*.tar"):
        next(iter(stream(tiny_shards / "val-00000.tar")))
