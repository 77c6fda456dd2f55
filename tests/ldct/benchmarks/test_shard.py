"""The sharder's bench runs the sharder."""

from ldct.benchmarks import shard
from shards.manifest import load


def test_the_command_that_users_run_is_what_is_measured(tmp_path):
    shard.generate(tmp_path / "in", 4)
    peak = [0.0]
    shard.build_with(1, peak)(tmp_path / "in", tmp_path / "out")
    assert sum(len(each.records) for each in load(tmp_path / "out").shards) == 4
    assert peak[0] > 10
