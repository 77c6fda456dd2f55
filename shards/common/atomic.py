"""Files that appear whole or not at all, also after a power cut."""

import contextlib
import errno
import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system without hard links answers: FAT, exFAT, some behind FUSE."""


@contextlib.contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: a rename is safe only once its directory is on disk."""
    with _open_folder(folder) as fd:
        os.fsync(fd)


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that no other process or thread uses, on this or another host that shares the disk."""
    return path.with_name(f"{path.name}.{socket.gethostname()}.{threading.get_native_id()}.tmp")


@contextlib.contextmanager
def atomic(path: Path, mode: int = 0o666, put: Callable[[Path, Path], None] = os.replace) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path``; on success fsync it and rename it to ``path``.

    After an exception the temporary file is removed and ``path`` is as it was before.

    Parameters
    ----------
    mode : int
        Permissions of the file, before the umask.
    put : callable
        Gives the temporary file, its first argument, the name that is its second.

    Raises
    ------
    OSError
        For a full disk or a folder that cannot be written.
    """
    temporary = temporary_name(path)
    try:
        temporary.unlink(missing_ok=True)  # of a process of this number that was killed
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # where it could not be made
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text`` (UTF-8), atomically."""
    with atomic(path) as file:
        file.write(text.encode())


def write_once(path: Path, text: str, mode: int = 0o666) -> bool:
    """Write ``text`` (UTF-8) to ``path`` unless it is there, atomically; whether this call wrote it.

    Of several processes that write at once, on hosts that share the disk, one does: a hard link decides which. On a
    file system without hard links it is a lock, which those of one host hold against each other.

    Parameters
    ----------
    mode : int
        Permissions of a new file, before the umask.

    Raises
    ------
    OSError
        For a full disk or a folder that cannot be written.
    """
    try:
        with atomic(path, mode, _rename_if_new) as file:
            file.write(text.encode())
    except FileExistsError:
        return False
    return True


def _rename_if_new(old: Path, new: Path) -> None:
    """Rename, or raise a FileExistsError if ``new`` is there."""
    try:
        os.link(old, new)
        old.unlink()
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with _open_folder(new.parent) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)  # the folder: no lock file is left, and a killed process holds nothing
            if new.exists():
                raise FileExistsError(new) from None
            os.replace(old, new)
