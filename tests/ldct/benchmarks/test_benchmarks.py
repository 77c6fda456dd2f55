"""What the benches say is arithmetic on what they measured; the reference is the same function as ours. No timing."""

import itertools
import os
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from made import make_run

from ldct import config, models
from ldct.benchmarks import baseline, common, infer, load, recommend, runs, steps, train
from ldct.config import DataConfig, ModelConfig, networks
from ldct.data.patches import MappedStore, Patches
from ldct.inference.denoiser import Denoiser
from shards.common.command import InputError

CPU = torch.device("cpu")
SIZES = {"redcnn": {"channels": 4}, "unet": {"channels": 4, "depth": 2}}


def test_ways_take_turns_and_the_first_round_does_not_count():
    order = []

    def way(name):
        order.append(name)
        return float(len(order))

    found = common.take_turns({"a": lambda: way("a"), "b": lambda: way("b")}, 2)
    assert order == ["a", "b"] * 3
    assert found == {"a": [3, 5], "b": [4, 6]}


def process_and_numbers(start):
    """A way that says where it runs, and breaks at its third turn."""
    for number in itertools.count(start):
        if number == start + 2:
            os._exit(3)
        yield os.getpid(), number


def test_a_way_has_a_process_of_its_own():
    with common.apart(process_and_numbers, 5) as ask, common.apart(process_and_numbers, 7) as other:
        (first, five), (second, seven), (again, six) = ask(), other(), ask()
        assert (five, six, seven) == (5, 6, 7)
        assert first == again and len({first, second, os.getpid()}) == 3
        with pytest.raises(InputError, match="process_and_numbers ended while it was measured"):
            ask()
    for process in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_spread_and_ratio():
    assert common.spread([4.0, 1.0, 3.0]) == {"median": 3.0, "low": 1.0, "high": 4.0}
    assert common.ratio([2, 9, 8], [1, 3, 2]) == 3  # of the rounds 2, 3 and 4; not 8 / 2


def test_a_matrix_product_counts_two_for_each_element_and_term(monkeypatch):
    monkeypatch.setattr(common, "seconds", lambda work, device: (work(), 0.5)[1])
    assert {name: rate() for name, rate in common.matrix_products(CPU, 8).items()} == {"fp32": 2048, "bf16": 2048}


def test_a_command_that_fails_is_one_line():
    with pytest.raises(InputError, match=r"launch/train\.py failed with status 2: .*--run_dir"):
        common.call("launch/train.py")


@pytest.mark.parametrize("name", SIZES)
def test_the_reference_has_our_loss_and_gradients(name):
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


def test_the_references_files_are_normalised_float64(tiny_shards, tmp_path):
    pairs = MappedStore(Patches(tiny_shards, DataConfig()), CPU).fetch(np.array([5, 2]))
    baseline.write_patches(pairs, [5, 2], tmp_path, "hu1000")
    stored = np.load(tmp_path / "2.npy")
    assert stored.dtype == np.float64
    np.testing.assert_allclose(stored, np.clip(pairs[1].numpy(), -1000, 2000) / 1000, atol=1e-6)
    low, full = baseline.Patches(tmp_path)[2]
    np.testing.assert_array_equal([low[0], full[0]], stored)


def test_both_train_on_the_same_batches_to_the_same_losses(tiny_shards, tmp_path):
    """Adam in one pass or in many, batches from tars or from files: nothing but rounding differs."""
    settings = ["model.channels=4", "model.init_output=same", "train.precision=fp32"]
    settings = steps.configure(tiny_shards, "redcnn", 4, settings)
    theirs = steps.theirs(steps.start(settings), 5, tmp_path)
    ours = steps.ours(steps.start(settings), 5)
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
    assert steps.flops(ModelConfig(channels=channels), 55) == redcnn_flops(channels, 55)
    assert redcnn_flops(96, 55) / 1e9 == pytest.approx(18.9, abs=0.05)


def test_turns_are_as_many_and_as_long_as_asked():
    """Two turns of two steps behind one that does not count: patches per second of each, and the mean of its losses."""
    losses = iter(torch.tensor([99.0, 1.0, 3.0, 99.0, 5.0, 9.0]))
    turns = list(steps.timed(losses, 8, 2, CPU))
    assert [loss for _, loss in turns] == [2, 7] and all(rate > 0 for rate, _ in turns)


def test_rows_are_arithmetic_on_the_turns(tiny_shards):
    settings = {"ours": [], train.BOTH: ["model.attention=both"], "reference": []}
    configs = {
        name: steps.configure(tiny_shards, "redcnn", 4, ["model.channels=4", *more]) for name, more in settings.items()
    }
    turns = {"ours": [(7.0, 0.9), (9.0, 0.5)], train.BOTH: [(4.0, 1.0)] * 2, "reference": [(2.0, 0.4)] * 2}
    ours, both, theirs = train.describe(configs, turns)
    assert [row["way"] for row in (ours, both, theirs)] == ["ours", "ours, attention both", "reference"]
    assert [row["patches_per_s"]["median"] for row in (ours, both, theirs)] == [8, 4, 2]
    assert [row["ratio"] for row in (ours, both, theirs)] == [4, 2, 1]
    work = redcnn_flops(4, 55)
    assert ours["flop_per_s"] == 8 * work and theirs["flop_per_s"] == 2 * work
    assert both["flop_per_s"] > 4 * work  # the gates' own
    assert (ours["loss"], ours["loss_ratio"]) == (0.5, 1.25)  # the last round's
    assert (ours["precision"], theirs["precision"]) == ("bf16", "fp32")


