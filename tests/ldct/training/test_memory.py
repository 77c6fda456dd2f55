"""A step that cannot fit is refused before it is tried, with what would fit."""

import pytest
import torch
from conftest import tiny_flags

from ldct import models
from ldct.config import from_dict, parse
from ldct.training import memory
from ldct.training.signals import Latch
from ldct.training.trainer import train
from shards.common.command import InputError


def test_what_a_network_keeps_of_a_patch_by_hand():
    """A convolution of 5 x 5 and its opposite, four channels between them: each keeps its input."""
    model = models.create(from_dict({"model": {"name": "redcnn", "channels": 4, "depth": 1}}).model)
    assert memory.bytes_kept(model, 55) == (55**2 + 4 * 51**2) * torch.float32.itemsize


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"train__global_batch": 6_000_000}, "try a smaller train.global_batch"),
        ({"train__global_batch": 2**19}, r"try train\.accumulate=\d+, which trains the same"),
    ],
)
def test_a_batch_that_no_memory_holds_is_refused_before_it_is_made(tiny_shards, tmp_path, monkeypatch, fields, says):
    monkeypatch.setattr(memory, "free_memory", lambda: 20 << 30)
    with pytest.raises(InputError, match=rf"^train.global_batch: .* need at least .* GB .* 21.5 GB are free; {says}$"):
        train(parse(tiny_flags(tiny_shards, tmp_path, **fields)), Latch())
    monkeypatch.undo()
    assert 2**20 < memory.free_memory() < 2**50
