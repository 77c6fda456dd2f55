"""From a sweep file to checked runs, and which of them are still to be done."""

import contextlib
import copy
import functools
import json
import os
import socket
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ldct import config as configuration
from ldct.config import Config
from ldct.runs import folder as runs
from shards import manifest
from shards.common.atomic import write_text
from shards.common.command import InputError
from slurm import squeue, submission
from slurm.cluster import Cluster
from slurm.job import Train
from slurm.sweep_file import Search, combinations

if TYPE_CHECKING:
    from slurm.commands import Part

HUNG = "lost, its job runs"
"""The state of a run whose job is there and has written no heartbeat for LOST_AFTER_S."""

CLOSED = ("finished", "running", "pending", HUNG)
"""States of what is not to be submitted: there is nothing to do, or something works on it."""


@dataclass
class Run:
    """One run of a sweep."""

    name: str
    """INDEX-HASH8: its folder's name, and its id in W&B."""
    folder: Path
    """Run folder, absolute."""
    overrides: dict[str, Any]
    """The values that the sweep chose for it."""
    config: Config
    """Everything that decides it."""
    weights: int
    """Number of trained weights."""
    state: str = "new"
    """new, pending, running, finished, failed, stopped, cancelled, lost or HUNG; see state_of."""

    @property
    def open(self) -> bool:
        """Whether it is to be submitted: not finished, and nothing works on it."""
        return self.state not in CLOSED

    @property
    def size(self) -> int:
        """Steps in all."""
        return self.config.train.steps

    @property
    def done(self) -> int:
        """Steps done."""
        return runs.read_status(self.folder).step

    def job(self) -> Train:
        """What submitit pickles and calls."""
        return Train(str(self.folder))


def plan(search: Search, cluster: Cluster, settings: list[str], root: Path) -> list[Run]:
    """All runs of a sweep, each checked in full, with the folder it has or will have.

    Parameters
    ----------
    search : Search
        The sweep file.
    cluster : Cluster
        For the number of ranks.
    settings : list of str
        FIELD=VALUE, the same for every run; goes over the base file's.
    root : Path
        Folder of all sweeps.

    Raises
    ------
    InputError
        Naming the first run that cannot be, before anything is written or submitted.
    """
    fixed = dict(parse_setting(text, search) for text in settings)
    folder = Path(os.path.abspath(root / search.name))
    submission.check_folder(folder)
    also = [name for name in search.swept if configuration.resumable(name)]  # then it tells these runs apart
    planned: dict[str, Run] = {}
    for index, values in enumerate(combinations(search)):
        chosen = {name: values[name] for name in search.swept}
        try:
            config = configure(search, {**values, **fixed})
            weights = check(config, cluster.world_size)
        except InputError as error:
            named = ", ".join(f"{name}={value}" for name, value in chosen.items()) or "the only one"
            raise InputError(f"run {index} ({named}): {error}") from None
        digest = configuration.hash8(config, also)
        name = f"{index:03d}-{digest}"
        planned.setdefault(digest, Run(name, folder / name, chosen, config, weights))
    known = folders_by_hash(folder, planned.keys(), also)
    for digest, run in planned.items():
        run.name = known.get(digest, run.name)
        run.folder = folder / run.name
        run.config.run_dir = str(run.folder)
        check_manifest(run)
    return list(planned.values())


def folders_by_hash(folder: Path, wanted: Collection[str], also: list[str]) -> dict[str, str]:
    """Hash -> name of the run folders that are there: a run keeps its folder when values are added to the sweep and
    the indices move. Where a name does not tell, as those of version 0.1 need not, the run's configuration does."""
    names = [path.parent.name for path in sorted(folder.glob("*-*/config.yaml"))]
    known = {name.rpartition("-")[2]: name for name in names}
    for name in names if wanted - known.keys() else []:
        with contextlib.suppress(InputError):
            known.setdefault(configuration.hash8(runs.read_config(folder / name), also), name)
    return known


