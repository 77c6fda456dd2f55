"""The run folder: its files, its status, where it comes from. Read by everything above.

config.yaml       the resolved configuration
provenance.json   code, packages, host and data of every attempt
checkpoints/      see ldct/runs/checkpoint.py
metrics.jsonl     one JSON object per line, each with its step: the record of the run
status.json       state, step, rate, heartbeat, attempt, last error
attempts/         what the last attempts wrote; metrics.jsonl and status.json point there, see ldct/runs/attempts.py
eval/             pictures and tables
wandb/            what Weights & Biases keeps
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldct import config as configuration
from ldct.config import Config
from ldct.runs import attempts
from shards.common.atomic import write_text
from shards.common.command import InputError

STOPPED_EARLY = "stopped early"
"""What people read of a finished run that ended behind its siblings."""

STATES = ("pending", "running", "stopped", "finished", "failed")
"""stopped = ended by a signal at a step boundary, to be continued; failed = ended by an error."""

LOST_AFTER_S = 180.0
"""A running run whose heartbeat is older than this is taken for lost; the loop writes one every HEARTBEAT_S."""

HEARTBEAT_S = 10.0

METRICS, STATUS = "metrics.jsonl", "status.json"

VARYING = ("attempt", "elapsed_s", "patches_per_s", "data_wait")
"""Keys of metrics.jsonl that differ between two identical runs."""

SNAPSHOT = "snapshot.json"
"""In a copy of the code made for a sweep: the git state it was copied from."""


@dataclass
class Status:
    """What status.json holds. Times are Unix seconds."""

    state: str = "pending"
    """One of STATES."""
    step: int = 0
    """Optimizer steps done."""
    steps: int = 0
    """Optimizer steps in all."""
    rate: float = 0.0
    """Steps per second over the last interval."""
    patches_per_s: float = 0.0
    """Patch pairs per second over the last interval, all ranks."""
    data_wait: float = 0.0
    """Share of the last interval that rank 0 waited for data."""
    eta_s: float | None = None
    """Seconds to the last step at that rate."""
    heartbeat: float = 0.0
    """When this file was last written by the run."""
    attempt: int = 0
    """Number of the attempt that wrote this; see ldct/runs/attempts.py."""
    train_s: float = 0.0
    """Seconds spent in the loop, over all attempts."""
    saving_s: float = 0.0
    """Of train_s, seconds in which checkpoints were written."""
    validating_s: float = 0.0
    """Of train_s, seconds in which it validated."""
    world_size: int = 1
    """Ranks."""
    device: str = ""
    """Name of rank 0's device; GPU-hours count only where it is a GPU."""
    best: dict[str, float] = field(default_factory=dict)
    """Step and value of the best validation."""
    stopped_early: int = 0
    """Step at which the run ended behind its siblings, as its sweep's early_terminate says; 0 if it did not."""
    flags: list[str] = field(default_factory=list)
    """What a person should look at, e.g. "worse than the low dose"."""
    error: str = ""
    """Last line of the traceback, if failed."""
    host: str = ""
    """Host of rank 0."""
    pid: int = 0
    """Process of rank 0."""
    job: str = ""
    """SLURM job, as ARRAY_TASK in an array; empty outside SLURM."""

    @property
    def lost(self) -> bool:
        """Whether the run says it is running but has not been heard of for LOST_AFTER_S."""
        return self.state == "running" and time.time() - self.heartbeat > LOST_AFTER_S

    @property
    def due(self) -> bool:
        """Whether the run is to write its heartbeat; also where the clock was put back since."""
        return not 0 <= time.time() - self.heartbeat < HEARTBEAT_S

    @property
    def gpu_hours(self) -> float | None:
        """GPUs of the training times the hours that it took; None on CPUs."""
        return self.train_s * self.world_size / 3600 if on_gpu(self.device) else None


def on_gpu(device: str) -> bool:
    """Whether the name of a device, as ldct.device.device_name gives it, is a GPU's."""
    return bool(device) and not device.lower().startswith("cpu")


def read_status(folder: Path) -> Status:
    """Status of the run in ``folder``; of one that never started, the state pending.

    A file that is there but cannot be read does not mean "never started": the state is failed, the error says why.
    """
    path = attempts.path_of(folder, STATUS)
    try:
        fields = json.loads(path.read_text()).items()
    except FileNotFoundError:
        return Status()
    except (OSError, ValueError, AttributeError) as error:
        why = getattr(error, "strerror", None) or ("torn" if path.stat().st_size else "empty")
        return Status("failed", error=f"status.json unreadable ({why}); a restart goes on from the last checkpoint")
    known = {f.name for f in dataclasses.fields(Status)}
    return Status(**{key: value for key, value in fields if key in known})


def write_status(folder: Path, status: Status) -> None:
    """Replace status.json, the newest attempt's where there is one, and set the heartbeat."""
    status.heartbeat = time.time()
    newest = next(iter(attempts.folders(folder)), folder)
    write_text(newest / STATUS, json.dumps(dataclasses.asdict(status), indent=1) + "\n")


