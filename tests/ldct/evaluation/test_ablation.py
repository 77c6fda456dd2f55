"""What each stage's gate is worth on whole slices."""

import dataclasses
import json

import pytest
import torch
from made import make_run

from ldct.evaluation import ablation, datasets
from ldct.evaluation.results import Evaluation, Result

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tiny_shards):
    return datasets.open_shards(tiny_shards, "test")


@pytest.fixture(scope="module")
def run(tiny_shards, tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "0-both", tiny_shards, scale=1.0, attention="both")
    (folder / "eval").mkdir()
    return folder


def test_losses_by_stage_and_patient(run, data):
    losses = ablation.ablate(run, data, "abd400", "mark", CPU)
    patients = {data.cases[number][0].patient for number in range(len(data.cases))}
    assert {stage: set(of_stage) for stage, of_stage in losses.items()} == {1: patients, 2: patients, 3: patients}
    assert any(abs(loss) > 1e-6 for of_stage in losses.values() for loss in of_stage.values())
    text = ablation.as_text({"RED-CNN": losses})
    assert "stage 3" in text and f"{next(iter(losses[2].values())):+.3f}" in text


def test_the_same_is_not_measured_again_and_another_checkpoint_is(run, data):
    path = run / "eval" / "test-ablation.json"
    ablation.ablate(run, data, "abd400", "mark", CPU)
    stored = json.loads(path.read_text())
    stored["losses_db"]["1"] = {"somebody": 7.0}
    path.write_text(json.dumps(stored))
    assert ablation.ablate(run, data, "abd400", "mark", CPU)[1] == {"somebody": 7.0}
    assert ablation.ablate(run, data, "abd400", "other mark", CPU)[1] != {"somebody": 7.0}


def test_losses_belong_to_the_evaluation_of_the_same_checkpoint_and_slices(run, data):
    losses = ablation.ablate(run, data, "abd400", "mark", CPU)
    evaluation = Evaluation("test", data.digest, "", ["abd400"], [Result("0-both", "", [], 1.0, "CPU", "mark")])
    assert ablation.load(run, evaluation) == losses
    assert ablation.load(run, None) == {}
    for change in ({"data": "other"}, {"protocols": ["hu2000"]}, {"split": "pairs"}):
        assert ablation.load(run, dataclasses.replace(evaluation, **change)) == {}


def test_a_network_without_attention_has_nothing_to_lose(tiny_shards, data, tmp_path):
    run = make_run(tmp_path / "0-none", tiny_shards)
    assert ablation.ablate(run, data, "abd400", "mark", CPU) == {}
    assert ablation.as_text({"RED-CNN": {}}) == "no network with attention to ablate"
