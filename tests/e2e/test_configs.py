"""Every configuration and every sweep that comes with the project loads, is valid, and is what its comments say."""

import pytest
from conftest import ROOT, run_command

from ldct import config as configuration
from ldct.config import Config, differences, from_dict, load
from slurm import sweep, sweep_file
from slurm.cluster import from_dict as cluster_from

TRAIN = sorted((ROOT / "configs/train").glob("*.yaml"))
RUNS = {"demo": 4, "rates": 2 * 3, "attention": 2 * 4 * 5, "longer": 2 * 3}
RUNS |= {"redcnn_variants": 3 * 5, "redcnn_perceptual": 5}
SEEDS = {"demo": 1, "rates": 1, "attention": 5, "redcnn_variants": 5, "redcnn_perceptual": 5}
"""Runs of each sweep."""


def planned(name, shards, root, *settings):
    content = sweep_file.read(ROOT / "configs/sweeps" / f"{name}.yaml")
    cluster = cluster_from({"executor": "local"})
    return sweep.plan(content, cluster, [f"data.shards={shards}", "train.global_batch=8", *settings], root)


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_a_configuration_loads_and_every_field_in_it_is_known(path):
    assert isinstance(load(path), Config)


def test_the_default_recipe_is_the_built_in_one():
    assert load(ROOT / "configs/train/default.yaml") == from_dict({})


def test_the_documents_recipe():
    config = load(ROOT / "configs/train/document.yaml")
    optim, train = config.optim, config.train
    assert (optim.name, optim.lr, optim.schedule, optim.plateau_factor) == ("adam", 1e-5, "plateau", 0.5)
    assert (optim.warmup, optim.ema, optim.clip_norm) == (0, 0, 0)
    assert train.global_batch == 16 and train.steps * train.global_batch == 570_000
    assert (config.data.min_body, config.data.augment, config.data.normalization) == (0, False, "hu1000")
    assert (config.model.init, config.model.init_output, config.model.channels) == ("default", "same", 96)
    assert config.loss.vgg_imagenet is False


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("kaiming", {"model.init": ("default", "kaiming")}),
        ("batchnorm", {"model.norm": ("none", "batch")}),
        ("vgg", {"loss.name": ("mse", "mse+vgg")}),
    ],
)
def test_a_variant_differs_from_the_documents_recipe_in_one_thing(name, change):
    base = load(ROOT / "configs/train/document.yaml")
    assert differences(base, load(ROOT / f"configs/train/document_{name}.yaml")) == change


def test_every_sweep_is_counted_here():
    assert {path.stem for path in (ROOT / "configs/sweeps").glob("*.yaml")} == RUNS.keys()


@pytest.mark.parametrize("name", RUNS)
def test_a_sweep_is_valid_and_has_so_many_runs(name, tiny_shards, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = planned(name, tiny_shards, tmp_path)
    assert len(runs) == RUNS[name] == len({configuration.hash8(run.config) for run in runs})
    seeds = {run.config.train.seed for run in runs}
    assert seeds == set(range(SEEDS.get(name, 3)))


def test_the_attention_sweep_has_every_arm_and_a_warm_up(tiny_shards, tmp_path, monkeypatch):
    """Gates of both kinds scale the features by about a quarter a place at the start."""
    monkeypatch.chdir(ROOT)
    runs = [run.config for run in planned("attention", tiny_shards, tmp_path)]
    arms = {(run.model.name, run.model.attention) for run in runs}
    assert arms == {(n, a) for n in ("redcnn", "unet") for a in ("none", "channel", "spatial", "both")}
    assert all(run.optim.warmup >= 100 for run in runs)
    for one in runs:  # arms differ in attention, network and seed alone
        names = {"model.name", "model.attention", "train.seed", "model.channels", "model.depth", "model.kernel"}
        assert differences(runs[0], one).keys() <= names


def test_a_narrow_version_is_set_from_the_command_line(tmp_path, tiny_shards):
    done = run_command(
        "launch/sweep.py", "configs/sweeps/attention.yaml", "--cluster", "configs/clusters/local.yaml", "--dry-run",
        "--runs", tmp_path, "--set", f"data.shards={tiny_shards}", "--set", "model.channels=8",
        "--set", "train.global_batch=8", "--set", "train.steps=150",
    )  # fmt: skip
    assert "40 runs, 0 finished" in done.stdout and "nothing was started" in done.stdout
    assert not list(tmp_path.iterdir())


def test_dry_run_describes_the_network_and_its_data(tiny_shards):
    done = run_command(
        "launch/train.py", "--dry-run", "--config=configs/train/default.yaml", "--model.attention=channel",
        f"--data.shards={tiny_shards}", "--data.min_body=0", "--train.steps=16", "--train.global_batch=8",
    )  # fmt: skip
    lines = {line[:17].strip(): line[17:] for line in done.stdout.splitlines()}
    assert lines["parameters"] == "1,854,625, 5,760 of them attention's"  # 1,152 at each of five stages
    assert lines["receptive field"] == "41 x 41 pixels"
    assert lines["encoder stages"].startswith("5,")
    assert lines["budget"] == "16 steps of 8 patches: 128 patches"
    assert lines["data"] == "128 patches of 55 x 55: 1.0 epochs"


def test_dry_run_of_what_cannot_be_is_one_line():
    done = run_command(
        "launch/train.py", "--dry-run", "--model.attention=both", "--model.attention_stages=[9]", check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "model.attention_stages: expected some of 1, 2, 3, 4, 5, found [9]" in done.stderr
