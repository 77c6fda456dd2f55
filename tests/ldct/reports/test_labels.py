"""What a run is called: its network and attention, and what sets it apart."""

import dataclasses

import pytest

from ldct import config as configuration
from ldct.inference import pretrained
from ldct.reports import arms
from ldct.reports.labels import differing, labels

PLAIN = configuration.from_dict({})


def changed(config=PLAIN, **fields):
    """``config`` with other values; ``section__field``."""
    for name, value in fields.items():
        section, field = name.split("__")
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{field: value})}
        )
    return config


@pytest.mark.parametrize(
    ("name", "attention", "label"),
    [
        ("redcnn", "none", "RED-CNN"),
        ("redcnn", "channel", "RED-CNN + channel"),
        ("unet", "spatial", "U-Net + spatial"),
        ("unet", "both", "U-Net + channel + spatial"),
    ],
)
def test_a_run_alone_is_called_by_its_network(name, attention, label):
    config = changed(model__name=name, model__attention=attention)
    assert labels({"a": config}) == {"a": label}


def test_a_network_that_ships_goes_by_its_own_name():
    ships = changed(optim__lr=1e-4)
    ships = dataclasses.replace(ships, run_dir=str(pretrained.RUNS / "redcnn-general"))
    assert labels({"redcnn-general": ships}) == {"redcnn-general": "redcnn-general"}
    assert labels({"b": PLAIN, "a": ships}) == {"b": "RED-CNN", "a": "redcnn-general"}


def test_a_users_sweep_called_pretrained_is_no_network_that_ships():
    mine = changed(data__shards="/data/shards")
    mine = dataclasses.replace(mine, run_dir="/home/me/runs/pretrained/000-0a1b2c3d")
    assert labels({"a": mine}) == {"a": "RED-CNN"}


def test_labels_name_what_differs_and_only_that():
    slow = changed(optim__lr=1e-4)
    assert labels({"a": PLAIN, "b": slow}) == {"a": "RED-CNN, lr 0.001", "b": "RED-CNN, lr 0.0001"}
    stages = changed(model__attention="both", model__attention_stages=[1, 2])
    assert labels({"a": PLAIN, "b": stages})["b"] == "RED-CNN + channel + spatial, attention stages 1 2"


def test_where_and_how_a_run_was_done_is_not_what_it_is():
    elsewhere = changed(data__stage="/dev/shm", data__store="mmap", train__hang_s=0.0, track__wandb="disabled")
    assert labels({"a": PLAIN, "b": elsewhere}) == {"a": "RED-CNN", "b": "RED-CNN"}
    assert arms.identity(elsewhere) == arms.identity(PLAIN)


def test_the_network_is_enough_where_it_tells_the_runs_apart():
    many = changed(
        optim__lr=1e-4, train__seed=3, train__steps=9, train__log_every=7, train__global_batch=4, optim__ema=0
    )
    other = changed(many, model__attention="both")
    assert labels({"a": PLAIN, "b": other}) == {"a": "RED-CNN", "b": "RED-CNN + channel + spatial"}


def test_labels_of_many_differences_tell_the_runs_apart():
    def other(seed, **fields):
        train = {"train__seed": seed, "train__steps": seed + 9, "train__log_every": seed + 7}
        return changed(optim__lr=(seed + 1) * 1e-4, train__global_batch=seed + 4, optim__warmup=seed, **train, **fields)

    runs = {"a": PLAIN, "b": other(3), "c": other(3, model__norm="batch"), "d": other(3, model__norm="batch")}
    assert labels(runs) == {
        "a": "RED-CNN, norm none, lr 0.001",
        "b": "RED-CNN, norm none",
        "c": "RED-CNN, norm batch, c",
        "d": "RED-CNN, norm batch, d",
    }


def test_what_most_runs_have_goes_without_saying():
    slow = changed(optim__lr=1e-4)
    attention = {name: changed(model__attention=name) for name in ("none", "channel", "spatial")}
    found = labels(attention | {"slow": slow})
    assert found == {
        "none": "RED-CNN",
        "channel": "RED-CNN + channel",
        "spatial": "RED-CNN + spatial",
        "slow": "RED-CNN, lr 0.0001",
    }


def test_sizes_that_each_network_has_as_published_do_not_differ():
    assert differing([PLAIN, configuration.from_dict({"model": {"name": "unet"}})]) == ["model.name"]
