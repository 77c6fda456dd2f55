"""Steps of the trainer and of the baseline on the same batches."""

import numpy as np
import pytest
import torch

from ldct import config, models
from ldct.benchmarks import baseline, common, steps
from ldct.config import ModelConfig
from shards.common.command import InputError

CPU = torch.device("cpu")


def test_both_train_on_the_same_batches_to_the_same_losses(tiny_shards, tmp_path):
    """Adam in one pass or in many, batches from tars or from files: nothing but rounding differs."""
    settings = ["model.channels=4", "model.init_output=same", "train.precision=fp32"]
    settings = steps.configure(tiny_shards, "redcnn", 4, settings)
    theirs = steps.baseline_losses(steps.start(settings), 5, tmp_path)
    ours = steps.trainer_losses(steps.start(settings), 5)
    mine = [loss.item() for loss in ours]
    assert len(mine) == 5 and len(set(mine)) == 5
    np.testing.assert_allclose(mine, [loss.item() for loss in theirs], rtol=1e-4)


def redcnn_flops(channels, patch):
    """By hand, 2 x kernel x positions: forward, gradients of the weights, and of all inputs but the image."""
    inner = sum((patch - 4 * i) ** 2 for i in range(2, 6))  # positions of convolutions 2 to 5, and of their opposites
    middle = 2 * 2 * 25 * channels**2 * inner
    outer = 2 * 25 * channels * (patch - 4) ** 2  # the first, and the last
    return 3 * middle + (2 + 3) * outer


@pytest.mark.parametrize("channels", [4, 96])
def test_flops_are_those_of_the_convolutions(channels):
    assert common.flops(ModelConfig(channels=channels), (55, 55), backward=True) == redcnn_flops(channels, 55)
    assert redcnn_flops(96, 55) / 1e9 == pytest.approx(18.9, abs=0.05)


def test_repeats_are_as_many_and_as_long_as_asked():
    """Two repeats of two steps behind one that does not count: patches per second and mean loss of each."""
    losses = iter(torch.tensor([99.0, 1.0, 3.0, 99.0, 5.0, 9.0]))
    repeats = list(steps.timed(losses, 8, 2, CPU))
    assert [loss for _, loss in repeats] == [2, 7] and all(rate > 0 for rate, _ in repeats)


def test_settings_that_the_baseline_does_not_share_are_one_line(tiny_shards):
    for setting in ("optim.lr=1", "train.global_batch=3", "loss.name=l1", "data.augment=true"):
        with pytest.raises(InputError, match=f"--set {setting}: all steps"):
            steps.configure(tiny_shards, "redcnn", 4, [setting])
    gated = config.resolved(ModelConfig(channels=4, attention="both"))
    with pytest.raises(InputError, match="neither attention nor batch norm"):
        baseline.create(gated, models.create(gated).state_dict())
