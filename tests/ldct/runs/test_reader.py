"""A run folder read back."""

import json

import pytest

from ldct import config as configuration
from ldct.metrics import names
from ldct.runs import reader
from shards.common.command import InputError

LINES = [
    {"step": 0, "val/abd400/psnr": 20.0, "val/attention/1/depth": 0.0, "val/attention/1/channel_sd": 0.5},
    {"step": 5, "train/loss": None, "attention/1/channel_sd": 0.9},
    {"step": 10, "train/loss": 0.25},
    {
        "step": 10,
        "val/abd400/psnr": 30.0,
        "val/attention/10/depth": 1.0,
        "val/attention/10/channel_sd": 0.2,
        "val/attention/2/depth": 0.25,
        "val/attention/2/channel_sd": 0.1,
        "val/attention/2/channel_histogram": [0.5, 0.5],
        "val/attention/1/depth": 0.0,
        "val/attention/1/channel_sd": 0.3,
    },
]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(configuration.from_dict({})))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return reader.read(tmp_path)


def test_a_curve_leaves_out_what_was_not_finite(run):
    assert run.curve(names.TRAIN_LOSS) == ([10], [0.25])
    assert run.curve(names.validation("abd400/psnr")) == ([0, 10], [20.0, 30.0])
    assert run.curve("none") == ([], [])


def test_attention_is_the_last_validations_by_depth(run):
    assert list(run.attention("channel_sd").items()) == [(0.0, 0.3), (0.25, 0.1), (1.0, 0.2)]
    assert run.attention("spatial_edges") == {}


def test_a_run_that_has_not_begun(run):
    assert (run.state, run.provenance) == ("pending", [])


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        reader.read(tmp_path / "none")


def test_what_was_evaluated_by_split_and_method(tmp_path):
    (tmp_path / "eval").mkdir()
    metrics = {"abd400/psnr": {"mean": 30.0, "half": None}, "texture/frequency": {"mean": None, "half": None}}
    content = {"methods": [{"name": "low dose", "metrics": metrics}]}
    (tmp_path / "eval" / "pairs.json").write_text(json.dumps(content))
    (tmp_path / "eval" / "test.json").write_text("{")  # cut off
    assert reader.evaluated(tmp_path) == {"pairs": {"low dose": {"abd400/psnr": 30.0}}}


@pytest.mark.parametrize(("rates", "seconds"), [([0.0, 64.0, 64.0], 20.0), ([0.0, 0.0], 0.0), ([], 0.0)])
def test_the_time_of_the_steps_is_that_of_the_rates(tmp_path, rates, seconds):
    """Of 128 patches a step; a line that came too soon after the start has no rate yet."""
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(configuration.from_dict({})))
    lines = [{"step": 5 * number, "patches_per_s": rate} for number, rate in enumerate(rates)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert reader.read(tmp_path).training_seconds == seconds
