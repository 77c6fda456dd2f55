"""The bounds of every field: the last value that is taken, the first that is not, and what is said then."""

import pytest

from ldct import config as configuration
from ldct.config import ModelConfig, TrainConfig
from shards.common.command import InputError

TAKEN = [
    ("DataConfig", "min_body", [0, 1]),
    ("DataConfig", "window_shards", [0]),
    ("ModelConfig", "channels", [1]),
    ("ModelConfig", "depth", [1]),
    ("ModelConfig", "kernel", [1, 3]),
    ("ModelConfig", "attention_stages", [[], [1], [3, 1]]),
    ("OptimConfig", "lr", [1e-9]),
    ("OptimConfig", "ema", [0, 0.9999]),
    ("OptimConfig", "warmup", [0]),
    ("OptimConfig", "plateau_factor", [1e-9, 0.999]),
    ("OptimConfig", "plateau_patience", [1]),
    ("OptimConfig", "clip_norm", [0]),
    ("TrainConfig", "steps", [1]),
    ("TrainConfig", "global_batch", [1]),
    ("TrainConfig", "accumulate", [1, 128]),
    ("TrainConfig", "log_every", [1]),
    ("TrainConfig", "seed", [0]),
    ("TrainConfig", "skip_nonfinite", [0]),
    ("TrainConfig", "save_every_s", [1e-9, 0.5]),
    ("TrainConfig", "timeout_s", [1e-9, 0.5]),
    ("TrainConfig", "hang_s", [0]),
    ("TrainConfig", "keep_every_steps", [0]),
    ("ValConfig", "every", [1]),
    ("ValConfig", "slices", [0]),
]

REFUSED = [
    ("DataConfig", "min_body", [-0.001, 1.001], "a share between 0 and 1"),
    ("DataConfig", "window_shards", [-1], "a number of shards, or 0 for all"),
    ("ModelConfig", "name", ["vgg"], "one of redcnn, unet"),
    ("ModelConfig", "channels", [0], "at least 1"),
    ("ModelConfig", "depth", [0], "at least 1"),
    ("ModelConfig", "kernel", [0], "at least 1"),
    ("ModelConfig", "kernel", [2, 4], "an odd number of pixels"),
    ("OptimConfig", "lr", [0, -1e-3], "a positive learning rate"),
    ("OptimConfig", "ema", [-0.001, 1], "a decay of at least 0 and below 1"),
    ("OptimConfig", "warmup", [-1], "a number of steps"),
    ("OptimConfig", "plateau_factor", [0, 1], "between 0 and 1"),
    ("OptimConfig", "plateau_patience", [0], "at least 1 validation"),
    ("OptimConfig", "clip_norm", [-0.001], "a norm, or 0 for no clipping"),
    ("TrainConfig", "steps", [0], "at least 1"),
    ("TrainConfig", "global_batch", [0], "at least 1"),
    ("TrainConfig", "accumulate", [0], "at least 1"),
    ("TrainConfig", "accumulate", [3, 256], "a divisor of train.global_batch (128)"),
    ("TrainConfig", "log_every", [0], "at least 1"),
    ("TrainConfig", "seed", [-1], "0 or more"),
    ("TrainConfig", "skip_nonfinite", [-1], "0 or more"),
    ("TrainConfig", "save_every_s", [0, -1], "a positive number of seconds"),
    ("TrainConfig", "timeout_s", [0, -1], "a positive number of seconds"),
    ("TrainConfig", "hang_s", [-0.5], "a number of seconds, or 0 for no limit"),
    ("TrainConfig", "keep_every_steps", [-1], "a number of steps, or 0"),
    ("ValConfig", "every", [0], "at least 1 step"),
    ("ValConfig", "slices", [-1], "a number of slices, or 0 for all"),
]


@pytest.mark.parametrize(("section", "field", "values"), TAKEN)
def test_the_last_values_that_can_be_are_taken(section, field, values):
    for value in values:
        assert getattr(getattr(configuration, section)(**{field: value}), field) == value


@pytest.mark.parametrize(("section", "field", "values", "expected"), REFUSED)
def test_the_first_values_that_cannot_be_are_refused(section, field, values, expected):
    name = f"{section.removesuffix('Config').lower()}.{field}"
    for value in values:
        with pytest.raises(InputError) as error:
            getattr(configuration, section)(**{field: value})
        assert str(error.value) == f"{name}: expected {expected}, found {value!r}"


@pytest.mark.parametrize("stages", [[0], [2, 0]])
def test_stages_are_counted_from_one(stages):
    with pytest.raises(InputError) as error:
        ModelConfig(attention_stages=stages)
    assert str(error.value) == "model.attention_stages: expected stages counted from 1, found 0"


def test_a_batch_is_computed_in_equal_parts():
    assert TrainConfig(global_batch=12, accumulate=4).accumulate == 4
    with pytest.raises(InputError, match=r"train.accumulate: expected a divisor of train.global_batch \(12\), found 5"):
        TrainConfig(global_batch=12, accumulate=5)
