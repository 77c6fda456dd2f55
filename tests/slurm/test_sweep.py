"""From a sweep file to checked runs."""

import json
import math
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_command
from slurm_bed import TINY

from ldct import config as configuration
from ldct.runs import folder as runs
from shards import manifest
from shards.common.command import InputError
from slurm import cost, early_terminate, sweep, sweep_file
from slurm.cluster import from_dict as cluster_from

LOCAL = cluster_from({"executor": "local"})


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(TINY))
    return str(tmp_path / "base.yaml")


@pytest.fixture
def plan(tmp_path, base, tiny_shards):
    """Plan the runs of {field: values}, with --set flags."""

    def make(parameters, *settings, cluster=LOCAL, method="grid", **head):
        content = {"method": method, "name": "s", **head}
        content["parameters"] = {"config": {"value": base}, **{k: {"values": v} for k, v in parameters.items()}}
        flags = [f"data.shards={tiny_shards}", *settings]
        return sweep.plan(sweep_file.check(content, "s"), cluster, flags, tmp_path / "runs")

    return make


def test_runs_are_resolved_and_named(plan, tmp_path, tiny_shards):
    first, second = plan({"model.name": ["redcnn", "unet"]}, "train.steps=7")
    assert first.folder == tmp_path / "runs" / "s" / f"000-{configuration.hash8(first.config)}"
    assert second.name.startswith("001-")
    assert first.config.run_dir == str(first.folder)
    assert first.config.data.shards == str(tiny_shards)
    assert (first.config.train.steps, first.config.train.global_batch) == (7, 8)
    assert first.overrides == {"model.name": "redcnn"}
    # the base's explicit width is for both; what it leaves open is as published
    assert (first.config.model.channels, first.config.model.kernel) == (4, 5)
    assert (second.config.model.channels, second.config.model.kernel) == (4, 3)
    assert not (tmp_path / "runs").exists()


def test_the_same_flags_give_the_same_run_by_hand(plan, base, tiny_shards):
    (run,) = plan({"model.name": ["unet"]})
    by_hand = configuration.parse(["--config", base, "--data.shards", str(tiny_shards), "--model.name", "unet"])
    assert configuration.hash8(by_hand) == configuration.hash8(run.config)


def test_weights_are_those_of_the_network(plan):
    (run,) = plan({"model.channels": [96]}, "model.depth=5")
    assert run.weights == 1_848_865  # RED-CNN as published


def test_a_run_keeps_its_folder_when_the_sweep_grows(plan):
    (old,) = plan({"train.seed": [5]})
    old.folder.mkdir(parents=True)
    (old.folder / "config.yaml").write_text(configuration.to_yaml(old.config))
    grown = plan({"train.seed": [4, 5]})
    assert [run.name for run in grown][1] == old.name
    assert grown[0].name.startswith("000-") and grown[0].name != old.name


def test_what_may_change_on_the_way_does_not_make_another_run(plan, tiny_shards, tmp_path):
    (old,) = plan({"train.seed": [5]})
    old.folder.mkdir(parents=True)
    (old.folder / "config.yaml").write_text(configuration.to_yaml(old.config))
    runs.write_status(old.folder, runs.Status(state="finished", step=20, steps=20))
    runs.write_provenance(old.folder, manifest.digest(tiny_shards))
    shutil.copytree(tiny_shards, tmp_path / "moved")
    (moved,) = plan({"train.seed": [5]}, f"data.shards={tmp_path / 'moved'}", "train.save_every_s=7")
    assert moved.folder == old.folder
    (longer,) = plan({"train.seed": [5]}, "train.steps=40")
    states = []
    for run in (moved, longer):
        sweep.note_states([run], run.folder.parent)
        states.append(run.state)
    assert (longer.folder, states) == (old.folder, ["finished", "stopped"])
    runs.write_status(old.folder, runs.Status(state="finished", step=10, steps=20, stopped_early=10))
    sweep.note_states([longer], longer.folder.parent)
    assert longer.state == "finished"  # it ended behind its siblings, and does not go on for more steps
    # a folder named by the hash of version 0.1, which held the shards' place, is known by its configuration
    renamed = old.folder.with_name("000-0a1b2c3d")
    old.folder.rename(renamed)
    assert plan({"train.seed": [5]})[0].folder == renamed
    runs.write_provenance(renamed, "another manifest")
    with pytest.raises(InputError, match=r"was trained on other shards than .*; give those, or rename the sweep"):
        plan({"train.seed": [5]})


def test_a_swept_field_tells_runs_apart_even_if_it_may_change(plan):
    assert len({run.folder for run in plan({"train.steps": [10, 20]})}) == 2


