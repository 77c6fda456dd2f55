"""Several processes that write one run: whatever is delayed for however long, the run ends like one that was alone."""

import os
import random
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from conftest import tiny_flags

from ldct.config import parse
from ldct.runs import checkpoint
from ldct.runs.attempts import Superseded, numbers
from ldct.runs.folder import METRICS, STATUS, VARYING, read_metrics, read_status
from ldct.training.ranks import Ranks
from ldct.training.recorder import Recorder

STEPS = 4
CHANGES = {"os.mkdir", "os.rename", "os.symlink", "os.remove", "shutil.rmtree"}
"""Audit events of calls that change a disk; and opening a file to write into it."""


class Writer(threading.Thread):
    """A training without a network: what it writes at a step follows from the step alone.

    It is paused before its change of the disk number ``pause``, until it is let go.
    """

    current = threading.local()

    def __init__(self, config, pause=None):
        super().__init__(daemon=True)
        self.config, self.pause, self.changes = config, pause, 0
        self.halted, self.release = threading.Event(), threading.Event()
        self.outcome = None

    def run(self):
        Writer.current.writer = self
        try:
            self.outcome = self.train()
        except Superseded as error:
            self.outcome = str(error)
        except BaseException as error:
            self.outcome = error
        self.halted.set()

    def train(self):
        recorder = Recorder(self.config, Ranks(60.0))
        if recorder.finished:
            return "finished before"
        with recorder:
            state = recorder.take_restored() or {"step": 0, "best": {}}
            best = state["best"]
            for step in range(state["step"] + 1, STEPS + 1):
                recorder.stepped(step)
                recorder.line({"train/loss": 1 / step})
                if step in (1, 3):
                    best = {"step": step, "psnr": 30.0 + step}
                    recorder.save(checkpoint.BEST, {"model": {"w": torch.tensor(step)}})
                    recorder.status.best = best
                    recorder.line({"val/psnr": 30.0 + step})
                if step % 2 == 0:
                    content = {"w": torch.tensor(step), "best": best, "lines": recorder.metrics.count}
                    recorder.save(checkpoint.step_name(step), content)
            recorder.close("finished")
        return "finished"

    def changing(self):
        self.changes += 1
        if self.changes == self.pause:
            self.halted.set()
            assert self.release.wait(60)

    def until_halt(self):
        """Start it; wait until it pauses or ends."""
        self.start()
        assert self.halted.wait(60)
        return self

    def to_end(self):
        """Let it go on; how it ended."""
        self.release.set()
        self.join(60)
        assert isinstance(self.outcome, str), self.outcome
        return self.outcome


def audit(event, arguments):
    writer = getattr(Writer.current, "writer", None)
    if writer is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR):
            return
    elif event not in CHANGES:
        return
    writer.changing()


sys.addaudithook(audit)  # cannot be taken back; it does nothing outside these threads


@pytest.fixture
def runs():
    """A folder in memory where there is one: each of the many writes is flushed to the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def config(tiny_shards, runs):
    return lambda name: parse(tiny_flags(tiny_shards, runs / name, train__steps=STEPS))


def content(folder):
    """All that counts of a run."""
    lines = [{k: v for k, v in line.items() if k not in VARYING} for line in read_metrics(folder)]
    status, best = read_status(folder), checkpoint.read_best(folder)
    newest = checkpoint.newest(folder / "checkpoints")
    shown = (status.state, status.step, status.best, best["step"], best["model"]["w"].item())
    return lines, shown, (newest["step"], newest["w"].item(), newest["best"], newest["lines"])


@pytest.fixture
def alone(config, runs):
    writer = Writer(config("alone"))
    writer.until_halt()
    assert writer.to_end() == "finished"
    return content(runs / "alone"), writer.changes


def test_the_usual_names_are_those_of_the_newest_attempt(config, alone, runs):
    folder = runs / "alone"
    for name in (METRICS, STATUS, "checkpoints/best.pt"):
        assert (folder / name).resolve() == folder / "attempts" / "0001" / (folder / name).name
    assert [line["attempt"] for line in read_metrics(folder)] == [1] * 6
    assert Writer(config("alone")).until_halt().to_end() == "finished before"
    assert numbers(folder) == [1]


def test_the_older_of_two_is_delayed_before_each_of_its_writes(config, alone, runs):
    expected, changes = alone
    for pause in range(1, changes + 1):
        folder = f"two-{pause}"
        old = Writer(config(folder), pause).until_halt()
        new = Writer(config(folder)).until_halt()
        outcomes = new.to_end(), old.to_end()
        assert content(runs / folder) == expected, pause
        assert read_status(runs / folder).attempt == max(numbers(runs / folder)), pause
        assert "finished" in outcomes or pause >= changes - 4, outcomes
        assert Writer(config(folder)).until_halt().to_end() == "finished before"


def test_the_older_says_in_one_line_who_goes_on(config, runs):
    old = Writer(config("said"), 30).until_halt()
    Writer(config("said")).until_halt()
    said = f"attempt 2 of {runs / 'said'} has begun and goes on with it; this one, attempt 1, ends"
    assert old.to_end() == said


@pytest.mark.parametrize("seed", range(3))
def test_three_writers_delayed_anywhere_and_let_go_in_any_order(config, alone, runs, seed):
    expected, changes = alone
    draw = random.Random(seed)
    for number in range(8):
        folder = f"three-{number}"
        writers = [Writer(config(folder), draw.randrange(1, changes + 1)).until_halt() for _ in range(2)]
        writers.append(Writer(config(folder), draw.choice((None, draw.randrange(1, changes + 1)))).until_halt())
        order = draw.sample(writers, 3)
        for writer in order:
            writer.to_end()
        last = Writer(config(folder)).until_halt()  # goes on where a delayed one was the last, and had to end
        last.to_end()
        assert content(runs / folder) == expected, (seed, number)
