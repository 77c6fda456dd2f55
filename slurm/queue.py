"""What SLURM says of jobs. Used to add to what the run folders say, never in its place."""

import getpass
import subprocess
from dataclasses import dataclass

from shards.command import InputError

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
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
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
    widths = {"JobArrayID": 48, "State": 20, "RestartCnt": 12, "Reason": 40, "Comment": 64}
    fields = ",".join(f"{name}:{width}" for name, width in widths.items())
    found: dict[str, Job] = {}
    for line in ask("squeue", "-h", "-r", "-u", getpass.getuser(), "-O", fields).splitlines():
        cells, at = [], 0
        for width in widths.values():
            cells.append(line[at : at + width].strip())
            at += width
        if cells[1] not in ENDED:
            found[cells[0]] = Job(cells[1], int(cells[2] or 0), cells[3], cells[4])
    return found


def ended(jobs: list[str]) -> dict[str, str]:
    """How jobs ended, by id, from the accounting; empty where there is none. It may lag by seconds."""
    if not jobs:
        return {}
    try:
        lines = ask("sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", ",".join(jobs)).splitlines()
    except InputError:
        return {}
    pairs = (line.split("|") for line in lines)
    return {pair[0]: pair[1].split()[0] for pair in pairs if len(pair) == 2 and pair[1]}


def cancel(jobs: list[str]) -> None:
    """Ask SLURM to end ``jobs``: they get SIGTERM, save at the next step and exit."""
    for start in range(0, len(jobs), 500):  # a command line has a length
        ask("scancel", *jobs[start : start + 500])
