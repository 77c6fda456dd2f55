"""Switches of torch, and what a run says where memory does not suffice."""

import pytest
import torch
from conftest import tiny_flags

from ldct.config import parse
from ldct.device import out_of_memory
from ldct.training.signals import Latch
from ldct.training.step import Training
from ldct.training.trainer import set_numerics, train
from shards.common.command import InputError


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_stays_in_fp32_is_computed_in_fp32(tiny_shards, precision):
    """TF32 would round the image, which bf16's first convolution is spared: by up to 0.5 HU at 1000 HU."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    set_numerics(parse(tiny_flags(tiny_shards, "nowhere", train__precision=precision)))
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("Expected all tensors to be on the same device"), False),
        (OSError("not enough memory"), False),
    ],
)
def test_cudnn_says_in_its_own_words_that_memory_does_not_suffice(error, memory):
    assert out_of_memory(error) is memory


def test_a_step_that_does_not_fit_is_one_line_with_advice(tiny_shards, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Training, "train_step", full)
    with pytest.raises(InputError, match=r"a step of 4 patches at once .* --train.accumulate=4 \(now 2\)"):
        train(parse(tiny_flags(tiny_shards, tmp_path, train__accumulate=2)), Latch())
