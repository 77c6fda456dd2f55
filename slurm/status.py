"""What became of runs: their folders first, what SLURM knows added to it."""

import contextlib
import functools
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldct.config.networks import networks
from ldct.metrics import registry
from ldct.runs import folder as runs
from ldct.runs import reader
from shards.common.command import NO_ROOM, InputError
from slurm import accounting, commands, squeue, submission
from slurm.cluster import SETUP_FAILED
from slurm.submission import Submission
from slurm.sweep import HUNG, state_of

LIVE = ("pending", "requeued", "running", HUNG)


@dataclass
class Report:
    """One run, as launch/status.py shows it; with ``--json`` these are the keys."""

    run: str
    """SWEEP/RUN, or COMMAND/PART; for what follows a sweep SWEEP/COMMAND/PART where several sweeps are shown."""
    folder: str
    """Its folder."""
    state: str
    """pending, requeued (waits again), running, finished, stopped early, failed, stopped, cancelled, lost (its job is
    gone without a word), "lost, its job runs" (no heartbeat) or new (never submitted)."""
    requeues: int
    """Times it was put back into the queue or started again."""
    step: int
    steps: int
    patches_per_s: float
    eta_s: float | None
    """Seconds to the end at its last speed; running only."""
    queued_s: float | None
    """Seconds in the queue, over all starts of all its jobs; None where no accounting of SLURM tells."""
    running_s: float
    """Seconds at work, over all attempts."""
    saving_s: float
    """Of these, seconds in which checkpoints were written."""
    validating_s: float
    """Of these, seconds in which it validated."""
    gpu_hours: float | None
    """Of the allocation: the GPUs of all its jobs, as long as they held them, by SLURM's accounting; where that does
    not tell, of the training. None if it trains on CPUs."""
    best: dict[str, float]
    """Step and value of the best validation."""
    flags: list[str]
    """What a person should look at."""
    job: str
    """SLURM's job, or the local process."""
    reason: str
    """Why it waits, in SLURM's word, e.g. Priority; "" if it does not, or nobody knows yet."""
    error: str
    """Last line of the traceback, or how SLURM says the job ended; "" if nothing went wrong."""
    log: str
    """Where rank 0 writes its errors."""
    values: dict[str, Any] | None
    """The fields that decide the run, by dotted name; None for a part of a command."""


def reports(roots: list[Path]) -> tuple[list[Report], str]:
    """Reports of all runs at or below ``roots``, and why SLURM could not be asked ("" if it was, or need not be)."""
    folders = find(roots)
    latest = {sweep: submission.latest(sweep) for sweep in {folder.parent for folder in folders}}
    sent = {folder: latest[folder.parent].get(folder.name) for folder in folders}
    jobs: dict[str, squeue.Job] = {}
    silent = ""
    try:
        jobs = squeue.live([entry[1] for entry in sent.values() if entry and entry[0].executor == "slurm"])
    except InputError as error:
        silent = str(error)
    listed = [report(folder, sent[folder], jobs, bool(silent)) for folder in folders]
    tell_apart(listed)
    if not silent:
        add_costs(dict(zip(folders, listed, strict=True)))
        slurm = {str(folder) for folder, entry in sent.items() if entry and entry[0].executor == "slurm"}
        explain([run for run in listed if run.state in ("lost", "new") and run.folder in slurm])
    return listed, silent


def tell_apart(listed: list[Report]) -> None:
    """Put the sweep in front of the names of what follows it, where several sweeps are shown; and what it lies in in
    front of a sweep's, where two are called alike."""
    sweeps = runs.names({Path(run.folder).absolute().parent for run in listed if run.values is not None})
    for run in listed if len(sweeps) > 1 else ():
        if run.values is not None:
            run.run = f"{sweeps[Path(run.folder).absolute().parent]}/{Path(run.folder).name}"
        owner = Path(run.folder).absolute().parent.parent.parent  # SWEEP/jobs/COMMAND/PART
        if run.values is None and owner in sweeps:
            run.run = f"{sweeps[owner]}/{run.run}"


def find(roots: list[Path]) -> list[Path]:
    """Folders of the runs, and of the parts of commands, at or below ``roots``.

    Raises
    ------
    InputError
        If a root is not there, or there is neither.
    """
    parts = commands.find(roots)
    try:
        return runs.find_runs(roots) + parts
    except InputError:
        if not parts or not all(root.is_dir() for root in roots):
            raise
        return parts


