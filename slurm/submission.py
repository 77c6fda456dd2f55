"""What was submitted as which job: one record for each call of the launcher, beside the logs of its jobs."""

import dataclasses
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from shards.common.atomic import write_text
from shards.common.command import InputError
from slurm.cluster import Kind
from slurm.squeue import Job

NAME = "submission.json"
LOGS = "logs"


class Work(Protocol):
    """What one job does: a run of a sweep, or a part of a command."""

    name: str
    """Name of its folder."""
    folder: Path
    """Where its status stands."""

    @property
    def size(self) -> int:
        """How much there is to do in all, in steps or parts."""

    @property
    def done(self) -> int:
        """How much of it is done."""

    def job(self) -> Any:
        """What submitit pickles and calls."""


@dataclass
class Submission:
    """A set of runs given to SLURM or started here together. Written before sbatch is called, and again after it."""

    id: str
    """Name of its folder below logs/; also the comment of the SLURM job, by which a lost answer of sbatch is found."""
    executor: Kind
    """slurm or local."""
    runs: list[str]
    """Names of the runs, in the order of the array's tasks."""
    host: str = field(default_factory=socket.gethostname)
    """Where the launcher ran."""
    launcher: int = field(default_factory=os.getpid)
    """Process id of the launcher."""
    time: float = field(default_factory=time.time)
    """When, in Unix seconds."""
    code: str = ""
    """The copy of the code that the jobs run."""
    jobs: dict[str, str] = field(default_factory=dict)
    """Run -> job: ARRAY_TASK or ID of SLURM; local: the process id of submitit's controller."""
    cancelled: list[str] = field(default_factory=list)
    """Runs that launch/status.py --cancel ended."""


def check_folder(folder: Path) -> None:
    """Raise an InputError if jobs cannot have their files below ``folder``."""
    if "%" in str(folder):  # %j, %a, ... are the job's numbers
        raise InputError(
            f"{folder}: SLURM and submitit read what follows a % as a number of the job; choose another folder"
        )


def new(sweep: Path, executor: Kind, runs: list[str], code: Path) -> tuple[Submission, Path]:
    """A record for ``runs`` and its folder, made on disk."""
    record = Submission(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}", executor, runs, code=str(code))
    for before in read_all(sweep)[-1:]:  # the last one counts, also where this host's clock is behind
        record.time = max(record.time, before.time + 1e-3)
    folder = sweep / LOGS / record.id
    folder.mkdir(parents=True)
    try:
        save(record, folder)
    except OSError:  # a full disk
        folder.rmdir()
        raise
    return record, folder


def save(submission: Submission, folder: Path) -> None:
    """Write the record."""
    write_text(folder / NAME, json.dumps(dataclasses.asdict(submission), indent=1) + "\n")


def read(path: Path) -> Submission:
    """The record in a file; keys of other versions are left out.

    Raises
    ------
    InputError
        If it is none: which jobs were submitted is not known, and they would be submitted twice.
    """
    known = {f.name for f in dataclasses.fields(Submission)}
    try:
        return Submission(**{key: value for key, value in json.loads(path.read_text()).items() if key in known})
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"{path}: not a record of what was submitted; end its jobs (squeue -o '%i %k' shows {path.parent.name}), "
            "delete that folder, and run again"
        ) from None


def note_cancelled(sweep: Path, record_id: str, runs: list[str]) -> None:
    """Add ``runs`` to those of a record that were cancelled."""
    folder = sweep / LOGS / record_id
    record = read(folder / NAME)
    record.cancelled = sorted({*record.cancelled, *runs})
    save(record, folder)


def read_all(sweep: Path) -> list[Submission]:
    """Records of a sweep's folder, oldest first."""
    records = [read(path) for path in sorted(sweep.glob(f"{LOGS}/*/{NAME}"))]
    return sorted(records, key=lambda record: record.time)


def latest(sweep: Path) -> dict[str, tuple[Submission, str]]:
    """Run -> its last submission and job there ("" where sbatch's answer never came)."""
    return {run: (record, record.jobs.get(run, "")) for record in read_all(sweep) for run in record.runs}


def find_jobs(record: Submission, live: Mapping[str, Job]) -> dict[str, str]:
    """Run -> job of a submission, of which sbatch's answer never came, by its comment in the queue; empty where no job
    of it waits or runs."""
    found = next((job.partition("_")[0] for job, entry in live.items() if entry.comment == record.id), "")
    numbers = [f"_{number}" for number in range(len(record.runs))] if len(record.runs) > 1 else [""]
    return {run: found + number for run, number in zip(record.runs, numbers, strict=True)} if found else {}


def slurm_jobs(sweep: Path) -> dict[str, list[str]]:
    """Run -> all of its jobs of SLURM so far, the last one last."""
    jobs: dict[str, list[str]] = {}
    for record in read_all(sweep):
        for run, job in record.jobs.items() if record.executor == "slurm" else ():
            jobs.setdefault(run, []).append(job)
    return jobs


def log_of(sweep: Path, submission: Submission, job: str) -> Path:
    """Where rank 0 of ``job`` writes its errors."""
    return sweep / LOGS / submission.id / f"{job}_0_log.err"


def began(job: str) -> float:
    """When the local process ``job`` was started, in Unix seconds; 0 if it is gone."""
    try:
        return Path(f"/proc/{int(job)}").stat().st_mtime
    except OSError:
        return 0.0


def local_alive(submission: Submission, job: str) -> bool:
    """Whether a local run's controller still runs on this machine; its command line names the submission."""
    if submission.executor != "local" or submission.host != socket.gethostname() or not job:
        return False
    try:
        command = Path(f"/proc/{int(job)}/cmdline").read_bytes()
    except OSError:
        return False
    return os.fsencode(submission.id) in command
