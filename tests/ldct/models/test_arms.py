"""Two arms differ in exactly the one thing their name says: the same weights where they share them, the same patches in
the same order, turned the same way."""

import functools

import pytest
import torch
from conftest import tiny_flags

from ldct.config import differences, parse
from ldct.training.signals import Latch
from ldct.training.step import Training
from ldct.training.trainer import Trainer, train

STEPS = 12
"""A little more than an epoch of the tiny shards."""


@pytest.fixture(scope="module")
def start(tiny_shards, tmp_path_factory):
    """Train an arm; gives its configuration, its weights before the first step, and what every step was trained on."""
    plain = Training._backward

    @functools.cache
    def begin(**fields):
        weights, seen = {}, []

        def backward(self, pairs, network):
            weights.update({} if seen else {key: value.clone() for key, value in self.model.state_dict().items()})
            seen.append(pairs.clone())
            return plain(self, pairs, network)

        def leave_out(self):
            self.validated = self.training.step

        config = parse(tiny_flags(tiny_shards, tmp_path_factory.mktemp("arm"), train__steps=STEPS, **fields))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Training, "_backward", backward)
            patch.setattr(Trainer, "_validate", leave_out)
            train(config, Latch())
        return config, weights, torch.stack(seen)

    return begin


@pytest.mark.parametrize("network", ["redcnn", "unet"])
@pytest.mark.parametrize(
    ("arm", "own"),
    [
        ({"model__attention": "both"}, "gates."),
        ({"model__norm": "batch"}, "norm"),
        ({"loss__name": "l1"}, "nothing"),
        ({"model__residual": False}, "nothing"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_arms_start_alike_and_see_the_same(start, network, arm, own):
    base_config, base, patches = start(model__name=network)
    config, weights, same = start(model__name=network, **arm)
    assert [name.replace(".", "__") for name in differences(base_config, config)] == list(arm)
    assert patches.shape == (STEPS, 8, 2, 55, 55) and torch.equal(patches, same)
    assert (
        len({patch.numpy().tobytes() for step in patches for patch in step}) > STEPS * 8 / 2
    )  # no batch again and again
    if own == "norm":  # the names move by the norm's place; what is left is in the same order
        weights = [value for value in weights.values() if value.dim() == 4]
        base = [value for value in base.values() if value.dim() == 4]
        assert all(torch.equal(one, two) for one, two in zip(base, weights, strict=True))
        return
    shared = {key: value for key, value in weights.items() if not key.startswith(own)}
    assert shared.keys() == base.keys()
    assert all(torch.equal(value, base[key]) for key, value in shared.items())


def test_both_networks_see_the_same(start):
    (_, _, one), (_, _, two) = start(model__name="redcnn"), start(model__name="unet")
    assert torch.equal(one, two)


def test_another_initialisation_changes_nothing_else(start):
    _, base, one = start(model__init_output="same")
    _, kaiming, two = start(model__init_output="same", model__init="kaiming")
    assert torch.equal(one, two)
    assert {key for key in base if not torch.equal(base[key], kaiming[key])} == {
        k for k in base if k.endswith("weight")
    }


def test_another_seed_changes_weights_and_order(start):
    _, base, one = start(model__name="redcnn")
    _, other, two = start(model__name="redcnn", train__seed=1)
    assert not torch.equal(one, two)
    assert not torch.equal(base["encoder.0.0.weight"], other["encoder.0.0.weight"])