def check_manifest(run: Run) -> None:
    """Raise an InputError if the run began on other shards than those that it would go on with."""
    trained_on = runs.manifest_of(run.folder)
    if trained_on and trained_on != manifest.digest(Path(run.config.data.shards)):
        raise InputError(
            f"{run.folder} was trained on other shards than {run.config.data.shards} (manifest {trained_on[:8]}); "
            "give those, or rename the sweep"
        )


def parse_setting(text: str, search: Search) -> tuple[str, Any]:
    """FIELD=VALUE, the value as in YAML."""
    name, equals, value = text.partition("=")
    if not equals or ("." not in name and name != "config"):
        raise InputError(f"--set: expected SECTION.FIELD=VALUE, as in train.steps=1000, found {text!r}")
    if name in search.swept:
        raise InputError(f"--set {name}: the sweep chooses this field itself; change it in the sweep file")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {name}: not valid YAML: {value!r}: {' '.join(str(error).split())}") from None


@functools.cache
def base(path: str) -> dict[str, Any]:
    """Content of a base configuration as written, checked on its own so that an error names the file."""
    configuration.load(Path(path))
    return yaml.safe_load(Path(path).read_text())


def configure(search: Search, values: dict[str, Any]) -> Config:
    """The configuration of one run: base file, then the track section from the sweep's head, then ``values``."""
    values = dict(values)
    source = values.pop("config", None)
    fields = copy.deepcopy(base(str(source))) if source else {}
    for name, value in {**{f"track.{key}": text for key, text in search.track.items()}, **values}.items():
        section, dot, field = name.partition(".")
        if not dot:
            raise InputError(f"parameter {name!r}: expected config, or a field as SECTION.FIELD, e.g. model.name")
        fields.setdefault(section, {})[field] = value
    config = configuration.from_dict(fields)
    if not config.data.shards:
        raise InputError("data.shards is not given; add --set data.shards=FOLDER")
    config.data.shards = os.path.abspath(config.data.shards)  # a job may start elsewhere
    return config


def check(config: Config, world_size: int) -> int:
    """Check what only the data and the cluster can tell, and count the trained weights.

    Raises
    ------
    InputError
        If the shards are not there or too few, the batch cannot be divided, the network cannot be made, or the
        protocol is unknown.
    """
    from ldct.metrics import protocols  # needs torch, which takes seconds to import

    protocols.get(config.val.protocol)
    pairs = check_shards(Path(config.data.shards), config.data.min_body)
    batch, parts = config.train.global_batch, world_size * config.train.accumulate
    if batch % parts:
        raise InputError(
            f"train.global_batch: expected a multiple of {parts} ({world_size} ranks x {config.train.accumulate} "
            f"accumulated parts), found {batch}; {batch // parts * parts or parts} would do"
        )
    if pairs < batch:
        raise InputError(
            f"{config.data.shards} has {pairs} training pairs with data.min_body={config.data.min_body}, fewer than "
            f"one train.global_batch of {batch}; build more shards or lower one of the two"
        )
    return count_weights(json.dumps(vars(config.model)))


@functools.cache
def check_shards(folder: Path, min_body: float) -> int:
    """Number of training pairs; all shards must be there in full (their checksums are for shards/verify.py)."""
    content = manifest.load(folder)
    content.of_split("val")
    for shard in content.shards:
        path = folder / shard.name
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            found = "no file" if size is None else f"{size} bytes"
            raise InputError(f"{path}: expected {shard.bytes} bytes, found {found}; build or copy the shards again")
    return sum(body >= min_body for s in content.of_split("train") for record in s.records for body in record.body)


@functools.cache
def count_weights(model: str) -> int:
    """Trained weights of a ModelConfig given as JSON."""
    from ldct import models  # needs torch, as above

    return models.describe(configuration.ModelConfig(**json.loads(model))).parameters


