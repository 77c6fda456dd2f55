"""bench.py evaluate: every part of an evaluation has its seconds."""

import argparse

from made import make_run

from ldct.benchmarks import evaluate
from ldct.metrics import protocols, registry


def test_every_part_is_measured(tiny_shards, tmp_path, capsys):
    run = make_run(tmp_path / "0-run", tiny_shards, depth=5, scale=0.3)
    result = evaluate.run(
        argparse.Namespace(pairs=None, shards=tiny_shards, run=[run], slices=2, precision=["fp32", "bf16"])
    )
    named = " ".join(result["parts"])
    assert all(f"metrics: {name}" in named for name in protocols.DEFAULT)
    assert [name.split(", ")[-1] for name in result["parts"] if name.startswith("network: ")] == ["fp32", "bf16"]
    assert {metric.key.partition("/")[0] for metric in registry.METRICS if not metric.per_protocol} <= {
        name.removeprefix("metrics: ") for name in result["parts"]
    }
    assert all(0 <= took["low"] <= took["median"] <= took["high"] for took in result["parts"].values())
    assert set(result["search_s"]) == {"Gaussian blur", "non-local means"}
    printed = capsys.readouterr().out
    assert all(name in printed for name in result["parts"]) and run.name in printed
