"""What is recommended is a configuration."""

import pytest
import torch
import yaml

from ldct import config
from ldct.benchmarks import recommend, steps


def test_what_is_recommended_is_a_configuration(tiny_shards, tmp_path, monkeypatch):
    def rate(asked, steps):
        batch = asked.train.global_batch
        return batch / (batch + 8) / (1 + (asked.train.precision == "fp32"))

    monkeypatch.setattr(recommend, "rate", rate)
    result = recommend.recommend(tiny_shards, "redcnn", [8, 64, 128, 256], 1)
    assert len(result["tried"]) == 4 + 4
    (tmp_path / "here.yaml").write_text(recommend.text(result))
    chosen = config.parse([f"--config={tmp_path / 'here.yaml'}"])
    assert chosen.train.global_batch == 128  # 0.94, where 256 has 0.97 and 64 0.89
    assert (chosen.train.precision, chosen.train.channels_last, chosen.data.store) == ("bf16", True, "auto")
    assert yaml.safe_load(recommend.text(result)) == result["config"]


@pytest.mark.parametrize(("at_once", "batch", "parts"), [(8, 128, 16), (24, 144, 6), (128, 128, 1), (4096, 4096, 1)])
def test_a_small_batch_is_a_part_of_the_recipes(at_once, batch, parts):
    assert recommend.split(at_once) == {"global_batch": batch, "accumulate": parts}


def test_a_batch_that_does_not_fit_is_not_recommended(tiny_shards, monkeypatch):
    assert recommend.smallest({8: 90.0, 16: 100.0, 32: 0.0}) == 16

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(steps, "start", full)
    assert recommend.rate(steps.configure(tiny_shards, "redcnn", 8), 1) == 0
