"""Switches of torch, and what a run says where memory does not suffice."""

import pytest
import torch
from conftest import tiny_flags

from ldct.config import parse
from ldct.device import out_of_memory
from ldct.runs.folder import read_metrics, read_status
from ldct.training.signals import Latch
from ldct.training.step import Training
from ldct.training.trainer import set_numerics, train
from ldct.training.validation import Validation
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


@pytest.mark.parametrize(
    ("store", "advice"),
    [
        ("device", r"try --data\.store=mmap \(now device\), with which the run goes on as it was$"),
        ("auto", r"use a device with more"),  # on a CPU the patches are not copied anyway
        ("mmap", r"use a device with more, or train another run with fewer model\.channels \(now 4\)$"),
    ],
)
def test_a_validation_that_does_not_fit_gets_advice_of_its_own(tiny_shards, tmp_path, monkeypatch, store, advice):
    """Another train.accumulate, which helps a step, would not help it."""
    plain, slices = Validation._output, []

    def full(self, model, low):
        slices.append(low)
        if len(slices) > 2:  # behind the validation of step 0
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, model, low)

    monkeypatch.setattr(Validation, "_output", full)
    flags = tiny_flags(tiny_shards, tmp_path, data__store=store, train__steps=9, train__keep_every_steps=2)
    with pytest.raises(InputError, match=rf"^a whole slice of the validation does not fit .*: {advice}"):
        train(parse(flags), Latch())
    monkeypatch.undo()
    assert read_status(tmp_path).state == "failed"
    train(parse(tiny_flags(tiny_shards, tmp_path, data__store="mmap", train__steps=9)), Latch())
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 3, 6, 7, 9, 9]
