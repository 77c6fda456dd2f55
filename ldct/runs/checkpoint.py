"""Checkpoints: one file each, written atomically, checked when read.

    checkpoints/step-00001000.pt    the last two, to go on from, and those that train.keep_every_steps keeps
    checkpoints/best.pt             the weights with the best validation, to use; see ldct/runs/attempts.py

A file is what torch.save writes: a zip whose members carry checksums. It holds tensors and plain values only, so
``torch.load(weights_only=True)`` reads it. It holds no random state: whatever is drawn at a step is drawn from
(seed, step, rank).
"""

import io
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldct import config as configuration
from ldct.config import Config, renamed
from ldct.runs import attempts
from shards.common.atomic import atomic
from shards.common.command import InputError, first_line

KEEP = 2
BEST = "best.pt"


class Clock:
    """When a checkpoint by the clock is due: ``every_s`` seconds after the last one."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.saved()

    def saved(self) -> None:
        """Start counting again."""
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self.last >= self.every_s


class Broken(Exception):
    """A checkpoint file that cannot be used; the message says why."""


def step_name(step: int) -> str:
    """File name of the checkpoint to go on from at ``step``."""
    return f"step-{step:08d}.pt"


def step_of(path: Path) -> int:
    """The step of a checkpoint to go on from, by its file name."""
    return int(path.stem.rpartition("-")[2])


def save(folder: Path, name: str, content: dict[str, Any], keep_every: int = 0) -> None:
    """Write ``folder/name`` whole (temporary file, fsync, rename, fsync of the folder); keep the newest KEEP steps, and
    all multiples of ``keep_every``, where that is not 0.

    Raises
    ------
    InputError
        If it cannot be written, e.g. on a full disk; the files that were there stay as they are.
    """
    buffer = io.BytesIO()
    torch.save(_canonical(content), buffer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / name) as file:
            file.write(buffer.getbuffer())
        for old in steps(folder)[KEEP:]:
            if not keep_every or step_of(old) % keep_every:
                old.unlink(missing_ok=True)
    except OSError as error:
        kept = [path.name for path in steps(folder)]
        still = f"{kept[0]} is whole" if kept else "there is no earlier one"
        raise InputError(f"cannot write {folder / name}: {error.strerror}; {still}; make room and run again") from None


def _canonical(value: Any) -> Any:
    """``value`` rebuilt with one object per string: pickle refers back to a string that it has met, which it knows by
    identity, and so equal contents would give unequal files."""
    if isinstance(value, dict):
        return {_canonical(key): _canonical(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_canonical(each) for each in value)
    return sys.intern(value) if isinstance(value, str) else value


def steps(folder: Path) -> list[Path]:
    """Checkpoints to go on from, newest first."""
    return sorted(folder.glob("step-????????.pt"), reverse=True)


def read(path: Path) -> dict[str, Any]:
    """Content of one file, on the CPU.

    Raises
    ------
    Broken
        If the file is empty, cut off or damaged. torch.load alone would take flipped bits in a tensor for weights.
    """
    try:
        buffer = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(buffer) as members:
            if (bad := members.testzip()) is not None:
                raise Broken(f"checksum of {bad} does not match")
        buffer.seek(0)
        content = torch.load(buffer, map_location="cpu", weights_only=True)
        if "config" in content:
            content["config"] = renamed.updated(content["config"], str(path))
        return content
    except Broken:
        raise
    except Exception as error:  # whatever a damaged zip or pickle makes of itself
        raise Broken(first_line(error)) from None


def readable(folder: Path) -> Iterator[dict[str, Any]]:
    """Checkpoints to go on from, newest first; a broken one is passed over with a warning."""
    for path in steps(folder):
        try:
            yield read(path)
        except Broken as error:
            print(f"warning: {path} is broken ({error}); going back to the checkpoint before it", file=sys.stderr)


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None."""
    return next(readable(folder), None)


def check_same_run(content: dict[str, Any], config: Config, manifest_sha256: str, where: Path) -> None:
    """Refuse to go on from another run's checkpoint.

    Raises
    ------
    InputError
        Naming the fields that differ, or the shards.
    """
    changed = configuration.differences(configuration.from_dict(content["config"]), config)
    if changed:
        listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
        raise InputError(f"{where} belongs to another configuration: {listed}; change it back or use another --run_dir")
    if content["manifest_sha256"] != manifest_sha256:
        raise InputError(
            f"{where} was trained on other shards (manifest {content['manifest_sha256'][:8]}, "
            f"now {manifest_sha256[:8]}); give those shards or use another --run_dir"
        )


def best_path(run: Path) -> Path:
    """Where the best weights of ``run`` are, or would be."""
    return attempts.path_of(run, f"checkpoints/{BEST}")


def read_best(run: Path) -> dict[str, Any]:
    """Content of a run's best.pt: ``model`` (weights to use, averaged if the run averages), ``step``, ``config``.

    Raises
    ------
    InputError
        If there is none yet, or it is broken.
    """
    path = best_path(run)
    if not path.is_file():
        raise InputError(f"{run} has no checkpoint to use: expected {path}; train it first with launch/train.py")
    try:
        return read(path)
    except Broken as error:
        raise InputError(
            f"{path} is broken ({error}); copy it back, or train the run again in another folder"
        ) from None


def start_from(model: nn.Module, run: Path) -> None:
    """Give ``model`` the best weights of ``run``.

    Raises
    ------
    InputError
        If they are of another network.
    """
    try:
        model.load_state_dict(read_best(run)["model"])
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"train.init_from: {run} holds another network than model describes: {why}") from None
