"""What SLURM says of jobs. Used to add to what the run folders say, never in its place."""

import getpass
import os
import subprocess
from dataclasses import dataclass
from datetime import datetime

from submitit.slurm.slurm import SlurmInfoWatcher

from shards.common.command import InputError

ENDED = (
    "CANCELLED",
    "COMPLETED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
    "REVOKED",
)

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING")


@dataclass
class Job:
    """A job in the queue."""

    state: str
    """SLURM's name for it, e.g. RUNNING."""
    restarts: int
    """Times it was put back into the queue."""
    reason: str
    """Why it waits."""
    comment: str
    """The submission it belongs to (slurm/submission.py)."""
    began: float
    """When it was started last, in Unix seconds; 0 if it waits."""

    @property
    def waiting(self) -> bool:
        """Whether it is in the queue and does not run."""
        return self.state in WAITING


def ask(*command: str, timeout: float = 60.0) -> str:
    """Output of one of SLURM's commands.

    Raises
    ------
    InputError
        If it is not installed, fails or does not answer; one line.
    """
    try:
        environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}  # a user may have another one
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    except FileNotFoundError:
        raise InputError(f"{command[0]} is not on PATH; run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise InputError(
            f"SLURM does not answer: {command[0]} took more than {timeout:.0f} s; try again later"
        ) from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise InputError(f"SLURM does not answer: {said}; try again when the controller is back (scontrol ping)")
    return done.stdout


def live() -> dict[str, Job]:
    """The user's jobs that wait or run, by id (ARRAY_TASK in an array).

    Raises
    ------
    InputError
        If the controller does not answer.
    """
    widths = {"JobArrayID": 48, "State": 20, "RestartCnt": 12, "Reason": 40, "Comment": 64, "StartTime": 24}
    fields = ",".join(f"{name}:{width}" for name, width in widths.items())
    jobs: dict[str, Job] = {}
    for line in ask("squeue", "-h", "-r", "-u", getpass.getuser(), "-O", fields).splitlines():
        cells, at = [], 0
        for width in widths.values():
            cells.append(line[at : at + width].strip())
            at += width
        if cells[1] not in ENDED:
            jobs[cells[0]] = Job(cells[1], int(cells[2] or 0), cells[3], cells[4], unix_seconds(cells[5]))
    return jobs


def unix_seconds(text: str) -> float:
    """SLURM's local time 2025-12-31T23:59:59 in Unix seconds; 0 for N/A."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def ended(jobs: list[str]) -> dict[str, str]:
    """How jobs ended, by id, from the accounting; empty where there is none. It may lag by seconds."""
    arrays = sorted({job.split("_")[0] for job in jobs if job})
    if not arrays:
        return {}
    try:
        said = ask("sacct", "-X", "--parsable2", "-o", "JobID,State", "-j", ",".join(arrays))
    except InputError:
        return {}
    # submitit knows how sacct writes the tasks of an array that never started: 12_[3-7,9%2]
    return {job: info["State"].split()[0] for job, info in SlurmInfoWatcher().read_info(said).items() if info["State"]}


def cancel(jobs: list[str]) -> None:
    """Ask SLURM to end ``jobs``: they get SIGTERM, save at the next step and exit."""
    for start in range(0, len(jobs), 500):  # a command line has a length
        ask("scancel", *jobs[start : start + 500])