def test_a_sweep_measures_every_way(tiny_shards, monkeypatch):
    limits = {"fp32": lambda: 1e9, "bf16": lambda: 4e9}
    monkeypatch.setattr(common, "matrix_products", lambda device: limits)
    monkeypatch.setattr(train, "ways", lambda network, every: ["ours", train.BOTH, "reference"])
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
    assert set(train.ways("unet", False)) == {"ours", "ours, attention both", "reference"}
    assert not set(train.ON_GPU_ONLY) & set(train.ways("redcnn", True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert set(train.ways("redcnn", True)) == set(train.SETTINGS)
    assert set(train.SETTINGS) - set(train.ways("unet", True)) == {"ours, 128 filters for 96"}


def test_a_profile_names_the_layers(tiny_shards):
    settings = steps.configure(tiny_shards, "redcnn", 2, ["model.channels=4"])
    result = train.layers(settings, steps=1)
    assert {"aten::convolution_backward"} <= {row["operation"] for row in result["layers"]}
    assert "2 x 4 x 51 x 51" in train.layers_text(result)
    assert sum(row["share"] for row in result["layers"]) == pytest.approx(1)


def test_an_epoch_counts_every_patch(tiny_shards):
    settings = ["model.channels=4", "model.depth=2", "data.min_body=0"]
    result = runs.epoch(tiny_shards, 16, settings)
    assert (result["patches"], result["steps"], result["batch"]) == (128, 8, 16)
    assert result["steps_s"] > 0 and result["epoch_s"] > 0
    assert result["share"] == result["steps_s"] / result["epoch_s"]


def test_ranks_are_real_runs(tiny_shards):
    settings = ["model.channels=4", "model.depth=2"]
    result = runs.scaling(tiny_shards, 2, 4, 2, 1, settings)
    assert set(result["patches_per_s"]) == {"1", "2"}
    two, one = (result["patches_per_s"][name]["median"] for name in ("2", "1"))
    assert result["ratio"] == two / one


def test_seconds_to_a_quality(tmp_path, monkeypatch):
    """The first validation that is good enough counts; the low dose beside it does not."""
    lines = [
        {"step": 0, "elapsed_s": 1.0, "val/abd400/psnr": 30.0, "val/low_dose/abd400/psnr": 99.0},
        {"step": 3, "elapsed_s": 2.0, "train/loss": 0.5},
        {"step": 5, "elapsed_s": 4.0, "val/abd400/psnr": 33.0, "val/low_dose/abd400/psnr": 99.0},
    ]
    monkeypatch.setattr(runs.runs, "read_metrics", lambda folder: lines)
    assert runs.validations(tmp_path) == [(1.0, 30.0), (4.0, 33.0)]


@pytest.mark.parametrize(("theirs", "share", "said"), [(50.0, 0.08, "a share of 0.080"), (None, None, "not in 20 s")])
def test_the_documents_recipe_is_given_five_times_as_long(tmp_path, monkeypatch, theirs, share, said):
    asked = []

    def until(psnr, settings, limit_s):
        asked.append((settings[0].rsplit("/", 1)[1], limit_s))
        return (4.0, 33.5) if len(asked) == 1 else (theirs, 29.0)

    monkeypatch.setattr(runs, "until", until)
    result = runs.quality(tmp_path, 33.0, ["model.channels=24"])
    assert asked == [("default.yaml", float("inf")), ("document.yaml", 20.0)]
    assert (result["ours_s"], result["document_s"], result["share"]) == (4.0, theirs, share)
    assert said in runs.quality_text(result)


def test_a_run_is_stopped_where_the_quality_is_reached(tiny_shards):
    settings = [f"data.shards={tiny_shards}", "track.wandb=disabled", "model.channels=4", "train.steps=100000"]
    reached, best = runs.until(5.0, [*settings, "val.slices=1"], float("inf"))
    assert reached is not None and best >= 5
    reached, best = runs.until(90.0, [*settings, "val.every=1", "val.slices=1", "optim.lr=1e-9"], 0.01)
    assert reached is None and best < 90


def test_what_is_recommended_is_a_configuration(tiny_shards, tmp_path, monkeypatch):
    def rate(asked, steps):
        batch = asked.train.global_batch
        return batch / (batch + 8) / (1 + (asked.train.precision == "fp32"))

    monkeypatch.setattr(recommend, "rate", rate)
    result = recommend.recommend(tiny_shards, "redcnn", [8, 64, 128, 256], 1)
    assert len(result["tried"]) == 4 + 4
    (tmp_path / "here.yaml").write_text(recommend.text(result))
    made = config.parse([f"--config={tmp_path / 'here.yaml'}"])
    assert made.train.global_batch == 128  # 0.94, where 256 has 0.97 and 64 0.89
    assert (made.train.precision, made.train.channels_last, made.data.store) == ("bf16", True, "auto")
    assert yaml.safe_load(recommend.text(result)) == result["config"]


@pytest.mark.parametrize(("at_once", "batch", "parts"), [(8, 128, 16), (24, 144, 6), (128, 128, 1), (4096, 4096, 1)])
def test_a_small_batch_is_a_part_of_the_recipes(at_once, batch, parts):
    assert recommend.split(at_once) == {"global_batch": batch, "accumulate": parts}


def test_a_batch_that_does_not_fit_is_not_recommended(tiny_shards, monkeypatch):
    assert recommend.smallest({8: 90.0, 16: 100.0, 32: 0.0}) == 16

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(steps, "start", full)
    assert recommend.rate(steps.configure(tiny_shards, "redcnn", 8), 1) == 0


def test_inference_beside_the_reference(tiny_shards, tmp_path):
    run = make_run(tmp_path / "0-run", tiny_shards, depth=5, scale=0.3)
    low = np.random.default_rng(0).integers(-1000, 1000, (2, 64, 64)).astype(np.int16)
    found = infer.measure(run, low, 2, CPU)
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows) == ["ours, fp32", "ours, bf16", "reference"] and found["base"] == "reference"
    assert rows["ours, fp32"]["rmse_hu"] == 0 and rows["reference"]["rmse_hu"] < 0.05
    assert 0.05 < rows["ours, bf16"]["rmse_hu"] < 5
    assert rows["reference"]["ratio"] == 1
    assert Denoiser(run, CPU).precision == "fp32"  # the run's own, not the default


def test_rows_of_inference_are_arithmetic_on_the_turns():
    settings = config.parse(["--model.channels=4"])
    low = np.array([[[0, 1000], [5000, -3000]]], np.int16).repeat(32, 1).repeat(32, 2)
    near, far = low + 3, low + 3
    far[low == 5000] += 999  # clipped by the normalization: does not count
    turns = {"ours, fp32": [(2.0, low)] * 2, "ours, bf16": [(5.0, near), (7.0, near)], "reference": [(1.0, far)] * 2}
    rows = infer.describe(settings, low, turns, "reference", {"fp32": 1e9, "bf16": 4e9})
    ours, theirs = rows[1:]
    assert [row["ratio"] for row in rows] == [2, 6, 1]
    assert [row["rmse_hu"] for row in rows] == [0, 3, 3]
    work = infer.forward_flops(settings.model, (64, 64))
    inner = sum((64 - 4 * i) ** 2 for i in range(2, 6))
    assert work == 2 * 25 * (2 * 4**2 * inner + 2 * 4 * 60**2)
    assert ours["flop_per_s"] == 6 * work and ours["share"] == 6 * work / 4e9
    assert theirs["share"] == work / 1e9


def test_memory_is_asked_for_parts_of_a_series(tiny_shards, tmp_path, monkeypatch):
    shapes = []
    monkeypatch.setattr(infer, "Denoiser", lambda run, device: lambda part: shapes.append(part.shape))
    peaks = list(itertools.islice(infer.peaks(tmp_path, np.zeros((1, 16, 16), np.int16), CPU), 3))
    assert shapes == [(8, 16, 16)] * 3
    assert peaks[0] > 0


def peak_of_a_process():
    yield infer.peak_mb(CPU)


def test_a_process_has_a_peak_of_its_own():
    """Not its parent's, with which ru_maxrss starts."""
    held = torch.ones(1 << 30, dtype=torch.uint8)
    with common.apart(peak_of_a_process) as peak:
        assert 50 < peak() < infer.peak_mb(CPU) - 500
    del held


def test_settings_that_the_reference_does_not_share_are_one_line(tiny_shards):
    for setting in ("optim.lr=1", "train.global_batch=3", "loss.name=l1", "data.augment=true"):
        with pytest.raises(InputError, match=f"--set {setting}: all steps"):
            steps.configure(tiny_shards, "redcnn", 4, [setting])
    gated = config.resolved(ModelConfig(channels=4, attention="both"))
    with pytest.raises(InputError, match="neither attention nor batch norm"):
        baseline.create(gated, models.create(gated).state_dict())


def test_numbers_that_cannot_be_are_one_line():
    options = types.SimpleNamespace(batches=[8], steps=0, repeats=1, quality=None, shards=None)
    with pytest.raises(InputError, match="--steps"):
        train.run(options)
    options = types.SimpleNamespace(batches=[8], steps=1, repeats=1, quality=33.0, shards=None)
    with pytest.raises(InputError, match="--quality needs --shards"):
        train.run(options)


def test_every_way_to_load_gives_every_pair(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "BATCH", 16)
    pairs = load.one_pair_per_member(tiny_shards, tmp_path / "members")
    assert pairs == Patches(tiny_shards, DataConfig(min_body=0)).shard.size
    assert sum(load.ours(tiny_shards)) == 2 * pairs // 16 * 16
    assert sum(load.plain_webdataset(tmp_path / "members")) == pairs