def test_the_rule_of_an_early_end(plan, base, tmp_path):
    def rule(early, metric, *settings, steps=20):
        parameters = {"config": {"value": base}, "train.seed": {"values": [0, 1]}}
        content = {"method": "grid", "parameters": parameters, "early_terminate": early, "metric": metric}
        planned = plan({"train.seed": [0, 1]}, f"train.steps={steps}", "val.every=2", *settings)
        return planned, early_terminate.rule_of(sweep_file.check(content, "s"), planned)

    early, metric = {"type": "hyperband", "min_iter": 2, "eta": 2}, {"name": "val/abd400/psnr", "goal": "maximize"}
    planned, made = rule(early, metric)
    assert (made.brackets, made.eta, made.maximize, made.strict) == ([2, 4, 8], 2, True, False)
    assert made.runs == [run.name for run in planned]
    early_terminate.write(made, tmp_path)
    assert json.loads((tmp_path / "early_terminate.json").read_text())["metric"] == "val/abd400/psnr"
    early_terminate.write(None, tmp_path)
    assert not (tmp_path / "early_terminate.json").exists()
    for wrong, says in (
        ({"name": "val/none", "goal": "maximize"}, "metric.name: expected one of val/abd400/"),
        ({"name": "val/abd400/psnr"}, "metric.goal: the better val/abd400/psnr is the other one; write goal: maximize"),
    ):
        with pytest.raises(InputError, match=says):
            rule(early, wrong)
    with pytest.raises(InputError, match="no bracket before the last of 2 validations; give a lower min_iter"):
        rule(early, metric, steps=4)
    content = {"method": "grid", "parameters": {"val.every": {"values": [2, 4]}}, "early_terminate": early}
    with pytest.raises(InputError, match=r"compared at equal steps; expected one val\.every, found 2, 4; give all"):
        early_terminate.rule_of(sweep_file.check({**content, "metric": metric}, "s"), plan({"val.every": [2, 4]}))


def test_equal_runs_are_one(plan):
    assert len(plan({"train.seed": [5, 5]})) == 1


def test_project_and_entity_of_the_sweep_reach_the_tracking(plan):
    (run,) = plan({"train.seed": [0]}, project="lowdose", entity="lab")
    assert (run.config.track.project, run.config.track.entity) == ("lowdose", "lab")


def test_off_is_not_false(plan):
    (run,) = plan({"train.seed": [0]}, "track.wandb=disabled")
    assert run.config.track.wandb == "disabled"


