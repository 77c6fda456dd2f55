"""Shards copied to a disk of the node before training: random reads of 12 kB are slow on a shared file system."""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from ldct.config import Config
from ldct.device import free_memory
from shards import index, manifest
from shards.common.atomic import atomic
from shards.common.command import InputError, Progress
from shards.common.lock import locked

PREFIX = f"ldct-{os.getuid()}-"
"""Of the folders made here, each user's own; the manifest's hash follows."""

USED = ".used"
"""In such a folder: every process that reads from it holds a shared lock on this file, until it ends."""

COMPLETE = ".complete"
"""In such a folder: everything is there and was checked."""

PIECE = 1 << 20

MEMORY = ("tmpfs", "ramfs")
"""File systems whose files are a control group's memory, as /dev/shm."""

ADVICE = "name a larger disk, or leave data.stage out"


@contextlib.contextmanager
def staged(config: Config) -> Iterator[Config]:
    """``config`` with its shards in ``data.stage`` for as long as the block lasts; as it is where none is named.

    The first process of the node copies, the others wait for it. The last one to leave removes the copy; what killed
    processes left behind is removed by the next that stages anything there.

    Raises
    ------
    InputError
        If the copy does not fit, cannot be written, or differs from the manifest.
    """
    if not config.data.stage:
        yield config
        return
    shards, place = Path(config.data.shards), Path(os.path.expandvars(config.data.stage))
    if "$" in str(place):
        raise InputError(
            f"data.stage: expected a folder, found {place}, of which a variable is not set on {socket.gethostname()}; "
            "name a folder, or leave data.stage out"
        )
    folder = place / f"{PREFIX}{manifest.digest(shards)[:16]}"
    lock = place / f"{PREFIX}lock"
    with locked(lock, f"copies shards to {place}", wait_s=-1):
        for other in place.glob(f"{PREFIX}*/"):
            if other != folder:
                remove_unused(other)
        copy(shards, folder)
        used = open(folder / USED, "a")  # noqa: SIM115 (held while the block lasts)
        fcntl.flock(used, fcntl.LOCK_SH)
    try:
        yield dataclasses.replace(config, data=dataclasses.replace(config.data, shards=str(folder)))
    finally:
        with locked(lock, f"copies shards to {place}", wait_s=-1):
            used.close()
            remove_unused(folder)


def copy(shards: Path, folder: Path) -> None:
    """Copy what training reads from ``shards`` into ``folder``, unless that is complete; checked by sha256."""
    checksums = {shard.name: shard.sha256 for shard in manifest.load(shards).shards if shard.split != "test"}
    sizes = {name: (shards / name).stat().st_size for name in [*checksums, manifest.NAME]}  # test is not trained on
    complete = (folder / COMPLETE).exists()
    if not complete:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed process copied
        sizes |= {path.name: path.stat().st_size for path in [shards / index.NAME] if path.is_file()}
    # of a complete copy a cleaner of old files may have taken some; others may read the rest at this moment
    lacking = [name for name, size in sizes.items() if size_of(folder / name) != size]
    if complete and not lacking:
        return
    needed = sum(sizes[name] for name in lacking)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free, where = shutil.disk_usage(folder).free, ""
        if in_memory(folder):
            free, where = min(free, free_memory() or free), ", in memory"
        if needed > free:
            raise InputError(
                f"data.stage: the shards that training reads take {needed / 1e9:.1f} GB, {folder.parent} has "
                f"{free / 1e9:.1f} GB free{where}; {ADVICE}"
            )
        with Progress(f"copying shards to {folder}", needed >> 20, "MB") as progress:
            for name in lacking:
                digest = copy_file(shards / name, folder / name, progress)
                if digest != checksums.get(name, digest):
                    raise InputError(f"{shards / name} differs from the manifest; run shards/verify.py {shards}")
        (folder / COMPLETE).touch()
    except (InputError, OSError) as error:
        if not complete:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, InputError):
            raise
        raise InputError(f"data.stage: cannot copy the shards to {folder}: {error.strerror}; {ADVICE}") from None


def size_of(path: Path) -> int:
    """Bytes of a file, -1 where there is none."""
    return path.stat().st_size if path.is_file() else -1


def in_memory(folder: Path) -> bool:
    """Whether ``folder`` lies in a file system whose files take the memory of the processes that write them."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    kinds = {Path(where): kind for _, where, kind, *_ in mounts}
    return next(kinds[path] for path in (folder.resolve(), *folder.resolve().parents) if path in kinds) in MEMORY


def copy_file(source: Path, target: Path, progress: Progress) -> str:
    """Copy one file, written atomically; its sha256."""
    digest, pending = hashlib.sha256(), 0
    with open(source, "rb") as reader, atomic(target) as writer:
        while piece := reader.read(PIECE):
            digest.update(piece)
            writer.write(piece)
            pending += len(piece)
            progress.update(pending >> 20)
            pending %= PIECE
    return digest.hexdigest()


def remove_unused(folder: Path) -> None:
    """Remove a copy that no process reads from."""
    try:
        with open(folder / USED, "a") as used:
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # somebody holds it, or it is not ours to remove
        return
