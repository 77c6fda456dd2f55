"""What attention does at each stage, on whole slices."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from made import make_run

from ldct.attention.statistics import collect
from ldct.evaluation import attention, datasets
from ldct.evaluation.results import Evaluation, Result
from ldct.inference.denoiser import Denoiser

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tiny_shards):
    return datasets.open_shards(tiny_shards, "test")


@pytest.fixture(scope="module")
def run(tiny_shards, tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "0-both", tiny_shards, scale=1.0, attention="both")
    (folder / "eval").mkdir()
    return folder


def test_losses_and_statistics_by_stage_and_patient(run, data):
    found = attention.by_stage(run, data, "abd400", "mark", CPU)
    patients = {data.cases[number][0].patient for number in range(len(data.cases))}
    assert list(found) == list(attention.MEASURES)
    for of_measure in found.values():
        assert {stage: set(of_stage) for stage, of_stage in of_measure.items()} == dict.fromkeys((1, 2, 3), patients)
    losses = found[attention.LOSS]
    assert any(abs(loss) > 1e-6 for of_stage in losses.values() for loss in of_stage.values())
    text = attention.as_text({"RED-CNN": found})
    assert "stage 3" in text and f"{next(iter(losses[2].values())):+.3f}" in text


def test_statistics_are_those_of_the_slices_mean_over_each_patient(run, data):
    """Of the network in evaluation, on the whole slices, and not of its training."""
    found = attention.by_stage(run, data, "abd400", "mark", CPU)
    denoiser, by_patient = Denoiser(run, CPU), {}
    for number in range(len(data.cases)):
        record, (low, _) = data.cases[number]
        with collect(denoiser.model) as collected:
            denoiser(low)
        by_patient.setdefault(record.patient, []).append(collected.stats())
    for patient, stats in by_patient.items():
        for statistic in attention.STATISTICS:
            mean = np.mean([values[f"attention/2/{statistic}"] for values in stats])
            assert found[statistic][2][patient] == pytest.approx(mean)


def test_the_same_is_not_measured_again_and_another_checkpoint_is(run, data):
    path = run / "eval" / "test-attention.json"
    attention.by_stage(run, data, "abd400", "mark", CPU)
    stored = json.loads(path.read_text())
    stored["by_stage"][attention.LOSS]["1"] = {"somebody": 7.0}
    path.write_text(json.dumps(stored))
    assert attention.by_stage(run, data, "abd400", "mark", CPU)[attention.LOSS][1] == {"somebody": 7.0}
    assert attention.by_stage(run, data, "abd400", "other mark", CPU)[attention.LOSS][1] != {"somebody": 7.0}


def test_what_is_stored_belongs_to_the_evaluation_of_the_same_checkpoint_and_slices(run, data):
    found = attention.by_stage(run, data, "abd400", "mark", CPU)
    evaluation = Evaluation("test", data.digest, "", ["abd400"], [Result("0-both", "", [], 1.0, "CPU", "mark")])
    assert attention.load(run, evaluation) == found
    assert attention.load(run, None) == {}
    for change in ({"data": "other"}, {"protocols": ["hu2000"]}, {"split": "pairs"}):
        assert attention.load(run, dataclasses.replace(evaluation, **change)) == {}


def test_a_network_without_attention_has_nothing_to_lose(tiny_shards, data, tmp_path):
    run = make_run(tmp_path / "0-none", tiny_shards)
    assert attention.by_stage(run, data, "abd400", "mark", CPU) == {}
    assert attention.as_text({"RED-CNN": {}}) == "no network with attention to ablate"
