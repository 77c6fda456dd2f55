"""Sweeps of tiny trainings on a real SLURM, and what is known of them from outside."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml
from conftest import ROOT, run_command

from ldct.runs.folder import read_metrics, read_status
from slurm import squeue, submission

DEVCLUSTER = ROOT / "slurm" / "devcluster"

TINY = {
    "data": {"window_shards": 2},
    "model": {"name": "redcnn", "channels": 4, "depth": 3},
    "optim": {"warmup": 2, "ema": 0.9},
    "train": {"steps": 20, "global_batch": 8, "log_every": 5},
    "val": {"every": 100, "slices": 1},
    "track": {"wandb": "disabled"},
}


def until(what, condition, limit=150.0, every=0.2):
    """Wait for ``condition`` and return its value; a wrong set-up of SLURM hangs rather than fails."""
    end = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {limit:.0f} s"
        time.sleep(every)
    return value


def devcluster(*argv, check=True, timeout=180, **environment):
    done = subprocess.run(
        [sys.executable, DEVCLUSTER, *argv],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def free_ports(count):
    """First of ``count`` ports in a row that nobody listens on."""
    for start in range(27000, 29000, count):
        try:
            for port in range(start, start + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return start
        except OSError:
            continue
    raise AssertionError("no free ports")


class Bed:
    """Sweeps of tiny trainings in a folder of their own."""

    def __init__(self, folder, shards):
        self.folder, self.shards, self.runs = folder, shards, folder / "runs"
        folder.mkdir(exist_ok=True)
        (folder / "base.yaml").write_text(yaml.safe_dump(TINY))

    def files(self, name, cluster, values, method="grid", **head):
        """Write sweep and cluster file; return the launcher's arguments."""
        parameters = {"config": {"value": str(self.folder / "base.yaml")}, "data.shards": {"value": str(self.shards)}}
        parameters |= {field: {"values": v} if isinstance(v, list) else {"value": v} for field, v in values.items()}
        sweep = {"method": method, "parameters": parameters, **head}
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(sweep))
        (self.folder / f"{name}.cluster.yaml").write_text(yaml.safe_dump(cluster))
        return [self.folder / f"{name}.yaml", "--cluster", self.folder / f"{name}.cluster.yaml", "--runs", self.runs]

    def launch(self, name, cluster, values, *flags, check=True, root=ROOT, **head):
        """Run launch/sweep.py to its end."""
        argv = self.files(name, cluster, values, **head)
        return run_command(root / "launch" / "sweep.py", *argv, *flags, check=check, timeout=240, PYTHONPATH=str(root))

    def folders(self, name):
        """Run folders of a sweep, in the order of the sweep."""
        return sorted(path for path in (self.runs / name).iterdir() if re.match(r"\d{3}-", path.name))

    def status(self, *names):
        """launch/status.py --json, by run."""
        done = run_command("launch/status.py", "--json", *(self.runs / name for name in names))
        return {run["run"].split("/")[1]: run for run in json.loads(done.stdout)}


def job_of(folder):
    """SLURM's id of a run's last submission."""
    return submission.latest(folder.parent)[folder.name][1]


def step_of(folder):
    lines = read_metrics(folder)
    return lines[-1]["step"] if lines else 0


def wait_step(folder, step):
    until(f"step {step} of {folder.parent.name}/{folder.name}", lambda: step_of(folder) >= step)


def wait_finished(*folders, limit=240.0):
    for folder in folders:
        until(f"end of {folder.parent.name}", lambda folder=folder: read_status(folder).state == "finished", limit)


def wait_gone(job):
    until(f"end of job {job}", lambda: job not in squeue.live())


def ranks_of(job):
    """Process ids of a job's ranks, by rank; seen from outside the nodes."""
    pids = {}
    array, _, task = job.partition("_")
    wanted = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={task}"} if task else {f"SLURM_JOB_ID={job}"}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = set(path.read_bytes().decode(errors="replace").split("\0"))
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if wanted <= environment and b"submitit.core._submit" in command and b"srun" not in command:
            rank = next((line for line in environment if line.startswith("SLURM_PROCID=")), None)
            if rank:
                pids[int(rank.split("=")[1])] = int(path.parent.name)
    return pids


def slurmd_of(node):
    """The process of a node's slurmd, seen from outside the node."""
    pid = int((Path(os.environ["DEVCLUSTER_DIR"]) / "run" / f"node-{node}.pid").read_text().split()[0])
    (daemon,) = [p for p in psutil.Process(pid).children(recursive=True) if p.cmdline()[:3] == ["slurmd", "-D", "-N"]]
    return daemon


def start_launcher(*argv, **kwargs):
    """launch/sweep.py in the background, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "launch/sweep.py", *map(str, argv)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **kwargs,
    )


def end(process):
    """Make sure that a background process is gone at the end of a test."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
