"""Runs, and parts of commands, on this machine: submitit's local executor, with a bound on how many run at once."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import submitit

from ldct.runs import folder as runs
from shards.common.command import InputError, Progress
from slurm import submission
from slurm.cluster import LESS_MEMORY, WAS_KILLED, Cluster, cores, local_parallelism
from slurm.submission import Submission, Work

POLL_S = 0.2


class Local:
    """Starts runs as others end, and shows how far all of them are.

    On Ctrl-C the runs save at their next step and end, and the next launcher continues them. submitit's controllers
    ignore Ctrl-C, which would end them before their runs; the launcher passes it on as SIGTERM. If the launcher is
    killed the runs go on; the next launcher finds them and waits for them.

    Parameters
    ----------
    cluster : Cluster
        executor: local.
    sweep : Path
        The sweep's folder.
    code : Path
        Copy of the code that the runs import.
    what, unit : str
        What one of them is, and what its size is counted in, for people.
    """

    def __init__(self, cluster: Cluster, sweep: Path, code: Path, what: str = "run", unit: str = "steps") -> None:
        self.cluster, self.sweep, self.code, self.what, self.unit = cluster, sweep, code, what, unit
        self.gpus = gpus_here() if cluster.gpus_per_node else []
        self.slots = slots(cluster, self.gpus)
        self.busy: dict[str, tuple[int, Submission, str]] = {}
        self.jobs: list[Any] = []  # submitit's, kept so that ended controllers are reaped

    def run(self, adopted: Sequence[Work], chosen: Sequence[Work]) -> None:
        """Do ``chosen``, and wait for those of ``adopted`` that an earlier launcher started here."""
        last = submission.latest(self.sweep)
        adopted = [run for run in adopted if run.name in last and submission.local_alive(*last[run.name])]
        everything = [*adopted, *chosen]
        if not everything:
            return
        for slot, run in enumerate(adopted):
            self.busy[run.name] = (slot, *last[run.name])
        waiting = list(chosen)
        if waiting:
            self.record, self.logs = submission.new(self.sweep, "local", [run.name for run in waiting], self.code)
        total, done = sum(run.size for run in everything), sum(run.done for run in everything)
        what = self._count(len(everything))
        with Interrupts() as interrupts, Progress(what, total, self.unit, done) as progress:
            while waiting or self.busy:
                self._settle(everything)
                while waiting and len(self.busy) < self.slots and not interrupts.came:
                    self._start(waiting.pop(0))
                time.sleep(POLL_S)
                if interrupts.came:
                    self._stop()
                    raise KeyboardInterrupt
                steps = sum(run.done for run in everything)
                progress.update(max(0, steps - progress.done), f"{len(self.busy)} running, {len(waiting)} waiting")

    def _start(self, run: Work) -> None:
        slot = min(set(range(self.slots)) - {used for used, *_ in self.busy.values()})
        cluster = self.cluster
        executor = submitit.LocalExecutor(self.logs, max_num_timeout=cluster.max_requeues, python=cluster.python)
        gpus = cluster.gpus_per_node
        executor.update_parameters(
            tasks_per_node=cluster.tasks_per_node,
            gpus_per_node=gpus,
            visible_gpus=self.gpus[slot * gpus : (slot + 1) * gpus],
            timeout_min=cluster.time_min,
            signal_delay_s=cluster.signal_lead_s,
        )
        with child_environment(self.slots * cluster.tasks_per_node, self.code):
            job = executor.submit(run.job())
        self.jobs.append(job)
        self.record.jobs[run.name] = job.job_id
        submission.save(self.record, self.logs)
        self.busy[run.name] = (slot, self.record, job.job_id)

    def _settle(self, everything: list[Work]) -> None:
        """Take note of runs that ended; a failure is one line that names its log."""
        for job in self.jobs:
            job.get_info()
        for run in everything:
            if run.name in self.busy and not submission.local_alive(*self.busy[run.name][1:]):
                _, record, job = self.busy.pop(run.name)
                status = runs.read_status(run.folder)
                if status.state != "finished":
                    killed = WAS_KILLED + LESS_MEMORY * (self.what == "run") if status.state == "running" else ""
                    why = status.error or f"ended while {status.state}{killed}"
                    print(f"failed: {run.name}: {why}; log: {submission.log_of(self.sweep, record, job)}", flush=True)

    def _count(self, number: int) -> str:
        return f"{number} {self.what}{'s' * (number != 1)}"

    def _stop(self) -> None:
        """Let every run save and end. TERM is sent again: one that comes while a run still starts is lost."""
        when = f" at {'its' if len(self.busy) == 1 else 'their'} next step" if self.what == "run" else ""
        print(f"stopping {self._count(len(self.busy))}{when}", file=sys.stderr, flush=True)
        while self.busy:
            for _, _, job in self.busy.values():
                with suppress(ProcessLookupError):
                    os.kill(int(job), signal.SIGTERM)
            for _ in range(10):
                time.sleep(POLL_S)
                for job in self.jobs:
                    job.get_info()
                self.busy = {k: v for k, v in self.busy.items() if submission.local_alive(*v[1:])}


def gpus_here() -> list[int]:
    """Numbers of the GPUs that this process may use: CUDA_VISIBLE_DEVICES where it is set, else all of the machine.

    Raises
    ------
    InputError
        If CUDA_VISIBLE_DEVICES names them in another way: submitit passes on numbers.
    """
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        import torch  # takes seconds, and few sweeps here have GPUs

        return list(range(torch.cuda.device_count()))
    try:
        return [int(number) for number in told.split(",") if number.strip()]
    except ValueError:
        raise InputError(f"CUDA_VISIBLE_DEVICES: expected numbers, as in 0,1, found {told!r}; set it so") from None


def slots(cluster: Cluster, gpus: list[int]) -> int:
    """Runs at once: as many as the cluster's file or the cores say, and no more than there are GPUs for.

    Raises
    ------
    InputError
        If there are not even GPUs for one run: it would train on the CPU without a word.
    """
    wanted = local_parallelism(cluster)
    if not cluster.gpus_per_node:
        return wanted
    if len(gpus) < cluster.gpus_per_node:
        raise InputError(
            f"gpus_per_node: expected at most the {len(gpus)} GPUs that this machine shows, found "
            f"{cluster.gpus_per_node}; lower it, or set it to 0 to train on the CPU"
        )
    return min(wanted, len(gpus) // cluster.gpus_per_node)


@contextmanager
def child_environment(ranks: int, code: Path) -> Iterator[None]:
    """The environment and the disposition of Ctrl-C that a started run inherits.

    Each rank gets its share of the cores: without that, every one would start as many threads as there are cores.
    An ignored signal stays ignored over exec, and Python then installs no handler for it.
    """
    path = os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])
    wanted = {"OMP_NUM_THREADS": str(max(1, cores() // ranks)), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    before = {key: os.environ.get(key) for key in wanted}
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        signal.signal(signal.SIGINT, handler)


class Interrupts:
    """Ctrl-C, SIGTERM and the loss of the terminal, noted until no run is half started; a second one ends at once."""

    def __enter__(self) -> "Interrupts":
        self.came = False
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
