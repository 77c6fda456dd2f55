"""A gate replaced by its mean."""

import pytest
import torch

from ldct import models
from ldct.attention.ablation import constant_gate, gates, mean_weights
from ldct.config import ModelConfig


@pytest.fixture
def network():
    torch.manual_seed(0)
    config = ModelConfig(channels=4, depth=3, kernel=3, attention="both", attention_stages=[1, 3], init_output="same")
    return models.create(config).eval()


@pytest.fixture
def images():
    return torch.randn(2, 1, 40, 40, generator=torch.Generator().manual_seed(1))


def test_the_gates_of_every_stage_that_has_them(network):
    assert {stage: len(modules) for stage, modules in gates(network).items()} == {1: 2, 3: 2}


@torch.no_grad()
def test_the_mean_is_over_channels_pixels_and_passes(network, images):
    channel, spatial = gates(network)[1]
    seen = {channel: [], spatial: []}
    for module in seen:
        module.register_forward_hook(lambda module, inputs, out: seen[module].append(out))
    with mean_weights(network) as means:
        network(images[:1])
        network(images[1:])
    network(images)  # outside the block nothing is counted
    for module, weights in seen.items():
        assert means[module] == [pytest.approx(each.mean().item()) for each in weights[:2]]


@torch.no_grad()
def test_a_constant_gate_scales_all_alike_and_only_within_the_block(network, images):
    plain = network(images)
    channel, spatial = gates(network)[3]
    features = torch.rand(1, 4, 9, 9)
    with constant_gate(network, 3, {channel: 0.25, spatial: 0.5}):
        torch.testing.assert_close(network.gates["3"](features), 0.125 * features)
        assert not torch.equal(network(images), plain)
    torch.testing.assert_close(network(images), plain, rtol=0, atol=0)


@torch.no_grad()
def test_a_gate_that_chooses_nothing_loses_nothing(network, images):
    for module in gates(network)[1]:
        module.register_forward_hook(lambda module, inputs, out: torch.full_like(out, 0.75))
    with mean_weights(network) as means:
        plain = network(images)
    with constant_gate(network, 1, {module: values[0] for module, values in means.items()}):
        torch.testing.assert_close(network(images), plain)
