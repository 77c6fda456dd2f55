"""The baseline is the same function as ours, as people use it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldct import config, models
from ldct.benchmarks import baseline
from ldct.config import DataConfig, ModelConfig, networks
from ldct.data.patches import MappedStore, Patches

CPU = torch.device("cpu")
SIZES = {"redcnn": {"channels": 4}, "unet": {"channels": 4, "depth": 2}}


@pytest.mark.parametrize("name", SIZES)
def test_the_baseline_has_our_loss_and_gradients(name):
    torch.manual_seed(0)
    ours_config = config.resolved(ModelConfig(name=name, init_output="same", **SIZES[name]))
    ours = models.create(ours_config).double()
    theirs = baseline.create(ours_config, ours.state_dict()).double()
    low, full = torch.randn(2, 2, 1, 55, 55, dtype=torch.float64)
    losses = [F.mse_loss(network(low), full) for network in (ours, theirs)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    for loss in losses:
        loss.backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", baseline.BASELINES)
def test_the_baseline_has_the_published_sizes(name):
    published = networks()[name]
    with torch.device("meta"):
        network = baseline.BASELINES[name](published.channels, published.depth)
    assert sum(weight.numel() for weight in network.parameters()) == published.parameters


def test_the_baselines_files_are_normalised_float64(tiny_shards, tmp_path):
    pairs = MappedStore(Patches(tiny_shards, DataConfig()), CPU).fetch(np.array([5, 2]))
    baseline.write_patches(pairs, [5, 2], tmp_path, "hu1000")
    stored = np.load(tmp_path / "2.npy")
    assert stored.dtype == np.float64
    np.testing.assert_allclose(stored, np.clip(pairs[1].numpy(), -1000, 2000) / 1000, atol=1e-6)
    low, full = baseline.Patches(tmp_path)[2]
    np.testing.assert_array_equal([low[0], full[0]], stored)