def note_states(planned: list[Run], folder: Path) -> None:
    """Set the state of every run from its folder, the record of submissions and, where there is one, the queue."""
    last = submission.latest(folder)
    jobs = squeue.live([job for record, job in last.values() if record.executor == "slurm"])
    for run in planned:
        status = runs.read_status(run.folder)
        run.state = state_of(run.name, status, last.get(run.name), jobs, run.config.train.steps)
        if run.state == "finished" and not status.stopped_early and 0 < status.steps < run.config.train.steps:
            run.state = "stopped"  # and goes on, for train.steps has grown


def left_behind(planned: list[Run], folder: Path) -> str:
    """One line on jobs of runs that the sweep file does not have, as those of the values before; "" if none is."""
    last, names = submission.latest(folder), {run.name for run in planned}
    sent = {job for name, (record, job) in last.items() if name not in names and job and record.executor == "slurm"}
    if jobs := sorted(sent & squeue.live(sent).keys()):
        return f"note: jobs of runs that the sweep file does not have go on; to end them: scancel {' '.join(jobs)}"
    return ""


def state_of(
    name: str,
    status: runs.Status,
    sent: tuple[submission.Submission, str] | None,
    jobs: dict[str, squeue.Job],
    steps: int = 0,
) -> str:
    """What is known of the run called ``name``, which has this status.

    A finished one with more ``steps`` to do than it had is pending or running where a job is there for them.

    pending and running mean that something works on it or will; "new" that nothing ever did. submitit's own
    ``done()`` and ``state`` are not asked: they count a lost node as the end of a job that SLURM runs again.
    """
    more = 0 < status.steps < steps and not status.stopped_early
    if status.state == "finished" and not more:
        return "finished"
    if sent:
        record, job = sent
        if record.executor == "local" and record.host == socket.gethostname():
            if submission.local_alive(record, job):
                return alive(status, submission.began(job)) if status.state == "running" else "pending"
            return ended(name, status, record)
        if record.executor == "slurm":
            entry = jobs.get(job or submission.find_jobs(record, jobs).get(name, ""))
            if entry:
                return "pending" if entry.waiting else alive(status, entry.began)
            return ended(name, status, record)
    if status.state == "running":  # started by hand, or from another machine: its heartbeat is all there is
        return "lost" if status.lost else "running"
    return status.state.replace("pending", "new")


def alive(status: runs.Status, began: float) -> str:
    """State of a run whose job has run since ``began``; until it writes, the heartbeat is that of an earlier one."""
    silent_s = time.time() - max(status.heartbeat, began)
    return HUNG if status.state == "running" and silent_s > runs.LOST_AFTER_S else "running"


def ended(name: str, status: runs.Status, record: submission.Submission) -> str:
    """State of a run whose job is gone."""
    if status.state == "pending":
        return "cancelled" if name in record.cancelled else "new"
    return "lost" if status.state == "running" else status.state


def end_hung(planned: Sequence["Run | Part"], folder: Path) -> None:
    """End the jobs of runs, or parts of a command, that hang, so that they can be submitted again.

    Nobody waits for their end: what such a job still writes counts for nothing once the next one has begun.
    """
    last = submission.latest(folder)
    hung = [run for run in planned if run.state == HUNG]
    for run in hung:
        record, job = last[run.name]
        if record.executor == "local":
            raise InputError(f"{run.name} hangs in process {job} of this machine; end it with kill -9, then run again")
        run.state = "lost"
    squeue.cancel([last[run.name][1] for run in hung])


def write_configs(chosen: list[Run]) -> None:
    """Make the run folders. In threads: each file waits for the disk, not for the processor."""

    def write(run: Run) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            write_text(run.folder / "config.yaml", configuration.to_yaml(run.config))
        except OSError:  # a full disk
            with contextlib.suppress(OSError):
                run.folder.rmdir()  # if it is new, and so empty
            raise

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, chosen))
