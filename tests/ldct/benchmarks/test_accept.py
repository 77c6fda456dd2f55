"""What one command shows of a machine: every check apart from the others, and all that a CPU can show."""

import dataclasses
import json
import multiprocessing
import os
import runpy
import sys

import planted_checks
import psutil
import pytest
from conftest import ROOT

from ldct.benchmarks import accept, common
from ldct.benchmarks.accept import page, speed
from ldct.benchmarks.accept.isolation import PRELOADED, Check, Setting, carry_out
from shards.common.command import InputError
from slurm import cost


@pytest.fixture(scope="module", autouse=True)
def server():
    """Let multiprocessing's server of processes import once what every check needs."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([*PRELOADED, "planted_checks"])


@pytest.fixture
def outcome(tmp_path):
    def make(figures, limit_s=60):
        setting = Setting(tmp_path, tmp_path / "scratch", gpu=False, small=True)
        return carry_out(Check("it", "shows", limit_s, figures), setting, limit_s, tmp_path / "log")

    return make


def test_speeds_of_networks_in_full_size_are_what_a_sweep_estimates_from(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "measured", lambda setting, name, config: (100.0 + len(name), 0.0))
    monkeypatch.setattr(speed.common, "matrix_products", lambda *_: dict.fromkeys(("fp32", "bf16"), lambda: 1e12))
    for small in (False, True):
        setting = Setting(tmp_path, tmp_path, gpu=False, small=small)
        figures = speed.steps(setting, "redcnn", ["ours", "ours, fp32", "baseline"])
        (tmp_path / f"{small}.json").write_text(json.dumps([dataclasses.asdict(figure) for figure in figures]))
    assert cost.read_bench(tmp_path / "False.json", gpu=False) == {("redcnn", "bf16"): 104.0, ("redcnn", "fp32"): 110.0}
    with pytest.raises(InputError, match="no object in it"):
        cost.read_bench(tmp_path / "True.json", gpu=False)


def test_a_check_that_passes_keeps_its_figures_and_prints_to_its_log(outcome, tmp_path):
    found = outcome(planted_checks.good)
    assert (found.state, found.said) == ("passed", "")
    assert [(f.name, f.value, f.good) for f in found.figures] == [("error", 0.5, True)]
    assert (tmp_path / "log").read_text() == "what it printed\n"


@pytest.mark.parametrize(
    ("figures", "state", "said", "names"),
    [
        (planted_checks.above_the_limit, "FAILED", "loss: nan, wanted at most 1", ["error", "loss"]),
        (planted_checks.raises, "FAILED", "ZeroDivisionError: broken on purpose", ["before"]),
        (planted_checks.cannot_be, "left out", "not on a Sunday", []),
        (planted_checks.is_killed, "FAILED", "its process ended with status -11", ["before"]),
    ],
)
def test_whatever_ends_a_check_is_an_outcome(outcome, figures, state, said, names):
    found = outcome(figures)
    assert (found.state, found.said) == (state, said)
    assert [figure.name for figure in found.figures] == names


def test_a_check_that_had_less_time_left_than_it_may_take_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(accept, "LEAST_S", 0)
    setting = Setting(tmp_path, tmp_path / "scratch", gpu=False, small=True)
    found = accept.made(Check("it", "shows", 60, planted_checks.hangs), setting, 3.0, tmp_path)
    assert (found.state, found.said) == ("left out", "no time was left to end it; its figures up to then stand")


def test_a_check_that_hangs_is_ended_with_all_that_it_started(outcome, tmp_path):
    found = outcome(planted_checks.hangs, limit_s=3)
    assert found.state == "FAILED" and found.said.startswith("not done in its time")
    assert [figure.name for figure in found.figures] == ["before"]
    child = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def bench(monkeypatch, *arguments):
    """Exit status of launch/bench.py accept."""
    monkeypatch.setattr(sys, "argv", ["launch/bench.py", "accept", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "launch" / "bench.py"), run_name="__main__")
    return ended.value.code


HELD_ELSEWHERE = ("two ranks", "slices", "stores")
"""Checks that a CPU can make too and that are left out here for their time: what they call has tests of its own."""


@pytest.mark.timeout(900)
def test_a_cpu_shows_what_it_can_and_says_what_it_left_out(tiny_shards, tmp_path, monkeypatch, capsys):
    names = [check.name for check in accept.CHECKS if check.name not in HELD_ELSEWHERE]
    assert bench(monkeypatch, "--shards", tiny_shards, "--out", tmp_path, "--minutes", 14, "--only", *names) == 0
    result = json.loads((tmp_path / "accept.json").read_text())
    states = {check["name"]: check["state"] for check in result["checks"]}
    on_gpu = {"no waits", "CPU beside GPU", "out of memory", "recorded step"}
    on_gpu |= {"steps, recorded", "steps, compiled", "steps, U-Net"}
    assert list(states) == names
    assert {name for name, state in states.items() if state == "left out"} == on_gpu
    assert {name for name, state in states.items() if state == "passed"} == set(states) - on_gpu
    shown, written = capsys.readouterr().out, (tmp_path / "accept.md").read_text()
    for words in ("the same bytes", "DDP over gloo: loss", "exported from the CPU, used on the CPU"):
        assert words in shown and words in written
    assert "| no waits | a step never waits for the GPU | 0 s | left out: needs a GPU; there is none here |" in written
    assert "torch 2." in written.splitlines()[2] and "launch/bench.py accept" in written


def test_a_check_that_fails_is_the_exit_status_and_the_others_go_on(tiny_shards, tmp_path, monkeypatch, capsys):
    checks = [Check("first", "", 60, planted_checks.raises), Check("second", "", 60, planted_checks.good)]
    monkeypatch.setattr(accept, "CHECKS", checks)
    assert bench(monkeypatch, "--shards", tiny_shards, "--out", tmp_path) == 1
    result = json.loads((tmp_path / "accept.json").read_text())
    assert [check["state"] for check in result["checks"]] == ["FAILED", "passed"] and result["failed"] == 1
    assert "1 FAILED, 1 passed" in capsys.readouterr().out
    assert "| first |  | " in (tmp_path / "accept.md").read_text()


def test_where_time_is_short_the_last_checks_are_left_out(tiny_shards, tmp_path, monkeypatch, capsys):
    checks = [Check("first", "", 60, planted_checks.good)]
    monkeypatch.setattr(accept, "CHECKS", checks)
    assert bench(monkeypatch, "--shards", tiny_shards, "--out", tmp_path, "--minutes", 0.1) == 0
    assert "no time was left" in capsys.readouterr().out


def test_a_gpu_that_torch_cannot_use_is_no_cpu(monkeypatch):
    monkeypatch.setattr(common, "nvidia_smi", lambda field: ["NVIDIA H100"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(InputError, match=r"nvidia-smi shows NVIDIA H100, but torch .* sees no GPU"):
        accept.usable_gpu()
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    assert not accept.usable_gpu()


def test_a_page_names_what_its_figures_belong_to():
    figures = [{"name": "torch", "value": "2.13", "unit": "", "wanted": "", "good": True}]
    figures += [{"name": "driver_version", "value": "580", "unit": "", "wanted": "", "good": True}]
    checks = [{"name": "machine", "figures": figures, "state": "passed"}]
    result = {"checks": checks, "date": "2026-11-26", "version": "0.2.0", "code": "abc", "seconds": 1.0}
    assert page.about(result) == "device not known, driver 580, torch 2.13, 2026-11-26, ldct 0.2.0, code abc"


def test_unknown_checks_are_one_line(tmp_path, monkeypatch, capsys):
    assert bench(monkeypatch, "--only", "everything", "--out", tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: --only everything: expected some of 'machine'; 'no waits'; ")
    assert bench(monkeypatch, "--minutes", "nan", "--out", tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: --minutes: expected a positive number, found nan")