def report(folder: Path, sent: tuple[Submission, str] | None, jobs: dict[str, squeue.Job], silent: bool) -> Report:
    """What the folder of one run says, and the queue."""
    status = runs.read_status(folder)
    record, job = sent or (None, status.job)
    job = job or (submission.find_jobs(record, jobs).get(folder.name, "") if record else "")
    entry = jobs.get(job)
    steps = steps_of(folder)
    unasked = silent and record and record.executor == "slurm"
    state = status.state if unasked else state_of(folder.name, status, sent, jobs, steps)
    if state == "running" and not entry and status.lost:
        state = "lost"
    restarts = entry.restarts if entry else max(0, status.attempt - 1)
    if state == "pending" and restarts:
        state = "requeued"
    if state == "finished" and status.stopped_early:
        state = runs.STOPPED_EARLY
    waits = state in ("pending", "requeued")  # then status.json is of the attempt before
    return Report(
        run=f"{folder.parent.name}/{folder.name}",
        folder=str(folder),
        state=state,
        requeues=restarts,
        step=status.step,
        steps=status.steps,
        patches_per_s=status.patches_per_s,
        eta_s=status.eta_s if state == "running" else None,
        queued_s=None,
        running_s=status.train_s,
        saving_s=status.saving_s,
        validating_s=status.validating_s,
        gpu_hours=status.gpu_hours,
        best=status.best,
        flags=status.flags + evaluation_flags(folder) + changes(folder, status, 0 if waits else steps),
        job=job,
        reason=entry.why if entry and waits else "",
        error=status.error if state == "failed" else "",
        log=str(submission.log_of(folder.parent, record, job)) if record and job else "",
        values=values(folder),
    )


def values(folder: Path) -> dict[str, Any] | None:
    """The fields that decide the run in ``folder``, by dotted name; None if it is no run."""
    path = folder / "config.yaml"
    try:
        return dict(fields(path, path.stat().st_mtime_ns))
    except OSError:
        return None


@functools.lru_cache(4096)
def fields(path: Path, changed_ns: int) -> dict[str, Any]:
    """Fields of a config.yaml as it is written, but for tracking, and sizes that are the network's published ones."""
    try:  # the whole configuration takes ten times as long, and a sweep has a hundred runs
        content = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        nested = {section: part for section, part in content.items() if isinstance(part, dict)}
    except (OSError, yaml.YAMLError, AttributeError):
        return {}
    flat = {f"{section}.{name}": value for section, part in nested.items() for name, value in part.items()}
    network = networks().get(str(flat.get("model.name")))
    usual = {f"model.{size}": value for size, value in network.sizes.items()} if network else {}
    return {
        name: value
        for name, value in flat.items()
        if not name.startswith("track.") and (name not in usual or usual[name] != value)
    }


def add_costs(listed: dict[Path, Report]) -> None:
    """Add what SLURM's accounting knows of the runs in these folders: all their jobs together."""
    of_sweep = {sweep: submission.slurm_jobs(sweep) for sweep in {folder.parent for folder in listed}}
    jobs = {folder: of_sweep[folder.parent].get(folder.name, []) for folder in listed}
    costs = accounting.spent([job for each in jobs.values() for job in each])
    for folder, run in listed.items():
        known = [costs[job] for job in jobs[folder] if job in costs]
        if known:
            run.queued_s = sum(cost.queued_s for cost in known)
            run.gpu_hours = sum(cost.gpu_s for cost in known) / 3600 or run.gpu_hours


def evaluation_flags(folder: Path) -> list[str]:
    """What the evaluations of the run in ``folder`` found outside its stated range: noise texture, edges."""
    means = reader.evaluated(folder)
    return [flag for split in means for flag in registry.outside(means[split].get(folder.name, {}))]


def steps_of(folder: Path) -> int:
    """``train.steps`` of the run in ``folder``, by its config.yaml; 0 where that does not say."""
    try:
        return int((values(folder) or {})["train.steps"])
    except (KeyError, TypeError, ValueError):
        return 0


def changes(folder: Path, status: runs.Status, steps: int) -> list[str]:
    """What did not stay the same in the run in ``folder``: its code, and its ``steps`` where they are not 0."""
    return runs.changed_on_the_way(status, steps or status.steps, runs.read_provenance(folder))