@pytest.mark.parametrize(
    ("parameters", "settings", "says"),
    [
        ({"model.nam": ["unet"]}, [], "run 0 (model.nam=unet): unknown field model.nam; model has: name,"),
        ({"net.name": ["unet"]}, [], "unknown section 'net'; there are: data, model,"),
        ({"lr": [1]}, [], "expected config, or a field as SECTION.FIELD"),
        (
            {"model.name": ["redcnn", "resnet"]},
            [],
            "run 1 (model.name=resnet): model.name: expected one of redcnn, unet",
        ),
        ({"optim.lr": ["fast"]}, [], '"optim.lr": Expected'),
        ({"model.attention_stages": [[9]]}, ["model.attention=both"], "run 0 (model.attention_stages=[9])"),
        ({"train.seed": [0]}, ["train.global_batch=1000"], "has 120 training pairs with data.min_body=0.3, fewer than"),
        ({"train.seed": [0]}, ["data.shards=/none"], "expected /none/manifest.json"),
        ({"train.seed": [0]}, ["config=/none.yaml"], "/none.yaml: expected a configuration file"),
        ({"train.seed": [0]}, ["train.steps"], "--set: expected SECTION.FIELD=VALUE"),
        ({"train.seed": [0]}, ["train.steps=[1"], "--set train.steps: not valid YAML: '[1'"),
        ({"train.seed": [0]}, ["val.protocol=chset"], "run 0 (train.seed=0): unknown metric protocol 'chset'; there"),
        ({"train.seed": [0]}, ["train.seed=1"], "--set train.seed: the sweep chooses this field itself"),
    ],
)
def test_what_cannot_be_is_one_line(plan, parameters, settings, says):
    with pytest.raises(InputError) as caught:
        plan(parameters, *settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_batch_must_divide_over_the_ranks(plan):
    cluster = cluster_from({"nodes": 3, "tasks_per_node": 1})
    with pytest.raises(InputError, match=r"multiple of 6 \(3 ranks x 2 accumulated parts\), found 8; 6 would do"):
        plan({"train.seed": [0]}, "train.accumulate=2", cluster=cluster)


def test_a_missing_shard_is_found_before_anything_is_submitted(plan, tiny_shards, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_shards, copy)
    (copy / "train-00001.tar").unlink()
    with pytest.raises(InputError, match=r"train-00001\.tar: expected \d+ bytes, found no file"):
        plan({"train.seed": [0]}, f"data.shards={copy}")


def test_state_comes_from_the_run_folder(plan):
    run, *_ = plan({"train.seed": [0]})
    seen = {}
    for state in ("finished", "failed", "stopped", "running"):
        run.folder.mkdir(parents=True, exist_ok=True)
        runs.write_status(run.folder, runs.Status(state=state))
        sweep.note_states([run], run.folder.parent)
        seen[state] = (run.state, run.open)
    assert seen["finished"] == ("finished", False)
    assert seen["failed"] == ("failed", True)
    assert seen["stopped"] == ("stopped", True)
    assert seen["running"] == ("running", False)  # by hand, or from elsewhere: its heartbeat is fresh
    status = json.loads((run.folder / "status.json").read_text()) | {"heartbeat": 1.0}
    (run.folder / "status.json").write_text(json.dumps(status))
    sweep.note_states([run], run.folder.parent)
    assert (run.state, run.open) == ("lost", True)


def test_hours_come_from_the_newest_run_of_the_same_network(plan, tmp_path):
    first, second = plan({"model.name": ["redcnn", "unet"]}, "train.steps=3600")
    earlier = tmp_path / "runs" / "before" / "000-x"
    earlier.mkdir(parents=True)
    (earlier / "config.yaml").write_text(configuration.to_yaml(first.config))
    runs.write_status(earlier, runs.Status(state="finished", patches_per_s=80.0, world_size=2, device="cpu"))
    hours = cost.device_hours([first, second], LOCAL, tmp_path / "runs")
    assert hours[first.name] == pytest.approx(3600 * 8 / 40 / 3600)
    assert hours[second.name] is None
    gpus = cluster_from({"gpus_per_node": 1})
    assert cost.device_hours([first], gpus, tmp_path / "runs")[first.name] is None


def test_hours_before_a_first_run_come_from_a_benchmark_on_such_a_device(plan, tmp_path):
    sizes = {"model.channels": [None], "model.depth": [None]}
    settings = ["train.steps=3600", "train.precision=fp32"]
    redcnn, unet = plan({"model.name": ["redcnn", "unet"], **sizes}, *settings)
    (small,) = plan({"model.name": ["redcnn"]}, *settings)
    bench = tmp_path / "bench.json"
    tried = [{"precision": "fp32", "batch": batch, "patches_per_s": rate} for batch, rate in ((8, 30.0), (16, 40.0))]
    rows = [{"network": "unet", "variant": "baseline", "precision": "fp32", "patches_per_s": {"median": 99.0}},
            {"network": "unet", "variant": "ours", "precision": "bf16", "patches_per_s": {"median": 80.0}}]  # fmt: skip
    bench.write_text(json.dumps({"device": "cpu", "network": "redcnn", "tried": tried, "rows": rows}))
    hours = cost.device_hours([redcnn, unet, small], LOCAL, tmp_path / "runs", bench)
    assert hours == {redcnn.name: pytest.approx(3600 * 8 / 40 / 3600), unet.name: None, small.name: None}
    with pytest.raises(InputError, match=r"measured on cpu, but the cluster's runs have GPUs; measure there"):
        cost.device_hours([redcnn], cluster_from({"gpus_per_node": 1}), tmp_path / "runs", bench)
    none = ["fast", {"median": None}, -5, 0, math.nan, math.inf, True]
    for content in ({}, *({"network": "redcnn", "precision": "fp32", "patches_per_s": speed} for speed in none)):
        bench.write_text(json.dumps(content))
        with pytest.raises(InputError, match="no object in it has network, precision and patches_per_s"):
            cost.device_hours([redcnn], LOCAL, tmp_path / "runs", bench)


def test_dry_run_prints_the_script_and_leaves_nothing(tmp_path, base, tiny_shards):
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({"method": "grid", "parameters": {"config": {"value": base}, "train.seed": {"values": [0, 1]}}})
    )
    cluster = ROOT / "configs" / "clusters" / "example-gpu.yaml"
    runs_folder = tmp_path / "runs"
    flags = ["--cluster", cluster, "--dry-run", "--set", f"data.shards={tiny_shards}", "--runs", runs_folder]
    # no controller is asked whether it would take it: that of the other tests knows no partition gpu
    shown = run_command("launch/sweep.py", tmp_path / "s.yaml", *flags, SLURM_CONF=str(tmp_path / "none")).stdout
    assert "2 runs, 0 finished, 0 running or waiting, 2 to submit" in shown
    assert "#SBATCH --array=0-1%2" in shown and "#SBATCH --partition=gpu" in shown
    assert not runs_folder.exists()


def test_a_folder_whose_path_would_be_read_as_a_jobs_number_is_refused(base, tiny_shards):
    """/data/10%noise: the jobs failed without a log, or submitit with a traceback."""
    content = {"method": "grid", "name": "s", "parameters": {"config": {"value": base}}}
    with pytest.raises(InputError, match="/10%noise/s: SLURM and submitit read what follows a %"):
        sweep.plan(sweep_file.check(content, "s"), LOCAL, [f"data.shards={tiny_shards}"], Path("/10%noise"))


def test_bad_input_is_exit_status_2_and_one_line(tmp_path):
    done = run_command("launch/sweep.py", tmp_path / "none.yaml", "--cluster", tmp_path / "none.yaml", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_sweeps_are_valid(path, tiny_shards, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = [f"data.shards={tiny_shards}", "train.global_batch=4", "train.accumulate=1"]
    chosen = sweep_file.read(path)
    flags = [flag for flag in flags if flag.split("=")[0] not in chosen.swept]
    assert sweep.plan(chosen, LOCAL, flags, tmp_path)
