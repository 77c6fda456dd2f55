"""Where runs go: a cluster's YAML file -> submitit's executor, for SLURM or for this machine."""

import contextlib
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import submitit
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from submitit.slurm import slurm as submitit_slurm

from ldct.config import explain
from shards.common.command import InputError

Kind = Literal["slurm", "local"]


@dataclass
class Cluster:
    """What a run asks of the machine it runs on. Every run of a sweep gets the same."""

    executor: Kind = "slurm"
    """slurm = one job array; local = processes on this machine, waited for in the foreground."""
    nodes: int = 1
    """Nodes of a run."""
    tasks_per_node: int = 1
    """Ranks on each node: one per GPU, or one or more on a machine without."""
    cpus_per_task: int = 1
    """CPU cores of a rank: one for the loop, one for the prefetch thread, the rest for CPU kernels."""
    gpus_per_node: int = 0
    """GPUs on each node, equal to tasks_per_node; 0 = train on CPUs, or on what gres says."""
    time_min: int = 60
    """Time limit in minutes. A run that needs longer is warned, saves, and goes on in a new job."""
    signal_lead_s: int = 120
    """Seconds before the time limit (slurm: up to 60 s earlier still) at which a run is warned."""
    max_requeues: int = 100
    """Time limits after which a run is no longer put back into the queue. Limits of 10 minutes or less count
    preemptions as well."""
    array_parallelism: int | None = None
    """Runs at once. Not given: slurm = as many as the queue lets; local = as many as the cores carry."""
    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account the time is charged to."""
    qos: str | None = None
    """Quality of service."""
    gres: str | None = None
    """Generic resources in SLURM's own words, e.g. gpu:a100:4, in place of gpus_per_node."""
    constraint: str | None = None
    """Features that nodes must have, e.g. a100&ib."""
    exclude: str | None = None
    """Nodes not to use."""
    mem_gb: float | None = None
    """Memory of each node in GB; not given = the partition's default, 0 = all of the node."""
    interface: str | None = None
    """Network interface of the nodes over which gloo and NCCL speak, as `ip -br link` names it, e.g. ib0; not given =
    the one that reaches the first node."""
    modules: list[str] = field(default_factory=list)
    """Environment modules to load before Python starts."""
    setup: list[str] = field(default_factory=list)
    """Shell lines to run before Python starts, e.g. source /path/venv/bin/activate."""
    python: str | None = None
    """Command that starts Python in the job; not given = the interpreter of the launcher. A container goes here:
    apptainer exec --nv image.sif python."""
    srun_args: list[str] = field(default_factory=list)
    """More arguments of srun, e.g. --container-image=... where pyxis is installed."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Any other option of sbatch, e.g. {reservation: maintenance}; null leaves one out."""

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "cpus_per_task", "time_min"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("gpus_per_node", "signal_lead_s", "max_requeues"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: expected at least 0, found {getattr(self, name)}")
        if self.array_parallelism is not None and self.array_parallelism < 1:
            raise InputError(f"array_parallelism: expected at least 1 run at once, found {self.array_parallelism}")
        if self.gpus_per_node not in (0, self.tasks_per_node):
            raise InputError(
                f"tasks_per_node: expected {self.gpus_per_node}, one rank for each of gpus_per_node, found "
                f"{self.tasks_per_node}"
            )
        if self.gres and (count := gpus_of(self.gres)) not in (0, self.tasks_per_node):
            raise InputError(
                f"tasks_per_node: expected {count}, one rank for each GPU of gres {self.gres}, found "
                f"{self.tasks_per_node}; the others would be held and do nothing"
            )
        for name in self.sbatch:
            key = str(name).lstrip("-").replace("_", "-")
            if key in RESERVED:
                raise InputError(f"sbatch.{name}: this system depends on it; {RESERVED[key]}")
        if 60 * self.time_min <= self.signal_lead_s + 60:
            raise InputError(
                f"signal_lead_s: {self.signal_lead_s} s, and up to 60 s more, before a limit of {self.time_min} min "
                "leaves no time to train; expected less, or a higher time_min"
            )
        if self.executor == "local":
            for f in dataclasses.fields(Cluster):
                if f.name in SLURM_ONLY and getattr(self, f.name) not in (None, [], {}):
                    raise InputError(f"{f.name}: only the slurm executor knows it; remove it, or set executor: slurm")
            if self.nodes > 1:
                raise InputError(f"nodes: the local executor has this one machine, found {self.nodes}")

    @property
    def world_size(self) -> int:
        """Ranks of a run."""
        return self.nodes * self.tasks_per_node

    def for_command(self, gpu: bool) -> "Cluster":
        """What one process needs: one task on one node, and one GPU if it can use one and the cluster has them."""
        kinds = [one_gpu(each) if gpu else "" if gpus_of(each) else each for each in (self.gres or "").split(",")]
        return dataclasses.replace(
            self,
            nodes=1,
            tasks_per_node=1,
            gpus_per_node=min(self.gpus_per_node, int(gpu)),
            gres=",".join(filter(None, kinds)) or None,
        )


SLURM_ONLY = (
    *("partition", "account", "qos", "gres", "constraint", "exclude"),
    *("mem_gb", "interface", "modules", "setup", "srun_args", "sbatch"),
)


RESERVED = {
    **{key: f"use {key.replace('-', '_')} instead" for key in ("nodes", "cpus-per-task", "gpus-per-node", "partition")},
    **{key: f"use {key} instead" for key in ("account", "qos", "gres", "constraint", "exclude")},
    **dict.fromkeys(("ntasks", "ntasks-per-node", "tasks-per-node"), "use tasks_per_node instead"),
    "time": "use time_min instead",
    "mem": "use mem_gb instead",
    "signal": "use signal_lead_s instead",
    "requeue": "use max_requeues instead",
    "no-requeue": "use max_requeues: 0 instead",
    "array": "the sweep file decides it, and array_parallelism",
    "job-name": "use the sweep's name instead",
    "comment": "the launcher finds its jobs by it",
    **dict.fromkeys(("output", "error", "open-mode"), "launch/status.py reads the logs where they are"),
}
"""Options of sbatch that ``sbatch`` may not hold -> what to do."""

NO_SLURM = (
    "no SLURM on this machine (srun is not on PATH); run this on a login node of the cluster, "
    "or take --cluster configs/clusters/local.yaml"
)

WAS_KILLED = ": killed from outside, perhaps out of memory"
"""What it means that what was running is gone without a word."""

LESS_MEMORY = " (then raise train.accumulate)"
"""What helps a run, but no command."""

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

LAST_WORDS_S = 45
"""Seconds after the end of a job's first rank until SLURM ends the others."""

SETUP_FAILED = "setup line failed"
"""How the line begins that a job says before it ends for a failing line of ``modules`` or ``setup``."""


def gpus_of(gres: str) -> int:
    """Number of GPUs in SLURM's words, e.g. 4 for gpu:a100:4; 0 if there are none."""
    counts = re.findall(r"(?:^|,)(?:gres:)?gpu(?::[^:,()]*[^\d:,()][^:,()]*)?(?::(\d+))?", gres)
    return sum(int(count or 1) for count in counts)


def one_gpu(gres: str) -> str:
    """A generic resource in SLURM's words, with one GPU where it is one: gpu:a100:4 -> gpu:a100:1."""
    return f"{re.sub(r':[0-9]+$', '', gres)}:1" if gpus_of(gres) else gres


LEFT_OPEN = ("account", "partition", "qos", "constraint", "reservation")
"""What a user's SBATCH_ACCOUNT, SBATCH_PARTITION, ... say where the cluster's file does not."""


def load(path: Path) -> Cluster:
    """Read a cluster's YAML file.

    Raises
    ------
    InputError
        If it cannot be read, or has a key or value that cannot be; unknown keys list the valid ones.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: expected a cluster file: {error.strerror}; configs/clusters has examples") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return from_dict(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def from_dict(content: Any) -> Cluster:
    """Cluster from a YAML file's content; a key without a value is one that is not given."""
    if not isinstance(content, dict):
        raise InputError(f"expected a mapping with executor, nodes, ..., found {type(content).__name__}")
    names = [f.name for f in dataclasses.fields(Cluster)]
    for key in content:
        if key not in names:
            raise InputError(f"unknown key {key!r}; there are: {', '.join(names)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Cluster)
    given = {key: value for key, value in content.items() if value is not None}
    try:
        return Cluster(**vars(parser.parse_object(given, defaults=False)))
    except ArgumentError as error:
        raise InputError(explain(error)) from None


def slurm_parameters(cluster: Cluster, name: str, comment: str, code: Path, runs: int) -> dict[str, Any]:
    """Parameters of submitit's SlurmExecutor: the cluster's, and what each job needs by the traps of both."""
    parameters = {
        "job_name": name,
        "comment": comment,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "gpus_per_node": cluster.gpus_per_node if cluster.gpus_per_node and not cluster.gres else None,
        "time": cluster.time_min,
        "signal_delay_s": cluster.signal_lead_s,
        "array_parallelism": cluster.array_parallelism or runs,  # submitit's own default is 256
        "mem": None if cluster.mem_gb is None else f"{int(cluster.mem_gb * 1024)}M",
        **{key: getattr(cluster, key) for key in ("partition", "account", "qos", "gres", "constraint", "exclude")},
        # submitit writes no --requeue, and a site may have JobRequeue=0
        "additional_parameters": {"requeue": True, **{k: v for k, v in cluster.sbatch.items() if v is not None}},
        # the ranks left after one is lost get the time to name it; those that wait for one that never came are ended
        "srun_args": ["--kill-on-bad-exit=0", f"--wait={LAST_WORDS_S}", *cluster.srun_args],
        "setup": setup_lines(cluster, code),
    }
    # submitit's wckey is "submitit", which a site that checks them refuses
    return {key: value for key, value in parameters.items() if value is not None} | {"wckey": None}


def setup_lines(cluster: Cluster, code: Path) -> list[str]:
    """Shell lines of the job before srun."""
    return [
        *(or_end(f"module load {shlex.quote(module)}") for module in cluster.modules),
        *map(or_end, cluster.setup),
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",  # from SLURM 22.05 on srun does not inherit it
        "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}",
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        *(f"export {name}={shlex.quote(cluster.interface)}" for name in INTERFACES if cluster.interface),
        "export PYTHONSAFEPATH=1",  # else python -m imports from the working directory before PYTHONPATH
    ]


def or_end(line: str) -> str:
    """A shell line that ends the job if it fails, and says so; it runs in the job's shell, and may set variables."""
    said = shlex.quote(f"{SETUP_FAILED}: {' '.join(line.split())}")
    return f'{{ {line}\n}} || {{ status=$?; echo {said}", exit status $status" >&2; exit $status; }}'


def slurm_executor(
    cluster: Cluster, folder: Path, name: str, comment: str, code: Path, runs: int
) -> submitit.SlurmExecutor:
    """submitit's executor for an array of ``runs`` whose files go to ``folder``.

    Raises
    ------
    InputError
        If SLURM's commands are not on this machine.
    """
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=cluster.max_requeues, python=cluster.python)
    except RuntimeError:
        raise InputError(NO_SLURM) from None
    executor.update_parameters(**slurm_parameters(cluster, name, comment, code, runs))
    return executor


@contextlib.contextmanager
def sbatch_environment(cluster: Cluster) -> Iterator[None]:
    """The environment in which sbatch is called.

    Its SBATCH_* would go over the script: the cluster's file decides, they only where it leaves one of LEFT_OPEN open.
    The SLURM_* of an allocation in which the launcher runs would reach the job, whose srun then fails or follows them.
    """
    given = {str(name).lstrip("-") for name in cluster.sbatch}
    ours = {name for name in LEFT_OPEN if name in given or getattr(cluster, name, None) is not None}
    theirs = {f"SBATCH_{name.upper()}" for name in LEFT_OPEN if name not in ours}
    theirs |= {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}
    prefixes = ("SBATCH_", "SLURM_") if "SLURM_JOB_ID" in os.environ else ("SBATCH_",)
    before = dict(os.environ)
    try:
        for name in before:
            if name.startswith(prefixes) and name not in theirs:
                del os.environ[name]
        yield
    finally:
        os.environ.update(before)


def sbatch_text(cluster: Cluster, folder: Path, name: str, comment: str, code: Path, runs: int) -> str:
    """The script that sbatch would get for an array of ``runs``, also on a machine without SLURM."""
    python = cluster.python or shlex.quote(sys.executable)  # as submitit's executor has it
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    parameters = slurm_parameters(cluster, name, comment, code, runs)
    # private: submitit writes the script on its way to sbatch only, and makes no executor where srun is missing
    return submitit_slurm._make_sbatch_string(
        command=command, folder=folder, map_count=runs if runs > 1 else None, **parameters
    )


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def local_parallelism(cluster: Cluster) -> int:
    """Runs at once on this machine: as the cluster's file says, else as many as the cores carry."""
    needed = cluster.tasks_per_node * cluster.cpus_per_task
    return cluster.array_parallelism or max(1, cores() // needed)
