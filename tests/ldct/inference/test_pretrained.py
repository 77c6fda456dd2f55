"""A run becomes a network that ships, and is the same network."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_flags
from made import make_run
from phantom import images

from ldct.config import from_dict, hash8
from ldct.inference import denoiser, pretrained
from ldct.inference.denoiser import Blended, Denoiser
from ldct.inference.scan import TRAITS
from ldct.runs.folder import read_config, read_status
from ldct.training.ranks import Ranks
from ldct.training.step import Training
from shards.common.command import InputError

CPU = torch.device("cpu")
RANGES = {
    "noise_hu": (14.0, 60.0),
    "frequency_per_mm": (0.18, 0.35),
    "spacing_mm": (0.6, 1.0),
    "body_mm": (50.0, 420.0),
    "bone": (0.0, 1.0),
}
TOLD = {key: f"of {key}" for key in pretrained.TOLD}


@pytest.fixture(scope="module")
def run(tiny_shards, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "0-run", tiny_shards, scale=0.3, attention="channel")


@pytest.fixture
def weights(run, tmp_path):
    pretrained.publish(run, "redcnn-tiny", RANGES, ["B30f"], TOLD, tmp_path)
    return tmp_path / "redcnn-tiny.safetensors"


def test_it_denoises_as_the_run_does(run, weights):
    low = images("L001", "quarter", 2, size=96)
    network, of_run = Denoiser(weights, CPU), Denoiser(run, CPU)
    np.testing.assert_array_equal(network(low), of_run(low))
    assert (network.name, network.mode) == ("redcnn-tiny", of_run.mode)
    card = pretrained.read_card(weights)
    assert network.about == f"redcnn-tiny, redcnn, weights {card.sha256[:8]}"
    assert card.parameters == sum(p.numel() for p in of_run.model.parameters())
    assert card.ranges == RANGES and card.config["model"]["attention"] == "channel"


def test_nothing_of_this_machine_is_in_the_card(run, weights, tiny_shards):
    for path in weights.parent.iterdir():
        content = path.read_bytes()
        assert str(run.parent).encode() not in content and str(tiny_shards).encode() not in content


def test_the_page_says_what_people_must_know(weights):
    page = weights.with_suffix(".md").read_text()
    assert "For research, not for diagnosis." in page and "| noise | 14 to 60 HU |" in page
    assert all(f"of {key}" in page for key in TOLD)


def test_other_weights_than_the_cards_are_refused(weights):
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"its sha256 is .*, its card says .*; get the file again"):
        Denoiser(weights, CPU)


def test_a_card_that_is_missing_or_of_another_version_is_one_line(weights):
    path = weights.with_suffix(".json")
    card = json.loads(path.read_text())
    without = {key: value for key, value in card["ranges"].items() if key != "bone"}
    for other, named in ((card | {"colour": "blue"}, "colour"), (card | {"ranges": without}, "bone")):
        path.write_text(json.dumps(other))
        with pytest.raises(InputError, match=rf"expected the card of redcnn-tiny\.safetensors: .*{named}"):
            Denoiser(weights, CPU)
    path.unlink()
    with pytest.raises(InputError, match=r"expected the card of redcnn-tiny\.safetensors"):
        Denoiser(weights, CPU)


def test_a_wrong_name_lists_those_that_ship():
    with pytest.raises(InputError, match="no network 'redcnn-generall'; those that ship: "):
        pretrained.find("redcnn-generall")


def test_a_card_needs_all_its_texts(run, tmp_path):
    with pytest.raises(InputError, match=r"--about: expected data, simulation, .*, found data"):
        pretrained.publish(run, "x", RANGES, [], {"data": "x"}, tmp_path)


def test_it_becomes_a_run_for_whatever_takes_runs(weights, tmp_path):
    run = pretrained.as_run(weights, tmp_path / "runs")
    before = {path: path.read_bytes() for path in run.rglob("*.pt")}
    low = images("L001", "quarter", 1, size=96)
    np.testing.assert_array_equal(Denoiser(run, CPU)(low), Denoiser(weights, CPU)(low))
    assert (run.name, read_status(run).state) == ("redcnn-tiny", "finished")
    assert read_status(run).steps == read_config(run).train.steps  # else reports say that somebody edited it
    assert pretrained.as_run(weights, tmp_path / "runs") == run  # again: the same bytes, so what was measured stays
    assert {path: path.read_bytes() for path in run.rglob("*.pt")} == before


def test_a_training_starts_from_it(weights, tiny_shards, tmp_path):
    """With nothing said but --init, through the command; and its weights are the network's."""
    argv = [
        ROOT / "launch" / "train.py",
        "--init",
        weights,
        *tiny_flags(tiny_shards, tmp_path / "mine", train__steps=1),
    ]
    argv = [arg for arg in map(str, argv) if not arg.startswith("--model.")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *argv], cwd=tmp_path, env=environment, check=True, capture_output=True)
    config = read_config(tmp_path / "mine")
    assert config.model == Denoiser(weights, CPU).config.model
    assert config.train.init_from == "runs/pretrained/redcnn-tiny"
    config.train.init_from = str(tmp_path / config.train.init_from)
    started = Training(config, Ranks(60.0)).to_use.state_dict()
    assert all(torch.equal(started[key], value) for key, value in pretrained.read(weights)["model"].items())
    config.model.channels = 5
    with pytest.raises(InputError, match=r"train.init_from: .*redcnn-tiny holds another network than model describes"):
        Training(config, Ranks(60.0))


def test_the_names_of_runs_do_not_change_for_the_field():
    config = from_dict({})
    assert hash8(config) == "e90496b3"
    config.train.init_from = "x"
    assert hash8(config) != "e90496b3"


@pytest.mark.parametrize("name", pretrained.names())
def test_what_ships_is_whole(name):
    content = pretrained.read(pretrained.find(name))
    assert all(torch.isfinite(value).all() for value in content["model"].values())
    card = pretrained.read_card(pretrained.find(name))
    assert card.ranges.keys() == {trait.key for trait in TRAITS}


def test_all_that_ships_is_small():
    assert sum(path.stat().st_size for path in pretrained.FOLDER.glob("*")) < 4_000_000


@pytest.mark.parametrize("strength", [0, 0.25, 1])
def test_strength_blends(run, strength):
    low, network = images("L001", "quarter", 1, size=96), Denoiser(run, CPU)
    expected = (1 - strength) * low + strength * network(low)
    blended = Blended(network, strength)
    assert np.abs(blended(low) - expected).max() <= 0.5
    assert blended.about == f"{network.about}, strength {strength:g}" and blended.name == f"0-run {strength:.0%}"


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_no_strength_beyond_the_network(run, strength):
    with pytest.raises(InputError, match=r"expected 0 .* to 1 .*, found"):
        Blended(Denoiser(run, CPU), strength)


def test_a_slice_that_does_not_fit_is_one_line_with_advice(run, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(denoiser, "denoise", full)
    with pytest.raises(
        InputError, match=r"^a slice of 96 x 96 does not fit into the memory of cpu: end what else runs here"
    ):
        Denoiser(run, CPU)(images("L001", "quarter", 1, size=96))
