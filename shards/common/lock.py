"""One process at a time, on a lock that goes with the process that holds it."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from shards.common.command import NO_ROOM, InputError


@contextlib.contextmanager
def locked(path: Path, busy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file ``path``, which is made where it is missing and stays behind.

    The lock is flock's, not the file's being there: the kernel drops it when the process ends, after SIGKILL as well.
    Linux carries it over NFS to the server, which drops it when a dead client's lease runs out; NFS mounted with
    ``local_lock=flock`` and some parallel file systems hold it on one host only.

    Parameters
    ----------
    busy : str
        What another process does while it holds the lock, for the error.
    wait_s : float
        Seconds to wait for it; negative = for ever.

    Raises
    ------
    InputError
        If another process still holds it, or the file system has no locks, or the file cannot be written.
    """
    # without fallback_to_soft=False a file system without flock would get a lock that outlives a killed process
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_s)
    except filelock.Timeout:
        with contextlib.suppress(OSError):
            busy = f"{busy} ({path.read_text().strip() or 'unknown'})"
        raise InputError(f"{busy}; wait for it to end, or stop it") from None
    except PermissionError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose a folder of your own") from None
    except OSError as error:
        if error.errno in (errno.EROFS, *NO_ROOM):
            raise
        raise InputError(
            f"{path.parent}: its file system has no locks ({error.strerror}); choose another folder"
        ) from None
    try:
        with contextlib.suppress(OSError):  # a full disk: the name is only for the error of the next one
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        lock.release()
