"""What is said of training is arithmetic on what was measured. No timing."""

import types

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from ldct.benchmarks import common, steps, train
from ldct.config import ModelConfig
from shards.common.command import InputError


def test_rows_are_arithmetic_on_the_repeats(tiny_shards):
    settings = {"ours": [], train.BOTH: ["model.attention=both"], "baseline": []}
    configs = {
        name: steps.configure(tiny_shards, "redcnn", 4, ["model.channels=4", *more]) for name, more in settings.items()
    }
    repeats = {"ours": [(7.0, 0.9), (9.0, 0.5)], train.BOTH: [(4.0, 1.0)] * 2, "baseline": [(2.0, 0.4)] * 2}
    ours, both, theirs = train.compare(configs, repeats)
    assert [row["variant"] for row in (ours, both, theirs)] == ["ours", "ours, attention both", "baseline"]
    assert [row["patches_per_s"]["median"] for row in (ours, both, theirs)] == [8, 4, 2]
    assert [row["ratio"] for row in (ours, both, theirs)] == [4, 2, 1]
    work = common.flops(ModelConfig(channels=4), (55, 55), backward=True)
    assert ours["flop_per_s"] == 8 * work and theirs["flop_per_s"] == 2 * work
    assert both["flop_per_s"] > 4 * work  # the gates' own
    assert (ours["loss"], ours["loss_ratio"]) == (0.5, 1.25)  # the last round's
    assert (ours["precision"], theirs["precision"]) == ("bf16", "fp32")


def test_a_sweep_measures_every_variant(tiny_shards, monkeypatch):
    limits = {"fp32": lambda: 1e9, "bf16": lambda: 4e9}
    monkeypatch.setattr(common, "matrix_products", lambda device: limits)
    monkeypatch.setattr(train, "variants", lambda network, every: ["ours", train.BOTH, "baseline"])
    result = train.sweep(tiny_shards, ["redcnn"], [4], 1, 2, ["model.channels=4"])
    ours, both, theirs = result["rows"]
    assert ours["loss_ratio"] == pytest.approx(1, abs=0.01) and ours["loss"] != theirs["loss"]
    assert abs(both["loss_ratio"] - 1) > 0.001  # another function
    assert ours["share"] == ours["flop_per_s"] / 4e9 and theirs["share"] == theirs["flop_per_s"] / 1e9
    shown = train.text(result)
    assert "GPU: not measured" in shown and "large matrix product: fp32 1 GFLOP/s, bf16 4 GFLOP/s" in shown
    assert f"{ours['patches_per_s']['median']:,.1f}" in shown


def test_what_needs_a_gpu_or_another_network_is_left_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert set(train.variants("unet", False)) == {"ours", "ours, attention both", "baseline"}
    assert not set(train.ON_GPU_ONLY) & set(train.variants("redcnn", True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert set(train.variants("redcnn", True)) == set(train.SETTINGS)
    assert set(train.SETTINGS) - set(train.variants("unet", True)) == {"ours, 128 filters for 96"}


def test_a_profile_names_the_layers(tiny_shards):
    settings = steps.configure(tiny_shards, "redcnn", 2, ["model.channels=4"])
    result = train.layers(settings, steps=1)
    assert {"aten::convolution_backward"} <= {row["operation"] for row in result["layers"]}
    assert "2 x 4 x 51 x 51" in train.layers_text(result)
    assert sum(row["share"] for row in result["layers"]) == pytest.approx(1)


def test_a_gpus_kernels_are_counted_once():
    """torch's profiler has them twice: under the operation that started them, and as events of the GPU."""

    def event(name, device, microseconds, **more):
        return FunctionEvent(
            0, name, 1, 0, microseconds, device_type=device, use_device="cuda", stack=[], input_shapes=[], **more
        )

    convolution = event("aten::convolution", DeviceType.CPU, 100)
    convolution.append_kernel("convolve", 0, 3000)
    calls = [event("cudaLaunchKernel", DeviceType.CPU, 5), event("cudaMemcpyAsync", DeviceType.CPU, 5)]
    kernels = [event("convolve", DeviceType.CUDA, 3000), event("Memcpy HtoD", DeviceType.CUDA, 500)]
    step = event("Optimizer.step", DeviceType.CUDA, 9000, is_user_annotation=True)
    events = EventList([convolution, *calls, *kernels, step], use_device="cuda")
    events._build_tree()
    averages = events.key_averages(group_by_input_shapes=True)
    assert train.on_device(averages) == {"launches": 2, "kernels_ms": 3.5}
    took = train.spent(averages, cuda=True)
    assert took[("aten::convolution", "")] == 3 and sum(took.values()) == 3
    with pytest.raises(InputError, match="saw nothing on the GPU"):
        train.on_device([event for event in averages if event.device_type == DeviceType.CPU])


def test_numbers_that_cannot_be_are_one_line():
    options = types.SimpleNamespace(batches=[8], steps=0, repeats=1, quality=None, shards=None)
    with pytest.raises(InputError, match="--steps"):
        train.run(options)
    options = types.SimpleNamespace(batches=[8], steps=1, repeats=1, quality=33.0, shards=None)
    with pytest.raises(InputError, match="--quality needs --shards"):
        train.run(options)
