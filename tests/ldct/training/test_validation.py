"""Whether a run that shows nothing, or harms, is flagged: where validation finds it, in its files, and on the page."""

import math

import pytest
import torch
from conftest import tiny_flags

from ldct import models
from ldct.config import parse
from ldct.reports.page import alarms, build, render
from ldct.runs.folder import read_metrics, read_status
from ldct.training.ranks import Ranks
from ldct.training.signals import Latch
from ldct.training.trainer import train
from ldct.training.validation import Validation

CONSTANT, WORSE = "output is constant", "worse than the low dose"


def validate(shards, change, **fields):
    """Metrics and flags of the network after ``change`` has been at it."""
    config = parse(tiny_flags(shards, "nowhere", **fields))
    torch.manual_seed(0)
    network = models.create(config.model).eval()
    with torch.no_grad():
        change(network)
    found = Validation(config, Ranks(60), 55)
    metrics = found.run(network, lambda: False)
    return metrics, found.flags(metrics)


def leave(network):
    pass


def fill(value):
    def change(network):
        for weight in network.output.parameters():
            weight.fill_(value)

    return change


def add_noise(network):
    for weight in network.output.parameters():
        weight.normal_(0, 0.3)


@pytest.mark.parametrize("name", ["redcnn", "unet"])
def test_the_identity_is_not_flagged(tiny_shards, name):
    metrics, flags = validate(tiny_shards, leave, model__name=name)
    assert flags == []
    assert metrics["val/abd400/psnr"] == pytest.approx(metrics["val/low_dose/abd400/psnr"], abs=0.01)


@pytest.mark.parametrize("name", ["redcnn", "unet"])
def test_a_constant_output_is_flagged(tiny_shards, name):
    """All black, which scores 15 dB and more where the range is wide."""
    metrics, flags = validate(tiny_shards, fill(0.0), model__name=name, model__residual=False)
    assert metrics["val/output_sd_hu"] == 0
    assert flags == [CONSTANT, WORSE]


def test_nan_is_flagged(tiny_shards):
    metrics, flags = validate(tiny_shards, fill(math.nan))
    assert math.isnan(metrics["val/output_sd_hu"])
    assert flags == [CONSTANT, WORSE]


def test_worse_than_the_low_dose_is_flagged(tiny_shards):
    metrics, flags = validate(tiny_shards, add_noise)
    assert metrics["val/abd400/psnr"] < metrics["val/low_dose/abd400/psnr"]
    assert flags == [WORSE]


def test_better_by_a_hair_is_not(tiny_shards):
    metrics, _ = validate(tiny_shards, leave)
    found = Validation(parse(tiny_flags(tiny_shards, "nowhere")), Ranks(60), 55)
    low = metrics["val/low_dose/abd400/psnr"]
    assert found.flags({**metrics, "val/abd400/psnr": low + 0.001}) == []
    assert found.flags({**metrics, "val/abd400/psnr": low - 0.02}) == [WORSE]


def test_flags_reach_status_metrics_and_report(tiny_shards, tmp_path):
    """From the first validation on, and at the end: a network without its skip that has learnt nothing."""
    idle = {"optim__lr": 1e-12, "train__steps": 2}
    train(parse(tiny_flags(tiny_shards, tmp_path / "0-black", model__residual=False, **idle)), Latch())
    train(parse(tiny_flags(tiny_shards, tmp_path / "1-identity", **idle)), Latch())
    assert read_status(tmp_path / "0-black").flags == [CONSTANT, WORSE]
    lines = [line for line in read_metrics(tmp_path / "0-black") if "val/flags" in line]
    assert [(line["step"], line["val/flags"]) for line in lines] == [(0, [CONSTANT, WORSE]), (2, [CONSTANT, WORSE])]
    assert read_status(tmp_path / "1-identity").flags == []
    page = build([tmp_path], "test")
    label = next(run.label for run in page.runs if run.name == "0-black")
    assert f"{label}: {CONSTANT}" in alarms(page) and f"{label}: {WORSE}" in alarms(page)
    assert f"{label}: {CONSTANT}" in render(page, "flags", 10**6)
    assert sum(CONSTANT in line for line in alarms(page)) == 1