def read_config(folder: Path) -> Config:
    """Configuration of the run in ``folder``.

    Raises
    ------
    InputError
        If ``folder`` is not a run folder.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"{folder} is not a run: it has no config.yaml; give a folder made by launch/train.py or sweep.py"
        )
    return configuration.load(folder / "config.yaml", own=True)


def names(folders: Iterable[Path]) -> dict[Path, str]:
    """A name for each folder: the last parts of its path, as few as tell it from the others."""
    paths = {folder: folder.resolve().parts for folder in folders}
    told: dict[Path, str] = {}
    length = 0
    while len(told) < len(paths):
        length += 1
        counts = Counter(parts[-length:] for parts in paths.values())
        for folder, parts in paths.items():
            if folder not in told and (counts[parts[-length:]] == 1 or length >= len(parts)):
                told[folder] = "/".join(parts[-length:])
    return {folder: told[folder] for folder in paths}


def find_runs(roots: list[Path]) -> list[Path]:
    """Run folders at or below ``roots``, sorted by name.

    Raises
    ------
    InputError
        If a root does not exist, or no run is found.
    """
    folders: dict[Path, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise InputError(f"expected a folder of runs, found nothing at {root}")
        for folder, below, files in os.walk(root):
            if "config.yaml" in files:
                folders.setdefault(Path(folder).resolve(), Path(folder))  # a root may be given twice, in two spellings
                below.clear()  # a run holds no other run, and its checkpoints need no walk
            below[:] = [name for name in below if not name.startswith(".")]
    if not folders:
        raise InputError(f"no run below {', '.join(map(str, roots))}: none of the folders holds a config.yaml")
    return sorted(folders.values())


class Metrics:
    """metrics.jsonl in ``folder``, written by rank 0. Each line is written at once; ``count`` is their number."""

    def __init__(self, folder: Path) -> None:
        self.path, self.count = folder / METRICS, 0

    def append(self, line: dict[str, Any]) -> None:
        """Add one line; it must have ``step``. NaN is not JSON and is written as null."""
        with open(self.path, "a") as file:
            file.write(json.dumps(_plain(line)) + "\n")
        self.count += 1

    def begin(self, lines: list[dict[str, Any]]) -> None:
        """Start with ``lines``, those of earlier attempts that the restored checkpoint knows."""
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        self.count = len(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, the newest attempt's; see read_lines."""
    return read_lines(attempts.path_of(folder, METRICS))


def lines_before(folder: Path, step: int, count: int) -> list[dict[str, Any]] | None:
    """The ``count`` lines that a run had written at the checkpoint of ``step``; None where no attempt has them.

    Newer attempts are asked first; one that went on from an earlier checkpoint does not have as many yet.
    """
    for place in (*attempts.folders(folder), folder):
        lines = read_lines(place / METRICS)
        before, after = lines[:count], lines[count:]
        in_order = [*(line["step"] for line in before[-1:]), step, *(line["step"] for line in after[:1])]
        if len(before) == count and in_order == sorted(in_order):
            return before
    return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a torn last line is left out, no file is no lines."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break  # the write was cut off here
    return lines


@functools.cache
def code_version() -> dict[str, str]:
    """Commit and uncommitted diff of the code that runs; of a sweep's copy, those it was copied from."""
    root = Path(__file__).resolve().parents[2]
    if (root / SNAPSHOT).is_file():
        return json.loads((root / SNAPSHOT).read_text())

    def git(*args: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
        except OSError:  # no git in a container
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    return {"commit": git("rev-parse", "HEAD"), "diff": git("diff", "HEAD")}


def write_provenance(folder: Path, manifest_sha256: str, attempt: int = 1) -> None:
    """Add this attempt to provenance.json: code, packages, host, command and data."""
    entries = read_provenance(folder)
    names = ("torch", "numpy", "pydicom", "webdataset", "wandb", "submitit", "torchmetrics")
    entries.append(
        {
            "attempt": attempt,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "code": code_version(),
            "packages": {name: package_version(name) for name in names},
            "python": platform.python_version(),
            "host": socket.gethostname(),
            "command": sys.argv,
            "job": slurm_job(),
            "manifest_sha256": manifest_sha256,
        }
    )
    write_text(folder / "provenance.json", json.dumps(entries, indent=1) + "\n")


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """Entries of provenance.json, one for each attempt, oldest first; empty where none is written."""
    try:
        return json.loads((folder / "provenance.json").read_text())
    except (OSError, ValueError):
        return []


def code_of(folder: Path) -> dict[str, str]:
    """Commit and diff of the code that last trained the run in ``folder``; empty where nothing was written down."""
    entries = read_provenance(folder)
    return entries[-1]["code"] if entries else {}


def changed_on_the_way(status: Status, steps: int, provenance: list[dict[str, Any]]) -> list[str]:
    """What a person should know of a run that did not stay the same, one text each.

    Parameters
    ----------
    status : Status
        Its status.
    steps : int
        ``train.steps`` of its config.yaml.
    provenance : list of dict
        Entries of its provenance.json.
    """
    versions = list(dict.fromkeys(version_name(entry["code"]) for entry in provenance if "code" in entry))
    changes = []
    if len(versions) > 1:
        changes.append(f"trained by {len(versions)} versions of the code: {', '.join(versions)}")
    if status.steps not in (0, steps):
        changes.append(f"train.steps was edited: {steps} in config.yaml, {status.steps} when it trained")
    return changes


def version_name(code: dict[str, str]) -> str:
    """The commit of ``code``, and a number for what was changed in it."""
    changes = f" with changes {hashlib.sha256(code['diff'].encode()).hexdigest()[:4]}" if code["diff"] else ""
    return (code["commit"][:8] or "unknown") + changes


def manifest_of(folder: Path) -> str:
    """Hash of the manifest of the shards that the run in ``folder`` was last trained on; "" where none is known."""
    entries = read_provenance(folder)
    return entries[-1]["manifest_sha256"] if entries else ""


@functools.cache
def package_version(name: str) -> str:
    """Version of an installed package, or that it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def here() -> tuple[str, int]:
    """Host and process id of this process."""
    return socket.gethostname(), os.getpid()


def slurm_job() -> str:
    """The SLURM job of this process as SLURM's own commands address it: ``ID``, or ``ARRAY_TASK`` in an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