def explain(unclear: list[Report]) -> None:
    """Say of runs whose job is gone how it ended: by their log's last traceback, else by SLURM's accounting."""
    how = squeue.ended([run.job for run in unclear])
    for run in unclear:
        log = Path(run.log)
        run.error = last_error(log) or no_room(log) or (f"SLURM: {how[run.job]}" if run.job in how else "")
        if run.error == "SLURM: FAILED" and not log.exists():
            run.error += f", without a log; can the nodes write to {log.parent}?"
        if how.get(run.job) == "CANCELLED":
            run.state, run.error = "cancelled", ""
        elif run.error:
            run.state = "failed"


def last_error(log: Path) -> str:
    """What ended a run, by its log: a step that hung, its last traceback, a setup line, srun, a rank that ended; "" if
    none is there."""
    text = end_of(log)
    _, hung, stacks = text.rpartition("\nTimeout (")
    if hung and "(most recent call first)" in stacks:  # of ldct/training/watchdog.py
        return f"a step took longer than train.hang_s ({stacks.partition(')')[0]}); the log has the stacks"
    _, begun, after = text.rpartition("Traceback (most recent call last):\n")
    last = re.search(r"^\S.*" if begun else f"^(?:{SETUP_FAILED}|srun: fatal: ).*", after, re.MULTILINE)
    return last[0].strip() if last else first_to_end(text, log)


def no_room(log: Path) -> str:
    """The refusal of a full disk, of which ``log`` could not speak: submitit says it in the last block of rank 0's
    output; "" if there is none."""
    told = re.search(rf"\[Errno (?:{'|'.join(map(str, NO_ROOM))})\] .*", end_of(log.with_suffix(".out")))
    return f"{told[0].strip()}; make room, then submit again" if told else ""


def end_of(log: Path) -> str:
    """The last 64 KB of a log; "" where there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - 65536))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def first_to_end(text: str, log: Path) -> str:
    """The rank whose end srun told first in ``text``, from the ``log`` of rank 0, and why by its own log, or "".

    What srun told of an earlier start of the job does not count.
    """
    told: list[re.Match[str]] = []
    over = False
    for line in text.splitlines():
        if match := re.match(r"srun: error: (\S+): tasks? (\d+)\S*: (.+)", line):
            told.append(match)
        elif line.startswith(("srun: Force Terminated", "srun: Job step aborted")):
            over = True
        elif over and not line.startswith(("srun: ", "slurmstepd", "submitit ")):  # a rank speaks again
            told.clear()
            over = False
    if not told:
        return ""
    node, rank, how = told[0].groups()
    why = last_error(log.with_name(log.name.replace("_0_log", f"_{rank}_log"))) if rank != "0" else ""
    return f"rank {rank} ({node}): {why or how}"


def cancel(roots: list[Path], listed: list[Report]) -> str:
    """End the runs that wait or run; each saves at its next step. What was done, in words."""
    live = {run.folder: run.job for run in listed if run.state in LIVE}
    jobs: list[str] = []
    local: list[tuple[Submission, str]] = []
    cancelled: dict[tuple[Path, str], list[str]] = {}
    for folder in find(roots):
        sent = submission.latest(folder.parent).get(folder.name) if str(folder) in live else None
        if sent and sent[0].executor == "slurm" and (job := live[str(folder)]):
            jobs.append(job)
            cancelled.setdefault((folder.parent, sent[0].id), []).append(folder.name)
        elif sent and submission.local_alive(*sent):
            local.append(sent)
    squeue.cancel(jobs)
    for (sweep, record_id), names in cancelled.items():
        submission.note_cancelled(sweep, record_id, names)
    # a launcher would start the next runs; it ends those it has, and takes a second signal for haste
    launchers = {record.launcher for record, _ in local if is_launcher(record.launcher)}
    for pid in launchers | {int(job) for record, job in local if record.launcher not in launchers}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return f"cancelled {len(jobs)} SLURM jobs and {len(local)} local runs; the same launcher continues them"


def is_launcher(pid: int) -> bool:
    """Whether a launcher still runs as process ``pid``."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"launch/sweep.py" in command or b"launch/submit.py" in command
    return False
