"""Every loader gives every pair."""

from ldct.benchmarks import load
from ldct.config import DataConfig
from ldct.data.patches import Patches


def test_every_loader_gives_every_pair(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "BATCH", 16)
    pairs = load.one_pair_per_member(tiny_shards, tmp_path / "members")
    assert pairs == Patches(tiny_shards, DataConfig(min_body=0)).shard.size
    assert sum(load.ours(tiny_shards)) == 2 * pairs // 16 * 16
    assert sum(load.plain_webdataset(tmp_path / "members")) == pairs
