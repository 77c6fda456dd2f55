"""Runs that end early behind their siblings."""

import dataclasses
import json
import os
import random
import signal

import pytest
from disturbed import after_step, start
from same_run import lines

from ldct.runs import folder as runs
from ldct.runs.reader import read
from ldct.training import halving
from ldct.training.halving import Halving, Rule, brackets, goes_on

PSNR = "val/abd400/psnr"


def test_brackets_are_those_of_wandb():
    assert brackets({"min_iter": 3}, 100) == [3, 9, 27, 81]
    assert brackets({"min_iter": 3, "eta": 2}, 12) == [3, 6]  # at 12, the last, there is nothing left to save
    assert brackets({"max_iter": 27, "s": 2}, 100) == [3, 9]
    assert brackets({"max_iter": 5, "s": 9, "eta": 2}, 100) == [1, 2]
    assert brackets({"min_iter": 10}, 10) == []


def wandb_goes_on(own, others, eta):
    """The rule of wandb/sweeps, src/sweeps/hyperband_stopping.py, with the larger value the better one."""
    values = sorted(-value for value in (own, *others))
    return -own <= values[int(1 / eta * len(values))]


def test_who_goes_on_is_as_in_wandb():
    draw = random.Random(0)
    for _ in range(500):
        others = [float(draw.randint(0, 9)) for _ in range(draw.randint(0, 12))]
        own, eta = float(draw.randint(0, 9)), draw.choice([2, 3, 4])
        assert goes_on(own, others, eta, strict=False) == wandb_goes_on(own, others, eta), (own, others, eta)


def test_strict_lets_one_in_eta_go_on_and_the_best_always():
    values = [float(value) for value in range(9)]
    kept = [own for own in values if goes_on(own, [v for v in values if v != own], 3, strict=True)]
    assert kept == [6.0, 7.0, 8.0]
    assert goes_on(1.0, [0.0], 3, strict=True) and not goes_on(1.0, [2.0], 3, strict=True)


@pytest.fixture
def sweep(tmp_path):
    """Write the rule, and the metrics of made-up siblings: {name: values of the validations}."""

    def write(siblings, **changes):
        rule = Rule(PSNR, True, [1, 2], 2, runs=[*siblings, "own"])
        rule = dataclasses.replace(rule, **changes)
        (tmp_path / halving.NAME).write_text(json.dumps(dataclasses.asdict(rule)))
        for name, values in siblings.items():
            metrics(tmp_path / name, values)
        return tmp_path / "own"

    return write


def metrics(folder, values):
    folder.mkdir(exist_ok=True)
    made = runs.Metrics(folder)
    if not made.path.exists():
        made.append({"step": 0, PSNR: 0.0})
    before = sum(PSNR in line for line in runs.read_metrics(folder))
    for number, value in enumerate(values, before):
        made.append({"step": 7 * number, PSNR: value})
        made.append({"step": 7 * number + 1, "train/loss": 0.1})


def test_a_decision_is_made_of_what_is_there_and_never_again(sweep):
    own = sweep({"a": [1.0], "b": [3.0, 9.0], "late": []})
    metrics(own, [])
    assert not Halving(own).ends()
    metrics(own, [2.0])
    assert not Halving(own).ends()  # the second of three, eta 2
    content = json.loads((own / "halving" / "00001.json").read_text())
    assert content == {
        "bracket": 1,
        "step": 7,
        "metric": PSNR,
        "own": 2.0,
        "others": {"a": 1.0, "b": 3.0},
        "end": False,
    }
    metrics(own.parent / "late", [8.0])
    assert not Halving(own).ends()
    metrics(own, [2.5])  # its second validation: only b has come as far
    assert not Halving(own).ends()
    assert not [path for path in own.rglob("*.tmp")]


def test_siblings_are_compared_at_equal_steps(sweep):
    """One whose train.steps was 5 made its last validation there, and its first with fewer steps than the others."""
    own = sweep({"short": [], "a": [1.0]})
    runs.Metrics(own.parent / "short").append({"step": 5, PSNR: 9.0})
    runs.Metrics(own.parent / "short").append({"step": 6, PSNR: 9.0})
    metrics(own, [2.0])
    assert not Halving(own).ends()
    assert json.loads((own / "halving" / "00001.json").read_text())["others"] == {"a": 1.0}


def test_what_is_not_finite_is_worst_and_small_may_be_better(sweep):
    own = sweep({"a": [1.0], "b": [2.0]})
    metrics(own.parent / "b", [float("inf")])
    metrics(own, [float("nan")])
    assert Halving(own).ends()
    content = json.loads((own / "halving" / "00001.json").read_text(), parse_constant=pytest.fail)  # no -Infinity
    assert (content["own"], content["others"], content["end"]) == (None, {"a": 1.0, "b": 2.0}, True)
    own = sweep({"a": [1.0], "b": [2.0]}, maximize=False, runs=["other", "a", "b"])
    other = own.parent / "other"
    metrics(other, [0.5])
    assert not Halving(other).ends()
    content = json.loads((other / "halving" / "00001.json").read_text())
    assert (content["own"], content["others"]) == (0.5, {"a": 1.0, "b": 2.0})


def test_a_run_that_the_rule_does_not_name_competes_with_none(sweep):
    own = sweep({"a": [1.0], "b": [2.0]}, runs=["a", "b"])
    metrics(own, [0.5])
    assert not Halving(own).ends() and not (own / "halving").exists()


def test_without_a_rule_no_run_ends(tmp_path):
    metrics(tmp_path / "own", [0.0])
    assert not Halving(tmp_path / "own").ends()


def test_a_run_behind_its_siblings_ends_finished_and_at_the_same_step_after_an_interruption(
    tiny_shards, sweep, monkeypatch
):
    own = sweep({"a": [99.0, 99.0], "b": [99.0, 99.0]}, brackets=[2])
    assert start(tiny_shards, own) is None
    status = runs.read_status(own)
    assert (status.state, status.step, status.stopped_early, status.attempt) == ("finished", 14, 14, 1)
    assert read(own).state == "stopped early"
    assert start(tiny_shards, own) is None  # nothing is left to do
    assert runs.read_status(own).attempt == 1

    # killed behind its decision and before its end: the siblings are worse by now, and it ends all the same
    again = own.parent / "again"
    sweep({"a": [99.0, 99.0], "b": [99.0, 99.0]}, brackets=[2], runs=["a", "b", "again"])
    ends = Halving.ends

    def killed(self):
        if ends(self):
            raise ZeroDivisionError("broken on purpose")
        return False

    monkeypatch.setattr(Halving, "ends", killed)
    after_step(monkeypatch, 10, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert start(tiny_shards, again) is signal.SIGTERM
    with pytest.raises(ZeroDivisionError):
        start(tiny_shards, again)
    monkeypatch.setattr(Halving, "ends", ends)
    for name in ("a", "b"):
        (own.parent / name / runs.METRICS).unlink()
    assert start(tiny_shards, again) is None
    status = runs.read_status(again)
    assert (status.state, status.stopped_early, status.attempt) == ("finished", 14, 3)
    assert lines(again) == lines(own)
