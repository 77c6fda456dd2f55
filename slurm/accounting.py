"""Where the time of jobs went, by SLURM's accounting: every start of every job counts."""

import re
import time
from collections.abc import Collection
from dataclasses import dataclass

from submitit.slurm.slurm import read_job_id

from shards.common.command import InputError
from slurm.squeue import ask, unix_seconds


@dataclass
class Spent:
    """What a job has cost so far."""

    queued_s: float = 0.0
    """Seconds in the queue, those that SLURM holds a requeued job back for among them."""
    held_s: float = 0.0
    """Seconds in which its nodes were the job's, over all its starts."""
    gpu_s: float = 0.0
    """The same times its GPUs."""


def spent(jobs: Collection[str]) -> dict[str, Spent]:
    """What ``jobs`` (ID or ARRAY_TASK) have cost, by id; empty where there is no accounting. It may lag by seconds."""
    arrays = sorted({job.split("_")[0] for job in jobs if job})
    if not arrays:
        return {}
    fields = "JobID,Submit,Start,End,AllocTRES"
    try:
        said = ask("sacct", "-X", "-D", "-n", "--parsable2", "-o", fields, "-j", ",".join(arrays))
    except InputError:
        return {}
    return add_up(said, time.time())


def add_up(said: str, now: float) -> dict[str, Spent]:
    """Sums over the lines of sacct, one for each start of a job. What has not begun or ended counts up to now."""
    sums: dict[str, Spent] = {}
    for line in said.splitlines():
        cells = line.split("|")
        submitted, began, ended = map(unix_seconds, cells[1:4])
        if not submitted:
            continue
        gpus = re.search(r"(?:^|,)gres/gpu=(\d+)", cells[4])
        held = max(0.0, (ended or now) - began) if began else 0.0
        queued = max(0.0, (began or ended or now) - submitted)
        for job in names(cells[0]):
            total = sums.setdefault(job, Spent())
            total.queued_s += queued
            total.held_s += held
            total.gpu_s += held * int(gpus[1]) if gpus else 0.0
    return sums


def names(job: str) -> list[str]:
    """Ids of the jobs that a line of sacct is about: 12, 12_3, or those that have not begun, 12_[3-5,9%2]."""
    every = []
    for array, *tasks in read_job_id(job):
        numbers = range(int(tasks[0]), int(tasks[-1]) + 1) if tasks else [None]
        every += [array if number is None else f"{array}_{number}" for number in numbers]
    return every
