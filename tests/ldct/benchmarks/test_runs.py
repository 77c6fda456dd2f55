"""Whole runs, measured."""

import pytest

from ldct.benchmarks import runs


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


@pytest.mark.parametrize(("study_s", "share", "said"), [(50.0, 0.08, "a share of 0.080"), (None, None, "not in 20 s")])
def test_the_studys_recipe_is_given_five_times_as_long(tmp_path, monkeypatch, study_s, share, said):
    asked = []

    def until(psnr, settings, limit_s):
        asked.append((settings[0].rsplit("/", 1)[1], limit_s))
        return (4.0, 33.5) if len(asked) == 1 else (study_s, 29.0)

    monkeypatch.setattr(runs, "until", until)
    result = runs.quality(tmp_path, 33.0, ["model.channels=24"])
    assert asked == [("default.yaml", float("inf")), ("document.yaml", 20.0)]
    assert (result["ours_s"], result["study_s"], result["share"]) == (4.0, study_s, share)
    assert said in runs.quality_text(result)


def test_a_run_is_stopped_where_the_quality_is_reached(tiny_shards):
    settings = [f"data.shards={tiny_shards}", "track.wandb=disabled", "model.channels=4", "train.steps=100000"]
    reached, best = runs.until(5.0, [*settings, "val.slices=1"], float("inf"))
    assert reached is not None and best >= 5
    reached, best = runs.until(90.0, [*settings, "val.every=1", "val.slices=1", "optim.lr=1e-9"], 0.01)
    assert reached is None and best < 90


def test_ranks_on_gpus_are_measured_over_seconds():
    assert runs.longer(20, 128, 12_800.0, 10.0) == 1000
    assert runs.longer(20, 128, 1.0, 10.0) == 20
