"""Giving the open runs of a sweep, or the parts of a command, to SLURM; each array whole or not at all."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from submitit.core.utils import DelayedSubmission, FailedJobError, JobPaths

from shards.common.command import InputError
from slurm import squeue, submission
from slurm.cluster import NO_SLURM, Cluster, sbatch_environment, slurm_executor
from slurm.job import Train
from slurm.submission import Work


def submit(cluster: Cluster, sweep: Path, code: Path, chosen: Sequence[Work], after: str = "") -> list[str]:
    """Submit ``chosen``, as one array where SLURM allows one of that size; return the ids of the jobs.

    ``after`` is what they wait for, in sbatch's words (afterok:12:13); what can never begin is cancelled by SLURM.

    Raises
    ------
    InputError
        If SLURM is not here, does not answer or refuses; it says which runs were submitted before.
    """
    if shutil.which("srun") is None:
        raise InputError(NO_SLURM)
    if not squeue.controller_up():
        raise InputError("SLURM's controller is down (scontrol ping); nothing was submitted; try again when it is back")
    if after:
        cluster = waiting_for(cluster, after)
    size = squeue.largest_array()
    parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    if len(parts) > 1 and cluster.array_parallelism:  # together they keep to it
        cluster = dataclasses.replace(cluster, array_parallelism=max(1, cluster.array_parallelism // len(parts)))
    jobs: list[str] = []
    for part in parts:
        try:
            jobs.append(submit_array(cluster, sweep, code, part))
        except InputError as error:
            raise InputError(f"{error} (submitted before: {', '.join(jobs)})" if jobs else str(error)) from None
    return jobs


def waiting_for(cluster: Cluster, after: str) -> Cluster:
    """The cluster with a dependency for its jobs, added to one that its file may have."""
    own = cluster.sbatch.get("dependency")
    dependency = f"{own},{after}" if own else after
    return dataclasses.replace(
        cluster, sbatch={**cluster.sbatch, "dependency": dependency, "kill-on-invalid-dep": "yes"}
    )


def submit_array(cluster: Cluster, sweep: Path, code: Path, chosen: Sequence[Work]) -> str:
    """Submit ``chosen`` as one array (one run: as a plain job); return the job's id.

    The record is written first, without job ids. Should the answer of sbatch get lost although SLURM took the job,
    the next launcher finds the job in the queue by its comment, which is the record's name.

    Raises
    ------
    InputError
        If SLURM does not answer or refuses; then nothing is submitted.
    """
    record, folder = submission.new(sweep, "slurm", [run.name for run in chosen], code)
    try:
        executor = slurm_executor(cluster, folder, sweep.name, record.id, code, len(chosen))
        with sbatch_environment(cluster):
            jobs = executor.submit_array([run.job() for run in chosen])
        record.jobs = {run.name: job.job_id for run, job in zip(chosen, jobs, strict=True)}
        submission.save(record, folder)
    except FailedJobError as error:
        said = " ".join(str(error).split())
        record.jobs = submission.find_jobs(record, squeue.live())
        if not record.jobs:
            shutil.rmtree(folder)
            raise InputError(f"SLURM refused, nothing was submitted: {said}") from None
        give_pickles(cluster, folder, record.jobs, chosen)
        submission.save(record, folder)
        print(f"note: sbatch failed, but SLURM has the job: {said}", flush=True)
    except InputError:
        shutil.rmtree(folder)
        raise
    except OSError:  # a full disk; submitit and the record write after sbatch as well
        squeue.cancel([job for job, entry in squeue.live().items() if entry.comment == record.id])
        shutil.rmtree(folder)
        raise
    return record.jobs[chosen[0].name].split("_")[0]


def give_pickles(cluster: Cluster, folder: Path, jobs: Mapping[str, str], works: Sequence[Work]) -> None:
    """Write what ``jobs`` are to do, where it is not there: submitit writes it behind the answer of sbatch only. A job
    that has begun waits a minute for it, and then fails."""
    known = {work.name: work.job() for work in works}
    sweep = folder.parents[1]
    for name, job in jobs.items():
        path = JobPaths(folder, job).submitted_pickle
        if not path.exists():
            # only a run can be unknown: the sweep file has it no more
            pickled = DelayedSubmission(known.get(name) or Train(str(sweep / name)))
            pickled.set_timeout(cluster.time_min, cluster.max_requeues)
            pickled.dump(path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)


def note_lost_answers(cluster: Cluster, sweep: Path, works: Sequence[Work]) -> None:
    """Put jobs into the records of submissions whose answer of sbatch never came, and say so: from then on they are
    waited for, cancelled and counted like any other, and have what they are to do; those of runs that were given anew
    since are cancelled. A record whose runs were all given anew is not asked for: SLURM may not be here any more."""
    last = submission.latest(sweep)
    records = {record.id: record for record, _ in last.values()}.values()
    lost = [record for record in records if record.executor == "slurm" and not record.jobs]
    live = squeue.live() if lost else {}
    for record in lost:
        record.jobs = submission.find_jobs(record, live)
        if record.jobs:
            folder = sweep / submission.LOGS / record.id
            current = {run: job for run, job in record.jobs.items() if last[run][0].id == record.id}
            give_pickles(cluster, folder, current, works)  # first: a record with jobs is not looked at again
            submission.save(record, folder)
            squeue.cancel([job for run, job in record.jobs.items() if run not in current and job in live])
            job = record.jobs[record.runs[0]].split("_")[0]
            print(f"note: job {job} is of {record.id}, of which sbatch's answer never came", flush=True)
