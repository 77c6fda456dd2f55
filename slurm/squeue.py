"""What SLURM says of jobs. Used to add to what the run folders say, never in its place."""

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Collection
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

WAITING = (
    *("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING"),
    *("SUSPENDED", "STOPPED"),  # its processes are there and do nothing: it writes no heartbeat
)


OF_A_PERSON = ("SQUEUE_", "SACCT_", "SCONTROL_", "SCANCEL_")
"""Beginnings of variables by which a user changes what these commands do."""


@dataclass
class Job:
    """A job in the queue."""

    state: str
    """SLURM's name for it, e.g. RUNNING."""
    restarts: int
    """Times it was put back into the queue."""
    reason: str
    """Why it waits, in SLURM's word; "None" where there is none."""
    comment: str
    """The submission it belongs to (slurm/submission.py)."""
    began: float
    """When it was started last, in Unix seconds; 0 if it waits."""

    @property
    def waiting(self) -> bool:
        """Whether SLURM has it and lets it do nothing."""
        return self.state in WAITING

    @property
    def why(self) -> str:
        """Why it waits, in SLURM's word, e.g. Priority, QOSMaxJobsPerUserLimit or SUSPENDED; "" if nobody knows yet."""
        said = self.state if self.reason == "None" else self.reason
        return said if self.waiting and said != "PENDING" else ""


def ask(*command: str, timeout: float = 60.0) -> str:
    """Output of one of SLURM's commands.

    Raises
    ------
    InputError
        If it is not installed, fails or does not answer; one line.
    """
    try:
        # a user may filter, sort and format what a person reads, or be asked before a job is cancelled
        environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_A_PERSON)}
        environment["SLURM_TIME_FORMAT"] = "standard"
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


def live(jobs: Collection[str] | None = None) -> dict[str, Job]:
    """Those of ``jobs`` that wait or run, by id (ARRAY_TASK in an array).

    They are asked for by id: a colleague may have put one back into the queue. The user's own jobs are asked for where
    no ids are given, or one is "" because sbatch's answer never came.

    Raises
    ------
    InputError
        If the controller does not answer.
    """
    arrays = sorted({job.split("_")[0] for job in jobs or () if job})
    entries = _queue("-j", ",".join(arrays)) if arrays else {}
    return entries | _queue("-u", getpass.getuser()) if jobs is None or "" in jobs else entries


def _queue(*which: str) -> dict[str, Job]:
    widths = {"JobArrayID": 48, "State": 20, "RestartCnt": 12, "Reason": 40, "Comment": 64, "StartTime": 24}
    fields = ",".join(f"{name}:{width}" for name, width in widths.items())
    try:
        answer = ask("squeue", "-h", "-r", *which, "-O", fields)
    except InputError as error:
        if "Invalid job id" in str(error):  # the only one that was asked for is forgotten by now
            return {}
        raise
    jobs: dict[str, Job] = {}
    for line in answer.splitlines():
        cells, at = [], 0
        for width in widths.values():
            cells.append(line[at : at + width].strip())
            at += width
        if cells[1] not in ENDED:
            jobs[cells[0]] = Job(cells[1], int(cells[2] or 0), cells[3], cells[4], unix_seconds(cells[5]))
    return jobs


def largest_array() -> int:
    """How many tasks an array may have here."""
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return int(limit[1]) if limit else 1001


def controller_up() -> bool:
    """Whether a controller answers; sbatch itself would try for a minute or more."""
    try:
        return " is UP" in ask("scontrol", "ping", timeout=20.0)
    except InputError:
        return False


def would_take(script: str) -> str:
    """What sbatch says of ``script`` without submitting it; "" where SLURM is not on this machine or does not answer.

    Raises
    ------
    InputError
        If it refuses; one line.
    """
    if shutil.which("sbatch") is None:
        return ""
    if not controller_up():
        return "SLURM's controller is down (scontrol ping), so it was not asked whether it would take it"
    try:
        done = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "SLURM did not answer whether it would take it"
    said = " ".join(done.stderr.split()).replace("sbatch: ", "")
    if done.returncode:
        raise InputError(f"SLURM would refuse this: {said}")
    return f"SLURM would take it: {said}"


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
    """Ask SLURM to end ``jobs``: they get SIGTERM, save at the next step and exit. The tasks of an array are one
    request."""
    tasks: dict[str, list[str]] = {}
    for job in jobs:
        array, _, task = job.partition("_")
        tasks.setdefault(array, []).extend([task] if task else [])
    asked = [f"{array}_[{','.join(numbers)}]" if numbers else array for array, numbers in tasks.items()]
    if asked:
        ask("scancel", *asked)
