"""One writer of a run, on a shared disk without locks.

Two processes can train one run without knowing of each other: SLURM gives up a node that is only cut off and starts the
job again elsewhere, or somebody starts the same command twice. So every process that trains a run takes a number first,
by making the folder attempts/NUMBER, which succeeds for one process only. The run belongs to the highest number.

Looking whether there is a higher one before each write is not enough: a process may be stopped between the look and the
write for hours. So what an attempt writes again and again stands in its own folder, where nobody else writes, and
the usual names point there::

    metrics.jsonl -> attempts/0002/metrics.jsonl
    status.json -> attempts/0002/status.json
    checkpoints/best.pt -> ../attempts/0002/best.pt

A write that comes too late ends up in the folder of an earlier attempt, or turns one of the links back. Readers do not
follow the links: they take the file of the highest attempt that has it. Checkpoints to go on from need none of this: a
run is a function of its configuration, so whichever attempt wrote step 1000, it is the same state.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from shards.common.atomic import temporary_name
from shards.common.command import InputError

FOLDER = "attempts"

KEPT = 2
"""Attempts whose folders are kept: the last one, and the one it went on from."""


class Superseded(InputError):
    """A newer attempt of the same run has begun; this one must not write any more."""


def numbers(run: Path) -> list[int]:
    """Numbers of the attempts, newest first; empty for a run that never started, or was trained before 0.2.0."""
    try:
        names = os.listdir(run / FOLDER)
    except OSError:
        return []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def folders(run: Path) -> list[Path]:
    """Folders of the attempts, newest first."""
    return [run / FOLDER / f"{number:04d}" for number in numbers(run)]


def path_of(run: Path, name: str) -> Path:
    """Where ``name`` (metrics.jsonl, status.json or checkpoints/best.pt) of a run is to be read.

    That is in the newest attempt that has it; in the run folder itself where no attempt has.
    """
    own = [folder / Path(name).name for folder in folders(run)]
    return next((path for path in own if path.is_file()), run / name)


class Attempt:
    """The right to write into a run's folder, until somebody takes the next number.

    Parameters
    ----------
    run : Path
        Run folder.
    least : int
        Smallest number to take.
    """

    def __init__(self, run: Path, least: int = 1) -> None:
        self.run = run
        self.number = max([least, *(number + 1 for number in numbers(run))])
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
        while True:
            self.folder = run / FOLDER / f"{self.number:04d}"
            try:
                self.folder.mkdir()  # exclusive on NFS as well
                return
            except FileExistsError:
                self.number += 1

    def check(self) -> None:
        """Raise Superseded if a newer attempt has begun. To be called before every write."""
        newest = max(numbers(self.run), default=0)
        if newest > self.number:
            raise Superseded(
                f"attempt {newest} of {self.run} has begun and goes on with it; this one, attempt {self.number}, ends"
            )

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Around a write of ``name``: look first, yield this attempt's own path for it, then point ``name`` there.

        Raises
        ------
        Superseded
            If a newer attempt has begun.
        """
        self.check()
        own = self.folder / Path(name).name
        try:
            yield own
        except (OSError, InputError):
            self.check()  # newer attempts remove this one's folder
            raise
        self._point(self.run / name, own)

    def _point(self, link: Path, own: Path) -> None:
        target = os.path.relpath(own, link.parent)
        if link.is_symlink() and os.readlink(link) == target:
            return
        self.check()
        try:
            link.parent.mkdir(exist_ok=True)
        except FileExistsError:
            raise InputError(f"cannot write {link}: {link.parent} is a file; remove it and run again") from None
        temporary = temporary_name(link)
        os.symlink(target, temporary)
        os.replace(temporary, link)

    def remove_earlier(self) -> None:
        """Remove the folders of attempts that nobody goes on from any more."""
        for folder in folders(self.run)[KEPT:]:
            if int(folder.name) < self.number:
                shutil.rmtree(folder, ignore_errors=True)
