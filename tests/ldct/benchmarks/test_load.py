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


def test_the_loops_own_time_is_that_of_steps_without_passes(tiny_shards, monkeypatch):
    """As many steps as asked for, of which one computes gradients."""
    runs, plain = [], load.Training._passes
    monkeypatch.setattr(load.Training, "_passes", lambda *args, **named: runs.append(1) or plain(*args, **named))
    (milliseconds,) = load.loop_ms(tiny_shards, 20)
    assert milliseconds > 0 and len(runs) == 1
