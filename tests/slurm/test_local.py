"""Sweeps on this machine: real processes, interrupted and continued."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_command
from same_run import assert_same
from slurm_bed import end, start_launcher, step_of, until

from ldct.runs.folder import read_config, read_status
from slurm import submission

LOCAL = {"executor": "local", "array_parallelism": 2}
LONG = {"train.steps": 100_000, "train.log_every": 10}


@pytest.fixture
def launcher(bed):
    """Start the launcher of a sweep in the background."""
    started = []

    def start(name, cluster, values):
        started.append(start_launcher(*bed.files(name, cluster, values)))
        return started[-1]

    yield start
    for process in started:
        end(process)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # empty: it has ended, but was not waited for
    except FileNotFoundError:
        return False


def local_jobs(folder):
    return [int(job) for _, job in submission.latest(folder).values() if job]


def test_a_sweep_runs_to_its_end_and_once(bed):
    values = {"train.seed": [0, 1, 2]}
    first = bed.launch("small", LOCAL, values)
    assert "3 of 3 runs finished" in first.stdout
    folders = bed.folders("small")
    assert [read_config(folder).train.seed for folder in folders] == [0, 1, 2]
    assert [read_status(folder).step for folder in folders] == [20] * 3
    again = bed.launch("small", LOCAL, values)
    assert "3 finished, 0 running or waiting, 0 to submit" in again.stdout
    assert [read_status(folder).attempt for folder in folders] == [1] * 3
    more = bed.launch("small", LOCAL, {**values, "train.seed": [0, 1, 2, 3]}, "--dry-run")
    assert "4 runs, 3 finished, 0 running or waiting, 1 to submit" in more.stdout


def test_no_more_at_once_than_the_bound_and_each_with_its_share_of_the_cores(bed, launcher):
    process = launcher("bound", LOCAL, {**LONG, "train.seed": [0, 1, 2, 3]})
    folder = bed.runs / "bound"
    until("two runs", lambda: folder.is_dir() and len(local_jobs(folder)) == 2)
    until("their training", lambda: sum(step_of(run) > 0 for run in bed.folders("bound")) == 2)
    assert len(local_jobs(folder)) == 2
    for job in local_jobs(folder):
        environment = Path(f"/proc/{job}/environ").read_bytes().split(b"\0")
        share = max(1, len(os.sched_getaffinity(0)) // 2)
        assert f"OMP_NUM_THREADS={share}".encode() in environment
        assert f"PYTHONPATH={folder}/code".encode() in b"\n".join(environment)
    process.kill()
    process.wait()
    for job in local_jobs(folder):  # the launcher's death does not touch them
        os.kill(job, signal.SIGTERM)
    until("their end", lambda: not any(alive(job) for job in local_jobs(folder)))
    assert [read_status(run).state for run in bed.folders("bound")] == ["stopped", "stopped", "pending", "pending"]


def test_a_killed_and_an_interrupted_launcher(bed, launcher):
    values = {"train.steps": 300, "train.log_every": 10, "train.seed": [0]}

    # killed: its run goes on, and the next launcher waits for it
    process = launcher("killed", LOCAL, values)
    until("training", lambda: (bed.runs / "killed").is_dir() and any(map(step_of, bed.folders("killed"))))
    second = bed.launch("killed", LOCAL, values, check=False)
    assert second.returncode == 2
    assert f"process {process.pid} on {socket.gethostname()}" in second.stderr
    process.kill()
    process.wait()
    bed.launch("killed", LOCAL, values)
    (straight,) = bed.folders("killed")
    assert (read_status(straight).state, read_status(straight).attempt) == ("finished", 1)

    # Ctrl-C, as a terminal does it: to the launcher and all that it started
    process = launcher("interrupted", LOCAL, values)
    until("training", lambda: (bed.runs / "interrupted").is_dir() and any(map(step_of, bed.folders("interrupted"))))
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "run the same command again to go on" in said and "stopping 1 run at its next step\n" in said
    (folder,) = bed.folders("interrupted")
    stopped = read_status(folder)
    assert stopped.state == "stopped"
    assert (folder / "checkpoints" / f"step-{stopped.step:08d}.pt").is_file()
    bed.launch("interrupted", LOCAL, values)
    assert read_status(folder).attempt == 2
    assert_same(folder, straight)


def test_a_failure_is_one_line_that_names_the_log(bed):
    values = {"train.seed": [0, 1], "train.steps": 30}
    # a file where the checkpoints of the first run should go
    name = next(line.split()[0] for line in bed.launch("failing", LOCAL, values, "--dry-run").stdout.splitlines()[1:])
    (bed.runs / "failing" / name).mkdir(parents=True)
    (bed.runs / "failing" / name / "checkpoints").touch()
    done = bed.launch("failing", LOCAL, values, check=False)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert line.startswith(f"failed: {name}: InputError: cannot write ")
    log = line.rpartition("log: ")[2]
    assert "Traceback" in Path(log).read_text()
    assert "1 of 2 runs finished" in done.stdout
    status = bed.status("failing")[name]
    assert status["state"] == "failed" and status["log"] == log
    (bed.runs / "failing" / name / "checkpoints").unlink()
    assert "2 of 2 runs finished" in bed.launch("failing", LOCAL, values).stdout


def test_cancel_asks_first(bed, launcher):
    process = launcher("cancel", LOCAL, {**LONG, "train.seed": [0, 1, 2]})
    until(
        "training", lambda: (bed.runs / "cancel").is_dir() and sum(step_of(f) > 0 for f in bed.folders("cancel")) == 2
    )
    command = ["launch/status.py", bed.runs / "cancel", "--cancel"]
    refused = run_command(*command)  # no answer is a no
    assert re.search(r"^cancel [23] runs\? .*nothing was cancelled$", refused.stdout, re.MULTILINE)
    assert process.poll() is None

    agreed = subprocess.run(
        [sys.executable, *map(str, command)], input="y\n", capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "and 2 local runs" in agreed.stdout
    assert process.wait(60) == 130
    states = sorted(run["state"] for run in bed.status("cancel").values())
    assert states == ["new", "stopped", "stopped"]
